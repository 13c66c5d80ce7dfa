// Rows of attention: those that have come are kept, one is on its way, and of those asked for meanwhile only the newest.

/** @typedef {{way: "from" | "by", layer: number, head: number, position: number}} Place */

const PATIENCE = 1500; // milliseconds after which a row is no longer waited for

/**
 * @param {(place: Place) => void} ask
 * @param {number} [weights] that are kept, of all rows together
 */
export function rowStore(ask, weights = 2 ** 22) {
  const rows = /** @type {Map<string, Float32Array>} */ (new Map());
  let size = 0;
  let flight = /** @type {{name: string, time: number} | null} */ (null);
  let next = /** @type {Place | null} */ (null);

  /** @param {Place} place */
  const nameOf = ({ way, layer, head, position }) => `${way} ${layer} ${layer < 0 ? 0 : head} ${position}`;

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
    /** The row, if it is here; else it is asked for. @param {Place} place */
    get(place) {
      const row = rows.get(nameOf(place));
      if (!row) want(place);
      else next = null;
      return row;
    },
    /** @param {Place} place @param {Float32Array} row */
    put(place, row) {
      const name = nameOf(place);
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
