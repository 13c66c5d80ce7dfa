// The run panel: a training as it goes on, on one axis of steps: its curves, its layers, its heads, and what happened.

import { duration, figure, stepText } from "../charts/axis.js";
import { oncePerFrame } from "../charts/canvas.js";
import { curves } from "../charts/curves.js";
import { heatMap } from "../charts/heat_map.js";
import { button, element, group, icon, press, pressed, toggle, write } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { headStrip } from "./head_strip.js";
import { alarmMark, changeMark, milestoneMark, runEvents } from "./run_events.js";
import { runHands } from "./run_hands.js";
import { capital, chartsOf, familiesOf, measureWords, RunRecords, styled } from "./run_records.js";
import { sampleStrip } from "./sample_strip.js";

const QUIET = 5; // seconds without a step, after which the panel says how long: a step may draw, judge or be compiled
const LOGITS = "max_attention_logit";
const FIRST = ["loss", "reward", LOGITS]; // charts that are open at the start
const FLAT = 7; // charts up to which all are offered in a row; more are folded by family
const LAMPS = {
  waiting: "waiting",
  running: "working",
  paused: "reading",
  finished: "idle",
  stopped: "stopped",
  failed: "error",
  interrupted: "stopped",
};
const WORDS = {
  waiting: "Waiting to start",
  running: "Training",
  paused: "Paused",
  finished: "Finished",
  stopped: "Stopped",
  failed: "Failed",
  interrupted: "Interrupted",
};
const RANGES = [
  ["all", "whole run"],
  ["10000", "last 10,000 steps"],
  ["1000", "last 1,000 steps"],
  ["100", "last 100 steps"],
];

/** @typedef {ReturnType<typeof curves>} Chart */
/** @typedef {import("./messages.js").MeasureFacts} Measure */

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const records = new RunRecords();
  let facts = /** @type {import("./messages.js").PanelState | null} */ (null);
  let unreadable = "";
  let asking = ""; // a command that has not been answered
  let refusals = 0; // errors of commands seen so far
  let forking = false; // a fork was ordered here, and is to be opened when it is there
  const forkPanels = /** @type {Map<string, {place: HTMLElement, view: any}>} */ (new Map());
  let dragged = /** @type {[number, number] | null} */ (null);
  let span = "all";
  let askedAgain = -Infinity;
  let cursor = /** @type {number | null} */ (null);
  let pinned = /** @type {number | null} */ (null);
  const charts = /** @type {Map<string, {chart: Chart, log: boolean, key: string}>} */ (new Map());
  const open = /** @type {Set<string>} */ (new Set(FIRST));
  let chipKey = "";
  let unfolded = ""; // the family whose charts are offered
  let layerKey = "";
  let paceWords = "";
  let steppedAt = performance.now();
  let marks = /** @type {import("../charts/curves.js").Mark[]} */ ([]);

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").PanelMessage>} */
  const receive = {
    state(message) {
      unreadable = "";
      if (message.status !== facts?.status) steppedAt = performance.now();
      if (message.refusals > refusals) hands.refused();
      const born = message.panels.filter((each) => facts && !facts.panels.includes(each));
      if (forking && born.length) forking = Boolean(toggleFork(born[0]));
      refusals = message.refusals;
      hands.show(message.settings, message.offers, !message.over);
      facts = message;
    },
    records(message, buffers) {
      steppedAt = performance.now();
      if (records.take(message, buffers) || performance.now() - askedAgain < 1000) return;
      askedAgain = performance.now();
      page.request({ kind: "hello" });
    },
    samples(message, buffers) {
      if (samples.take(message, buffers) || performance.now() - askedAgain < 1000) return;
      askedAgain = performance.now();
      page.request({ kind: "hello" });
    },
    unreadable: (message) => (unreadable = message.error),
    fork: ({ name, model }) => void openFork(name, model),
  };
  const page = frame(context, {
    label: "Run panel",
    kind: "run",
    receive,
    refresh: refreshSoon,
    ready: () => Boolean(facts) || Boolean(unreadable),
    state() {
      if (unreadable) return ["error", "Cannot be read"];
      if (asking === "stop" && !facts?.over) return ["reading", "Stopping"];
      const status = facts?.status ?? "waiting";
      if (facts?.behind) return [LAMPS[status], `Waiting for the machine: ${facts.behind} trains`];
      if (status === "running" && facts?.step === null) return [LAMPS[status], "Preparing"];
      return [LAMPS[status], WORDS[status]];
    },
    trouble: () => [facts?.error ?? "", facts?.refusal ?? "", unreadable],
  });
  const name = element("b.chm-run-name");
  const origin = element("span");
  const forkChips = element("span", { hidden: true });
  const lineage = element("span.chm-run-lineage", origin, forkChips);
  const hands = runHands({ act });
  const pause = button("Pause", "pause", () => act(facts?.status === "paused" ? "resume" : "pause"));
  const stop = button("Stop", "stop", () => act("stop"));
  const save = button("Save a checkpoint now", "save", () => act("save"));
  const settingsSwitch = button("Settings", "settings", () => unfold(hands.form), { "aria-expanded": "false" });
  const forkSwitch = button("Fork", "fork", () => unfold(hands.fork), { "aria-expanded": "false" });
  const forms = /** @type {const} */ ([
    [settingsSwitch, hands.form],
    [forkSwitch, hands.fork],
  ]);
  const bar = element(
    "div.chm-run-bar",
    { role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 },
    element("i"),
  );
  const pace = element("div.chm-run-pace");
  const chips = group("chm-run-chips", "Measures");
  const range = element(
    "select.chm-select",
    { "aria-label": "Steps shown", on: { change: choose } },
    ...RANGES.map(([value, text]) => element("option", { value, text })),
    element("option", { value: "dragged", text: "as dragged", hidden: true }),
  );
  const whole = button("Whole run", null, () => zoom(null), { hidden: true });
  const bench = element("div.chm-run-bench", chips, element("div.chm-run-range", whole, range));
  const stack = element("div.chm-run-charts");
  const empty = element("div.chm-lead.chm-empty-stage");
  const heat = heatMap({ pointed: point });
  const layered = element("select.chm-select", { "aria-label": "Measure of layers", on: { change: refreshSoon } });
  const logHeat = logSwitch("Colours on a log scale", refreshSoon);
  const heatBox = element(
    "section.chm-run-layers",
    { "aria-label": "Layers over time" },
    element("div.chm-run-title", element("b", { text: "By layer" }), layered, logHeat),
    heat.node,
  );
  const strip = headStrip();
  const events = runEvents({ light, pick });
  const below = element("div.chm-run-below", strip.node, events.node);
  const samples = sampleStrip({ pointed: point });
  const body = element("div.chm-run-body", bench, stack, samples.node, heatBox, below);

  const redraw = oncePerFrame(refresh);
  function refreshSoon() {
    redraw.ask();
  }

  // What is asked of the kernel

  /** @param {string} command @param {Record<string, any>} [args] */
  async function act(command, args = {}) {
    asking = command;
    forking ||= command === "fork";
    await page.ask({ kind: "act", command, arguments: args });
    if (asking === command) asking = "";
    page.refresh();
  }

  /** Opens a fork's panel beside this one, or closes it. @param {string} name */
  function toggleFork(name) {
    const open = forkPanels.get(name);
    if (!open) return void page.ask({ kind: "open", name });
    forkPanels.delete(name);
    open.view.remove();
    open.place.remove();
    page.refresh();
  }

  /** @param {string} name @param {string} id of the panel's model */
  async function openFork(name, id) {
    if (forkPanels.has(name)) return;
    const place = element("div.chm-run-fork");
    forkPanels.set(name, { place, view: { remove() {} } });
    context.el.append(place);
    const manager = context.model.widget_manager;
    const view = await manager.create_view(await manager.get_model(id));
    if (forkPanels.get(name)?.place !== place) return view.remove(); // it was closed meanwhile
    forkPanels.set(name, { place, view });
    place.append(view.el);
    page.refresh();
  }

  // What is looked at

  /** @param {HTMLFormElement} form */
  function unfold(form) {
    const opens = form.hidden;
    for (const [each, its] of forms) {
      its.hidden = its !== form || !opens;
      each.setAttribute("aria-expanded", String(!its.hidden));
    }
    if (opens) /** @type {HTMLElement | null} */ (form.querySelector("input, select"))?.focus();
  }

  function choose() {
    span = range.value;
    if (span !== "dragged") dragged = null;
    refreshSoon();
  }

  /** @param {[number, number] | null} ends */
  function zoom(ends) {
    dragged = ends;
    span = ends ? "dragged" : "all";
    range.value = span;
    refreshSoon();
  }

  /** Steps at the two ends of every picture. @returns {[number, number] | null} */
  function ends() {
    if (!records.count) return null;
    if (dragged) return dragged;
    const { firstStep, lastStep } = records;
    const stride = 2 ** Math.max(0, Math.floor(Math.log2((lastStep - firstStep) / 2048))); // below a pixel, so that pictures need not move at every step
    const last = firstStep + stride * Math.max(1, Math.ceil((lastStep - firstStep) / stride));
    return [Number(span) ? Math.max(records.firstStep, last - Number(span)) : records.firstStep, last];
  }

  /** The cursor stands at a step, on every picture. @param {number | null} step */
  function point(step) {
    cursor = step;
    const at = step ?? pinned;
    for (const { chart } of charts.values()) chart.point(at);
    heat.point(at);
    samples.point(at);
    showHeads(at);
  }

  /** @param {number | null} at */
  function showHeads(at) {
    const logits = records.layers.get(LOGITS);
    strip.node.hidden = !logits; // a tokenizer has none, and what reads them does so at the first step
    strip.show(logits, at, records.about.get(LOGITS)?.thresholds);
  }

  /** @param {import("../charts/curves.js").Mark | null} mark */
  function light(mark) {
    for (const { chart } of charts.values()) chart.light(mark);
  }

  /** Keeps the cursor at what happened; a second time lets go. @param {import("../charts/curves.js").Mark} mark */
  function pick(mark) {
    pinned = pinned === mark.step ? null : mark.step;
    const reach = ends();
    if (pinned !== null && dragged && reach && (mark.step < reach[0] || mark.step > reach[1])) zoom(null);
    point(null);
  }

  /** @param {string} label @param {() => void} change */
  function logSwitch(label, change) {
    const node = toggle(label, null, change, { class: "chm-button chm-run-log", "aria-label": label, title: label });
    node.textContent = "log";
    return node;
  }

  // The screen, once a frame

  function refresh() {
    body.hidden = !records.count;
    empty.hidden = Boolean(records.count) || !(facts || unreadable);
    if (!facts) return;
    head(facts);
    if (!records.count)
      empty.textContent = facts.over ? "This run ended before its first step." : "Waits for the first step.";
    else pictures();
    events.show(records, facts.over);
    below.hidden = body.hidden;
  }

  /** @param {import("./messages.js").PanelState} facts */
  function head(facts) {
    const { status, over, acts, folder, progress, step, steps, left, forks } = facts;
    write(name, facts.name);
    const from = facts.parent
      ? `fork of ${facts.parent}${facts.forked_at === null ? "" : ` at step ${stepText(facts.forked_at)}`}${facts.difference ? `: ${facts.difference}` : ""}`
      : "";
    const openable = context.model.widget_manager?.create_view ? facts.panels : [];
    const closed = forks.filter((each) => !openable.includes(each));
    write(
      origin,
      [from, closed.length ? `forks: ${closed.join(", ")}` : "", folder ? "from its folder" : ""]
        .filter(Boolean)
        .join(" · "),
    );
    forkChips.hidden = !openable.length;
    if (forkChips.dataset.of !== openable.join()) {
      forkChips.dataset.of = openable.join();
      const chips = openable.map((each) =>
        button(each, null, () => toggleFork(each), { class: "chm-button chm-chip", "aria-label": `Panel of ${each}` }),
      );
      forkChips.replaceChildren(" forks", ...chips);
    }
    for (const chip of forkChips.querySelectorAll("button")) press(chip, forkPanels.has(chip.textContent ?? ""));
    toolbar.hidden = !acts;
    const paused = status === "paused";
    if (pause.getAttribute("aria-label") !== (paused ? "Resume" : "Pause")) {
      pause.replaceChildren(icon(paused ? "play" : "pause"));
      pause.title = paused ? "Resume" : "Pause";
      pause.setAttribute("aria-label", pause.title);
    }
    pause.disabled = !["running", "paused"].includes(status);
    stop.disabled = over || asking === "stop";
    save.disabled = !["running", "paused"].includes(status);
    settingsSwitch.disabled = over || !Object.keys(facts.settings).length;
    forkSwitch.disabled = !facts.offers.length;
    for (const [which, form] of forms) if ((which.disabled || !acts) && !form.hidden) unfold(form);
    const percent = Math.min(100, Math.max(0, 100 * progress));
    /** @type {HTMLElement} */ (bar.firstElementChild).style.width = `${percent}%`;
    bar.setAttribute("aria-valuenow", percent.toFixed(0));
    bar.dataset.state = status;
    paceWords = [
      step === null ? "" : `step ${stepText(step)}${steps ? ` of ${stepText(steps)}` : ""}`,
      `${percent.toFixed(percent < 10 && percent > 0 ? 1 : 0)} %`,
      !over && Number(facts.pace) > 0 ? `${figure(Math.round(Number(facts.pace)))} tokens/s` : "",
      left !== null && status === "running" ? `${duration(left)} left` : "",
      facts.note,
    ]
      .filter(Boolean)
      .join(" · ");
    showPace();
  }

  function showPace() {
    const quiet = (performance.now() - steppedAt) / 1000;
    const wait = facts?.status === "running" && quiet > QUIET ? ` · no step for ${duration(quiet)}` : "";
    write(pace, paceWords + wait);
  }

  function pictures() {
    const groups = chartsOf([...records.measures.keys()].flatMap((each) => records.about.get(each) ?? []));
    if (![...open].some((each) => groups.has(each)) && groups.size) open.add([...groups.keys()][0]);
    showChips([...groups.values()].map(([member]) => member));
    const reach = ends();
    const { alarms, changes, milestones } = records;
    if (marks.length !== alarms.length + changes.length + milestones.length)
      marks = [
        ...milestones.map((each) => milestoneMark(each)),
        ...changes.map((each) => changeMark(each)),
        ...alarms.map((each) => alarmMark(each)),
      ];
    for (const [measure, members] of groups) showChart(measure, members, reach);
    for (const [measure, { chart }] of charts)
      if (!open.has(measure) || !groups.has(measure)) {
        chart.dispose();
        chart.node.remove();
        charts.delete(measure);
      }
    order([...groups.keys()]);
    samples.show(reach);
    showLayers(reach);
    showHeads(cursor ?? pinned);
    whole.hidden = !dragged;
    /** @type {HTMLOptionElement} */ (range.lastElementChild).hidden = !dragged;
  }

  /** @param {Measure[]} measures one of each chart */
  function showChips(measures) {
    const key = JSON.stringify([measures.map(({ base }) => base), [...open], unfolded]);
    if (key === chipKey) return;
    chipKey = key;
    const families = familiesOf(measures);
    const focus = document.activeElement?.getAttribute("data-chip");
    if (measures.length <= FLAT) chips.replaceChildren(...families.flatMap(([, members]) => members.map(chipOf)));
    else {
      const heads = families.map(([family, members]) => {
        const count = members.filter(({ base }) => open.has(base)).length;
        return button(
          `${family} ${count ? `${count} of ` : ""}${members.length}`,
          null,
          () => {
            unfolded = unfolded === family ? "" : family;
            refreshSoon();
          },
          {
            class: `chm-button chm-chip chm-run-family${count ? " chm-run-some" : ""}`,
            "aria-expanded": String(unfolded === family),
            "data-chip": `family ${family}`,
          },
        );
      });
      const members = families.find(([family]) => family === unfolded)?.[1] ?? [];
      chips.replaceChildren(
        element("div.chm-run-families", ...heads),
        element("div.chm-run-members", { hidden: !members.length }, ...members.map(chipOf)),
      );
    }
    if (focus) /** @type {HTMLElement | null} */ (chips.querySelector(`[data-chip="${focus}"]`))?.focus();
  }

  /** Opens the chart of a measure, or closes it. @param {Measure} measure */
  function chipOf(measure) {
    const { base, title } = measure;
    return button(
      title,
      null,
      () => {
        if (!open.delete(base)) open.add(base);
        refreshSoon();
      },
      {
        class: "chm-button chm-chip",
        "aria-pressed": String(open.has(base)),
        "data-chip": base,
        title: measureWords([measure]),
      },
    );
  }

  /** @param {string} measure @param {Measure[]} members @param {[number, number] | null} reach */
  function showChart(measure, members, reach) {
    if (!open.has(measure)) return;
    let entry = charts.get(measure);
    if (!entry) {
      const chart = curves({
        title: capital(members[0].title),
        unit: members[0].unit,
        height: measure === "loss" ? 190 : 128,
        pointed: point,
        zoomed: zoom,
      });
      const fresh = { chart, log: members[0].log, key: "" };
      const log = logSwitch("Values on a log axis", () => {
        fresh.log = !fresh.log;
        chart.show({ log: fresh.log });
      });
      press(log, fresh.log);
      chart.tools.append(log);
      charts.set(measure, (entry = fresh));
      chart.point(cursor ?? pinned);
    }
    const key = JSON.stringify([members, marks.length, records.epoch]);
    const range = reach;
    if (key !== entry.key) {
      entry.key = key;
      const lines = members.map(({ name: whole, part }, at) => ({
        ...styled(part, at),
        points: /** @type {import("../charts/points.js").Points} */ (records.measures.get(whole)),
      }));
      if (members.length === 1 && !members[0].part)
        Object.assign(lines[0], { name: capital(members[0].title), colour: "var(--accent)" });
      entry.chart.show({
        lines,
        marks,
        log: entry.log,
        range,
        hint: measureWords(members),
        rules: members.flatMap(({ thresholds }) => thresholds.map(([limit]) => limit)),
      });
    } else entry.chart.range(range);
  }

  /** Charts in the order of their measures. @param {string[]} measures */
  function order(measures) {
    const nodes = measures.flatMap((measure) => charts.get(measure)?.chart.node ?? []);
    if (nodes.some((node, at) => stack.children[at] !== node)) stack.replaceChildren(...nodes);
  }

  /** @param {[number, number] | null} reach */
  function showLayers(reach) {
    const names = [...records.layers.keys()].sort();
    heatBox.hidden = !names.length;
    if (names.join() !== layerKey) {
      layerKey = names.join();
      const chosen = layered.value || (names.includes(LOGITS) ? LOGITS : names[0]);
      layered.replaceChildren(
        ...names.map((each) => element("option", { value: each, text: records.about.get(each)?.words ?? each })),
      );
      layered.value = names.includes(chosen) ? chosen : names[0];
      if (!logHeat.dataset.touched) {
        logHeat.dataset.touched = "yes";
        press(logHeat, records.about.get(layered.value)?.log ?? false);
      }
    }
    heat.show({ rows: records.layers.get(layered.value) ?? null, range: reach, log: pressed(logHeat) });
  }

  const pacing = setInterval(showPace, 1000);
  const header = page.header("Controls", [pause, stop, save, settingsSwitch, forkSwitch], [name, lineage]);
  const toolbar = /** @type {HTMLElement} */ (header.lastElementChild);
  context.el.classList.add("chm-run-row");
  return page.open(
    [header, bar, pace, page.alert, hands.form, hands.fork, empty, body],
    [
      redraw.dispose,
      () => clearInterval(pacing),
      () => charts.forEach(({ chart }) => chart.dispose()),
      heat.dispose,
      strip.dispose,
      samples.dispose,
      () => forkPanels.forEach(({ view }) => view.remove()),
    ],
  );
}

export default { render };
