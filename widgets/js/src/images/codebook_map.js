// The map of a codebook: every code a cell on one canvas. Codes never seen are crosses, whatever the colours.

import { colourAt, oncePerFrame } from "../charts/canvas.js";
import { element } from "../frame/dom.js";
import { isDark } from "../frame/theme.js";
import { share } from "./codebook_scale.js";
import { cursorGrid } from "./cursor_grid.js";

const SHADES = 64;
const LARGEST_CELL = 40; // pixels

/**
 * @typedef {object} Book
 * @property {Uint32Array} order code of each cell
 * @property {Uint32Array} cells cell of each code
 * @property {number} columns
 * @property {string[]} scale colours from seen once to seen most, on white
 * @property {Float64Array} counts
 * @property {number} most
 * @property {number} tokens
 * @property {Uint8Array | null} colours red, green, blue, known of each code
 * @property {"usage" | "colour"} view
 */

/**
 * @param {object} hooks
 * @param {Book} hooks.book
 * @param {(code: number) => string} hooks.name
 * @param {(code: number) => void} hooks.choose
 * @param {(stops: string[]) => void} hooks.painted
 */
export function codebookMap({ book, name, choose, painted }) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  const marks = element("div.chm-atlas-marks", { "aria-hidden": "true" });
  const grid = cursorGrid({
    label: "Map of the codebook, like codes side by side. Arrow keys move, Enter chooses.",
    name: (at) => name(book.order[at]),
    choose: (at) => choose(book.order[at]),
  });
  const node = element("div.chm-atlas-map", canvas, marks, grid.node);
  let side = 0; // of a cell, in pixels of the canvas

  /** @param {Path2D} path @param {number} at @param {number} inner */
  function cross(path, at, inner) {
    const [left, top] = [(at % book.columns) * side, Math.floor(at / book.columns) * side];
    const edge = inner * (inner > 9 ? 0.29 : 0.14);
    path.moveTo(left + edge, top + edge);
    path.lineTo(left + inner - edge, top + inner - edge);
    path.moveTo(left + inner - edge, top + edge);
    path.lineTo(left + edge, top + inner - edge);
  }

  function paint() {
    if (!book.columns || !side) return;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const box = /** @type {Element} */ (node.closest(".chm") ?? node);
    const [style, dark] = [getComputedStyle(node), isDark(box)];
    const stops = dark ? [...book.scale].reverse() : book.scale;
    const shades = Array.from({ length: SHADES + 1 }, (_, index) => colourAt(stops, index / SHADES));
    const unknown = style.getPropertyValue("--unknown");
    const inner = side - (side > 3 ? Math.max(1, Math.round(side / 14)) : 0);
    const crosses = { onPaper: new Path2D(), onLight: new Path2D(), onDark: new Path2D() };
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < book.order.length; at += 1) {
      const code = book.order[at];
      const count = book.counts[code];
      const coloured = book.view === "colour" && book.colours && book.colours[4 * code + 3];
      const rgb = coloured && book.colours ? book.colours.subarray(4 * code, 4 * code + 3) : null;
      const under = !rgb ? "onPaper" : 0.3 * rgb[0] + 0.6 * rgb[1] + 0.1 * rgb[2] > 120 ? "onLight" : "onDark";
      if (!count && book.tokens) cross(crosses[under], at, inner);
      if (rgb) context.fillStyle = `rgb(${rgb.join(" ")})`;
      else if (book.view === "colour" || !count) context.fillStyle = unknown;
      else context.fillStyle = shades[Math.round(share(count, book.most) * SHADES)];
      context.fillRect((at % book.columns) * side, Math.floor(at / book.columns) * side, inner, inner);
    }
    context.lineCap = side > 9 ? "square" : "butt";
    context.lineWidth = Math.max(0.9, side / 11);
    const inks = { onPaper: style.getPropertyValue("--dead"), onLight: "#000", onDark: "#fff" };
    for (const [under, path] of Object.entries(crosses)) {
      context.strokeStyle = inks[/** @type {keyof typeof inks} */ (under)];
      context.stroke(path);
    }
    painted(stops);
  }

  /** @param {number} code @param {string} kind */
  function mark(code, kind) {
    const at = book.cells[code];
    const rows = Math.ceil(book.order.length / book.columns);
    return element("i", {
      class: kind,
      style:
        `left:${(100 * (at % book.columns)) / book.columns}%;` +
        `top:${(100 * Math.floor(at / book.columns)) / rows}%;width:${100 / book.columns}%;height:${100 / rows}%`,
    });
  }

  const frame = oncePerFrame(paint);
  return {
    node,
    /** Paints before the next frame. */
    repaint: frame.ask,
    dispose: frame.dispose,
    /** The book has come: the cells get their places. @param {number} room pixels of the page it may be wide */
    fit(room) {
      if (!book.columns || room <= 0) return;
      const ratio = window.devicePixelRatio || 1;
      const next = Math.max(1, Math.floor((Math.min(room, LARGEST_CELL * book.columns) * ratio) / book.columns));
      const rows = Math.ceil(book.order.length / book.columns);
      const [width, height] = [next * book.columns, next * rows];
      if (canvas.width === width && canvas.height === height && side === next) return;
      side = next;
      [canvas.width, canvas.height] = [width, height];
      node.style.width = `${width / ratio}px`;
      node.style.height = `${height / ratio}px`;
      grid.shape(book.columns, book.order.length);
      paint();
    },
    /** @param {number | null} selected @param {number[]} near @param {number | null} pointed */
    mark(selected, near, pointed) {
      marks.replaceChildren(
        ...near.map((code) => mark(code, "chm-atlas-near")),
        ...(pointed === null ? [] : [mark(pointed, "chm-atlas-pointed")]),
        ...(selected === null ? [] : [mark(selected, "chm-atlas-here")]),
      );
      if (selected !== null) grid.start(book.cells[selected]);
    },
  };
}
