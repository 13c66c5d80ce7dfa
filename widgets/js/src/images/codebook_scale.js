// How counts of codes are shown: their place on a log scale, the colour there, the ticks, and the ranks.

import { grouped } from "../charts/axis.js";

/**
 * Place of a count on the log scale from one to the most there is, in [0, 1].
 * @param {number} count @param {number} most
 */
export const share = (count, most) => (most > 1 ? Math.log(Math.max(1, count)) / Math.log(most) : 1);

/**
 * The ticks of a log scale: powers of ten, and the most where none is near it.
 * @param {number} most
 */
export function ticks(most) {
  const powers = [];
  for (let power = 1; power <= most; power *= 10) powers.push(power);
  if (most > 1 && share(most, most) - share(powers[powers.length - 1], most) > 0.12) powers.push(most);
  return powers;
}

/**
 * Codes by falling count, and the rank of each: 1 for the most seen, the same for equals.
 * @param {ArrayLike<number>} counts
 */
export function ranked(counts) {
  const byCount = Uint32Array.from({ length: counts.length }, (_, code) => code);
  byCount.sort((one, other) => counts[other] - counts[one] || one - other);
  const ranks = new Uint32Array(counts.length);
  byCount.forEach((code, place) => {
    const before = byCount[place - 1];
    ranks[code] = place && counts[before] === counts[code] ? ranks[before] : place + 1;
  });
  return { byCount, ranks };
}

/** @param {number} count */
export const times = (count) =>
  count === 0 ? "never seen" : count === 1 ? "seen once" : `seen ${grouped(count)} times`;
