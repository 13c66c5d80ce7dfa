// The reconstruction viewer: a picture through one image tokenizer, or through two that are compared.

import { button, element, icon, lamp, root } from "../frame/dom.js";
import { connect } from "../frame/link.js";
import { chooser, dropTarget, notPicture, pngUrl, readPicture, sortFiles } from "../frame/pictures.js";
import { hidesStill, stillKeeper } from "../frame/still.js";
import { shownWidth } from "./errors.js";
import { roundTripView } from "./round_trip.js";

const GAP = 16; // CSS pixels around the pictures
const NARROWEST = 176; // of a column; where there is less room, some of them go below

/** @param {string} label @param {() => void} change */
function choice(label, change) {
  const select = element("select", { class: "chm-select", "aria-label": label, on: { change } });
  const node = element(
    "label",
    { class: "chm-choice" },
    element("span", { "aria-hidden": "true", text: label }),
    select,
  );
  return {
    node,
    select,
    /** @param {string[]} values @param {string} value @param {string} [none] words for no choice, where that is one */
    offer(values, value, none) {
      const offered = none === undefined ? values : ["", ...values];
      select.replaceChildren(...offered.map((each) => element("option", { value: each, text: each || none || "" })));
      select.value = value;
    },
  };
}

/** @param {HTMLElement} which */
const pressed = (which) => which.getAttribute("aria-pressed") === "true";

/** @param {{model: import("../frame/link.js").Model, el: HTMLElement}} context */
function render({ model, el }) {
  let whole = false;
  let error = "";
  let picture = ""; // name of the one that is shown
  let offers = { tokenizers: /** @type {string[]} */ ([]), policies: /** @type {string[]} */ ([]) };
  /** @type {ReturnType<typeof roundTripView>[]} those in use */
  let shown = [];

  const box = root("Reconstruction viewer", "reconstruction");
  box.tabIndex = -1;
  const signal = lamp();
  const stills = element("div", { hidden: true });
  const files = chooser((chosen) => take(chosen), false);
  const choose = button("Choose a picture", null, () => files.click(), { class: "chm-button chm-choose" });
  choose.prepend(icon("attach"));
  /** @param {string} label @param {"wipe" | "grid" | "heat"} glyph */
  const view = (label, glyph) => {
    const node = button(
      label,
      glyph,
      () => {
        node.setAttribute("aria-pressed", String(!pressed(node)));
        refresh();
      },
      { "aria-pressed": "false" },
    );
    return node;
  };
  const wipeSwitch = view("Wipe between original and reconstruction", "wipe");
  const gridSwitch = view("Show the grid of codes", "grid");
  const heatSwitch = view("Show where the pictures differ", "heat");
  const [first, second, policy] = ["Tokenizer", "Compare with", "Preparation"].map((label) => choice(label, decide));
  const choices = element(
    "div",
    { class: "chm-choices", role: "group", "aria-label": "Choices" },
    first.node,
    second.node,
    policy.node,
  );
  const samples = element("div", { class: "chm-samples", role: "group", "aria-label": "Samples" });
  const alert = element("div", { class: "chm-alert", role: "alert", hidden: true });
  const readout = element("div", { class: "chm-readout", role: "status" });
  const views = [0, 1].map(() =>
    roundTripView({
      wipes,
      reads: (words, trip) => (readout.textContent = words && shown.length > 1 ? `${trip.tokenizer}: ${words}` : words),
      tell,
      fileName: (trip) => [picture || "picture", ...(offers.tokenizers.length > 1 ? [trip.tokenizer] : [])].join(" "),
    }),
  );
  const stage = element("div", { class: "chm-stage" });
  const empty = element("div", { class: "chm-lead chm-empty-stage", text: "Paste, drop or choose a picture." });
  const feet = element("footer", { class: "chm-feet" }, readout);

  box.append(
    stills,
    element(
      "header",
      { class: "chm-head" },
      signal.node,
      element(
        "div",
        { class: "chm-tools", role: "toolbar", "aria-label": "Views" },
        wipeSwitch,
        gridSwitch,
        heatSwitch,
        choose,
        files,
      ),
    ),
    choices,
    samples,
    alert,
    empty,
    stage,
    feet,
  );
  el.replaceChildren(box);
  wipes(50);

  const link = connect(model, { receive, change: refresh });
  const keeper = stillKeeper(model, link);
  const room = new ResizeObserver(fit);
  room.observe(stage);
  dropTarget(box, (dropped) => take(dropped));
  box.addEventListener("paste", (event) => {
    const { files: pasted } = event.clipboardData ?? { files: null };
    event.preventDefault();
    if (pasted?.length) take(pasted);
    else tell("There is no picture on the clipboard. Copy a picture, not a file's name or text.");
  });

  /** @param {Iterable<File>} list */
  async function take(list) {
    const { pictures, others } = sortFiles(list);
    if (!pictures.length) return tell(notPicture(others[0] ?? ""));
    try {
      const read = await readPicture(pictures[0]);
      URL.revokeObjectURL(read.url);
      ask({ kind: "picture", name: read.name }, [read.bytes]);
    } catch (problem) {
      tell(/** @type {Error} */ (problem).message);
    }
  }

  /** Asks for the tokenizers and the policy that are chosen. */
  function decide() {
    const [one, other] = [first.select.value, second.select.value];
    ask({
      kind: "choose",
      tokenizers: other && other !== one ? [one, other] : [one],
      policy: policy.select.value || null,
    });
  }

  /** @param {any} content @param {ArrayBuffer[]} [buffers] */
  async function ask(content, buffers) {
    tell("");
    signal.show("working", "Encoding");
    const arrived = await link.request(content, buffers);
    if (!arrived) tell("The picture has not arrived: the kernel is busy with another cell, or gone.");
    refresh();
  }

  /** @param {string} text */
  function tell(text) {
    error = text;
    alert.hidden = !text;
    alert.textContent = text;
    refresh();
  }

  /** @param {number} percent */
  function wipes(percent) {
    for (const each of views) each.slider.set(percent);
  }

  function refresh() {
    const state = link?.state ?? "connecting";
    const status = model.get("status");
    if (state === "silent") signal.show("disconnected", "Disconnected: the kernel does not answer");
    else if (state === "connecting") signal.show("connecting", "Connecting");
    else if (status === "working") signal.show("working", "Encoding");
    else if (error) signal.show("error", "Error");
    else signal.show("idle", "Ready");
    box.classList.toggle("chm-orphan", state === "silent" && !whole);
    stills.replaceChildren(...(whole ? [hidesStill(model.get("still_name") ?? "")] : []));
    stage.hidden = !shown.length;
    empty.hidden = Boolean(shown.length);
    for (const tool of [wipeSwitch, gridSwitch, heatSwitch]) tool.disabled = !shown.length;
    first.node.hidden = second.node.hidden = offers.tokenizers.length < 2;
    policy.node.hidden = offers.policies.length < 2;
    choices.hidden = first.node.hidden && policy.node.hidden;
    arrange();
  }

  /** Puts the figures into columns: under the wipe one for each tokenizer, else one more for the original. */
  function arrange() {
    const [wiping, hot] = [pressed(wipeSwitch), pressed(heatSwitch)];
    const compared = shown.length > 1;
    for (const { slider, grids } of views) {
      slider.turn(wiping);
      for (const grid of grids) grid.node.hidden = !pressed(gridSwitch);
    }
    /** @type {Node[][]} */
    const columns = wiping || !shown.length ? [] : [[source().figures.original.node]];
    for (const { trip, figures, facts, refusal } of shown) {
      if (trip?.error !== undefined) columns.push([refusal]);
      else if (compared) columns.push([figures.rebuilt.node, facts, ...(hot ? [figures.difference.node] : [])]);
      else columns.push([figures.rebuilt.node], ...(hot ? [[figures.difference.node]] : []));
    }
    const wanted = columns.flat();
    if (
      wanted.length !== stage.querySelectorAll(".chm-column > *").length ||
      wanted.some((node) => !stage.contains(node))
    )
      stage.replaceChildren(...columns.map((nodes) => element("div", { class: "chm-column" }, ...nodes)));
    if (shown.length === 1) feet.prepend(shown[0].facts);
    fit();
    paint();
  }

  /** The one whose original is shown where there is room for one: that with most pixels. */
  function source() {
    const pixels = (/** @type {typeof shown[0]} */ { trip }) => (trip && !trip.error ? trip.width * trip.height : 0);
    return shown.reduce((best, each) => (pixels(each) > pixels(best) ? each : best));
  }

  function fit() {
    const trips = shown.flatMap(({ trip }) => (trip && !trip.error ? [trip] : []));
    const columns = stage.children.length;
    const width = stage.clientWidth - 2 * GAP;
    if (!trips.length || width <= 0) return;
    const beside = Math.max(1, Math.min(columns, Math.floor((width + GAP) / (NARROWEST + GAP))));
    const cell = Math.floor((width + GAP) / beside) - GAP;
    stage.style.setProperty("--cell", `${cell}px`);
    const shownAt = shownWidth(trips, cell, columns === 1 ? 512 : 400);
    for (const each of shown) each.fit(shownAt);
  }

  /** Paints the errors, if they are looked at; those that are compared on one scale. */
  async function paint() {
    if (!pressed(heatSwitch)) return;
    const most = Math.max(...(await Promise.all(shown.map((each) => each.largest()))));
    for (const each of shown) each.paint(most);
  }

  /** @param {any} message @param {DataView[]} buffers */
  function receive(message, buffers) {
    if (message.kind === "still") return keeper.receive(message);
    if (message.kind !== "update") return;
    let next = 0;
    if (message.samples) {
      offers = message;
      samples.replaceChildren(
        ...message.samples.map((/** @type {string} */ name) => {
          const node = button("", null, () => ask({ kind: "sample", name }), { class: "chm-sample", title: name });
          node.append(
            element("img", { src: pngUrl(buffers[next++]), alt: "", draggable: "false" }),
            element("span", { class: "chm-sample-name", text: name }),
          );
          return node;
        }),
      );
      samples.hidden = !message.samples.length;
    }
    if (message.trips) {
      whole = true;
      const [one, other] = message.chosen;
      first.offer(offers.tokenizers, one);
      second.offer(
        offers.tokenizers.filter((each) => each !== one),
        other ?? "",
        "nothing",
      );
      policy.offer(offers.policies, message.policy);
      show(message, buffers.slice(next));
      tell(message.error);
    }
    refresh();
  }

  /** @param {{name: string, trips: import("./round_trip.js").Trip[]}} message @param {DataView[]} buffers */
  function show({ name, trips }, buffers) {
    picture = name;
    for (const node of samples.querySelectorAll("button"))
      node.setAttribute("aria-pressed", String(trips.length > 0 && node.title === name));
    let next = 0;
    shown = trips.map((trip, at) => {
      const count = trip.error === undefined ? 2 : 0;
      views[at].show(trip, buffers.slice(next, next + count));
      next += count;
      return views[at];
    });
    const compared = shown.length > 1;
    for (const { trip, figures } of shown) {
      if (!trip || trip.error !== undefined) continue;
      const size = `${trip.width} × ${trip.height}`;
      const from = `from ${trip.codes.flat().length} codes`;
      figures.original.words.textContent = `${size}, ${trip.policy || `as ${compared ? trip.tokenizer : "the encoder"} sees it`}`;
      figures.rebuilt.name.textContent = compared ? trip.tokenizer : "Reconstruction";
      figures.rebuilt.words.textContent = compared
        ? size
        : offers.tokenizers.length > 1
          ? `${from} of ${trip.tokenizer}`
          : from;
    }
  }

  model.on("change:status", refresh);
  refresh();
  link.request({ kind: "hello" });
  return () => {
    model.off("change:status", refresh);
    room.disconnect();
    keeper.dispose();
    link.close();
  };
}

export default { render };
