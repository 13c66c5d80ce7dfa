// How counts of codes are shown: their place on a log scale, the colour there, the ticks, and the ranks.

/**
 * Place of a count on the log scale from one to the most there is, in [0, 1].
 * @param {number} count @param {number} most
 */
export const share = (count, most) => (most > 1 ? Math.log(Math.max(1, count)) / Math.log(most) : 1);

/** @param {string} colour #rrggbb @returns {[number, number, number]} */
const channels = (colour) => /** @type {any} */ ([1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));

/**
 * The colour at a place in [0, 1] between the stops of a scale, as CSS.
 * @param {string[]} stops #rrggbb each
 * @param {number} place
 */
export function colourAt(stops, place) {
  const at = Math.min(1, Math.max(0, place)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(at));
  const [from, to] = [channels(stops[low]), channels(stops[low + 1])];
  return `rgb(${from.map((each, index) => Math.round(each + (to[index] - each) * (at - low))).join(" ")})`;
}

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

/** @param {number} value */
export const grouped = (value) => Math.round(value).toLocaleString("en-GB");

/** For the ticks of an axis. @param {number} value */
export const short = (value) =>
  value < 10000 ? grouped(value) : value.toLocaleString("en-GB", { notation: "compact" });

/** A share as a percentage: two digits behind the point below 1 %. @param {number} value */
export const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.01 ? 2 : 1)} %`;

/** @param {number} count */
export const times = (count) =>
  count === 0 ? "never seen" : count === 1 ? "seen once" : `seen ${grouped(count)} times`;
