// Words: where a sentence ends, and what the lamp says.

/**
 * Splits text into its finished sentences and the rest, so that each sentence is read aloud once, when it is whole.
 * @param {string} text
 * @returns {[string, string]}
 */
export function sentences(text) {
  const ends = [...text.matchAll(/[.!?…]["”’)]*(?=\s)|\n/g)];
  const last = ends.at(-1);
  const cut = last ? last.index + last[0].length : 0;
  return [text.slice(0, cut), text.slice(cut)];
}

/**
 * What the lamp shows while the kernel answers: a name for its colour, and words.
 * @param {import("./messages.js").ReplyState | undefined} state of the last exchange
 * @returns {[string, string]}
 */
export function lampWords(state) {
  const room = state?.room === undefined ? "" : ` · room left ${state.room.toLocaleString("en")}`;
  switch (state?.name) {
    case "reading":
      return ["reading", "Reading"];
    case "writing":
      return ["writing", room ? `Words${room}` : "Writing"];
    case "drawing":
      return [
        "drawing",
        state.codes ? `Picture ${state.codes.join("/")}${room}` : `Drawing row ${state.row} of ${state.rows}`,
      ];
    case "stopped":
      return ["stopped", "Stopped"];
    case "error":
      return ["error", "Error"];
    default:
      return ["idle", "Ready"];
  }
}

/**
 * A slider's value in words; null where nobody tells.
 * @param {number | null} value
 * @param {number} step
 */
export const settingWords = (value, step) =>
  value === null ? "" : value.toFixed(step >= 1 ? 0 : step >= 0.1 && step * 10 === Math.round(step * 10) ? 1 : 2);
