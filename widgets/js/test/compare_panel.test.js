// The comparison's functions that need no browser. Run with `npm test`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Averaged } from "../src/charts/averaged.js";
import { bandOf } from "../src/charts/band.js";
import { Points } from "../src/charts/points.js";
import { drawnAsOne, marksOf, reach } from "../src/runs/compare_panel.js";
import { best, cell, colourOf, groupCell, number, standing } from "../src/runs/compare_tables.js";
import { counted } from "../src/runs/rate_plot.js";

const close = (one, other) =>
  assert.ok(
    [...one].every((each, at) => Math.abs(each - other[at]) < 1e-6),
    `${[...one]} is not ${other}`,
  );

test("smoothing is an unbiased mean that goes on as values come in, and leaves what is no number in its place", () => {
  const recorded = new Points().add([0, 2, 4], [1, NaN, 3]);
  const grown = new Averaged(recorded);
  grown.mean(0.5);
  recorded.add([6], [5]);
  const mean = grown.mean(0.5);
  assert.equal(grown.mean(0.5), mean);
  assert.ok(Number.isNaN(mean.values[1]));
  close(
    [0, 2, 3].map((at) => mean.values[at]),
    [1, 3.5 / 1.5, (0.25 + 1.5 + 5) / 1.75],
  );
  assert.equal(grown.mean(0), recorded);
  assert.deepEqual(new Averaged(recorded).mean(0.5).values, mean.values);
  assert.deepEqual(grown.mean(0.9).values, new Averaged(recorded).mean(0.9).values);
});

test("all charts have the steps of all series", () => {
  const averaged = (...steps) =>
    new Averaged(
      new Points().add(
        steps,
        steps.map(() => 1),
      ),
    );
  assert.equal(reach([]), null);
  assert.deepEqual(reach([averaged(5)]), [5, 6]);
  assert.deepEqual(reach([averaged(5, 9), averaged(0, 7)]), [0, 9]);
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
    { row: { run: "b", parent: "a", forked_at: 7 } },
    {
      alarms: [{ step: 3, level: "WARN", message: "logit 60" }],
      changes: [{ step: 5, name: "rate", before: "1", after: "2", reason: "" }],
      milestones: [{ step: 4, message: "the critic begins" }],
    },
    colourOf(9),
  );
  assert.deepEqual(
    marks.map(({ step, kind, words }) => [step, kind, words]),
    [
      [7, "change", "b: forked from a"],
      [4, "stage", "b: the critic begins"],
      [5, "change", "b: rate from 1 to 2"],
      [3, "alarm", "b: WARN: logit 60"],
    ],
  );
  assert.ok(marks.every(({ colour }) => colour === "var(--curve-2)"));
});

test("seeds of a closed group are drawn, and marked, as the first of them that is seen", () => {
  const drawn = [0, 1, 2, 3].map((at) => drawnAsOne(at, [{ runs: [0, 2, 3] }], [1, 2, 3]));
  assert.deepEqual(drawn, [[2, 3], [1], [2, 3], [2, 3]]);
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

test("a band is mean, lowest and highest at the steps that all have, as counted one by one", () => {
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  for (let round = 0; round < 30; round += 1) {
    const members = Array.from({ length: 1 + (round % 4) }, () => {
      const steps = Array.from({ length: 80 }, (_, at) => at).filter(() => random() < 0.6);
      return new Points().add(
        steps,
        steps.map(() => (random() < 0.03 ? NaN : random())),
      );
    });
    const { mean, low, high } = bandOf(members);
    const common = [...members[0].steps].filter((step) => members.every((each) => each.steps.includes(step)));
    assert.deepEqual([...mean.steps], common);
    common.forEach((step, at) => {
      const values = members.map((each) => each.values[each.place(step)]);
      const average = values.reduce((sum, value) => sum + value, 0) / values.length;
      assert.ok(Number.isNaN(average) ? Number.isNaN(mean.values[at]) : Math.abs(mean.values[at] - average) < 1e-6);
      assert.ok(Object.is(low.values[at], Math.fround(Math.min(...values))));
      assert.ok(Object.is(high.values[at], Math.fround(Math.max(...values))));
    });
  }
});

test("a band of no runs is empty", () => {
  assert.equal(bandOf([]).mean.count, 0);
});

test("a group's cell is the mean of its seeds, with the range in words", () => {
  const runs = [1, 2, 6].map((held_out_loss) => ({ row: { held_out_loss, alarms: held_out_loss, error: null } }));
  assert.deepEqual(groupCell("held_out_loss", runs), { text: "3.000", title: "Mean of 3, from 1.000 to 6.000" });
  assert.equal(groupCell("alarms", runs.slice(0, 2)).text, "1.5");
  assert.deepEqual(groupCell("held_out_loss", [{ row: { held_out_loss: null } }]), { text: "–", title: "" });
  assert.equal(groupCell("held_out_loss", [...runs, { row: { held_out_loss: "nan" } }]).text, "not a number");
});
