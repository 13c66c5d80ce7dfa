// What becomes of logits until one token is drawn: guidance, the grammar, temperature, top-k, top-p, min-p, the draw.
// It says what `chameleon_lab.generation.samplers` says; a table that Python writes holds the two together.

/** @typedef {{temperature: number, top_p: number, top_k: number, min_p: number, repetition: number}} Sampler */

/**
 * One row of logits out of the row's own and its twins': two-way guidance with one strength, three-way with those of
 * text and image.
 * @param {Float32Array[]} streams @param {number[]} strengths
 */
export function mixed(streams, strengths) {
  const [own, ...twins] = streams;
  if (twins.length === 1 && strengths.length === 1) {
    const [[without], [scale]] = [twins, strengths];
    return scale === 1 ? own : own.map((logit, at) => without[at] + scale * (logit - without[at]));
  }
  if (twins.length === 2 && strengths.length === 2) {
    const [[images, without], [text, image]] = [twins, strengths];
    return own.map((logit, at) => without[at] + image * (images[at] - without[at]) + text * (logit - images[at]));
  }
  return own;
}

/** The shares that a softmax gives logits; those at -Infinity get none. @param {ArrayLike<number>} logits @param {number} [temperature] */
export function softmax(logits, temperature = 1) {
  const shares = new Float64Array(logits.length);
  let most = -Infinity;
  for (let at = 0; at < logits.length; at += 1) most = Math.max(most, logits[at]);
  let sum = 0;
  for (let at = 0; at < logits.length; at += 1) sum += shares[at] = Math.exp((logits[at] - most) / temperature);
  for (let at = 0; at < logits.length; at += 1) shares[at] /= sum;
  return shares;
}

/**
 * The tokens that may come, likeliest first, lower ids first among equals.
 * @param {ArrayLike<number>} logits of all tokens @param {Uint8Array} allowed
 */
export function ranked(logits, allowed) {
  const ids = /** @type {number[]} */ ([]);
  for (let at = 0; at < allowed.length; at += 1) if (allowed[at]) ids.push(at);
  return Uint32Array.from(ids.sort((one, other) => logits[other] - logits[one] || one - other));
}

/**
 * @typedef {object} Choice what may be drawn
 * @property {Uint32Array} order tokens that the grammar lets come, likeliest first
 * @property {Float64Array} shares theirs after temperature, of all of them together
 * @property {number} count how many of them are left by the sampler
 * @property {number} total what the shares of those left sum to
 * @property {(rank: number) => string} cut which setting leaves a token out; "" for one that is left
 */

/**
 * What a sampler leaves of logits.
 * @param {Uint32Array} order from `ranked` @param {ArrayLike<number>} logits @param {Sampler} sampler
 * @returns {Choice}
 */
export function choice(order, logits, { temperature, top_p, top_k, min_p }) {
  const size = order.length;
  const own = Float64Array.from(order, (token) => logits[token]);
  const shares = temperature ? softmax(own, temperature) : own.map((_, rank) => (rank ? 0 : 1));
  const first = temperature ? Math.min(top_k || size, size) : 1;
  let total = 0;
  for (let rank = 0; rank < first; rank += 1) total += shares[rank];
  let [nucleus, sum] = [0, shares[0]];
  while (nucleus < first - 1 && sum < top_p * total) sum += shares[(nucleus += 1)];
  let likely = 0;
  while (likely < size && shares[likely] >= min_p * shares[0]) likely += 1;
  const count = Math.max(1, Math.min(nucleus + 1, min_p ? likely : size));
  total = 0;
  for (let rank = 0; rank < count; rank += 1) total += shares[rank];
  return {
    order,
    shares,
    count,
    total,
    cut(rank) {
      if (rank < count) return "";
      if (!temperature) return "temperature 0 takes the likeliest";
      if (rank >= first) return `not among the likeliest ${top_k} (top-k)`;
      return rank > nucleus
        ? `beyond the first ${percent(top_p)} (top-p)`
        : `under ${percent(min_p)} of the likeliest (min-p)`;
    },
  };
}

/** @param {number} share */
const percent = (share) => `${Number((100 * share).toFixed(1))} %`;

/**
 * The rank of the token at a quantile of what is left, likeliest first.
 * @param {Choice} choice @param {number} draw in [0, 1)
 */
export function pick({ shares, count, total }, draw) {
  let [rank, sum] = [0, shares[0]];
  while (rank < count - 1 && sum <= draw * total) sum += shares[(rank += 1)];
  return rank;
}

/**
 * Logits with the penalty on tokens already written: positive ones divided, negative ones multiplied.
 * @param {Float32Array} logits @param {Iterable<number>} written @param {number} penalty
 */
export function penalized(logits, written, penalty) {
  if (penalty === 1) return logits;
  const out = logits.slice();
  for (const token of new Set(written))
    out[token] = logits[token] > 0 ? logits[token] / penalty : logits[token] * penalty;
  return out;
}
