// The infill canvas: cells of a picture are painted away, words clicked away, and the fillings come side by side.

import { button, element, glyph, group, press, toggle } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { chooser, dropTarget, notPicture, readPicture, sortFiles } from "../frame/pictures.js";
import { fillingCard } from "./filling_card.js";
import { paintedPicture } from "./painted_picture.js";
import { wordLine } from "./word_line.js";

const GLYPHS = { undo: "M9 14 4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3", redo: "m15 14 5-5-5-5M20 9H10a6 6 0 0 0 0 12h3" };
const COUNTS = [1, 2, 4, 8];

/** @typedef {ReturnType<typeof paintedPicture> | ReturnType<typeof wordLine>} View of a segment */

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const { model } = context;
  /** @type {import("./messages.js").CanvasUpdate | null} */
  let canvas = null;
  let [error, doing] = ["", ""];
  let waiting = 0; // edits that the kernel has not answered yet: until then the page knows better
  /** @type {View[]} */
  let views = [];
  /** @type {ReturnType<typeof fillingCard>[]} */
  const cards = [];

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").CanvasMessage>} */
  const receive = { canvas: takeCanvas, fillings: takeFillings };
  const page = frame(context, {
    label: "Infill canvas",
    kind: "infill",
    receive,
    refresh,
    ready: () => canvas !== null,
    state() {
      if (model.get("status") === "working") return ["working", doing || "Filling"];
      return error || page.notice ? ["error", "Error"] : ["idle", "Ready"];
    },
    trouble: () => [error],
    traits: ["status"],
  });
  const undo = tool("Undo (Ctrl+Z)", GLYPHS.undo, () => page.ask({ kind: "move", steps: -1 }));
  const redo = tool("Redo (Ctrl+Shift+Z)", GLYPHS.redo, () => page.ask({ kind: "move", steps: 1 }));
  const clear = button("Hide nothing", "clear", () => views.forEach((view) => view.clear()));
  const rectangle = toggle("Paint rectangles", "grid", (on) => views.forEach((view) => view.rectangles(on)));
  const files = chooser((chosen) => open(chosen), false);
  const attach = button("Another picture", "attach", () => files.click());
  const count = element(
    "select.chm-count",
    { "aria-label": "Number of fillings" },
    ...COUNTS.map((each) => element("option", { value: each, text: each })),
  );
  const seed = element("input.chm-seed", { type: "number", min: 0, max: 2 ** 31 - 1, step: 1, "aria-label": "Seed" });
  const fill = button("Fill", null, askForFillings, { class: "chm-button chm-primary", title: "Ctrl+Enter" });
  const stop = button("Stop", "stop", () => page.ask({ kind: "stop" }));
  const hint = element("p.chm-hint");
  const board = element("div.chm-draft");
  const strip = group("chm-fillings", "Fillings");
  const box = page.box;
  box.tabIndex = -1;
  box.addEventListener("keydown", shortcut);
  dropTarget(box, open);

  /** @param {string} label @param {string} path @param {() => void} act */
  function tool(label, path, act) {
    const node = button("", null, act, { title: label, "aria-label": label });
    node.append(glyph(path));
    return node;
  }

  /** @param {import("./messages.js").CanvasUpdate} update @param {DataView[]} buffers */
  function takeCanvas(update, buffers) {
    const fresh = canvas?.key !== update.key || views.length !== update.segments.length;
    if (!canvas) [count.value, seed.value] = [String(update.fillings), String(update.seed)];
    canvas = update;
    if (fresh) {
      const old = views;
      views = update.segments.map((facts, number) => {
        const same = old[number];
        if (facts.rows && same && "picture" in same) return same; // its picture may be the same, and is not sent twice
        const hide = (/** @type {number[]} */ parts) => edit(number, parts);
        return facts.rows ? paintedPicture(hide) : wordLine(hide, (text) => reword(number, text));
      });
      board.replaceChildren(...views.map((view) => view.node));
      for (const view of views) view.rectangles(rectangle.getAttribute("aria-pressed") === "true");
    }
    update.segments.forEach((facts, number) => {
      const view = views[number];
      if ("picture" in view && facts.picture >= 0) view.picture(buffers[facts.picture]);
      if (fresh || !waiting) view.show(facts);
    });
  }

  /** @param {import("./messages.js").FillingsUpdate} update @param {DataView[]} buffers */
  function takeFillings(update, buffers) {
    error = update.error;
    while (cards.length > update.count) cards.pop()?.node.remove();
    for (let number = cards.length; number < update.count; number += 1) {
      cards.push(fillingCard(() => page.ask({ kind: "take", number })));
      strip.append(cards[number].node);
    }
    for (const [number, facts] of Object.entries(update.changed)) cards[Number(number)].show(facts, buffers);
    const whole = cards.filter((card) => card.state === "whole").length;
    doing = cards.length ? `Filling ${Math.min(whole + 1, cards.length)} of ${cards.length}` : "";
  }

  /** @param {number} segment @param {number[]} parts */
  async function edit(segment, parts) {
    if (!canvas) return;
    waiting += 1;
    refresh();
    await page.ask({ kind: "hide", key: canvas.key, segment, parts });
    waiting -= 1;
  }

  /** @param {number} segment @param {string} text */
  const reword = (segment, text) => page.ask({ kind: "words", segment, text });

  function askForFillings() {
    if (!fill.disabled) page.ask({ kind: "fill", count: Number(count.value), seed: Number(seed.value) || 0 });
  }

  /** @param {Iterable<File>} chosen */
  async function open(chosen) {
    const { pictures, others } = sortFiles(chosen);
    const segment = canvas?.segments.findIndex((facts) => facts.rows > 0) ?? -1;
    if (segment < 0) return page.tell("There is no picture on the canvas that another could replace.");
    if (!pictures.length) return page.tell(notPicture(others[0]));
    try {
      const { bytes, url } = await readPicture(pictures[0]);
      URL.revokeObjectURL(url);
      await page.ask({ kind: "picture", segment }, { buffers: [bytes] });
    } catch (failure) {
      page.tell(/** @type {Error} */ (failure).message);
    }
  }

  /** @param {KeyboardEvent} event */
  function shortcut(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    const inText = event.target instanceof HTMLTextAreaElement || event.target instanceof HTMLInputElement;
    if (key === "enter") askForFillings();
    else if (key === "z" && !inText) (event.shiftKey ? redo : undo).click();
    else if (key === "y" && !inText) redo.click();
    else return;
    event.preventDefault();
  }

  function refresh() {
    const working = model.get("status") === "working";
    const hidden = views.reduce((sum, view) => sum + view.hidden, 0);
    [undo.disabled, redo.disabled] = [!canvas?.undo, !canvas?.redo];
    clear.disabled = !hidden;
    fill.disabled = !hidden || page.silent;
    attach.hidden = rectangle.hidden = !canvas?.segments.some((facts) => facts.rows);
    stop.hidden = !working;
    hint.textContent = hidden
      ? `${hidden} hidden. Fill writes them anew, ${count.value === "1" ? "once" : `${count.value} times`}.`
      : "Paint over a part of the picture, or click on words: what is hidden can be filled.";
    press(rectangle, rectangle.getAttribute("aria-pressed") === "true");
    strip.hidden = !cards.length;
  }
  count.addEventListener("change", refresh);

  const asks = group(
    "chm-asks",
    "Fillings to make",
    element("label", { text: "Fillings " }, count),
    element("label", { text: "Seed " }, seed),
    fill,
    stop,
  );
  return page.open(
    [
      page.header("Canvas", [undo, redo, clear, rectangle, attach, files]),
      board,
      element("div.chm-bar", hint, asks),
      page.alert,
      strip,
    ],
    [() => views.forEach((view) => view.dispose()), () => cards.forEach((card) => card.dispose())],
  );
}

export default { render };
