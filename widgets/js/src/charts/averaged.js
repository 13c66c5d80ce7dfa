// A measure as it was recorded and as an exponential mean, which goes on as it grows.

import { Points } from "./points.js";

export class Averaged {
  #mean = new Points();
  #weight = 0;
  #sum = 0; // of weighted values
  #share = 0; // of the weights, which near 1

  /** @param {Points} recorded */
  constructor(recorded) {
    this.recorded = recorded;
  }

  /**
   * What is shown at a weight. What is no number stays in its place and out of the mean.
   * @param {number} weight of a value in the mean for each step back, 0 to below 1; 0: as recorded
   */
  mean(weight) {
    if (!weight) return this.recorded;
    if (weight !== this.#weight) [this.#mean, this.#weight, this.#sum, this.#share] = [new Points(), weight, 0, 0];
    const { count } = this.#mean;
    const means = Float64Array.from(this.recorded.values.subarray(count), (value) => {
      if (!Number.isFinite(value)) return value;
      this.#sum = weight * this.#sum + (1 - weight) * value;
      this.#share = weight * this.#share + (1 - weight);
      return this.#sum / this.#share;
    });
    return this.#mean.add(this.recorded.steps.subarray(count), means);
  }
}
