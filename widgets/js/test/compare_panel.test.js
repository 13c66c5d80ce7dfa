// The comparison's functions that need no browser. Run with `npm test`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Averaged } from "../src/charts/averaged.js";
import { marksOf, reach } from "../src/runs/compare_panel.js";
import { best, cell, colourOf, number, standing } from "../src/runs/compare_tables.js";
import { counted } from "../src/runs/rate_plot.js";

const close = (one, other) =>
  assert.ok(
    [...one].every((each, at) => Math.abs(each - other[at]) < 1e-6),
    `${[...one]} is not ${other}`,
  );

test("smoothing is an unbiased mean that goes on as values come in, and leaves what is no number in its place", () => {
  const whole = new Averaged(0.5).add([0, 2, 4], [1, NaN, 3]).add([6], [5]);
  assert.deepEqual([...whole.recorded.values], [1, NaN, 3, 5]);
  assert.ok(Number.isNaN(whole.mean.values[1]));
  close(
    [0, 2, 3].map((at) => whole.mean.values[at]),
    [1, 3.5 / 1.5, (0.25 + 1.5 + 5) / 1.75],
  );
  const later = new Averaged().add([0, 2, 4, 6], [1, NaN, 3, 5]);
  assert.equal(later.mean, later.recorded);
  later.smooth(0.5);
  assert.deepEqual(later.mean.values, whole.mean.values);
  later.smooth(0);
  assert.equal(later.mean, later.recorded);
});

test("all charts have the steps of all series", () => {
  assert.equal(reach([]), null);
  assert.deepEqual(reach([new Averaged().add([5], [1])]), [5, 6]);
  assert.deepEqual(reach([new Averaged().add([5, 9], [1, 1]), new Averaged().add([0, 7], [1, 1])]), [0, 9]);
});

test("numbers that JSON cannot hold come over by name, and what was not recorded is a dash", () => {
  assert.ok(Number.isNaN(number("nan")));
  assert.equal(number("-inf"), -Infinity);
  assert.equal(cell("held_out_loss", null), "–");
  assert.equal(cell("held_out_loss", 1.65432), "1.654");
  assert.equal(cell("loss", "nan"), "not a number");
  assert.equal(cell("loss", "inf"), "infinite");
  assert.equal(cell("steps", 12000), "12,000");
  assert.equal(cell("tokens_per_second", 8120.4), "8,120");
  assert.equal(cell("max_attention_logit", 41010.2), "41,010");
});

test("the best of two or more is the lowest number, and never of what is no number", () => {
  const runs = (...losses) => losses.map((held_out_loss) => ({ row: { held_out_loss, lowest_loss: null } }));
  assert.deepEqual(best(runs(2, 1.5, 1.5)), { held_out_loss: 1.5 });
  assert.deepEqual(best(runs("nan", 3, null, 4)), { held_out_loss: 3 });
  assert.deepEqual(best(runs("nan", 3)), {});
});

test("a run that goes on says how far it is", () => {
  assert.equal(standing({ row: { status: "running" }, progress: 0.456, over: false }), "running, 45 %");
  assert.equal(standing({ row: { status: "waiting" }, progress: 0, over: false }), "waiting");
  assert.equal(standing({ row: { status: "failed" }, progress: 0.4, over: true }), "failed");
});

test("alarms, changes and forks are marks in the run's colour", () => {
  const marks = marksOf(
    { row: { parent: "a", forked_at: 7 }, alarms: [[3, "WARN", "logit 60"]], changes: [[5, "rate 1 → 2"]] },
    colourOf(9),
  );
  assert.deepEqual(
    marks.map(({ step, kind, told }) => [step, kind, told]),
    [
      [7, "change", "forked from a"],
      [5, "change", "rate 1 → 2"],
      [3, "alarm", "WARN: logit 60"],
    ],
  );
  assert.ok(marks.every(({ colour }) => colour === "var(--curve-2)"));
});

test("losses count for at most the one at the start, and nan counts as it", () => {
  const group = {
    name: "a",
    number: 0,
    losses: [
      [0.1, [1, 2]],
      [0.3, ["nan", 9]],
    ],
  };
  assert.deepEqual(counted(group, 5), [
    { rate: 0.1, seeds: [1, 2], mean: 1.5 },
    { rate: 0.3, seeds: [5, 5], mean: 5 },
  ]);
  assert.deepEqual(
    counted(group, Infinity).map(({ seeds }) => seeds),
    [[1, 2], [9]],
  );
});
