// The comparison of runs: charts of measures side by side, aligned by step, and the tables of what came of them.

import { Averaged } from "../charts/averaged.js";
import { figure } from "../charts/axis.js";
import { curves } from "../charts/curves.js";
import { button, download, element, lamp, root } from "../frame/dom.js";
import { connect } from "../frame/link.js";
import { hidesStill, stillKeeper } from "../frame/still.js";
import { colourOf, dashedAt, differenceTable, outcomeTable, swatch } from "./compare_tables.js";
import { ratePlot } from "./rate_plot.js";

const FEW = 24; // values: these are shown as dots

/** @typedef {import("./compare_tables.js").Run} Run */
/** @typedef {{name: string, words: string, log: boolean}} Measure */

/** @param {{model: import("../frame/link.js").Model, el: HTMLElement}} context */
function render({ model, el }) {
  /** @type {{runs: Run[], known: Measure[], differences: any[], rates: {start: any, groups: any[]}}} */
  let told = { runs: [], known: [], differences: [], rates: { start: "inf", groups: [] } };
  let heard = false;
  /** @type {[number, number] | null} */
  let zoom = null;
  /** @type {number | null} the step under the cursor */
  let cursor = null;
  /** @type {Map<string, Map<number, Averaged>>} by measure and run */
  const values = new Map();
  /** @type {Map<string, ReturnType<typeof chartOf>>} */
  const charts = new Map();

  const box = root("Comparison of runs", "compare");
  const signal = lamp();
  const stills = element("div", { hidden: true });
  const alert = element("div", { class: "chm-alert", role: "alert", hidden: true });
  const table = outcomeTable((name) => {
    const hidden = /** @type {string[]} */ (model.get("hidden"));
    set("hidden", hidden.includes(name) ? hidden.filter((each) => each !== name) : [...hidden, name]);
  });
  const differ = differenceTable();
  const rates = ratePlot();
  const grid = element("div", { class: "chm-compare-charts" });
  const empty = element("p", { class: "chm-compare-empty" });

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
    return { input, label: element("label", {}, input, element("span", { text })) };
  });
  ratesView.input.name = curvesView.input.name;
  const views = element(
    "fieldset",
    { class: "chm-compare-views", "aria-label": "View" },
    curvesView.label,
    ratesView.label,
  );
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
    "label",
    { class: "chm-compare-smoothing", title: "Weight of the exponential mean; what was recorded stays behind it" },
    element("span", { text: "Smoothing", "aria-hidden": "true" }),
    slider,
    amount,
  );
  const list = element("div", { class: "chm-compare-measures", role: "group", "aria-label": "Measures", hidden: true });
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
      async () => {
        tell("");
        if (!(await link.request({ kind: "export", format })))
          tell("The figure was not drawn: the kernel is busy or gone.");
      },
      {
        title: `Save as ${format.toUpperCase()}, drawn by matplotlib with a caption`,
        "aria-label": `Save as ${format.toUpperCase()}`,
      },
    );
    return node;
  });

  box.append(
    stills,
    element(
      "header",
      { class: "chm-head" },
      signal.node,
      element(
        "div",
        { class: "chm-tools chm-compare-tools", role: "toolbar", "aria-label": "Views" },
        views,
        smoothing,
        choose,
        ...saves,
      ),
    ),
    list,
    alert,
    element(
      "div",
      { class: "chm-compare-scroll chm-compare-top", tabindex: 0, role: "group", "aria-label": "Outcomes" },
      table.node,
    ),
    empty,
    grid,
    rates.node,
    differ.node,
  );
  el.replaceChildren(box);

  const link = connect(model, { receive, change: refresh });
  const keeper = stillKeeper(model, link);

  /** @param {string} name @param {any} value */
  function set(name, value) {
    model.set(name, value);
    model.save_changes();
  }

  /** @param {string} text */
  function tell(text) {
    alert.hidden = !text;
    alert.textContent = text;
  }

  /** @param {any} message @param {DataView[]} buffers */
  function receive(message, buffers) {
    if (message.kind === "still") return keeper.receive(message);
    if (message.kind === "trouble") return tell(message.told);
    if (message.kind === "figure") {
      const type = message.format === "svg" ? "image/svg+xml" : "image/png";
      return download(
        `${message.view === "rates" ? "learning rates" : "runs"}.${message.format}`,
        new Blob([/** @type {any} */ (buffers[0])], { type }),
      );
    }
    if (message.kind === "state") {
      told = message;
      heard = true;
    }
    if (message.kind === "values")
      message.parts.forEach((/** @type {any} */ part, /** @type {number} */ at) => take(part, buffers[at]));
    refresh();
  }

  /** @param {[number, string, number]} part @param {DataView} data */
  function take([run, measure, since], data) {
    const both = new Float64Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));
    const half = both.length / 2;
    const byRun = values.get(measure) ?? new Map();
    values.set(measure, byRun);
    if (!since || !byRun.has(run)) byRun.set(run, new Averaged(weightOf(measure)));
    const series = byRun.get(run);
    if (series.recorded.count === since) series.add(both.subarray(0, half), both.subarray(half));
  }

  /** How much a measure is smoothed: what is measured on held-out documents is not. @param {string} [measure] */
  const weightOf = (measure = "") => (measure.startsWith("held_out") ? 0 : Number(model.get("smoothing")));

  /** A chart of a measure, with the values at the cursor beside its name. @param {string} measure */
  function chartOf(measure) {
    const readout = element("div", { class: "chm-compare-readout", "aria-hidden": "true" });
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
        refresh();
      },
    });
    chart.tools.append(readout);
    /** @type {{at: number, series: Averaged}[]} */
    let shown = [];
    function read() {
      shown.forEach(({ series: { mean: points } }, index) => {
        const near = cursor === null ? points.count - 1 : points.nearest(cursor);
        const text = near < 0 ? "" : figure(points.values[near]);
        const output = readout.children[index]?.lastElementChild;
        if (output && output.textContent !== text) output.textContent = text;
      });
    }
    return {
      chart,
      read,
      /** @param {Measure} about @param {{at: number, series: Averaged}[]} series @param {import("../charts/curves.js").Mark[]} marks @param {[number, number] | null} range */
      show(about, series, marks, range) {
        const weight = weightOf(about.name);
        if (readout.children.length !== series.length || series.some(({ at }, index) => at !== shown[index]?.at))
          readout.replaceChildren(
            ...series.map(({ at }) => element("span", { title: told.runs[at].row.run }, swatch(at), element("output"))),
          );
        shown = series;
        const lines = series.flatMap(({ at, series: { recorded, mean } }) => {
          const [name, colour] = [String(told.runs[at].row.run), colourOf(at)];
          const line = { name, colour, points: mean, dots: recorded.count <= FEW, dashed: dashedAt(at) };
          return weight
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
        const unit = about.name.endsWith("loss") ? "nats a token" : "";
        const how = weight ? `smoothed ${weight.toFixed(2)}` : "";
        chart.show({
          title: about.words,
          unit: [unit, how].filter(Boolean).join(", "),
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
    const state = link?.state ?? "connecting";
    const runs = told.runs;
    const going = runs.filter(({ over }) => !over).length;
    const count = `${runs.length || "No"} ${runs.length === 1 ? "run" : "runs"}`;
    if (state === "silent") signal.show("disconnected", "Disconnected: the kernel does not answer");
    else if (state === "connecting" || !heard) signal.show("connecting", "Connecting");
    else if (going) signal.show("working", `${count}, ${runs.length > 1 ? `${going} ` : ""}going on`);
    else signal.show("idle", runs.length ? `${count}, over` : count);
    box.classList.toggle("chm-orphan", state === "silent" && !heard);
    stills.replaceChildren(...(heard ? [hidesStill(model.get("still_name") ?? "")] : []));
    arrange();
  }

  function arrange() {
    const { runs, known } = told;
    const hidden = /** @type {string[]} */ (model.get("hidden"));
    const weight = weightOf();
    const several = told.rates.groups.length > 0;
    const view = several ? model.get("view") : "curves";
    const chosen = /** @type {string[]} */ (model.get("measures")).filter((name) =>
      known.some((each) => each.name === name),
    );
    table.show(runs, hidden);
    table.node.hidden = !runs.length;
    box.classList.toggle("chm-compare-by-rate", view === "rates");
    differ.show(runs, told.differences);
    views.hidden = !several;
    curvesView.input.checked = view === "curves";
    ratesView.input.checked = view === "rates";
    slider.value = String(weight);
    amount.textContent = weight ? weight.toFixed(2) : "none";
    smoothing.hidden = choose.hidden = view === "rates" || !known.length;
    if (choose.hidden) {
      list.hidden = true;
      choose.setAttribute("aria-expanded", "false");
    }
    for (const node of saves) node.disabled = !runs.length;
    offer(known, chosen);
    rates.node.hidden = view !== "rates";
    if (view === "rates") rates.show(told.rates);
    grid.hidden = view === "rates" || !chosen.length;
    empty.hidden = view === "rates" || !heard || chosen.length > 0;
    empty.textContent = !runs.length
      ? "No runs to compare. Pass runs, or folders of runs, by name."
      : known.length
        ? "No measure is chosen."
        : "Nothing recorded yet.";
    for (const [measure, { chart }] of charts) {
      if (chosen.includes(measure)) continue;
      chart.dispose();
      charts.delete(measure);
    }
    for (const measure of chosen) if (!charts.has(measure)) charts.set(measure, chartOf(measure));
    const wanted = chosen.map((measure) => /** @type {any} */ (charts.get(measure)).chart.node);
    if (wanted.length !== grid.children.length || wanted.some((node, at) => grid.children[at] !== node))
      grid.replaceChildren(...wanted);

    const shown = runs.flatMap(({ row }, at) => (hidden.includes(row.run) ? [] : [at]));
    const marks = shown.flatMap((at) => marksOf(runs[at], colourOf(at)));
    const byMeasure = chosen.map((measure) =>
      shown.flatMap((at) => {
        const series = values.get(measure)?.get(at);
        series?.smooth(weightOf(measure));
        return series?.recorded.count ? [{ at, series }] : [];
      }),
    );
    const range = zoom ?? reach(byMeasure.flat().map(({ series }) => series));
    chosen.forEach((measure, at) =>
      charts
        .get(measure)
        ?.show(/** @type {Measure} */ (known.find(({ name }) => name === measure)), byMeasure[at], marks, range),
    );
  }

  /** The measures to choose from. @param {Measure[]} known @param {string[]} chosen */
  function offer(known, chosen) {
    const names = known.map(({ name }) => name).join("\n");
    if (list.dataset.names !== names) {
      list.dataset.names = names;
      list.replaceChildren(
        ...known.map(({ name, words }) => {
          const input = element("input", { type: "checkbox", value: name, on: { change: pick } });
          return element("label", {}, input, element("span", { text: words }));
        }),
      );
    }
    for (const input of list.querySelectorAll("input")) input.checked = chosen.includes(input.value);
  }

  function pick() {
    const ticked = [...list.querySelectorAll("input")].filter(({ checked }) => checked).map(({ value }) => value);
    const before = /** @type {string[]} */ (model.get("measures"));
    set("measures", [
      ...before.filter((each) => ticked.includes(each)),
      ...ticked.filter((each) => !before.includes(each)),
    ]);
  }

  const traits = ["measures", "smoothing", "hidden", "view", "still_name"].map((name) => `change:${name}`);
  for (const name of traits) model.on(name, refresh);
  refresh();
  link.request({ kind: "hello" });
  return () => {
    for (const name of traits) model.off(name, refresh);
    for (const { chart } of charts.values()) chart.dispose();
    rates.dispose();
    keeper.dispose();
    link.close();
  };
}

/**
 * Alarms as triangles, and what was changed on the way as diamonds, in the run's colour.
 * @param {Run} run @param {string} colour
 * @returns {import("../charts/curves.js").Mark[]}
 */
export function marksOf({ row, alarms, changes }, colour) {
  const fork =
    row.parent && row.forked_at
      ? [{ step: row.forked_at, colour, told: `forked from ${row.parent}`, kind: /** @type {const} */ ("change") }]
      : [];
  return [
    ...fork,
    ...changes.map(([step, words]) => ({ step, colour, told: words, kind: /** @type {const} */ ("change") })),
    ...alarms.map(([step, level, words]) => ({
      step,
      colour,
      told: `${level}: ${words}`,
      kind: /** @type {const} */ ("alarm"),
    })),
  ];
}

/** The first and last step of all series, so that all charts have the same. @param {Averaged[]} all @returns {[number, number] | null} */
export function reach(all) {
  if (!all.length) return null;
  const low = Math.min(...all.map(({ recorded }) => recorded.steps[0]));
  return [low, Math.max(low + 1, ...all.map(({ recorded }) => recorded.steps[recorded.count - 1]))];
}

export default { render };
