// The tools at work: which cells they reach, what they paint there, and the selection that they stay inside.

import { between, brushed, cellsWhere, connected, randomCodes, rectangle } from "./strokes.js";

/**
 * @typedef {import("./surgery_board.js").Place} Place
 * @param {object} hooks
 * @param {ReturnType<typeof import("./surgery_codes.js").codesInHand>} hooks.hand
 * @param {ReturnType<typeof import("./surgery_bench.js").bench>} hooks.bench
 * @param {() => void} hooks.changed codes or selection
 * @param {() => void} hooks.pointed
 */
export function work({ hand, bench, changed, pointed }) {
  let tool = "brush";
  let strokes = 0;
  let from = 0; // the cell at which a selection began
  let selection = /** @type {Set<number> | null} */ (null);
  /** @type {Place | null} */
  let place = null; // pointed at

  /** @param {Place} where @returns {number[]} the cells that the tool would paint */
  function reach({ at, row, column }) {
    const { grid } = hand;
    if (!grid) return [];
    const { codes } = grid;
    const cells =
      tool === "brush"
        ? brushed(row, column, bench.size, grid)
        : tool === "fill"
          ? connected(codes, at, grid)
          : tool === "swap"
            ? cellsWhere(codes.length, (each) => codes[each] === codes[at])
            : [];
    return cells.filter(inside);
  }

  /** @param {number} at */
  function inside(at) {
    return !selection || selection.has(at);
  }

  /** @param {number[]} cells @param {number | number[]} codes */
  function paint(cells, codes) {
    if (hand.grid && hand.paint(cells, codes, `${hand.grid.key}-${strokes}`)) changed();
  }

  /** @param {Iterable<number> | null} cells */
  function select(cells) {
    selection = cells && new Set(cells);
    changed();
  }

  /** @param {(cells: number[]) => number[]} source codes for the selection, or for all cells */
  function paintAll(source) {
    if (!hand.grid) return;
    const cells = cellsWhere(hand.grid.codes.length, inside);
    strokes += 1;
    paint(cells, source(cells));
    hand.send();
  }

  return {
    get tool() {
      return tool;
    },
    get selection() {
      return selection;
    },
    get place() {
      return place;
    },
    select,
    /** @param {string} name */
    use(name) {
      tool = name;
      pointed();
    },
    /** Another picture was opened. */
    begin() {
      selection = place = null;
    },
    /** Cells that a click would paint; the one pointed at where it would paint none. */
    preview() {
      const cells = place ? reach(place) : [];
      return place && !cells.length ? [place.at] : cells;
    },
    restore: () => paintAll((cells) => cells.map((at) => /** @type {any} */ (hand.grid).original[at])),
    /** Random codes; what was done, in words. */
    scatter() {
      if (!hand.grid || !bench.codebook) return "";
      const seed = bench.seed();
      const codes = randomCodes(seed, hand.grid.codes.length, bench.codebook);
      paintAll((cells) => cells.map((at) => codes[at]));
      return `${selection?.size ?? codes.length} random codes, seed ${seed}`;
    },
    /** What the board reports. */
    board: {
      /** @param {Place | null} where */
      hover(where) {
        place = where;
        pointed();
      },
      /** @param {Place} where @param {{altKey?: boolean}} [event] */
      down(where, event) {
        strokes += 1;
        if (tool === "pick" || event?.altKey) bench.set(hand.grid?.codes[where.at] ?? bench.code);
        else if (tool === "select") {
          from = where.at;
          select(null);
        } else paint(reach(where), bench.code);
        this.hover(where);
      },
      /** @param {Place} before @param {Place} where */
      drag(before, where) {
        if (tool === "select" && hand.grid && (selection || where.at !== from))
          select(rectangle(from, where.at, hand.grid));
        if (tool !== "brush") return;
        for (const [row, column] of between([before.row, before.column], [where.row, where.column]))
          paint(reach({ at: where.at, row, column }), bench.code);
      },
      up: () => hand.send(),
      /** @param {Place} where the cursor stands */
      press(where) {
        this.down(where);
        if (tool === "select") select([where.at]);
        this.up();
      },
      /** @param {number} anchor @param {number} at */
      extend(anchor, at) {
        if (hand.grid) select(rectangle(anchor, at, hand.grid));
      },
    },
  };
}
