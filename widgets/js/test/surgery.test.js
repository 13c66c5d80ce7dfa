// The functions of code surgery that need no browser. Run with `node --test test/surgery.test.js`.
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  between,
  brushed,
  codesFile,
  connected,
  outline,
  randomCodes,
  readCodes,
  rectangle,
  replay,
  squares,
  tally,
} from "../src/images/strokes.js";
import { codesInHand } from "../src/images/surgery_codes.js";

const shape = { rows: 4, columns: 7 };

test("a brush covers as many cells as it is large, and none outside the grid", () => {
  assert.deepEqual(brushed(1.5, 2.5, 1, shape), [9]);
  assert.deepEqual(brushed(1.9, 2.1, 1, shape), [9]);
  assert.deepEqual(brushed(1.5, 2.5, 3, shape), [1, 2, 3, 8, 9, 10, 15, 16, 17]);
  assert.equal(brushed(2, 3, 2, shape).length, 4);
  assert.deepEqual(brushed(0.2, 0.2, 3, shape), [0, 1, 7, 8]);
  assert.deepEqual(brushed(-1.5, 9, 1, shape), []);
});

test("a quick stroke leaves no gap and ends where it ends", () => {
  const way = between([0.5, 0.5], [3.5, 6.5]);
  assert.deepEqual(way.at(-1), [3.5, 6.5]);
  let [row, column] = [0.5, 0.5];
  for (const [y, x] of way) {
    assert.ok(Math.abs(y - row) <= 0.5 && Math.abs(x - column) <= 0.5);
    [row, column] = [y, x];
  }
  assert.deepEqual(between([1, 1], [1, 1]), [[1, 1]]);
});

test("a fill takes what hangs together by its sides, not corners, nor around the edge", () => {
  const codes = [5, 1, 1, 5, 5, 5, 5, 1, 5, 1, 5, 1, 1, 1, 1, 1, 5, 5, 5, 5, 5, 5, 5, 5, 1, 1, 1, 1];
  assert.deepEqual(connected(codes, 2, shape), [1, 2, 9]);
  assert.deepEqual(connected(codes, 7, shape), [7, 14, 15]);
  assert.deepEqual(connected(codes, 6, shape), [3, 4, 5, 6, 10, 16, 17, 18, 19, 20, 21, 22, 23]);
});

test("a rectangle is the same from whichever corners it is drawn", () => {
  const cells = [9, 10, 16, 17];
  for (const [one, other] of [
    [9, 17],
    [17, 9],
    [10, 16],
    [16, 10],
  ])
    assert.deepEqual(rectangle(one, other, shape), cells);
});

test("the outline of cells is closed and leaves out what they share", () => {
  for (const cells of [[0], [9, 10], [0, 6], [0, 1, 7, 8, 9, 20], Array.from({ length: 28 }, (_, at) => at)]) {
    const ends = tally(
      [...outline(cells, shape).matchAll(/M(\d+) (\d+)([hv])1/g)].flatMap(([, x, y, way]) => [
        `${x} ${y}`,
        way === "h" ? `${Number(x) + 1} ${y}` : `${x} ${Number(y) + 1}`,
      ]),
    );
    for (const [corner, count] of ends) assert.equal(count % 2, 0, `${cells} at ${corner}`);
  }
  assert.equal(outline([9, 10], shape).match(/M/g).length, 6);
  assert.equal(
    outline([6, 7], shape).match(/M/g).length,
    8,
    "the end of a row and the start of the next are no neighbours",
  );
  assert.equal(outline([], shape), "");
  assert.equal(squares([9], shape), "M2 1h1v1h-1z");
});

test("random codes are those of the seed, and of all there are", () => {
  const codes = randomCodes(7, 4000, 16);
  assert.deepEqual(codes, randomCodes(7, 4000, 16));
  assert.notDeepEqual(codes, randomCodes(8, 4000, 16));
  const counts = tally(codes);
  assert.equal(counts.size, 16);
  for (const [code, count] of counts)
    assert.ok(code >= 0 && code < 16 && count > 150 && count < 350, `${code}: ${count}`);
});

test("a file of codes is read as it was written", () => {
  const codes = Int32Array.from({ length: 28 }, (_, at) => at * 3);
  const file = codesFile(codes, shape, 512);
  const { codes: rows, codebook } = readCodes(file, "codes.json");
  assert.deepEqual(rows.flat(), [...codes]);
  assert.deepEqual([rows.length, rows[0].length, codebook], [4, 7, 512]);
  assert.equal(file.split("\n").length, 4 + 3);
  assert.deepEqual(readCodes("[[1, 2]]", "bare.json"), { codes: [[1, 2]], codebook: null });
});

test("a file without codes says so and names itself", () => {
  for (const text of ["", "{", "words"]) assert.throws(() => readCodes(text, "a.json"), /“a\.json” is not JSON/);
  for (const text of ["{}", "null", "3", '"codes"', '{"codes": 3}'])
    assert.throws(() => readCodes(text, "a.json"), /“a\.json” holds no codes/);
});

/** A kernel that hears what is sent, and frames that come when they are called. */
function kernel(codes = [0, 0, 0, 0, 0, 0]) {
  const sent = [];
  const frames = [];
  const hand = codesInHand(
    async (content) => sent.push(content),
    (act) => frames.push(act),
  );
  const view = (numbers) => new DataView(Int32Array.from(numbers).buffer);
  const update = (now, numbers = {}, key = 1) => {
    const buffers = [view(now), view(codes)];
    hand.take({ applied: numbers, grid: { key, name: "", rows: 2, columns: 3, undo: 1, redo: 0 } }, () =>
      buffers.shift(),
    );
  };
  update(codes);
  return { hand, sent, update, frame: () => frames.splice(0).forEach((act) => act()), view: () => sent[0].view };
}

test("the first edit goes at once, those of one frame together, and cells that hold the code already not at all", () => {
  const { hand, sent, frame } = kernel();
  assert.equal(hand.paint([0], 5, "a"), true);
  assert.equal(hand.paint([0], 5, "a"), false);
  hand.paint([1], 5, "a");
  hand.paint([2, 3], 5, "a");
  assert.deepEqual(
    sent.map(({ cells }) => cells),
    [[0]],
  );
  frame();
  assert.deepEqual(
    sent.map(({ cells }) => cells),
    [[0], [1, 2, 3]],
  );
  assert.deepEqual([...hand.grid.codes], [5, 5, 5, 5, 0, 0]);
  assert.deepEqual(
    sent.map(({ number }) => number),
    [1, 2],
  );
});

test("what the kernel has not heard of stays on top of what it tells", () => {
  const { hand, sent, update, view } = kernel();
  hand.paint([0], 5, "a");
  hand.paint([1], 6, "b");
  hand.send();
  update([9, 0, 0, 0, 0, 9], { [view()]: 1 }); // somebody else paints too
  assert.deepEqual([...hand.grid.codes], [9, 6, 0, 0, 0, 9]);
  assert.equal(hand.undo, 2);
  update([9, 6, 0, 0, 0, 9], { [view()]: 2 });
  assert.equal(hand.waits, false);
  assert.equal(sent.length, 2);
});

test("to a kernel that was silent everything it has not heard is sent again, in order", () => {
  const { hand, sent, update, view } = kernel();
  for (const [at, stroke] of ["a", "b", "c"].entries()) {
    hand.paint([at], 7, stroke);
    hand.send();
  }
  update([7, 0, 0, 0, 0, 0], { [view()]: 1 });
  hand.resend();
  assert.deepEqual(
    sent.slice(3).map(({ number, stroke }) => [number, stroke]),
    [
      [2, "b"],
      [3, "c"],
    ],
  );
});

test("edits of one picture are not laid over another", () => {
  const { hand, update } = kernel();
  hand.paint([0], 5, "a");
  update([1, 1, 1, 1, 1, 1], {}, 2);
  assert.deepEqual([...hand.grid.codes], [1, 1, 1, 1, 1, 1]);
});

test("replayed edits take one code for all cells or one for each, and leave their source alone", () => {
  const codes = Int32Array.from([0, 0, 0]);
  assert.deepEqual(
    [
      ...replay(codes, [
        { cells: [0, 2], codes: 4 },
        { cells: [1, 2], codes: [5, 6] },
      ]),
    ],
    [4, 5, 6],
  );
  assert.deepEqual([...codes], [0, 0, 0]);
});
