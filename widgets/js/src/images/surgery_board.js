// The board: a grid of cells drawn over a picture, where one points, drags, and walks with the arrow keys.

import { element, shape } from "../frame/dom.js";
import { moved } from "./code_grid.js";
import { lines, outline, squares } from "./strokes.js";

/**
 * @typedef {{at: number, row: number, column: number}} Place a cell, and where in the grid: 1.5 is the middle of row 1
 * @typedef {object} Layers cells to be marked
 * @property {Iterable<number>} [changed]
 * @property {Iterable<number>} [same]
 * @property {Iterable<number>} [preview]
 * @property {Iterable<number>} [selection]
 * @property {Map<string, number[]>} [wet] cells painted but not decoded yet, by the colour to show meanwhile
 */

const OUTLINES = /** @type {const} */ (["changed", "selection", "preview", "cursor"]);

/** Lines and marks over a picture; it takes no part in pointing. */
export function overlay() {
  const node = shape("svg", { class: "chm-overlay", preserveAspectRatio: "none", "aria-hidden": "true" });
  const [wet, same, numbers] = [
    shape("g"),
    shape("path", { class: "chm-layer-same" }),
    shape("g", { class: "chm-codes" }),
  ];
  const pair = (/** @type {string} */ name) =>
    ["chm-halo", "chm-line"].map((each) => shape("path", { class: `${each} chm-layer-${name}` }));
  /** @type {Record<string, Element[]>} */
  const paths = Object.fromEntries(["lines", ...OUTLINES].map((name) => [name, pair(name)]));
  node.append(wet, same, ...Object.values(paths).flat(), numbers);
  let size = { rows: 0, columns: 0 };

  /** @param {string} name @param {string} data */
  const trace = (name, data) => paths[name].forEach((path) => path.setAttribute("d", data));

  return {
    node,
    /** @param {import("./strokes.js").Shape} shape */
    shape(shape) {
      size = shape;
      node.setAttribute("viewBox", `0 0 ${size.columns} ${size.rows}`);
      node.classList.toggle("chm-fine", Math.max(size.rows, size.columns) > 16);
      trace("lines", lines(size));
    },
    /** @param {Layers} layers those left out stay as they are */
    mark(layers) {
      for (const name of /** @type {const} */ (["changed", "selection", "preview"]))
        if (layers[name]) trace(name, outline(layers[name], size));
      if (layers.same) same.setAttribute("d", squares(layers.same, size));
      if (layers.wet)
        wet.replaceChildren(
          ...[...layers.wet].map(([fill, cells]) => shape("path", { style: `fill:${fill}`, d: squares(cells, size) })),
        );
    },
    /** @param {number} at */
    cursor: (at) => trace("cursor", outline([at], size)),
    /** @param {ArrayLike<number> | null} codes */
    numbers(codes) {
      numbers.replaceChildren(
        ...Array.from(codes ?? [], (code, at) => {
          const [x, y] = [(at % size.columns) + 0.5, Math.floor(at / size.columns) + 0.5];
          const text = shape("text", { x: 100 * x, y: 100 * y, transform: "scale(.01)" });
          text.textContent = String(code);
          return text;
        }),
      );
    },
  };
}

/**
 * @typedef {object} Acts what the board reports
 * @property {(place: Place | null) => void} hover
 * @property {(place: Place, event: PointerEvent) => void} down
 * @property {(from: Place, to: Place) => void} drag
 * @property {() => void} up
 * @property {(place: Place) => void} press Enter or Space on the cell under the cursor
 * @property {(anchor: number, at: number) => void} extend Shift and an arrow key
 *
 * @param {object} options
 * @param {string} options.label
 * @param {(at: number) => string} options.describe a cell in words
 * @param {Acts} options.acts
 */
export function board({ label, describe, acts }) {
  const id = `chm-cell-${Math.random().toString(36).slice(2, 8)}`;
  const cell = element("div", { role: "gridcell" });
  const row = element("div", { role: "row", class: "chm-sr" }, cell);
  const over = overlay();
  const node = element("div.chm-board", { role: "grid", tabindex: "0", "aria-label": label }, row);
  node.append(over.node);
  let size = { rows: 0, columns: 0 };
  let [home, anchor] = [0, 0];
  /** @type {Place | null} */
  let reached = null; // where a drag has come to

  /** @param {number} at @returns {Place} */
  const middle = (at) => ({ at, row: Math.floor(at / size.columns) + 0.5, column: (at % size.columns) + 0.5 });

  /** @param {{clientX: number, clientY: number}} event @returns {Place} outside, `at` is the nearest cell */
  function place(event) {
    const box = node.getBoundingClientRect();
    const row = (size.rows * (event.clientY - box.top)) / box.height;
    const column = (size.columns * (event.clientX - box.left)) / box.width;
    const whole = (/** @type {number} */ value, /** @type {number} */ count) =>
      Math.min(count - 1, Math.max(0, Math.floor(value)));
    return { at: whole(row, size.rows) * size.columns + whole(column, size.columns), row, column };
  }

  /** @param {number} at */
  function goTo(at) {
    home = at;
    over.cursor(at);
    row.setAttribute("aria-rowindex", String(Math.floor(at / size.columns) + 1));
    cell.setAttribute("aria-colindex", String((at % size.columns) + 1));
    cell.setAttribute("aria-label", describe(at));
    cell.id = `${id}-${at}`; // a new name for each place, so that it is spoken anew
    node.setAttribute("aria-activedescendant", cell.id);
  }

  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    node.setPointerCapture(event.pointerId);
    reached = place(event);
    goTo(reached.at);
    anchor = reached.at;
    acts.down(reached, event);
  });
  node.addEventListener("pointermove", (event) => {
    for (const each of reached ? (event.getCoalescedEvents?.() ?? []) : []) {
      const next = place(each);
      acts.drag(/** @type {Place} */ (reached), next);
      reached = next;
    }
    const here = place(event);
    if (reached) acts.drag(reached, here);
    if (reached) reached = here;
    acts.hover(here);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
    node.addEventListener(end, () => {
      if (!reached) return;
      goTo(reached.at);
      reached = null;
      acts.up();
    });
  node.addEventListener("pointerleave", () => acts.hover(null));
  node.addEventListener("focus", () => node.matches(":focus-visible") && acts.hover(middle(home)));
  node.addEventListener("blur", () => acts.hover(null));
  node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (!event.repeat) acts.press(middle(home));
      goTo(home);
      return;
    }
    const next = moved(event.key, home, size.rows, size.columns);
    if (next === home && !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    goTo(next);
    if (event.shiftKey) acts.extend(anchor, next);
    else anchor = next;
    acts.hover(middle(next));
  });

  return {
    node,
    mark: over.mark,
    numbers: over.numbers,
    /** @param {import("./strokes.js").Shape} shape */
    shape(shape) {
      size = shape;
      over.shape(shape);
      node.setAttribute("aria-rowcount", String(size.rows));
      node.setAttribute("aria-colcount", String(size.columns));
      anchor = 0;
      goTo(0);
    },
    /** The cell under the cursor has changed. */
    say: () => goTo(home),
  };
}
