// The document: its words in a row, its images with a cell for each patch, and each of them a thing to point at.

import { element, press } from "../frame/dom.js";
import { attentionLines } from "./attention_lines.js";
import { lensFigure } from "./lens_figure.js";
import { neighbour, plainWords, spoken, surprise } from "./reading.js";

const FAINT = 0.02; // what is painted more faintly is not: of thousands of tokens, most

/**
 * @param {object} hooks
 * @param {(at: number | null) => void} hooks.point
 * @param {(at: number) => void} hooks.choose
 * @param {(key: string, at: number) => boolean} hooks.key a key pressed on a token; whether it means something
 * @param {(image: number, layer: number) => void} hooks.lens asks for an image as a layer has it
 */
export function documentView({ point, choose, key, lens }) {
  const node = element("div.chm-inspect-flow", { role: "group", "aria-label": "The document. Arrow keys move." });
  const places = /** @type {Map<EventTarget | null, number>} */ (new Map());
  const lines = attentionLines();
  let pictures = /** @type {ReturnType<typeof lensFigure>[]} */ ([]);
  let nodes = /** @type {HTMLElement[]} */ ([]);
  let painted = new Float32Array();
  let home = 0;
  let here = /** @type {number | null} */ (null);
  let picked = /** @type {number | null} */ (null);
  let crossed = /** @type {Set<number>} */ (new Set());

  /** @param {number} at */
  function rove(at) {
    if (nodes[home]) nodes[home].tabIndex = -1;
    home = at;
    nodes[home].tabIndex = 0;
  }

  /** @param {Event} event */
  const place = ({ target }) => places.get(target) ?? null;
  node.addEventListener("pointerover", (event) => point(place(event)));
  node.addEventListener("pointerleave", () => point(places.get(document.activeElement) ?? null));
  node.addEventListener("focusin", (event) => {
    const at = place(event);
    if (at === null) return;
    rove(at);
    point(at);
  });
  node.addEventListener("focusout", () => point(null));
  node.addEventListener("click", (event) => {
    const at = place(event);
    if (at !== null) choose(at);
  });
  node.addEventListener("keydown", (event) => {
    const at = place(event);
    if (at === null || event.altKey || event.ctrlKey || event.metaKey) return;
    if (/^(Arrow|Home|End)/.test(event.key)) {
      event.preventDefault();
      nodes[
        neighbour(
          event.key,
          at,
          nodes.map((each) => each.getBoundingClientRect()),
        )
      ].focus();
    } else if (key(event.key, at)) event.preventDefault();
  });

  function dispose() {
    for (const picture of pictures) picture.dispose();
    pictures = [];
  }

  return {
    node,
    /**
     * @param {import("./messages.js").InspectedDocument} message @param {Float32Array} logs @param {DataView[]} images
     */
    show({ tokens, layers }, logs, images) {
      dispose();
      places.clear();
      [here, picked, crossed] = [null, null, new Set()];
      pictures = images.map((png, image) => {
        const cells = tokens.filter((token) => token.image === image);
        const rows = 1 + cells.reduce((most, { row }) => Math.max(most, row ?? 0), 0);
        const columns = 1 + cells.reduce((most, { column }) => Math.max(most, column ?? 0), 0);
        return lensFigure({ image, png, rows, columns, layers, ask: (layer) => lens(image, layer) });
      });
      const flow = /** @type {Set<HTMLElement>} */ (new Set());
      nodes = tokens.map((token, at) => {
        const cell = token.image !== null;
        const each = element(`button.${cell ? "chm-inspect-cell" : "chm-inspect-word"}`, {
          type: "button",
          tabindex: -1,
          "aria-label": spoken(token, logs[at]),
          "aria-pressed": "false",
          text: cell ? "" : plainWords(token),
        });
        if (token.modality === 2) each.classList.add("chm-inspect-special");
        each.style.setProperty("--surprise", surprise(logs[at]).toFixed(3));
        places.set(each, at);
        if (token.image === null) flow.add(each);
        else {
          const picture = pictures[token.image];
          each.style.gridArea = `${(token.row ?? 0) + 1} / ${(token.column ?? 0) + 1}`;
          picture.cells.append(each);
          flow.add(picture.node);
        }
        return each;
      });
      painted = new Float32Array(nodes.length);
      node.replaceChildren(...flow, lines.node);
      home = 0;
      rove(0);
    },
    /**
     * Paints all tokens, each 0 to 1, or -1 to 1 where what is lost and what is won differ; null paints none.
     * @param {Float32Array | null} heat
     */
    paint(heat) {
      node.classList.toggle("chm-inspect-painted", heat !== null);
      for (let at = 0; at < nodes.length; at += 1) {
        const next = heat && Math.abs(heat[at]) >= FAINT ? heat[at] : 0;
        const last = painted[at];
        if (next === last || (next && Math.abs(next - last) < 0.004)) continue;
        painted[at] = next;
        const { style, classList } = nodes[at];
        if (next) style.setProperty("--heat", Math.abs(next).toFixed(3));
        else style.removeProperty("--heat");
        if (next < 0 !== last < 0) classList.toggle("chm-inspect-loss", next < 0);
      }
    },
    /**
     * Marks what is pointed at, what is chosen, and what was knocked out.
     * @param {number | null} pointed @param {number | null} chosen @param {Set<number>} out
     */
    mark(pointed, chosen, out) {
      if (here !== pointed) {
        if (here !== null) nodes[here]?.classList.remove("chm-inspect-here");
        if (pointed !== null) nodes[pointed]?.classList.add("chm-inspect-here");
        here = pointed;
      }
      if (picked !== chosen) {
        if (picked !== null && nodes[picked]) press(nodes[picked], false);
        if (chosen !== null && nodes[chosen]) press(nodes[chosen], true);
        picked = chosen;
      }
      for (const at of crossed) if (!out.has(at)) nodes[at]?.classList.remove("chm-inspect-out");
      for (const at of out) if (!crossed.has(at)) nodes[at]?.classList.add("chm-inspect-out");
      crossed = new Set(out);
    },
    /** Lines from a token to those of the greatest weight. @param {number | null} at @param {Float32Array | null} heat */
    draw(at, heat) {
      lines.draw(node, nodes, at, heat);
    },
    /** @param {boolean} on */
    surprising(on) {
      node.classList.toggle("chm-inspect-surprising", on);
    },
    /** @param {number} image @param {number} layer @param {DataView} png */
    lens(image, layer, png) {
      pictures[image]?.put(layer, png);
    },
    /** @param {number} at */
    focus: (at) => nodes[at]?.focus(),
    dispose,
  };
}
