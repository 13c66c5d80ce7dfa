// The draw: what is left lies along one line, likeliest first, and a number between 0 and 1 says where to stop.

import { element } from "../frame/dom.js";
import { KINDS, percent } from "./lesson.js";
import { pick } from "./sampling.js";

const PARTS = 60; // tokens that get a part of their own on the line

/**
 * @param {import("./lesson.js").Lesson} lesson
 * @param {(seed: number) => void} reseed
 */
export function drawLine(lesson, reseed) {
  const line = element("div.chm-teach-draw", { role: "img" });
  const needle = element("i.chm-teach-needle");
  const result = element("p.chm-teach-result", { role: "status" });
  const seed = element("input", {
    type: "number",
    min: 0,
    step: 1,
    "aria-label": "Seed",
    on: { change: () => reseed(Math.max(0, Math.round(Number(seed.value) || 0))) },
  });
  const node = element(
    "div.chm-teach-drawing",
    element("div.chm-teach-rail", line, needle),
    result,
    element("label.chm-teach-seed", element("span", { text: "Seed" }), seed),
  );

  return {
    node,
    /** @param {import("./sampling.js").Choice} left */
    show(left) {
      const { draw, ended, prompt } = /** @type {import("./messages.js").WalkStep} */ (lesson.step);
      if (document.activeElement !== seed) seed.value = String(lesson.step?.seed ?? 0);
      node.classList.toggle("chm-teach-ended", ended !== null);
      if (ended !== null) {
        result.replaceChildren("The reply has ended. Go back, or start again with another seed.");
        return null;
      }
      const rank = pick(left, draw);
      const token = left.order[rank];
      const parts = Math.min(left.count, PARTS);
      line.replaceChildren(
        ...Array.from({ length: parts }, (_, at) => {
          const id = left.order[at];
          const share = left.shares[at] / left.total;
          const part = element(`div.chm-teach-part.chm-teach-back-${KINDS[lesson.modality(id)]}`, {
            title: `${lesson.words(id)} ${percent(share)}`,
          });
          part.style.flexGrow = String(share);
          if (share > 0.06)
            part.append(
              ...[lesson.swatch(id)].filter((each) => each !== null),
              element("span", { text: lesson.words(id) }),
            );
          part.classList.toggle("chm-teach-this", at === rank);
          return part;
        }),
      );
      if (left.count > parts) {
        let rest = 0;
        for (let at = parts; at < left.count; at += 1) rest += left.shares[at];
        const part = element("div.chm-teach-part.chm-teach-rest", { title: `${left.count - parts} more` });
        part.style.flexGrow = String(rest / left.total);
        line.append(part);
      }
      needle.style.left = `${100 * draw}%`;
      const number = lesson.tokens.length - prompt + 1;
      line.setAttribute("aria-label", `What is left, likeliest first, with the draw at ${draw.toFixed(4)}`);
      const swatch = lesson.swatch(token);
      result.replaceChildren(
        `Draw ${number} of seed ${lesson.step?.seed} is ${draw.toFixed(4)}, which falls on `,
        ...(swatch ? [swatch] : []),
        element("b", { text: lesson.words(token) }),
        ` (token ${token}, ${percent(left.shares[rank] / left.total)}).`,
      );
      return token;
    },
  };
}
