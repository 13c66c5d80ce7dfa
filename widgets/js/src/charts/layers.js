// A measure with one value a layer, or one a head, as it grows; and the worst of it in each column of a picture.

import { Points } from "./points.js";

/** What is seen in a cell of a picture. */
export const [MISSING, FINE, BROKEN] = [0, 1, 2];

const BLOCK = 16; // rows whose worst is kept

export class Layers {
  #values = new Float32Array(1024);
  #worst = new Float32Array(64); // of each whole block, cell by cell; NaN where one is not finite
  #places = new Points(); // steps of the rows

  /**
   * @param {string} name @param {number[]} shape layers, or layers and heads
   * @param {"higher" | "lower" | "neither"} worse of several values, which one stands for them
   */
  constructor(name, shape, worse = "higher") {
    this.name = name;
    this.shape = shape;
    this.cells = shape.reduce((product, each) => product * each, 1);
    this.low = worse === "lower";
    /** @type {{shape: number[], values: Float32Array} | null} the newest row by head, where the rows have layers only */
    this.heads = null;
  }

  get count() {
    return this.#places.count;
  }

  get steps() {
    return this.#places.steps;
  }

  /** @param {ArrayLike<number>} steps @param {Float32Array} values of all rows, one after the other */
  add(steps, values) {
    const used = this.count * this.cells;
    if (used + values.length > this.#values.length) {
      const old = this.#values.subarray(0, used);
      this.#values = new Float32Array(Math.max(used + values.length, 2 * this.#values.length));
      this.#values.set(old);
    }
    this.#values.set(values, used);
    const whole = Math.floor(this.count / BLOCK);
    this.#places.add(steps, new Float32Array(steps.length));
    for (let block = whole; block < Math.floor(this.count / BLOCK); block += 1) this.#keep(block);
  }

  /** @param {number} block a whole one */
  #keep(block) {
    const [{ cells }, at] = [this, block * this.cells];
    if (at + cells > this.#worst.length) {
      const old = this.#worst;
      this.#worst = new Float32Array(2 * (at + cells));
      this.#worst.set(old);
    }
    for (let cell = 0; cell < cells; cell += 1) {
      let worst = this.low ? Infinity : -Infinity;
      for (let row = block * BLOCK; row < (block + 1) * BLOCK; row += 1) {
        const value = this.#values[row * cells + cell];
        if (!Number.isFinite(value))
          worst = NaN; // and no comparison changes that
        else if (this.low ? value < worst : value > worst) worst = value;
      }
      this.#worst[at + cell] = worst;
    }
  }

  /** Index of the row that holds at a step, -1 before the first. @param {number} step */
  place(step) {
    return this.#places.place(step);
  }

  /** @param {number} index */
  row(index) {
    return this.#values.subarray(index * this.cells, (index + 1) * this.cells);
  }

  /**
   * The picture between two steps: `values` and `states` of columns x cells. A column takes the worst of its steps; one
   * between two records holds what was seen before it.
   * @param {number} from @param {number} to @param {number} columns
   */
  picture(from, to, columns) {
    const { cells, count, steps, low } = this;
    const values = new Float32Array(columns * cells);
    const states = new Uint8Array(columns * cells);
    const width = (to - from) / columns;
    const gap = count > 1 ? steps[count - 1] - steps[count - 2] : 1;
    let next = Math.max(0, this.place(from));
    for (let column = 0; column < columns; column += 1) {
      const end = column === columns - 1 ? to : from + (column + 1) * width;
      const first = next;
      while (next < count && (steps[next] < end || (column === columns - 1 && steps[next] <= end))) next += 1;
      const begin = next > first ? first : next - 1; // nothing new: what was seen before holds
      if (begin < 0 || (next === first && next === count && end - width > steps[count - 1] + gap)) continue;
      const stop = Math.max(next, begin + 1);
      for (let at = begin, stride = 1; at < stop; at += stride) {
        stride = at % BLOCK === 0 && at + BLOCK <= stop ? BLOCK : 1;
        const store = stride === 1 ? this.#values : this.#worst;
        for (
          let cell = 0, source = (at / stride) * cells, target = column * cells;
          cell < cells;
          cell += 1, source += 1, target += 1
        ) {
          const value = store[source];
          if (states[target] === BROKEN) continue;
          if (!Number.isFinite(value)) states[target] = BROKEN;
          else if (states[target] === MISSING || (low ? value < values[target] : value > values[target])) {
            values[target] = value;
            states[target] = FINE;
          }
        }
      }
    }
    return { values, states };
  }

  /** Of a cell, in words: "block 2" or "head 1 of block 2". @param {number} cell */
  named(cell) {
    const heads = this.shape[1];
    return heads === undefined ? `block ${cell}` : `head ${cell % heads} of block ${Math.floor(cell / heads)}`;
  }
}
