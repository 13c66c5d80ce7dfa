// What the stations of the lesson share: the document, the vocabulary, and where the walk stands.

import { element } from "../frame/dom.js";
import { plainWords } from "../inspect/reading.js";

/** @typedef {import("./messages.js").WalkToken} WalkToken */
/** @typedef {import("./messages.js").VocabularyBlock} VocabularyBlock */

export const [TEXT, IMAGE, SPECIAL] = [0, 1, 2];
const UNPRINTABLE = /(?:\ufffd|(?!\n)\p{Cc})+/gu; // single bytes, which are no letters by themselves
export const KINDS = ["words", "patches", "special"]; // by modality

export function lesson() {
  const looks = /** @type {Map<number, {url: string, place: number, count: number}>} */ (new Map());
  const urls = /** @type {string[]} */ ([]);
  const own = {
    names: /** @type {string[]} */ ([]),
    blocks: /** @type {VocabularyBlock[]} */ ([]),
    codes: new Int32Array(), // of each token of the image block
    depth: { layers: 0, heads: 0 },
    tokens: /** @type {WalkToken[]} */ ([]),
    step: /** @type {import("./messages.js").WalkStep | null} */ (null),
    streams: /** @type {Float32Array[]} */ ([]),
    allowed: new Uint8Array(),
    /** @param {number} token */
    block: (token) => own.blocks.find(({ stop }) => token < stop) ?? own.blocks[own.blocks.length - 1],
    /** @param {number} token */
    modality: (token) => own.block(token).modality,
    get firstImage() {
      return own.blocks.find(({ modality }) => modality === IMAGE)?.first ?? 0;
    },
    /** The code of an image token; null for any other. @param {number} token */
    code: (token) => (own.modality(token) === IMAGE ? own.codes[token - own.firstImage] : null),
    /** A token in words that can be read. @param {number} token */
    words: (token) =>
      plainWords({
        words: (own.names[token] ?? "").replace(UNPRINTABLE, "·"),
        modality: own.modality(token),
        sink: false,
        image: null,
        row: null,
        column: null,
        rank: null,
      }),
    /** Why a token may not come, "" if it may. @param {number} token */
    reason: (token) =>
      own.allowed[token]
        ? ""
        : (own.step?.reasons.find(([first, stop]) => first <= token && token < stop)?.[2] ?? "It may not come here."),
    /** Tokens of the reply, as far as they are words. */
    get written() {
      return own.tokens
        .slice(own.step?.prompt ?? 0)
        .filter(({ modality }) => modality === TEXT)
        .map(({ token }) => token);
    },
    /** @param {number[]} codes @param {string} url of their looks, side by side */
    addLooks(codes, url) {
      urls.push(url);
      codes.forEach((code, place) => looks.set(code, { url, place, count: codes.length }));
    },
    /** Whether the look of a code is here. @param {number} code */
    hasLook: (code) => looks.has(code),
    /** Paints a code's look into a node; without one it stays as it is. @param {HTMLElement} node @param {number | null} code */
    paintLook(node, code) {
      const look = code === null ? undefined : looks.get(code);
      if (!look) return;
      node.style.backgroundImage = `url(${look.url})`;
      node.style.backgroundSize = `${100 * look.count}% 100%`;
      node.style.backgroundPosition = look.count > 1 ? `${(100 * look.place) / (look.count - 1)}% 0` : "0 0";
    },
    /** The look of a token: a patch's swatch, or nothing. @param {number} token */
    swatch(token) {
      const code = own.code(token);
      if (code === null) return null;
      const node = element("i.chm-teach-swatch", { "data-code": code });
      own.paintLook(node, code);
      return node;
    },
    dispose() {
      for (const url of urls) URL.revokeObjectURL(url);
    },
  };
  return own;
}

/** @typedef {ReturnType<typeof lesson>} Lesson */

/** A share in words: "12 %", "0.31 %", "< 0.01 %". @param {number} share */
export function percent(share) {
  if (share === 0) return "0 %";
  if (share < 1e-4) return "< 0.01 %";
  const digits = share < 0.00995 ? 2 : share < 0.0995 ? 1 : 0;
  return `${(100 * share).toFixed(digits)} %`;
}
