// A measure as it grows: steps and values in typed arrays, and what of them can be seen at a width of so many pixels.

const BLOCK = 32; // points whose smallest and largest are kept, so that a hundred thousand need not be looked through

export class Points {
  count = 0;
  #steps = new Float64Array(64);
  #values = new Float32Array(64);
  // Of each block: its smallest and largest finite value, and whether one is not finite
  #lows = new Float32Array(2).fill(Infinity);
  #highs = new Float32Array(2).fill(-Infinity);
  #broken = new Uint8Array(2);

  /** Steps so far, in rising order. */
  get steps() {
    return this.#steps.subarray(0, this.count);
  }

  /** Values at these steps; not finite where the run recorded such. */
  get values() {
    return this.#values.subarray(0, this.count);
  }

  /** @param {ArrayLike<number>} steps @param {ArrayLike<number>} values as many */
  add(steps, values) {
    const count = this.count + steps.length;
    if (count > this.#steps.length) {
      const room = BLOCK * Math.ceil(Math.max(count, 2 * this.#steps.length) / BLOCK);
      this.#steps = enlarged(this.#steps, new Float64Array(room));
      this.#values = enlarged(this.#values, new Float32Array(room));
      this.#lows = enlarged(this.#lows, new Float32Array(room / BLOCK).fill(Infinity));
      this.#highs = enlarged(this.#highs, new Float32Array(room / BLOCK).fill(-Infinity));
      this.#broken = enlarged(this.#broken, new Uint8Array(room / BLOCK));
    }
    this.#steps.set(steps, this.count);
    this.#values.set(values, this.count);
    for (let at = this.count; at < count; at += 1) {
      const [value, block] = [this.#values[at], Math.floor(at / BLOCK)];
      if (!Number.isFinite(value)) this.#broken[block] = 1;
      else {
        if (value < this.#lows[block]) this.#lows[block] = value;
        if (value > this.#highs[block]) this.#highs[block] = value;
      }
    }
    this.count = count;
    return this;
  }

  /** What lies among the points from one index to before another. @param {number} first @param {number} end @param {number} [above] only values greater */
  #reach(first, end, above = -Infinity) {
    let [low, high, broken] = [Infinity, -Infinity, false];
    for (let at = first; at < end; ) {
      const block = at / BLOCK;
      if (Number.isInteger(block) && at + BLOCK <= end && this.#lows[block] > above) {
        low = Math.min(low, this.#lows[block]);
        high = Math.max(high, this.#highs[block]);
        broken ||= this.#broken[block] === 1;
        at += BLOCK;
        continue;
      }
      const value = this.#values[at];
      at += 1;
      if (!Number.isFinite(value)) broken = true;
      else if (value > above) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    return { low, high, broken };
  }

  /** Index of the last point at or before a step, -1 where there is none. @param {number} step */
  place(step) {
    let [low, high] = [0, this.count];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#steps[middle] <= step) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** Index of the point nearest to a step, -1 where there is none. @param {number} step */
  nearest(step) {
    const at = this.place(step);
    if (at < 0 || at === this.count - 1) return Math.min(this.count - 1, Math.max(0, at));
    return step - this.#steps[at] <= this.#steps[at + 1] - step ? at : at + 1;
  }

  /**
   * Smallest and largest finite value between two steps, null where there is none; above zero only, where `positive`.
   * @param {number} from @param {number} to @param {boolean} [positive] @returns {[number, number] | null}
   */
  extent(from, to, positive = false) {
    const { low, high } = this.#reach(Math.max(0, this.place(from)), this.place(to) + 1, positive ? 0 : -Infinity);
    return low <= high ? [low, high] : null;
  }

  /** Indices of the points to draw between two steps: those inside, and one more at either end. @param {number} from @param {number} to */
  between(from, to) {
    return { first: Math.max(0, this.place(from)), last: Math.min(this.count - 1, this.place(to) + 1) };
  }

  /**
   * Lowest and highest value in each of so many columns between two steps, so that no spike is lost however many points
   * there are. `low` is above `high` where a column has none; `broken`: where a value is not finite.
   * @param {number} from @param {number} to @param {number} count @param {boolean} [positive] above zero only
   * @param {number} [skip] columns at the start that need not be looked at, and stay zero
   */
  columns(from, to, count, positive = false, skip = 0) {
    const [low, high] = [new Float32Array(count), new Float32Array(count)];
    const broken = new Uint8Array(count);
    const width = (to - from) / count;
    let first = this.place(from + skip * width - 1e-9) + 1;
    for (let column = skip; column < count; column += 1) {
      const end = this.place(column === count - 1 ? to : from + (column + 1) * width - 1e-9) + 1;
      const extremes = this.#reach(first, end, positive ? 0 : -Infinity);
      low[column] = extremes.low;
      high[column] = extremes.high;
      broken[column] = Number(extremes.broken);
      first = Math.max(first, end);
    }
    return { low, high, broken };
  }
}

/**
 * @template {Float64Array | Float32Array | Uint8Array} T
 * @param {T} old @param {T} larger
 */
function enlarged(old, larger) {
  larger.set(old);
  return larger;
}
