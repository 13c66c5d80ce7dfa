// The reconstruction viewer: a picture through one image tokenizer, or through two that are compared.

import { button, element, group, icon, pressed, toggle } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { chooser, dropTarget, notPicture, readPicture, sortFiles } from "../frame/pictures.js";
import { shownWidth } from "./errors.js";
import { roundTripView } from "./round_trip.js";
import { sampleButtons } from "./samples.js";

const GAP = 16; // CSS pixels around the pictures
const NARROWEST = 176; // of a column; where there is less room, some of them go below

/** @param {string} label @param {() => void} change */
function choice(label, change) {
  const select = element("select.chm-select", { "aria-label": label, on: { change } });
  const node = element("label.chm-choice", element("span", { "aria-hidden": "true", text: label }), select);
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

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const { model } = context;
  let error = ""; // the kernel's
  let [whole, asking] = [false, false];
  let picture = ""; // name of the one that is visible
  let offers = { tokenizers: /** @type {string[]} */ ([]), policies: /** @type {string[]} */ ([]) };
  /** @type {ReturnType<typeof roundTripView>[]} those in use */
  let visible = [];

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").ViewerMessage>} */
  const receive = { offers: offer, result: show };
  const page = frame(context, {
    label: "Reconstruction viewer",
    kind: "reconstruction",
    receive,
    refresh,
    ready: () => whole,
    state() {
      if (asking || model.get("status") === "working") return ["working", "Encoding"];
      return error || page.notice ? ["error", "Error"] : ["idle", "Ready"];
    },
    trouble: () => [error],
    traits: ["status"],
  });
  const { box, tell } = page;
  box.tabIndex = -1;
  const files = chooser((chosen) => take(chosen), false);
  const choose = button("Choose a picture", null, () => files.click(), { class: "chm-button chm-choose" });
  choose.prepend(icon("attach"));
  const wipeSwitch = toggle("Wipe between original and reconstruction", "wipe", page.refresh);
  const gridSwitch = toggle("Show the grid of codes", "grid", page.refresh);
  const heatSwitch = toggle("Show where the pictures differ", "heat", page.refresh);
  const [first, second, policy] = ["Tokenizer", "Compare with", "Preparation"].map((label) => choice(label, decide));
  const choices = group("chm-choices", "Choices", first.node, second.node, policy.node);
  const samples = sampleButtons((name) => ask({ kind: "sample", name }));
  const readout = element("div.chm-readout", { role: "status" });
  const views = [0, 1].map(() =>
    roundTripView({
      wipes,
      reads: (words, trip) =>
        (readout.textContent = words && visible.length > 1 ? `${trip.tokenizer}: ${words}` : words),
      tell,
      fileName: (trip) => [picture || "picture", ...(offers.tokenizers.length > 1 ? [trip.tokenizer] : [])].join(" "),
    }),
  );
  const stage = element("div.chm-stage");
  const empty = element("div.chm-lead.chm-empty-stage", { text: "Paste, drop or choose a picture." });
  const feet = element("footer.chm-feet", readout);

  wipes(50);

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
      const file = await readPicture(pictures[0]);
      URL.revokeObjectURL(file.url);
      ask({ kind: "picture", name: file.name }, [file.bytes]);
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

  /** @param {{kind: string, [field: string]: any}} content @param {ArrayBuffer[]} [buffers] */
  async function ask(content, buffers) {
    error = "";
    asking = true;
    await page.ask(content, { buffers, lost: "The picture has not arrived: the kernel" });
    asking = false;
    page.refresh();
  }

  /** @param {number} percent */
  function wipes(percent) {
    for (const each of views) each.slider.set(percent);
  }

  function refresh() {
    stage.hidden = !visible.length;
    empty.hidden = Boolean(visible.length);
    for (const tool of [wipeSwitch, gridSwitch, heatSwitch]) tool.disabled = !visible.length;
    first.node.hidden = second.node.hidden = offers.tokenizers.length < 2;
    policy.node.hidden = offers.policies.length < 2;
    choices.hidden = first.node.hidden && policy.node.hidden;
    arrange();
  }

  /** Puts the figures into columns: under the wipe one for each tokenizer, else one more for the original. */
  function arrange() {
    const [wiping, hot] = [pressed(wipeSwitch), pressed(heatSwitch)];
    const compared = visible.length > 1;
    for (const { slider, grids } of views) {
      slider.turn(wiping);
      for (const grid of grids) grid.node.hidden = !pressed(gridSwitch);
    }
    const columns = /** @type {Node[][]} */ (wiping || !visible.length ? [] : [[source().figures.original.node]]);
    for (const { trip, figures, facts, refusal } of visible) {
      if (trip?.error) columns.push([refusal]);
      else if (compared) columns.push([figures.rebuilt.node, facts, ...(hot ? [figures.difference.node] : [])]);
      else columns.push([figures.rebuilt.node], ...(hot ? [[figures.difference.node]] : []));
    }
    const nodes = columns.flat();
    if (
      nodes.length !== stage.querySelectorAll(".chm-column > *").length ||
      nodes.some((node) => !stage.contains(node))
    )
      stage.replaceChildren(...columns.map((nodes) => element("div.chm-column", ...nodes)));
    if (visible.length === 1) feet.prepend(visible[0].facts);
    fit();
    paint();
  }

  /** The one whose original is visible where there is room for one: that with most pixels. */
  function source() {
    const pixels = (/** @type {typeof visible[0]} */ { trip }) => (trip && !trip.error ? trip.width * trip.height : 0);
    return visible.reduce((best, each) => (pixels(each) > pixels(best) ? each : best));
  }

  function fit() {
    const trips = visible.flatMap(({ trip }) => (trip && !trip.error ? [trip] : []));
    const columns = stage.children.length;
    const width = stage.clientWidth - 2 * GAP;
    if (!trips.length || width <= 0) return;
    const beside = Math.max(1, Math.min(columns, Math.floor((width + GAP) / (NARROWEST + GAP))));
    const cell = Math.floor((width + GAP) / beside) - GAP;
    stage.style.setProperty("--cell", `${cell}px`);
    const tallest = Math.min(columns === 1 ? 720 : 640, Math.max(256, 0.72 * window.innerHeight));
    const shownAt = shownWidth(trips, cell, tallest);
    for (const each of visible) each.fit(shownAt);
  }

  /** Paints the errors, if they are looked at; those that are compared on one scale. */
  async function paint() {
    if (!pressed(heatSwitch)) return;
    const most = Math.max(...(await Promise.all(visible.map((each) => each.largest()))));
    for (const each of visible) each.paint(most);
  }

  /** @param {import("./messages.js").ViewerOffers} message @param {DataView[]} buffers */
  function offer(message, buffers) {
    offers = message;
    samples.offer(message.samples, buffers);
  }

  /** @param {import("./messages.js").ViewerResult} message @param {DataView[]} buffers */
  function show({ name, trips, chosen: [one, other], policy: prepared, error: words }, buffers) {
    whole = true;
    error = words;
    page.tell("");
    first.offer(offers.tokenizers, one);
    second.offer(
      offers.tokenizers.filter((each) => each !== one),
      other ?? "",
      "nothing",
    );
    policy.offer(offers.policies, prepared);
    picture = name;
    samples.mark(trips.length ? name : undefined);
    let next = 0;
    visible = trips.map((trip, at) => {
      const count = !trip.error ? 2 : 0;
      views[at].show(trip, buffers.slice(next, next + count));
      next += count;
      return views[at];
    });
    const compared = visible.length > 1;
    for (const { trip, figures } of visible) {
      if (!trip || trip.error) continue;
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

  return page.open(
    [
      page.header("Views", [wipeSwitch, gridSwitch, heatSwitch, choose, files]),
      choices,
      samples.node,
      page.alert,
      empty,
      stage,
      feet,
    ],
    [() => room.disconnect()],
  );
}

export default { render };
