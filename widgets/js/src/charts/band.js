// Several runs of one kind as one line: their mean, and a band from the lowest to the highest.

import { Averaged } from "./averaged.js";
import { Points } from "./points.js";

/**
 * Mean, lowest and highest of several series at the steps that all of them have; what is no number in one of them is
 * none in the mean.
 * @param {Points[]} members
 */
export function bandOf(members) {
  const places = members.map(() => 0);
  const steps = /** @type {number[]} */ ([]);
  const [mean, low, high] = /** @type {number[][]} */ ([[], [], []]);
  while (members.length && members.every(({ count }, at) => places[at] < count)) {
    const here = members.map((points, at) => points.steps[places[at]]);
    const furthest = Math.max(...here);
    if (here.every((step) => step === furthest)) {
      const values = members.map((points, at) => points.values[places[at]]);
      steps.push(furthest);
      mean.push(values.reduce((sum, value) => sum + value, 0) / values.length);
      low.push(Math.min(...values));
      high.push(Math.max(...values));
    }
    here.forEach((step, at) => {
      if (step < furthest || here.every((each) => each === furthest)) places[at] += 1;
    });
  }
  const [middle, below, above] = [mean, low, high].map((values) => new Points().add(steps, values));
  return { mean: middle, low: below, high: above };
}

/** A band that is made anew only where its members have grown, smoothed by a weight. */
export class Band {
  #key = "";
  #band = bandOf([]);

  /** @param {Points[]} members @param {number} weight as `Averaged.mean` has it */
  of(members, weight) {
    const key = JSON.stringify([members.map(({ count }) => count), weight]);
    if (key === this.#key) return this.#band;
    this.#key = key;
    const { mean, low, high } = bandOf(members);
    const smooth = (/** @type {Points} */ points) => new Averaged(points).mean(weight);
    return (this.#band = { mean: smooth(mean), low: smooth(low), high: smooth(high) });
  }
}
