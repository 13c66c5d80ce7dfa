// What the explainer computes in the page, held against a table that Python's samplers wrote.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { choice, mixed, penalized, pick, ranked, softmax } from "../src/teach/sampling.js";

const TABLE = JSON.parse(readFileSync(new URL("./sampler_table.json", import.meta.url), "utf8"));

test("guidance, grammar and samplers leave the page what they leave the library", () => {
  assert.ok(TABLE.rows.length >= 50);
  TABLE.rows.forEach((row, at) => {
    const streams = row.streams.map((stream) => Float32Array.from(stream));
    const logits = mixed(streams, row.strengths);
    row.mixed.forEach((logit, token) => assert.ok(Math.abs(logits[token] - logit) < 2e-4, `row ${at}, token ${token}`));
    const less = penalized(logits, row.written, row.sampler.repetition);
    const left = choice(ranked(less, Uint8Array.from(row.allowed)), less, row.sampler);
    const picks = TABLE.draws.map((draw) => left.order[pick(left, draw)]);
    assert.deepEqual(picks, row.picks, `row ${at}: ${JSON.stringify(row.sampler)}`);
  });
});

test("what is cut says by which setting", () => {
  const logits = Float32Array.from([3, 2, 1, 0, -9]);
  const order = ranked(logits, Uint8Array.from([1, 1, 1, 1, 1]));
  const all = { temperature: 1, top_p: 1, top_k: 0, min_p: 0, repetition: 1 };
  const cuts = (change) => {
    const left = choice(order, logits, { ...all, ...change });
    return [left.count, left.cut(left.count - 1), left.cut(4)];
  };
  assert.deepEqual(cuts({}), [5, "", ""]);
  assert.deepEqual(cuts({ top_k: 2 }), [2, "", "not among the likeliest 2 (top-k)"]);
  assert.deepEqual(cuts({ top_p: 0.7 }), [2, "", "beyond the first 70 % (top-p)"]);
  assert.deepEqual(cuts({ min_p: 0.3 }), [2, "", "under 30 % of the likeliest (min-p)"]);
  assert.deepEqual(cuts({ temperature: 0 }), [1, "", "temperature 0 takes the likeliest"]);
});

test("a softmax sums to one, whatever its logits", () => {
  for (const logits of [
    [1000, 999],
    [-1e9, 0],
    [-Infinity, 2, 2],
  ]) {
    const shares = softmax(logits);
    assert.ok(Math.abs(shares.reduce((sum, share) => sum + share) - 1) < 1e-12);
  }
});
