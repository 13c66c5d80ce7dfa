// What has come of each document: the document itself, its tokens' details, knock-outs, what adds up.

/** @typedef {import("./messages.js").InspectedDocument} InspectedDocument */
/**
 * @template Message
 * @typedef {{message: Message, buffers: DataView[]}} Answer
 */

/** @typedef {{facts: InspectedDocument, logs: Float32Array, entropies: Float32Array, selected: number | null, out: Set<number>}} Opened */

/** @param {Iterable<number>} positions */
const setOf = (positions) => [...positions].sort((a, b) => a - b).join(" ");

export function findings() {
  const documents = /** @type {Map<number, Opened>} */ (new Map());
  const answers = /** @type {Map<string, any>} */ (new Map());
  /** @param {string} kind @param {any[]} place */
  const key = (kind, place) => `${kind} ${place.join(" ")}`;
  return {
    documents,
    /** @param {import("./messages.js").TokenDetail} message @param {DataView[]} buffers */
    putDetail: (message, buffers) =>
      answers.set(key("detail", [message.branch, message.position]), { message, buffers }),
    /** @param {number} branch @param {number} at @returns {Answer<import("./messages.js").TokenDetail> | undefined} */
    detail: (branch, at) => answers.get(key("detail", [branch, at])),
    /** @param {number} branch @param {Iterable<number>} positions @param {Float32Array} changes */
    putChanges: (branch, positions, changes) => answers.set(key("changes", [branch, setOf(positions)]), changes),
    /** @param {number} branch @param {Iterable<number>} positions @returns {Float32Array | undefined} */
    changes: (branch, positions) => answers.get(key("changes", [branch, setOf(positions)])),
    /** @param {import("./messages.js").KnockedAlternatives} message @param {DataView[]} buffers */
    putKnocked: (message, buffers) =>
      answers.set(key("knocked", [message.branch, message.position, setOf(message.positions)]), { message, buffers }),
    /**
     * @param {number} branch @param {number} at @param {Iterable<number>} positions
     * @returns {Answer<import("./messages.js").KnockedAlternatives> | undefined}
     */
    knocked: (branch, at, positions) => answers.get(key("knocked", [branch, at, setOf(positions)])),
    /** @param {import("./messages.js").PartSums} message */
    putParts: (message) => answers.set(key("parts", [message.branch, message.position]), message),
    /** @param {number} branch @param {number} at @returns {import("./messages.js").PartSums | undefined} */
    parts: (branch, at) => answers.get(key("parts", [branch, at])),
    /** @param {import("./messages.js").LensPicture} message @param {DataView} png */
    putLens: ({ branch, image, layer }, png) => answers.set(key("lens", [branch, image, layer]), png),
    /** @param {number} branch @param {number} image @param {number} layer @returns {DataView | undefined} */
    lens: (branch, image, layer) => answers.get(key("lens", [branch, image, layer])),
  };
}
