// What the inspector reads out of numbers, and which rows it asks for.
import assert from "node:assert/strict";
import { test } from "node:test";
import { treeLines } from "../src/inspect/branch_tree.js";
import { findings } from "../src/inspect/findings.js";
import {
  changeStrengths,
  named,
  nats,
  neighbour,
  percentage,
  sharesOf,
  spoken,
  strengths,
  surprise,
} from "../src/inspect/reading.js";
import { rolloutRow, rowStore } from "../src/inspect/row_store.js";
import { recordedModel } from "../src/standalone/standalone.js";

const token = (modality, words, more = {}) => ({
  words,
  modality,
  sink: false,
  image: null,
  row: null,
  column: null,
  rank: 0,
  ...more,
});
const TOKENS = [
  token(2, "begin_document", { sink: true }),
  token(0, "red"),
  token(1, "code 22", { image: 0, row: 2, column: 3 }),
  token(2, "end_turn"),
];

test("a token is spoken with its place and its probability", () => {
  assert.equal(spoken(TOKENS[2], Math.log(0.12)), "code 22, row 3, column 4, probability 12 %");
  assert.equal(spoken(TOKENS[0], NaN), "begin document");
  assert.equal(spoken(token(0, "\n"), Math.log(0.05)), "↵, probability 5.0 %");
  assert.equal(percentage(1e-6), "under 0.1 %");
  assert.equal(nats(-2.314), "−2.31 nats");
});

test("sinks do not set the scale of what is painted, and are painted fully", () => {
  const painted = strengths([0.9, 0.01, 0.04], 0, TOKENS);
  assert.deepEqual([...painted], [1, 0.25, 1, 0]);
  assert.deepEqual([...strengths([0.25, 0], 2, TOKENS)], [0, 0, 1, 0]);
  assert.deepEqual([...strengths([0, 0], 0, TOKENS)], [0, 0, 0, 0]);
});

test("a row falls on words, patches, sinks and others", () => {
  assert.deepEqual(sharesOf([0.5, 0.25, 0.125, 0.125], TOKENS), [0.25, 0.125, 0.5, 0.125]);
});

test("surprise is 0 for what is sure or has no probability, and 1 from 8 nats on", () => {
  assert.deepEqual(
    [NaN, 0, -4, -8, -50].map((log) => surprise(log) + 0),
    [0, 0, 0.5, 1, 1],
  );
});

test("arrow keys go along the document and over the page, and end at its ends", () => {
  const boxes = [0, 1, 2, 3, 4, 5].map((at) => ({
    left: 20 * (at % 3),
    top: 20 * Math.floor(at / 3),
    width: 20,
    height: 20,
  }));
  const ways = { ArrowLeft: 0, ArrowRight: 2, ArrowUp: 1, ArrowDown: 4, Home: 0, End: 5, a: 1 };
  for (const [key, to] of Object.entries(ways)) assert.equal(neighbour(key, 1, boxes), to, key);
  assert.equal(neighbour("ArrowDown", 5, boxes), 5);
  assert.equal(neighbour("ArrowUp", 5, boxes), 2);
});

test("while a row is on its way, of those wanted meanwhile only the newest is asked for", () => {
  const asked = [];
  const store = rowStore((place) => asked.push(place.position));
  const at = (position) => ({ branch: 0, way: "from", layer: 0, head: 0, position });
  for (const position of [1, 2, 3, 4]) assert.equal(store.get(at(position)), undefined);
  assert.deepEqual(asked, [1]);
  store.put(at(1), new Float32Array(2));
  store.proceed();
  assert.deepEqual(asked, [1, 4]);
  assert.equal(store.get(at(1)).length, 2, "what has come needs no asking");
  store.forget();
  store.get(at(9));
  assert.deepEqual(asked, [1, 4, 9], "after trouble the next hover asks again");
});

test("a row through some of the layers stands until another is asked for or the whole one comes", () => {
  const asked = /** @type {number[]} */ ([]);
  const store = rowStore((place) => asked.push(place.position));
  /** @param {number} position */
  const rolled = (position) => ({ branch: 0, way: /** @type {"from"} */ ("from"), layer: -1, head: 0, position });
  assert.equal(store.get(rolled(3)), undefined);
  store.sketch(rolled(3), new Float32Array([1]), 2);
  assert.deepEqual([store.get(rolled(3))?.[0], store.through(rolled(3)), store.through(rolled(4))], [1, 2, 0]);
  store.get(rolled(4));
  store.sketch(rolled(4), new Float32Array([2]), 3);
  assert.equal(store.get(rolled(3)), undefined);
  assert.deepEqual(asked, [3, 4, 3]);
  store.put(rolled(3), new Float32Array([5]));
  store.put(rolled(4), new Float32Array([6]));
  assert.deepEqual([store.get(rolled(4))?.[0], store.through(rolled(4))], [6, 0]);
});

test("rows are kept as far as the store goes, the newest first", () => {
  const store = rowStore(() => {}, 10);
  const at = (position) => ({ branch: 0, way: "by", layer: 1, head: 2, position });
  for (const position of [1, 2, 3]) store.put(at(position), new Float32Array(4));
  assert.equal(store.get(at(1)), undefined);
  assert.equal(store.get(at(2)).length + store.get(at(3)).length, 8);
});

test("rows of one document are not those of another, and a quiet look asks for none", () => {
  const asked = [];
  const store = rowStore((place) => asked.push(place.branch));
  const at = (branch) => ({ branch, way: "from", layer: 0, head: 0, position: 1 });
  store.put(at(0), new Float32Array(2));
  assert.equal(store.get(at(0)).length, 2);
  assert.equal(store.get(at(1), true), undefined);
  assert.deepEqual(asked, []);
  store.get(at(1));
  assert.deepEqual(asked, [1]);
});

test("all rows of rollout in bytes give each row and each column", () => {
  const rows = [[1], [0.25, 0.75], [0.5, 0.125, 0.375], [0.1, 0.2, 0.3, 0.4]];
  const most = Float32Array.from(rows, (row) => Math.max(...row));
  const codes = Uint8Array.from(rows.flatMap((row, at) => row.map((x) => Math.round(255 * Math.sqrt(x / most[at])))));
  const near = (have, want) => want.forEach((x, at) => assert.ok(Math.abs(have[at] - x) < 0.004, `${have} ${want}`));
  rows.forEach((row, position) => {
    const from = rolloutRow({ way: "from", position }, most, codes);
    assert.equal(from.length, position + 1);
    near(from, row);
    const by = rolloutRow({ way: "by", position }, most, codes);
    assert.equal(by.length, rows.length - position);
    near(
      by,
      rows.slice(position).map((each) => each[position]),
    );
  });
  const store = rowStore(() => assert.fail("it is here"));
  store.putRollouts(3, most, codes);
  near(store.get({ branch: 3, way: "from", layer: -1, head: 0, position: 2 }), rows[2]);
});

test("changes are painted by the greatest, at least half a nat, and what has none is not painted", () => {
  const { most, heat } = changeStrengths(Float32Array.of(NaN, 0, -2, 1));
  assert.equal(most, 2);
  assert.deepEqual([...heat], [0, 0, -1, 0.5]);
  assert.equal(changeStrengths(Float32Array.of(NaN, 0.125)).most, 0.5);
});

test("branches stand below their parents, however they came", () => {
  const branches = [null, 0, 0, 1, 3, 1].map((parent) => ({ parent, position: 1, words: "" }));
  assert.deepEqual(
    treeLines(branches).map(({ branch, depth }) => [branch, depth]),
    [
      [0, 0],
      [1, 1],
      [3, 2],
      [4, 3],
      [5, 2],
      [2, 1],
    ],
  );
});

test("a knock-out is the same in whichever order tokens were clicked", () => {
  const store = findings();
  store.putChanges(1, [10, 9], Float32Array.of(1));
  assert.equal(store.changes(1, new Set([9, 10]))?.length, 1);
  assert.equal(store.changes(0, [9, 10]), undefined);
  assert.equal(store.changes(1, [9]), undefined);
  assert.equal(named(TOKENS[2]), "code 22 (3, 4)");
});

test("a recorded model says what was recorded when greeted, and to all else that there is no kernel", async () => {
  const messages = [];
  const model = recordedModel({ traits: { value: 3 }, messages: [[{ kind: "a" }, ["AQID"]]] });
  model.on("msg:custom", (message, buffers) => messages.push([message, buffers.map((each) => each.getUint8(2))]));
  assert.deepEqual([model.get("value"), model.get("recorded")], [3, true]);
  model.send({ kind: "hello", mark: "me-1" });
  await Promise.resolve();
  assert.deepEqual(messages[0], [{ kind: "a" }, [3]]);
  const line = { kind: "line", requests: { me: 1 }, control: [], traits: {}, still: "", revision: 0 };
  assert.deepEqual(messages[1][0], line);
  model.send({ kind: "select", note: true, mark: "me-2" });
  model.send({ kind: "rows", mark: "me-3" });
  await Promise.resolve();
  assert.deepEqual(
    messages.slice(2).map(([message]) => [message.requests.me, /no kernel/.test(message.trouble ?? "")]),
    [
      [2, false],
      [3, true],
    ],
  );
});
