// A measure as it was recorded and as an exponential mean, which go on together as it grows.

import { Points } from "./points.js";

export class Averaged {
  recorded = new Points();
  mean = this.recorded;
  #weight = 0;
  #sum = 0; // of weighted values
  #share = 0; // of the weights, which near 1

  /** @param {number} weight of a value in the mean for each step back, 0 to below 1; 0: no smoothing */
  constructor(weight = 0) {
    this.smooth(weight);
  }

  /** @param {ArrayLike<number>} steps @param {ArrayLike<number>} values */
  add(steps, values) {
    this.recorded.add(steps, values);
    if (this.#weight) this.mean.add(steps, this.#means(values));
    return this;
  }

  /** Changes the weight. @param {number} weight */
  smooth(weight) {
    if (weight === this.#weight) return;
    this.#weight = weight;
    this.#sum = this.#share = 0;
    this.mean = weight ? new Points().add(this.recorded.steps, this.#means(this.recorded.values)) : this.recorded;
  }

  /** What is no number stays in its place and out of the mean. @param {ArrayLike<number>} values */
  #means(values) {
    return Float64Array.from(values, (value) => {
      if (!Number.isFinite(value)) return value;
      this.#sum = this.#weight * this.#sum + (1 - this.#weight) * value;
      this.#share = this.#weight * this.#share + (1 - this.#weight);
      return this.#sum / this.#share;
    });
  }
}
