// What the explainer computes in the page, held against a table that Python's samplers wrote.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { runs } from "../src/teach/mask_triangle.js";
import { choice, mixed, penalized, pick, ranked, softmax } from "../src/teach/sampling.js";
import { height, leftOut, likeliest, spread } from "../src/teach/softmax_chart.js";
import { ticks } from "../src/teach/vocabulary_line.js";

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

const BLOCKS = [
  { first: 0, stop: 4 },
  { first: 4, stop: 516 },
  { first: 516, stop: 527 },
  { first: 527, stop: 1039 },
];

test("the rulers show a token between its neighbours, and where each block begins", () => {
  const ids = ticks(BLOCKS, 26);
  assert.deepEqual(ids, [0, 1, null, 4, 5, null, 24, 25, 26, 27, 28, null, 516, 517, null, 527, 528]);
  assert.deepEqual(ticks(BLOCKS, 5).slice(0, 8), [0, 1, 2, 3, 4, 5, 6, 7], "a gap of one id is no gap");
  assert.deepEqual(ticks(BLOCKS, 1038).slice(-3), [1036, 1037, 1038]);
});

test("the spectrum spans the whole width, ids in their order, small blocks wide enough", () => {
  const place = spread(BLOCKS, 800);
  const places = Array.from({ length: 1039 }, (_, token) => place(token));
  assert.ok(places.every((x, token) => x > (places[token - 1] ?? 0) && x < 800));
  assert.ok(places[4] - places[0] > 25 && places[527] - places[516] > 30);
  assert.deepEqual([1, 1e-5, 0].map(height), [1, 0, 0]);
});

test("neighbours of one modality are one band of the mask", () => {
  const tokens = [2, 0, 0, 2, 1, 1, 1].map((modality) => ({ modality }));
  assert.deepEqual(runs(tokens), [
    [2, 0, 1],
    [0, 1, 3],
    [2, 3, 4],
    [1, 4, 7],
  ]);
});

test("the chart lists the likeliest of each kind, then what is left and why the rest is not", () => {
  const before = Float64Array.from([0.1, 0.4, 0.05, 0.25, 0.2]);
  const modality = (token) => [2, 0, 0, 1, 1][token];
  const why = (token) => (token === 3 ? "grammar" : token < 3 ? "" : "top-k");
  assert.deepEqual(likeliest({ before, after: null, why, drawn: null }, modality, 1), [[1], [3], [0]]);
  const after = Float64Array.from([0.2, 0.7, 0.1, 0, 0]);
  assert.deepEqual(likeliest({ before, after, why, drawn: null }, modality, 2), [[1, 0]]);
  const out = leftOut({ before, after, why, drawn: null }, 3);
  assert.deepEqual(out, [
    ["grammar", { tokens: [3], count: 1, share: 0.25 }],
    ["top-k", { tokens: [4], count: 1, share: 0.2 }],
  ]);
});
