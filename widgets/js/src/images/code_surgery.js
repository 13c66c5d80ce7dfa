// Code surgery: codes are painted over a picture's grid, and the kernel decodes the picture anew.

import { download, element, icon, press, pressed } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { facts as factSpans, sampleButtons } from "./samples.js";
import { cellsWhere, codesFile, tally } from "./strokes.js";
import { bench as makeBench } from "./surgery_bench.js";
import { board, overlay } from "./surgery_board.js";
import { codesInHand } from "./surgery_codes.js";
import { filesFor } from "./surgery_files.js";
import { palette } from "./surgery_palette.js";
import { panes } from "./surgery_panes.js";
import { GLYPHS, TOOLS, toolButton, worded } from "./surgery_tools.js";
import { work } from "./surgery_work.js";

const NUMBERED = 12; // columns up to which numbers can be read
const UNKNOWN = "color-mix(in srgb, var(--accent) 40%, transparent)"; // of what is painted with a code not seen yet
const WAITING_WORDS = "What you paint is kept here, and decoded as soon as the kernel answers.";
const REST = 800; // milliseconds without an edit before the still is made

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const { model } = context;
  /** @type {number | null} */
  let pointed = null; // the code whose swatch is pointed at
  let [current, drawing, resting] = [0, 0, 0];
  let [whole, silent, opening] = [false, false, false];
  let error = "";

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").SurgeryUpdate>} */
  const receive = { update };
  const page = frame(context, {
    label: "Code surgery",
    kind: "surgery",
    receive,
    refresh,
    ready: () => whole,
    state() {
      if (opening || model.get("status") === "working") return ["working", opening ? "Opening" : "Decoding"];
      return error || page.notice ? ["error", "Error"] : ["idle", "Ready"];
    },
    trouble: () => [page.silent && hand.waits ? WAITING_WORDS : error],
    traits: ["status"],
  });
  const { box, tell } = page;
  const hand = codesInHand(page.request, requestAnimationFrame);
  box.tabIndex = -1;
  const undo = toolButton("Undo", "Ctrl+Z", GLYPHS.undo, () => move(-1));
  const redo = toolButton("Redo", "Ctrl+Shift+Z", GLYPHS.redo, () => move(1));
  const reset = toolButton("Reset", "", GLYPHS.reset, () => hands.restore(), {
    hint: "the codes as they came, in the selection or everywhere",
  });
  const gridSwitch = toolButton("Grid", "G", GLYPHS.grid, () => flip(gridSwitch), {
    hint: "lines and marks",
    pressed: true,
  });
  const numberSwitch = toolButton("Numbers", "N", GLYPHS.numbers, () => flip(numberSwitch), {
    hint: "codes in their cells",
    pressed: false,
  });
  const savePicture = worded("PNG", icon("save"), exportPicture, "Save the picture as PNG");
  const saveCodes = worded("JSON", icon("save"), exportCodes, "Save the codes as JSON");
  const samples = sampleButtons((name) => open({ kind: "sample", name }));
  const empty = element("div.chm-lead.chm-empty-stage", {
    text: "Paste, drop or open a picture, or codes in a JSON file.",
  });
  const facts = element("div.chm-facts");
  const readout = element("div.chm-readout", { role: "status" });
  const swatches = palette({
    choose: (code) => bench.set(code),
    point: (code) => {
      pointed = code;
      mark();
    },
    want: (codes) => page.request({ kind: "swatches", codes }),
  });
  const bench = makeBench({
    face: swatches.face,
    recent: swatches.recent,
    chosen,
    say,
    sized: () => use("brush"),
    scatter,
  });
  const hands = work({
    hand,
    bench,
    pointed: mark,
    changed: () => {
      rest();
      redraw();
    },
  });
  const tools = TOOLS.map(({ name, label, key, path, hint }) => ({
    name,
    node: toolButton(label, key, path, () => use(name), { hint, pressed: false }),
  }));
  const rail = element(
    "div.chm-rail",
    { role: "toolbar", "aria-label": "Tools", "aria-orientation": "vertical" },
    ...tools.map(({ node }) => node),
  );
  const plate = board({ label: "Codes of the picture", describe, acts: hands.board });
  const mirror = overlay();
  const views = panes(plate.node, mirror.node);
  const stage = element("div.chm-theatre", rail, element("div.chm-panes", views.edited.node, views.other.node));

  box.addEventListener("keydown", shortcut);

  // What comes in

  /** @param {{kind: string, [field: string]: any}} content @param {ArrayBuffer[]} [buffers] */
  async function open(content, buffers) {
    hand.send();
    error = "";
    opening = true;
    if (await page.ask(content, { buffers, lost: "Nothing was opened: the kernel" })) return;
    opening = false;
    page.refresh();
  }

  /** @param {import("./messages.js").SurgeryUpdate} message @param {DataView[]} buffers */
  function update(message, buffers) {
    const rest = [...buffers];
    const next = () => /** @type {DataView} */ (rest.shift());
    if (message.samples) samples.offer(message.samples, message.samples.map(next));
    if (message.codebook !== undefined) bench.know(message.codebook);
    hand.take(message, next);
    if (message.error !== undefined) {
      whole = true;
      opening = false;
      error = message.error;
      page.tell("");
    }
    if (hand.grid && hand.grid.key !== current) begin(hand.grid);
    if (message.picture) {
      stage.style.setProperty("--w", String(message.picture.width));
      stage.style.setProperty("--h", String(message.picture.height));
      if (message.picture.fresh) hand.dried();
      views.show(next(), message.picture.before ? next() : null);
    }
    for (const code of message.swatches ?? []) swatches.receive(code, next());
    if (silent && !page.silent) {
      silent = false;
      hand.resend();
      swatches.forget();
    }
    redraw();
  }

  /** @param {import("./surgery_codes.js").Grid} grid that was opened */
  function begin(grid) {
    const often = [...tally(grid.original)].sort((one, other) => other[1] - one[1]).map(([code]) => code);
    hands.begin();
    plate.shape(grid);
    mirror.shape(grid);
    swatches.begin();
    if (!current) bench.set(often[1] ?? often[0]); // the commonest is background, as a rule
    current = grid.key;
  }

  // What is done

  /** @param {number} steps */
  function move(steps) {
    hand.send();
    page.request({ kind: "move", steps });
    rest();
  }

  function rest() {
    clearTimeout(resting);
    resting = setTimeout(() => page.request({ kind: "rest" }), REST);
  }

  function scatter() {
    say(hands.scatter());
  }

  /** @param {number} code */
  function chosen(code) {
    swatches.current(code);
    mark();
  }

  /** @param {string} name */
  function use(name) {
    hands.use(name);
    stage.dataset.tool = name;
    for (const tool of tools) press(tool.node, tool.name === name);
  }

  /** @param {HTMLElement} which */
  function flip(which) {
    press(which, !pressed(which));
    redraw();
  }

  /** @param {KeyboardEvent} event */
  function shortcut(event) {
    if (event.target instanceof HTMLInputElement || event.altKey || !hand.grid) return;
    const key = event.key.toLowerCase();
    /** @type {Record<string, () => void>} */
    const acts =
      event.ctrlKey || event.metaKey
        ? { z: () => move(event.shiftKey ? 1 : -1), y: () => move(1) }
        : {
            g: () => flip(gridSwitch),
            n: () => numberSwitch.click(),
            d: views.flip,
            r: scatter,
            escape: () => hands.select(null),
            ...Object.fromEntries(TOOLS.map((tool) => [tool.key.toLowerCase(), () => use(tool.name)])),
            ...Object.fromEntries([1, 2, 3].map((size) => [String(size), () => bench.resize(size)])),
          };
    if (!Object.hasOwn(acts, key)) return;
    event.preventDefault();
    acts[key]();
  }

  async function exportPicture() {
    download("picture.png", await views.file());
  }

  function exportCodes() {
    const { grid } = hand;
    if (grid)
      download("codes.json", new Blob([codesFile(grid.codes, grid, bench.codebook)], { type: "application/json" }));
  }

  // What is seen

  /** @param {number} at */
  function describe(at) {
    const { grid } = hand;
    if (!grid) return "";
    const [now, was] = [grid.codes[at], grid.original[at]];
    return `Row ${Math.floor(at / grid.columns) + 1}, column ${(at % grid.columns) + 1}, code ${now}${now === was ? "" : `, was ${was}`}`;
  }

  /** What is pointed at, and what a click would do. */
  function mark() {
    const { grid } = hand;
    if (!grid) return;
    const { place, tool } = hands;
    const preview = hands.preview();
    const same = pointed === null ? [] : cellsWhere(grid.codes.length, (at) => grid.codes[at] === pointed);
    plate.mark({ preview, same });
    mirror.mark({ preview, same });
    const paints = place && ["fill", "swap"].includes(tool) && grid.codes[place.at] !== bench.code;
    say(
      place
        ? describe(place.at) +
            (paints ? ` → ${bench.code} in ${preview.length} ${preview.length === 1 ? "cell" : "cells"}` : "")
        : "",
    );
  }

  /** @param {string} text */
  function say(text) {
    readout.textContent = text;
  }

  /** Shows everything that follows from the codes, once in a frame. */
  function redraw() {
    drawing ||= requestAnimationFrame(() => {
      drawing = 0;
      const { grid } = hand;
      if (!grid) return;
      const { codes, original, drawn } = grid;
      const changed = cellsWhere(codes.length, (at) => codes[at] !== original[at]);
      const wet = /** @type {Map<string, number[]>} */ (new Map());
      for (const at of cellsWhere(codes.length, (each) => codes[each] !== drawn[each])) {
        const colour = swatches.colourOf(codes[at]) || UNKNOWN;
        wet.set(colour, [...(wet.get(colour) ?? []), at]);
      }
      const selection = hands.selection ?? [];
      plate.mark({ changed, selection, wet });
      mirror.mark({ changed, selection });
      plate.numbers(pressed(numberSwitch) && grid.columns <= NUMBERED ? codes : null);
      plate.say();
      const counts = tally(codes);
      swatches.count(tally(original), counts);
      views.edited.words.textContent = `from ${grid.rows} × ${grid.columns} codes`;
      /** @type {[number, string][]} */
      const rows = [
        [changed.length, `of ${codes.length} cells changed`],
        [counts.size, bench.codebook ? `of ${bench.codebook} codes used` : "different codes"],
      ];
      if (hands.selection) rows.push([hands.selection.size, "selected"]);
      facts.replaceChildren(...factSpans(rows));
      box.classList.toggle("chm-bare", !pressed(gridSwitch));
      if (hands.place) mark();
      page.refresh();
    });
  }

  function refresh() {
    const { grid } = hand;
    silent ||= page.silent;
    stage.hidden = bench.node.hidden = swatches.node.hidden = !grid;
    empty.hidden = Boolean(grid);
    undo.disabled = !hand.undo;
    redo.disabled = !grid?.redo;
    numberSwitch.disabled = !grid || grid.columns > NUMBERED;
    for (const each of [reset, gridSwitch, savePicture, saveCodes]) each.disabled = !grid;
    samples.mark(grid?.name);
  }

  use("brush");
  const rule = () => element("i.chm-gap");
  return page.open(
    [
      page.header("Surgery", [
        ...[undo, redo, reset, rule(), gridSwitch, numberSwitch, rule(), savePicture, saveCodes],
        ...filesFor(box, { open, tell }),
      ]),
      samples.node,
      empty,
      stage,
      page.alert,
      bench.node,
      swatches.node,
      element("footer.chm-feet", facts, readout),
    ],
    [() => clearTimeout(resting), () => cancelAnimationFrame(drawing), swatches.dispose],
  );
}

export default { render };
