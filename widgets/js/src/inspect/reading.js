// What numbers of a model mean on the page: how strongly to paint, and in which words.

/** @typedef {import("./messages.js").TokenFacts} TokenFacts */

export const ROLLOUT = -1; // in place of a layer
export const RELEVANCE = -2;
export const SURPRISE = 8; // nats that paint a token fully

/** @param {number} share */
export function percentage(share) {
  if (Number.isNaN(share)) return "";
  if (share > 0 && share < 0.001) return "under 0.1 %";
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

/** @param {number} value in nats */
export const nats = (value) => `${value < 0 ? "−" : value > 0 ? "+" : ""}${Math.abs(value).toFixed(2)} nats`;

/** Words that are blank made visible. @param {string} words */
export const wordsOf = (words) => (words === "\n" ? "↵" : words.trim() ? words : "␣");

/** A token's own words, those of the special ones readable. @param {TokenFacts} token */
export const plainWords = ({ words, modality }) => (modality === 2 ? words.replaceAll("_", " ") : wordsOf(words));

/** A token's words, and which cell it is. @param {TokenFacts} token */
export const named = (token) =>
  plainWords(token) + (token.row === null ? "" : ` (${token.row + 1}, ${(token.column ?? 0) + 1})`);

/**
 * A token as it is spoken: "code 22, row 3, column 4, probability 12 %".
 * @param {TokenFacts} token @param {number} log its log-probability; nan where there is none
 */
export function spoken(token, log) {
  const place = token.row === null ? "" : `, row ${token.row + 1}, column ${(token.column ?? 0) + 1}`;
  return `${plainWords(token)}${place}${Number.isNaN(log) ? "" : `, probability ${percentage(Math.exp(log))}`}`;
}

/** How strongly a token is painted whose log-probability this is: 0 to 1. @param {number} log */
export const surprise = (log) => (Number.isNaN(log) ? 0 : Math.min(1, -log / SURPRISE));

/**
 * How strongly tokens are painted by a row of attention, 0 to 1. Sinks do not set the scale: a head that rests on one
 * would leave nothing to see of the rest.
 * @param {ArrayLike<number>} row @param {number} first position of its first weight @param {TokenFacts[]} tokens
 */
export function strengths(row, first, tokens) {
  const painted = new Float32Array(tokens.length);
  let most = 1e-3;
  for (let at = 0; at < row.length; at += 1) if (!tokens[first + at].sink) most = Math.max(most, row[at]);
  for (let at = 0; at < row.length; at += 1) painted[first + at] = Math.min(1, Math.max(0, row[at] / most));
  return painted;
}

/**
 * How strongly tokens are painted by changes of their log-probabilities, −1 to 1, and which change is 1.
 * @param {Float32Array} changes in nats; nan where there is none
 */
export function changeStrengths(changes) {
  const most = changes.reduce((greatest, change) => Math.max(greatest, Math.abs(change) || 0), 0.5);
  return { most, heat: changes.map((change) => change / most || 0) };
}

/**
 * Where a row of attention falls: words, patches, sinks and other special tokens.
 * @param {ArrayLike<number>} row @param {TokenFacts[]} tokens
 */
export function sharesOf(row, tokens) {
  const shares = [0, 0, 0, 0];
  for (let at = 0; at < row.length; at += 1) {
    const { modality, sink } = tokens[at];
    shares[modality < 2 ? modality : sink ? 2 : 3] += row[at];
  }
  return shares;
}

/**
 * The token that an arrow key leads to: left and right along the document, up and down over the page.
 * @param {string} key @param {number} at
 * @param {{left: number, top: number, width: number, height: number}[]} boxes of all tokens
 */
export function neighbour(key, at, boxes) {
  const last = boxes.length - 1;
  if (key === "Home") return 0;
  if (key === "End") return last;
  if (key === "ArrowLeft") return Math.max(0, at - 1);
  if (key === "ArrowRight") return Math.min(last, at + 1);
  const sign = { ArrowUp: -1, ArrowDown: 1 }[key];
  if (!sign) return at;
  const [x, y] = middle(boxes[at]);
  let [best, near] = [at, Infinity];
  boxes.forEach((box, each) => {
    const [left, top] = middle(box);
    const down = sign * (top - y);
    const far = 3 * down + Math.abs(left - x);
    if (down > boxes[at].height / 2 && far < near) [best, near] = [each, far];
  });
  return best;
}

/** @param {{left: number, top: number, width: number, height: number}} box */
const middle = ({ left, top, width, height }) => [left + width / 2, top + height / 2];
