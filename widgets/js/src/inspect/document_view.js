// The document: its words in a row, its images with a cell for each patch, and each of them a thing to point at.

import { element, press } from "../frame/dom.js";
import { attentionLines } from "./attention_lines.js";
import { lensFigure } from "./lens_figure.js";
import { neighbour, plainWords, spoken, surprise } from "./reading.js";

const FAINT = 0.02; // what is painted more faintly is not: of thousands of tokens, most
const [WORD, CELL] = [0.62, 0.88]; // opacity of what is painted fully

/** @typedef {[number, number, number]} Shade red, green, blue: 0 to 255 */
/** @typedef {{figure: ReturnType<typeof lensFigure>, columns: number, cells: number[]}} Picture */

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
  let pictures = /** @type {Picture[]} */ ([]);
  let words = /** @type {number[]} */ ([]); // positions of what is no cell
  let logs = /** @type {Float32Array} */ (new Float32Array());
  let colours = shades(node);
  let nodes = /** @type {HTMLElement[]} */ ([]);
  let tokens = /** @type {import("./messages.js").TokenFacts[]} */ ([]);
  let painted = new Float32Array();
  let signed = false; // whether what is lost and what is won is painted
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
    for (const { figure } of pictures) figure.dispose();
    pictures = [];
  }

  /**
   * A pixel for each cell of an image.
   * @param {Picture} picture @param {(at: number) => [Shade, number]} shade of a token, and its opacity
   */
  function pixels({ cells, columns, figure }, shade) {
    const all = new Uint8ClampedArray(4 * columns * figure.rows);
    for (const at of cells) {
      const [colour, opacity] = shade(at);
      const { row, column } = tokens[at];
      all.set([...colour, Math.round(255 * opacity)], 4 * ((row ?? 0) * columns + (column ?? 0)));
    }
    return all;
  }

  /** @param {number} at @returns {[Shade, number]} */
  function heatOf(at) {
    const value = painted[at];
    return [value < 0 ? colours.lost : signed ? colours.won : colours.heat, Math.abs(value)];
  }

  function repaint() {
    colours = shades(node);
    for (const picture of pictures) {
      picture.figure.surprise(pixels(picture, (at) => [colours.surprise, CELL * surprise(logs[at])]));
      picture.figure.paint(pixels(picture, (at) => [heatOf(at)[0], CELL * heatOf(at)[1]]));
    }
    words.forEach(tint);
  }

  /** @param {number} at */
  function tint(at) {
    const [[red, green, blue], opacity] = heatOf(at);
    nodes[at].style.backgroundColor = opacity ? `rgb(${red} ${green} ${blue} / ${(WORD * opacity).toFixed(3)})` : "";
  }

  return {
    node,
    /** @param {import("./messages.js").InspectedDocument} message @param {Float32Array} all log-probabilities */
    show(message, all) {
      dispose();
      places.clear();
      [here, picked, crossed, logs] = [null, null, new Set(), all];
      ({ tokens } = message);
      const cellsOf = /** @type {number[][]} */ (Array.from({ length: message.images }, () => []));
      words = [];
      tokens.forEach(({ image }, at) => (image === null ? words : cellsOf[image]).push(at));
      pictures = cellsOf.map((cells, image) => {
        const rows = 1 + cells.reduce((most, at) => Math.max(most, tokens[at].row ?? 0), 0);
        const columns = 1 + cells.reduce((most, at) => Math.max(most, tokens[at].column ?? 0), 0);
        const ask = (/** @type {number} */ layer) => lens(image, layer);
        return { figure: lensFigure({ image, rows, columns, layers: message.layers, ask }), columns, cells };
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
        places.set(each, at);
        if (token.image === null) {
          each.style.setProperty("--surprise", surprise(logs[at]).toFixed(3));
          flow.add(each);
        } else {
          const { figure } = pictures[token.image];
          each.style.gridArea = `${(token.row ?? 0) + 1} / ${(token.column ?? 0) + 1}`;
          figure.cells.append(each);
          flow.add(figure.node);
        }
        return each;
      });
      painted = new Float32Array(nodes.length);
      node.replaceChildren(...flow, lines.node);
      home = 0;
      rove(0);
      repaint();
    },
    /**
     * Paints all tokens, each 0 to 1, or, where what is lost and what is won differ, -1 to 1; null paints none.
     * @param {Float32Array | null} heat @param {boolean} [both] whether they differ
     */
    paint(heat, both = false) {
      node.classList.toggle("chm-inspect-painted", heat !== null);
      const before = painted;
      painted = Float32Array.from(nodes, (_, at) => (heat && Math.abs(heat[at]) >= FAINT ? heat[at] : 0));
      const turned = both !== signed;
      signed = both;
      for (const at of words) if (turned || painted[at] !== before[at]) tint(at);
      for (const picture of pictures)
        if (turned || picture.cells.some((at) => painted[at] !== before[at]))
          picture.figure.paint(pixels(picture, (at) => [heatOf(at)[0], CELL * heatOf(at)[1]]));
    },
    repaint,
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
      pictures[image]?.figure.put(layer, png);
    },
    /** @param {number} at */
    focus: (at) => nodes[at]?.focus(),
    dispose,
  };
}

/** The colours of what is painted, as the page's theme has them. @param {Element} node */
function shades(node) {
  const style = getComputedStyle(node);
  const pen = /** @type {CanvasRenderingContext2D} */ (
    element("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true })
  );
  /** @param {string} name @returns {Shade} */
  const shade = (name) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = style.getPropertyValue(name) || "#e8590c";
    pen.fillRect(0, 0, 1, 1);
    const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
    return [red, green, blue];
  };
  return {
    heat: shade("--heat-colour"),
    won: shade("--fine"),
    lost: shade("--danger"),
    surprise: shade("--surprise-colour"),
  };
}
