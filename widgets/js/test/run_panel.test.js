// Pure functions of the run panel: points and layers seen at so many pixels, messages put together, forms and axes.

import assert from "node:assert/strict";
import { test } from "node:test";
import { duration, figure, linearTicks, logTicks } from "../src/charts/axis.js";
import { placed } from "../src/charts/heat_map.js";
import { BROKEN, FINE, Layers, MISSING } from "../src/charts/layers.js";
import { Points } from "../src/charts/points.js";
import { levelOf } from "../src/runs/head_strip.js";
import { changesOf, rowsOf } from "../src/runs/run_hands.js";
import { chartsOf, familiesOf, measureWords, RunRecords } from "../src/runs/run_records.js";
import { spread } from "../src/runs/sample_strip.js";

let seed = 7;
const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;

/** Points at irregular steps, some of them not finite. */
function ragged(count) {
  const points = new Points();
  const [steps, values] = [[], []];
  for (let at = 0, step = 0; at < count; at += 1) {
    step += 1 + Math.floor(3 * random());
    steps.push(step);
    values.push(random() < 0.02 ? [NaN, Infinity, -Infinity][at % 3] : Math.fround(4 * random() - 1));
  }
  for (let at = 0; at < count; ) {
    const part = 1 + Math.floor(90 * random());
    points.add(steps.slice(at, at + part), values.slice(at, at + part));
    at += part;
  }
  return { points, steps, values };
}

test("columns keep every lowest and highest value, whatever the steps and wherever they begin", () => {
  const { points, steps, values } = ragged(3000);
  assert.equal(points.count, 3000);
  for (const [from, to, count] of [
    [0, steps.at(-1), 100],
    [500.5, 4000, 37],
    [10, 60, 80],
    [steps.at(-1), steps.at(-1) + 50, 5],
  ])
    for (const positive of [false, true]) {
      const seen = points.columns(from, to, count, positive);
      const width = (to - from) / count;
      const spread = Array.from({ length: count }, () => ({ low: Infinity, high: -Infinity, broken: 0 }));
      steps.forEach((step, at) => {
        if (step < from || step > to) return;
        const column = spread[Math.min(count - 1, Math.floor((step - from) / width + 1e-9))];
        if (!Number.isFinite(values[at])) column.broken = 1;
        else if (!positive || values[at] > 0) {
          column.low = Math.min(column.low, values[at]);
          column.high = Math.max(column.high, values[at]);
        }
      });
      assert.deepEqual(
        [...seen.low],
        spread.map(({ low }) => low),
      );
      assert.deepEqual(
        [...seen.high],
        spread.map(({ high }) => high),
      );
      assert.deepEqual(
        [...seen.broken],
        spread.map(({ broken }) => broken),
      );
    }
});

test("the extent leaves out what is not finite, and what a log axis cannot show", () => {
  const points = new Points().add([0, 1, 2, 3, 4], [NaN, -2, 0, 5, Infinity]);
  assert.deepEqual(points.extent(0, 4), [-2, 5]);
  assert.deepEqual(points.extent(0, 4, true), [5, 5]);
  assert.equal(points.extent(0, 0), null);
  assert.equal(new Points().extent(0, 1), null);
});

test("a step is found before, at and after every point", () => {
  const points = new Points().add([10, 20, 40], [1, 2, 3]);
  assert.deepEqual(
    [5, 10, 19, 20, 99].map((step) => points.place(step)),
    [-1, 0, 0, 1, 2],
  );
  assert.deepEqual(
    [0, 14, 16, 31, 99].map((step) => points.nearest(step)),
    [0, 0, 1, 2, 2],
  );
  assert.equal(new Points().nearest(3), -1);
  assert.deepEqual(points.between(15, 25), { first: 0, last: 2 });
});

test("a picture of layers takes the worst of each column, as rows one by one would give it", () => {
  for (const worse of /** @type {const} */ (["higher", "lower", "neither"])) {
    const layers = new Layers("norm", [2, 2], worse);
    const rows = Array.from({ length: 700 }, () =>
      Array.from({ length: 4 }, () => (random() < 0.003 ? NaN : Math.fround(random()))),
    );
    for (let at = 0; at < 700; at += 23)
      layers.add(
        rows.slice(at, at + 23).map((_, index) => 5 * (at + index)),
        Float32Array.from(rows.slice(at, at + 23).flat()),
      );
    const seen = layers.picture(0, 3500, 35);
    for (let column = 0; column < 35; column += 1)
      for (let cell = 0; cell < 4; cell += 1) {
        const column_rows = rows.slice(20 * column, 20 * (column + 1)).map((row) => row[cell]);
        const broken = column_rows.some((value) => !Number.isFinite(value));
        assert.equal(seen.states[4 * column + cell], broken ? BROKEN : FINE);
        if (!broken)
          assert.equal(seen.values[4 * column + cell], (worse === "lower" ? Math.min : Math.max)(...column_rows));
      }
  }
});

test("between two records a picture holds what was seen, before the first and long after the last it is empty", () => {
  const layers = new Layers("norm", [1]);
  layers.add([10, 20], Float32Array.from([1, 2]));
  const { values, states } = layers.picture(0, 50, 10);
  assert.deepEqual(
    [...states],
    [0, 0, 1, 1, 1, 1, 1, 0, 0, 0].map((each) => [MISSING, FINE][each]),
  );
  assert.deepEqual([...values.slice(2, 7)], [1, 1, 2, 2, 2]);
});

/** A message of the kernel with the loss of some steps, and with a layers' measure at even ones. */
function message(epoch, start, count, more = {}) {
  const steps = Array.from({ length: count }, (_, at) => start + at);
  const even = steps.map((step, at) => [step, at]).filter(([step]) => step % 2 === 0);
  const layers = even.length ? [{ name: "norm", count: even.length, shape: [2] }] : [];
  const buffers = [
    Float64Array.from(steps),
    Uint32Array.from(even.map(([, at]) => at)),
    Float32Array.from([...steps.map((step) => step + 100 * epoch), ...even.flatMap(([step]) => [step, -step])]),
  ];
  const records = { count, measures: [{ name: "loss", count, whole: true }], layers };
  return [
    {
      epoch,
      start,
      about: [],
      records,
      alarms: { start: 0, list: [] },
      changes: { start: 0, list: [] },
      milestones: { start: 0, list: [] },
      ...more,
    },
    buffers.map((each) => new DataView(each.buffer)),
  ];
}

test("records are taken once, however messages overlap, and a missing one is noticed", () => {
  const records = new RunRecords();
  assert.equal(records.take(...message(0, 3, 2)), false, "the first three are missing");
  assert.equal(records.take(...message(0, 0, 5)), true);
  assert.equal(records.take(...message(0, 2, 6)), true);
  assert.equal(records.take(...message(0, 0, 4)), true);
  assert.equal(records.take(...message(0, 9, 1)), false);
  assert.deepEqual([...records.measures.get("loss").values], [0, 1, 2, 3, 4, 5, 6, 7]);
  assert.deepEqual([...records.layers.get("norm").steps], [0, 2, 4, 6]);
  assert.deepEqual([...records.layers.get("norm").row(2)], [4, -4]);
  assert.deepEqual([records.count, records.firstStep, records.lastStep], [8, 0, 7]);
});

test("another epoch begins afresh, and only from its start", () => {
  const records = new RunRecords();
  const alarm = { step: 1, level: "WARN", rule: "r", message: "t" };
  records.take(...message(0, 0, 5, { alarms: { start: 0, list: [alarm] } }));
  assert.equal(records.take(...message(1, 2, 2)), false);
  assert.equal(records.count, 5, "nothing is thrown away for a message that cannot be used");
  assert.equal(records.take(...message(1, 0, 3)), true);
  assert.deepEqual([...records.measures.get("loss").values], [100, 101, 102]);
  assert.deepEqual(records.alarms, []);
});

test("events are taken once", () => {
  const records = new RunRecords();
  const alarms = ["a", "b", "c"].map((message) => ({ step: 1, level: "WARN", rule: "r", message }));
  records.take(...message(0, 0, 1, { alarms: { start: 0, list: alarms.slice(0, 2) } }));
  records.take(...message(0, 1, 0, { alarms: { start: 1, list: alarms.slice(1) } }));
  assert.deepEqual(records.alarms, alarms);
  assert.equal(records.take(...message(0, 1, 0, { alarms: { start: 5, list: [] } })), false);
});

/** @param {string} base @param {string} part */
const about = (base, part = "", more = {}) => ({ name: `${part} ${base}`, base, part, thresholds: [], ...more });

test("measures of one base share a chart, the loss first", () => {
  const measures = [
    about("rate"),
    about("loss", "text"),
    about("log_partition", "image"),
    about("loss"),
    about("loss", "held out image"),
    about("loss", "held out"),
    about("texture"),
  ];
  const groups = chartsOf(measures);
  assert.deepEqual([...groups.keys()], ["loss", "log_partition", "rate", "texture"]);
  assert.deepEqual(
    groups.get("loss").map(({ part }) => part),
    ["", "held out", "held out image", "text"],
  );
});

test("what the kernel says of a measure is kept until another epoch, and layers take the side that is worse", () => {
  const records = new RunRecords();
  const norm = { ...about("norm"), name: "norm", worse: "lower" };
  records.take(...message(0, 0, 3, { about: [norm] }));
  assert.equal(records.about.get("norm"), norm);
  assert.equal(records.layers.get("norm").low, true);
  records.take(...message(0, 3, 2));
  assert.equal(records.about.size, 1);
  records.take(...message(1, 0, 3));
  assert.deepEqual([records.about.size, records.layers.get("norm").low], [0, false]);
});

test("a head's level is that of the highest threshold below it, whatever the rules say", () => {
  /** @type {[number, string][]} */
  const thresholds = [
    [20, "WARN"],
    [80, "CRITICAL"],
  ];
  assert.deepEqual(
    [-1, 20, 20.5, 80, 81, NaN, Infinity].map((value) => levelOf(value, thresholds)),
    ["", "", "WARN", "WARN", "CRITICAL", "BROKEN", "BROKEN"],
  );
  assert.deepEqual(
    [1e9, NaN].map((value) => levelOf(value, [])),
    ["", "BROKEN"],
  );
});

test("settings become rows, and what was changed of a mapping is asked for as a whole", () => {
  const settings = { rate: 0.01, weights: { pairs: 0.8, text: 0.2 }, on: true, limit: null };
  assert.deepEqual(
    rowsOf(settings).map(({ label }) => label),
    ["rate", "weights: pairs", "weights: text", "on", "limit"],
  );
  assert.deepEqual(
    changesOf(settings, [
      { path: ["weights", "text"], value: 0.4 },
      { path: ["rate"], value: 0.1 },
      { path: ["weights", "pairs"], value: 0.6 },
    ]),
    { weights: { pairs: 0.6, text: 0.4 }, rate: 0.1 },
  );
});

test("ticks are round, inside, and two or more wherever there is a span", () => {
  for (let turn = 0; turn < 400; turn += 1) {
    const low = 10 ** (12 * random() - 6);
    const high = low * (1 + 10 ** (6 * random() - 2));
    for (const ticks of [linearTicks(low, high, 5), logTicks(low, high, 5)]) {
      assert.ok(ticks.length >= 2 || high / low < 1.5, `${low} to ${high}: ${ticks}`);
      assert.ok(ticks.length <= 14, `${low} to ${high}: ${ticks}`);
      assert.ok(linearTicks(low, high, 1 + (turn % 3)).length >= 2, `${low} to ${high}`);
      assert.ok(
        ticks.every((each) => each >= low * (1 - 1e-6) && each <= high * (1 + 1e-6)),
        `${low} to ${high}: ${ticks}`,
      );
    }
  }
  assert.deepEqual(linearTicks(0, 1000, 5), [0, 200, 400, 600, 800, 1000]);
  assert.deepEqual(logTicks(1, 1e5, 6), [1, 10, 100, 1000, 10000, 100000]);
  assert.deepEqual(logTicks(7, 95, 3), [10, 30]);
  assert.deepEqual(linearTicks(3, 3, 5), [3]);
});

test("numbers and times read as a person writes them", () => {
  assert.deepEqual([0, 2.71834, -0.5, 12345.6, 1e-5, 2.5e7, 0.00123, NaN, Infinity].map(figure), [
    "0",
    "2.718",
    "−0.5",
    "12,346",
    "1e−5",
    "2.5e7",
    "0.00123",
    "not a number",
    "infinite",
  ]);
  assert.deepEqual([0, 59, 61, 3599, 3600, 7384].map(duration), [
    "0 s",
    "59 s",
    "1 min 1 s",
    "59 min",
    "1 h 0 min",
    "2 h 3 min",
  ]);
  assert.equal(duration(NaN), "");
});

test("colours stand between the ends on either scale", () => {
  assert.deepEqual(
    [1, 10, 100, 1000].map((value) => placed(value, [1, 100], true).toFixed(2)),
    ["0.00", "0.50", "1.00", "1.00"],
  );
  assert.equal(placed(0, [1, 100], true), 0);
  assert.equal(placed(3, [3, 3], false), 0.5);
});

test("thumbnails never lie on one another, and the newest is always among them", () => {
  for (const room of [1, 20, 42, 100])
    for (const count of [1, 2, 7, 60]) {
      const places = Array.from({ length: count }, (_, at) => 54 + at * (600 / count));
      const visible = spread(places, room).map((at) => places[at]);
      assert.equal(visible.at(-1), places.at(-1));
      assert.ok(visible.every((place, at) => !at || place - visible[at - 1] >= room - 1e-9));
      assert.ok(visible.length >= Math.min(count, Math.floor(Math.min(600, 600 - 600 / count) / (room + 600 / count))));
    }
});

test("measures are offered by family: the lab's in their order, one's own last", () => {
  const of = (family, base) => ({ family, base });
  const families = familiesOf([
    of("own", "a"),
    of("steps", "b"),
    of("loss", "c"),
    of("own", "d"),
    of("attention", "e"),
  ]);
  assert.deepEqual(
    families.map(([family, members]) => [family, members.map(({ base }) => base)]),
    [
      ["loss", ["c"]],
      ["attention", ["e"]],
      ["steps", ["b"]],
      ["own", ["a", "d"]],
    ],
  );
});

test("a measure's words say what it is, its unit, which side is worse, and where alarms sound", () => {
  const words = measureWords([
    { about: "How wide.", unit: "nats", worse: "lower", thresholds: [[0.1, "ALARM"]] },
    { about: "", unit: "", worse: "lower", thresholds: [] },
  ]);
  assert.equal(words, "How wide.\nUnit: nats.\nLower is worse.\nAlarms sound: ALARM below 0.1.");
  assert.equal(
    measureWords([{ about: "", unit: "", worse: "neither", thresholds: [] }]),
    "No rule of this run has a threshold here.",
  );
});
