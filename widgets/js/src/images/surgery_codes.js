// The codes in hand: those of the kernel, with what was painted here and has not arrived there yet.

import { numbers } from "../frame/line.js";
import { replay } from "./strokes.js";

/**
 * @typedef {object} Grid
 * @property {number} key of the original
 * @property {string} name
 * @property {number} rows
 * @property {number} columns
 * @property {number} undo steps that can be taken back
 * @property {number} redo
 * @property {Int32Array} original
 * @property {Int32Array} base as the kernel has them
 * @property {Int32Array} codes as they are here
 * @property {Int32Array} drawn those of the picture shown
 */

/**
 * @param {(content: any) => Promise<boolean>} request to the kernel
 * @param {(act: () => void) => void} later calls it in the next frame
 */
export function codesInHand(request, later) {
  const view = Math.random().toString(36).slice(2, 10);
  let grid = /** @type {Grid | null} */ (null);
  let pending = /** @type {(import("./strokes.js").Edit & {underway: boolean})[]} */ ([]);
  let number = 0;
  let waiting = false;

  function send() {
    for (const edit of pending) {
      if (edit.underway) continue;
      edit.underway = true;
      const { underway, ...content } = edit;
      request({ kind: "edit", view, ...content });
    }
  }

  /** The first edit goes at once; those of the same frame go together. */
  function soon() {
    if (waiting) return;
    send();
    waiting = true;
    later(() => {
      waiting = false;
      if (pending.some((edit) => !edit.underway)) soon();
    });
  }

  return {
    get grid() {
      return grid;
    },
    /** Whether something painted here has not reached the kernel, as far as is known. */
    get waits() {
      return pending.length > 0;
    },
    /** Steps that can be taken back. */
    get undo() {
      return (grid?.undo ?? 0) + new Set(pending.map((edit) => edit.stroke)).size;
    },
    /**
     * Writes codes, one for all cells or one for each; whether that changed anything.
     * @param {number[]} cells
     * @param {number | number[]} codes
     * @param {string} stroke what is painted under the same name is one step
     */
    paint(cells, codes, stroke) {
      if (!grid) return false;
      const { codes: now, key } = grid;
      const codeAt = (/** @type {number} */ index) => (typeof codes === "number" ? codes : codes[index]);
      const real = cells.map((_, index) => index).filter((index) => now[cells[index]] !== codeAt(index));
      if (!real.length) return false;
      const written = real.map((index) => cells[index]);
      const last = pending.at(-1);
      if (last && !last.underway && last.stroke === stroke && typeof codes === "number" && last.codes === codes)
        last.cells.push(...written);
      else
        pending.push({
          key,
          number: (number += 1),
          stroke,
          cells: written,
          codes: typeof codes === "number" ? codes : real.map(codeAt),
          underway: false,
        });
      grid.codes = replay(now, [{ ...pending[pending.length - 1], cells: written }]);
      soon();
      return true;
    },
    send,
    /** Sends again what the kernel has not taken: what it has twice it ignores. */
    resend() {
      for (const edit of pending) edit.underway = false;
      send();
    },
    /**
     * Takes in an update of the kernel.
     * @param {import("./messages.js").SurgeryUpdate} message
     * @param {() => DataView} next buffer
     */
    take(message, next) {
      const done = message.applied?.[view] ?? 0;
      pending = pending.filter((edit) => edit.number > done);
      const facts = message.grid;
      if (!facts) return;
      const [base, original] = [numbers(Int32Array, next()), numbers(Int32Array, next())];
      const mine = pending.filter((edit) => edit.key === facts.key);
      const drawn = grid && grid.key === facts.key ? grid.drawn : base;
      grid = { ...facts, base, original, drawn, codes: replay(base, mine) };
    },
    /** The picture that came with the last update is of its codes. */
    dried() {
      if (grid) grid.drawn = grid.base;
    },
  };
}
