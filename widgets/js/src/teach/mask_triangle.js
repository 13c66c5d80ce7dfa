// The mask: a triangle of which row may read which column, with the row of a position marked.

import { element, shape } from "../frame/dom.js";
import { KINDS } from "./lesson.js";

const SIDE = 240; // units of the drawing; a band for the kinds of tokens stands along two sides
const BAND = 8;
const EDGE = 30;

/** Neighbouring tokens of one modality: [modality, first, stop]. @param {{modality: number}[]} tokens */
export function runs(tokens) {
  const out = /** @type {[number, number, number][]} */ ([]);
  tokens.forEach(({ modality }, at) => {
    const last = out.at(-1);
    if (last && last[0] === modality) last[2] = at + 1;
    else out.push([modality, at, at + 1]);
  });
  return out;
}

/**
 * @param {import("./lesson.js").Lesson} lesson
 * @param {{point: (at: number | null) => void, choose: (at: number) => void}} hooks
 */
export function maskTriangle(lesson, { point, choose }) {
  const drawing = shape("svg", {
    viewBox: `${-EDGE} ${-EDGE} ${SIDE + EDGE + 4} ${SIDE + EDGE + 4}`,
    class: "chm-teach-mask",
    role: "img",
  });
  const words = element("p.chm-teach-sum", { role: "status" });
  const node = element("div.chm-teach-masking", /** @type {any} */ (drawing), words);

  /** @param {PointerEvent | MouseEvent} event */
  function row(event) {
    const box = drawing.getBoundingClientRect();
    const place = ((event.clientY - box.top) / box.height) * (SIDE + EDGE + 4) - EDGE;
    const at = Math.floor((place / SIDE) * lesson.tokens.length);
    return at >= 0 && at < lesson.tokens.length ? at : null;
  }
  drawing.addEventListener("pointermove", (event) => point(row(/** @type {PointerEvent} */ (event))));
  drawing.addEventListener("pointerleave", () => point(null));
  drawing.addEventListener("click", (event) => {
    const at = row(/** @type {MouseEvent} */ (event));
    if (at !== null) choose(at);
  });

  return {
    node,
    /** @param {number} at the position whose row is marked */
    show(at) {
      const count = lesson.tokens.length;
      const unit = SIDE / count;
      const bands = runs(lesson.tokens).flatMap(([modality, first, stop]) => {
        const length = (stop - first) * unit;
        const kind = { class: `chm-teach-fill-${KINDS[modality]}` };
        return [
          shape("rect", { ...kind, x: first * unit, y: -BAND - 3, width: length, height: BAND }),
          shape("rect", { ...kind, x: -BAND - 3, y: first * unit, width: BAND, height: length }),
        ];
      });
      const thick = Math.max(unit, 2);
      drawing.replaceChildren(
        ...bands,
        shape("path", { class: "chm-teach-hidden", d: `M0 0H${SIDE}V${SIDE}Z` }),
        shape("path", { class: "chm-teach-visible", d: `M0 0V${SIDE}H${SIDE}Z` }),
        shape("rect", { class: "chm-teach-row", x: 0, y: at * unit, width: (at + 1) * unit, height: thick }),
        shape("rect", {
          class: "chm-teach-row-hidden",
          x: (at + 1) * unit,
          y: at * unit,
          width: SIDE - (at + 1) * unit,
          height: thick,
        }),
        shape("text", { x: 0, y: -16 }, "what is read →"),
        shape("text", { transform: "translate(-23 0) rotate(90)" }, "who reads →"),
        shape("text", { x: SIDE - 6, y: 22, "text-anchor": "end" }, "never"),
      );
      const { token } = lesson.tokens[at];
      const later = count - at - 1;
      drawing.setAttribute("aria-label", `The mask, ${count} by ${count}, with row ${at} marked`);
      words.replaceChildren(
        element("b", { text: lesson.words(token) }),
        ` at position ${at} may read positions 0 to ${at}${later ? `, and none of the ${later} behind it` : ", which is everything"}.`,
      );
    },
  };
}
