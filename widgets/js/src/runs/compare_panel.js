// The comparison of runs: charts of measures side by side, aligned by step, and the tables of what came of them.

import { Averaged } from "../charts/averaged.js";
import { figure } from "../charts/axis.js";
import { Band } from "../charts/band.js";
import { curves } from "../charts/curves.js";
import { button, download, element } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { colourOf, dashedAt, differenceTable, outcomeTable, swatch } from "./compare_tables.js";
import { ratePlot } from "./rate_plot.js";
import { alarmMark, changeMark, milestoneMark } from "./run_events.js";
import { measureWords, RunRecords } from "./run_records.js";

const FEW = 24; // values: these are shown as dots

/** @typedef {import("./messages.js").ComparedFacts} Run */
/** @typedef {import("./messages.js").MeasureFacts} Measure */
/** @typedef {{at: number, name: string, series: Averaged[]}} Charted a run, by its place, or several seeds by the first's */

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const { model } = context;
  /** @type {Omit<import("./messages.js").ComparisonState, "kind">} */
  let facts = {
    columns: [],
    runs: [],
    measures: [],
    groups: [],
    differences: [],
    rates: { words: "", unit: "", start: "inf", groups: [] },
  };
  let ready = false;
  let askedAgain = -Infinity;
  let zoom = /** @type {[number, number] | null} */ (null);
  /** @type {number | null} the step under the cursor */
  let cursor = null;
  const records = /** @type {RunRecords[]} */ ([]);
  const averages = /** @type {WeakMap<import("../charts/points.js").Points, Averaged>} */ (new WeakMap());
  const charts = /** @type {Map<string, ReturnType<typeof chartOf>>} */ (new Map());

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").ComparisonMessage>} */
  const receive = {
    state(message) {
      facts = message;
      ready = true;
    },
    records(message, buffers) {
      records[message.run] ??= new RunRecords();
      if (records[message.run].take(message, buffers) || performance.now() - askedAgain < 1000) return;
      askedAgain = performance.now();
      page.request({ kind: "hello" });
    },
    figure({ format, view }, [bytes]) {
      const type = format === "svg" ? "image/svg+xml" : "image/png";
      download(
        `${view === "rates" ? "learning rates" : "runs"}.${format}`,
        new Blob([/** @type {any} */ (bytes)], { type }),
      );
    },
    trouble: (message) => page.tell(message.error),
  };
  const page = frame(context, {
    label: "Comparison of runs",
    kind: "compare",
    receive,
    refresh,
    ready: () => ready,
    state() {
      const { runs } = facts;
      const going = runs.filter(({ over }) => !over).length;
      const count = `${runs.length || "No"} ${runs.length === 1 ? "run" : "runs"}`;
      if (!ready) return ["connecting", "Connecting"];
      if (going) return ["working", `${count}, ${runs.length > 1 ? `${going} ` : ""}going on`];
      return ["idle", runs.length ? `${count}, over` : count];
    },
    traits: ["measures", "smoothing", "hidden", "opened", "view"],
  });
  const { set } = page;
  const flip = (/** @type {"hidden" | "opened"} */ trait) => (/** @type {string} */ name) => {
    const before = /** @type {string[]} */ (model.get(trait));
    set(trait, before.includes(name) ? before.filter((each) => each !== name) : [...before, name]);
  };
  const table = outcomeTable({ toggle: flip("hidden"), open: flip("opened") });
  const differ = differenceTable();
  const rates = ratePlot();
  const grid = element("div.chm-compare-charts");
  const empty = element("p.chm-compare-empty");

  const [curvesView, ratesView] = [
    ["curves", "Curves"],
    ["rates", "Learning rate"],
  ].map(([value, text]) => {
    const input = element("input", {
      type: "radio",
      name: `view-${Math.random()}`,
      value,
      on: { change: () => set("view", value) },
    });
    return { input, label: element("label", input, element("span", { text })) };
  });
  ratesView.input.name = curvesView.input.name;
  const views = element("fieldset.chm-compare-views", { "aria-label": "View" }, curvesView.label, ratesView.label);
  const amount = element("output");
  const slider = element("input", {
    type: "range",
    min: 0,
    max: 0.99,
    step: 0.01,
    "aria-label": "Smoothing",
    on: { input: () => set("smoothing", Number(slider.value)) },
  });
  const smoothing = element(
    "label.chm-compare-smoothing",
    { title: "Weight of the exponential mean; what was recorded stays behind it" },
    element("span", { text: "Smoothing", "aria-hidden": "true" }),
    slider,
    amount,
  );
  const list = element("div.chm-compare-measures", { role: "group", "aria-label": "Measures", hidden: true });
  const choose = button(
    "Measures",
    null,
    () => {
      list.hidden = !list.hidden;
      choose.setAttribute("aria-expanded", String(!list.hidden));
    },
    { class: "chm-button chm-compare-choose", "aria-expanded": "false" },
  );
  const saves = ["png", "svg"].map((format) => {
    const node = button(
      format.toUpperCase(),
      null,
      () => page.ask({ kind: "export", format }, { lost: "The figure was not drawn: the kernel" }),
      {
        title: `Save as ${format.toUpperCase()}, drawn by matplotlib with a caption`,
        "aria-label": `Save as ${format.toUpperCase()}`,
      },
    );
    return node;
  });

  /** How much a measure is smoothed: what is measured on held-out documents is not. @param {string} [measure] */
  const weightOf = (measure = "") => (measure.startsWith("held_out") ? 0 : Number(model.get("smoothing")));

  /** A chart of a measure, with the values at the cursor beside its name. @param {string} measure */
  function chartOf(measure) {
    const readout = element("div.chm-compare-readout", { "aria-hidden": "true" });
    const chart = curves({
      title: measure,
      height: 168,
      pointed(step) {
        cursor = step;
        for (const each of charts.values()) {
          each.chart.point(step);
          each.read();
        }
      },
      zoomed(range) {
        zoom = range;
        page.refresh();
      },
    });
    chart.tools.append(readout);
    let charted = /** @type {Charted[]} */ ([]);
    const bands = /** @type {Map<string, Band>} */ (new Map());
    /** @param {Charted} one @returns {{mean: import("../charts/points.js").Points, band?: {low: import("../charts/points.js").Points, high: import("../charts/points.js").Points}}} */
    function drawn({ name, series }) {
      const weight = weightOf(measure);
      if (series.length === 1) return { mean: series[0].mean(weight) };
      const band = bands.get(name) ?? new Band();
      bands.set(name, band);
      const { mean, low, high } = band.of(
        series.map(({ recorded }) => recorded),
        weight,
      );
      return { mean, band: { low, high } };
    }
    function read() {
      charted.forEach((each, index) => {
        const points = drawn(each).mean;
        const near = cursor === null ? points.count - 1 : points.nearest(cursor);
        const text = near < 0 ? "" : figure(points.values[near]);
        const output = readout.children[index]?.lastElementChild;
        if (output && output.textContent !== text) output.textContent = text;
      });
    }
    return {
      chart,
      read,
      /** @param {Measure} about @param {Charted[]} series @param {import("../charts/curves.js").Mark[]} marks @param {[number, number] | null} range */
      show(about, series, marks, range) {
        const weight = weightOf(about.name);
        if (readout.children.length !== series.length || series.some(({ at }, index) => at !== charted[index]?.at))
          readout.replaceChildren(
            ...series.map(({ at, name }) => element("span", { title: name }, swatch(at), element("output"))),
          );
        charted = series;
        const lines = series.flatMap((one) => {
          const { at, name } = one;
          const { recorded } = one.series[0];
          const colour = colourOf(at);
          const { mean, band } = drawn(one);
          const line = { name, colour, points: mean, dots: recorded.count <= FEW, dashed: dashedAt(at), band };
          return weight && !band
            ? [
                {
                  name: `${name}, recorded`,
                  colour: `color-mix(in srgb, ${colour} 30%, transparent)`,
                  points: recorded,
                },
                line,
              ]
            : [line];
        });
        const how = weight ? `smoothed ${weight.toFixed(2)}` : "";
        chart.show({
          hint: measureWords([about]),
          title: about.words,
          unit: [about.unit, how].filter(Boolean).join(", "),
          log: about.log,
          lines,
          marks,
          range,
        });
        read();
      },
    };
  }

  function refresh() {
    const { runs, measures } = facts;
    const hidden = /** @type {string[]} */ (model.get("hidden"));
    const weight = weightOf();
    const several = facts.rates.groups.length > 0;
    const view = several ? model.get("view") : "curves";
    const choice = /** @type {string[]} */ (model.get("measures")).filter((name) =>
      measures.some((each) => each.name === name),
    );
    const opened = /** @type {string[]} */ (model.get("opened"));
    const closed = facts.groups.filter(({ name }) => !opened.includes(name));
    table.show(
      runs,
      hidden,
      records.map(({ alarms }) => alarms),
      facts.columns,
      facts.groups,
      opened,
    );
    table.node.hidden = !runs.length;
    page.box.classList.toggle("chm-compare-by-rate", view === "rates");
    differ.show(runs, facts.differences);
    views.hidden = !several;
    curvesView.input.checked = view === "curves";
    ratesView.input.checked = view === "rates";
    slider.value = String(weight);
    amount.textContent = weight ? weight.toFixed(2) : "none";
    smoothing.hidden = choose.hidden = view === "rates" || !measures.length;
    if (choose.hidden) {
      list.hidden = true;
      choose.setAttribute("aria-expanded", "false");
    }
    for (const node of saves) node.disabled = !runs.length;
    offer(measures, choice);
    rates.node.hidden = view !== "rates";
    if (view === "rates") rates.show(facts.rates);
    grid.hidden = view === "rates" || !choice.length;
    empty.hidden = view === "rates" || !ready || choice.length > 0;
    empty.textContent = !runs.length
      ? "No runs to compare. Pass runs, or folders of runs, by name."
      : measures.length
        ? "No measure is chosen."
        : "Nothing recorded yet.";
    for (const [measure, { chart }] of charts) {
      if (choice.includes(measure)) continue;
      chart.dispose();
      charts.delete(measure);
    }
    for (const measure of choice) if (!charts.has(measure)) charts.set(measure, chartOf(measure));
    const nodes = choice.map((measure) => /** @type {any} */ (charts.get(measure)).chart.node);
    if (nodes.length !== grid.children.length || nodes.some((node, at) => grid.children[at] !== node))
      grid.replaceChildren(...nodes);

    const visible = runs.flatMap(({ row }, at) => (hidden.includes(String(row.run)) ? [] : [at]));
    const marks = visible.flatMap((at) => marksOf(runs[at], records[at], colourOf(drawnAsOne(at, closed, visible)[0])));
    /** @param {number} at @param {string} measure */
    const averaged = (at, measure) => {
      const points = records[at]?.measures.get(measure);
      if (!points?.count) return [];
      const series = averages.get(points) ?? new Averaged(points);
      averages.set(points, series);
      return [series];
    };
    const byMeasure = choice.map((measure) =>
      visible.flatMap((at) => {
        const group = closed.find((each) => each.runs.includes(at));
        const members = drawnAsOne(at, closed, visible);
        if (members[0] !== at) return []; // the first of them stands for all
        const series = members.flatMap((each) => averaged(each, measure));
        const name = members.length > 1 && group ? `${group.name}, ${members.length} seeds` : String(runs[at].row.run);
        return series.length ? [{ at, name, series }] : [];
      }),
    );
    const range = zoom ?? reach(byMeasure.flat().flatMap(({ series }) => series));
    choice.forEach((measure, at) =>
      charts
        .get(measure)
        ?.show(/** @type {Measure} */ (measures.find(({ name }) => name === measure)), byMeasure[at], marks, range),
    );
  }

  /** The measures to choose from. @param {Measure[]} measures @param {string[]} choice */
  function offer(measures, choice) {
    const names = measures.map(({ name }) => name).join("\n");
    if (list.dataset.names !== names) {
      list.dataset.names = names;
      list.replaceChildren(
        ...measures.map(({ name, words }) => {
          const input = element("input", { type: "checkbox", value: name, on: { change: pick } });
          return element("label", input, element("span", { text: words }));
        }),
      );
    }
    for (const input of list.querySelectorAll("input")) input.checked = choice.includes(input.value);
  }

  function pick() {
    const ticked = [...list.querySelectorAll("input")].filter(({ checked }) => checked).map(({ value }) => value);
    const before = /** @type {string[]} */ (model.get("measures"));
    set("measures", [
      ...before.filter((each) => ticked.includes(each)),
      ...ticked.filter((each) => !before.includes(each)),
    ]);
  }

  return page.open(
    [
      page.header("Views", [views, smoothing, choose, ...saves]),
      list,
      page.alert,
      element(
        "div.chm-compare-scroll.chm-compare-top",
        { tabindex: 0, role: "group", "aria-label": "Outcomes" },
        table.node,
      ),
      empty,
      grid,
      rates.node,
      differ.node,
    ],
    [() => charts.forEach(({ chart }) => chart.dispose()), rates.dispose],
  );
}

/**
 * The visible runs that one line stands for, in the colour of the first: seeds whose group is closed, or the run alone.
 * @param {number} at @param {{runs: number[]}[]} closed @param {number[]} visible
 */
export function drawnAsOne(at, closed, visible) {
  const group = closed.find(({ runs }) => runs.includes(at));
  return group ? group.runs.filter((each) => visible.includes(each)) : [at];
}

/**
 * Alarms as triangles, and what was changed on the way as diamonds, in the run's colour.
 * @param {Run} run @param {RunRecords | undefined} records @param {string} colour
 * @returns {import("../charts/curves.js").Mark[]}
 */
export function marksOf({ row }, records, colour) {
  const named = (/** @type {import("../charts/curves.js").Mark} */ mark) => ({
    ...mark,
    words: `${row.run}: ${mark.words}`,
  });
  const fork = row.parent && row.forked_at ? [Number(row.forked_at)] : [];
  return [
    ...fork.map((step) => ({
      step,
      colour,
      words: `${row.run}: forked from ${row.parent}`,
      kind: /** @type {const} */ ("change"),
    })),
    ...(records?.milestones ?? []).map((each) => named(milestoneMark(each, colour))),
    ...(records?.changes ?? []).map((each) => named(changeMark(each, colour))),
    ...(records?.alarms ?? []).map((each) => named(alarmMark(each, colour))),
  ];
}

/** The first and last step of all series, so that all charts have the same. @param {Averaged[]} all @returns {[number, number] | null} */
export function reach(all) {
  if (!all.length) return null;
  const low = Math.min(...all.map(({ recorded }) => recorded.steps[0]));
  return [low, Math.max(low + 1, ...all.map(({ recorded }) => recorded.steps[recorded.count - 1]))];
}

export default { render };
