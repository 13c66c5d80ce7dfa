// Rows of attention: those that have come are kept, one is on its way, and of those asked for meanwhile only the newest.

import { ROLLOUT } from "./reading.js";

/** @typedef {{branch: number, way: "from" | "by", layer: number, head: number, position: number}} Place */

const PATIENCE = 1500; // milliseconds after which a row is no longer waited for

/**
 * @param {(place: Place) => void} ask
 * @param {number} [weights] that are kept, of all rows together
 */
export function rowStore(ask, weights = 2 ** 22) {
  const rows = /** @type {Map<string, Float32Array>} */ (new Map());
  const rollouts = /** @type {Map<number, (place: Place) => Float32Array | undefined>} */ (new Map());
  let draft = /** @type {{name: string, row: Float32Array, through: number} | null} */ (null); // of a rollout under way
  let size = 0;
  let flight = /** @type {{name: string, time: number} | null} */ (null);
  let next = /** @type {Place | null} */ (null);

  /** @param {Place} place */
  const nameOf = ({ branch, way, layer, head, position }) =>
    `${branch} ${way} ${layer} ${layer < 0 ? 0 : head} ${position}`;

  /** @param {Place} place */
  function want(place) {
    if (flight && performance.now() - flight.time < PATIENCE) {
      next = place;
      return;
    }
    next = null;
    flight = { name: nameOf(place), time: performance.now() };
    ask(place);
  }

  return {
    /** The row, if it is here; else it is asked for, unless `quiet`. @param {Place} place @param {boolean} [quiet] */
    get(place, quiet = false) {
      const row = rows.get(nameOf(place)) ?? rollouts.get(place.branch)?.(place);
      if (row) next = null;
      else if (draft?.name === nameOf(place)) return draft.row;
      else if (!quiet) want(place);
      return row;
    },
    /** Through how many layers a row goes that is not the last word; else 0. @param {Place} place */
    through: (place) => (draft?.name === nameOf(place) ? draft.through : 0),
    /**
     * Keeps a row for now; the kernel sends the whole one by itself.
     * @param {Place} place @param {Float32Array} row @param {number} through how many layers
     */
    sketch(place, row, through) {
      const name = nameOf(place);
      draft = { name, row, through };
      if (flight?.name === name) flight = null;
    },
    /** @param {Place} place @param {Float32Array} row */
    put(place, row) {
      const name = nameOf(place);
      if (draft?.name === name) draft = null;
      size += row.length - (rows.get(name)?.length ?? 0);
      rows.delete(name);
      rows.set(name, row);
      for (const [oldest, { length }] of rows) {
        if (size <= weights) break;
        rows.delete(oldest);
        size -= length;
      }
      if (flight?.name === name) flight = null;
    },
    /**
     * All rows of rollout of a document, a byte a weight.
     * @param {number} branch @param {Float32Array} most each row's greatest weight @param {Uint8Array} codes
     */
    putRollouts(branch, most, codes) {
      rollouts.set(branch, (place) => (place.layer === ROLLOUT ? rolloutRow(place, most, codes) : undefined));
    },
    /** Asks for what was wanted meanwhile. */
    proceed() {
      if (!flight && next) want(next);
    },
    /** Waits for nothing any more. */
    forget() {
      flight = next = null;
    },
  };
}

/**
 * A row of rollout ("from") or a column ("by"), out of rows of which that of position p has p + 1 bytes: 255 times the
 * root of a weight's share in the row's greatest.
 * @param {Place} place @param {Float32Array} most @param {Uint8Array} codes
 */
export function rolloutRow({ way, position }, most, codes) {
  /** @param {number} row @param {number} column */
  const weight = (row, column) => (codes[(row * (row + 1)) / 2 + column] / 255) ** 2 * most[row];
  if (way === "from") return Float32Array.from({ length: position + 1 }, (_, at) => weight(position, at));
  return Float32Array.from({ length: most.length - position }, (_, at) => weight(position + at, position));
}
