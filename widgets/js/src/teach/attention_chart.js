// One row of attention: a score for each token that may be read, and the weights that the softmax makes of them.

import { oncePerFrame, palette, sized, surface } from "../charts/canvas.js";
import { element } from "../frame/dom.js";
import { watchTheme } from "../frame/theme.js";
import { KINDS, percent } from "./lesson.js";

const GUTTER = 48;
export const COLOURS = ["#2f7fd0", "#e8590c", "#868e96"]; // words, patches, special

/**
 * @param {import("./lesson.js").Lesson} lesson
 * @param {(at: number | null) => void} point
 */
export function attentionChart(lesson, point) {
  const { canvas, pen, clear } = surface();
  const plot = element("div.chm-teach-plot", { role: "img", "aria-label": "Scores above, weights below" }, canvas);
  const sum = element("p.chm-teach-sum", { role: "status" });
  const list = element("div.chm-teach-chips", { role: "list", "aria-label": "What it read most" });
  const node = element("div.chm-teach-attention", plot, sum, list);
  const colours = palette(node);
  const frame = oncePerFrame(draw);
  const size = sized(plot, frame.ask);
  const forgetTheme = watchTheme(() => {
    colours.forget();
    frame.ask();
  });
  let scores = /** @type {Float32Array} */ (new Float32Array());
  let weights = /** @type {Float32Array} */ (new Float32Array());
  let key = /** @type {number | null} */ (null); // a position that is read

  /** @param {PointerEvent} event */
  function under(event) {
    const box = plot.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left - GUTTER) / (box.width - GUTTER)) * scores.length);
    return at >= 0 && at < scores.length ? at : null;
  }
  plot.addEventListener("pointermove", (event) => point(under(event)));
  plot.addEventListener("pointerleave", () => point(null));

  function draw() {
    const { width, height } = size;
    if (!width || !scores.length) return;
    clear(width, height);
    const wide = (width - GUTTER) / scores.length;
    const bar = Math.max(1, wide - (wide > 4 ? 1 : 0));
    let most = 1e-6;
    for (const score of scores) most = Math.max(most, Math.abs(score));
    const low = scores.some((score) => score < 0);
    const [top, middle, bottom] = [6, height / 2 - 12, height - 14];
    const zero = low ? (top + middle) / 2 : middle;
    const tall = low ? (middle - top) / 2 : middle - top;
    const heavy = weights.reduce((best, weight) => Math.max(best, weight), 1e-6);
    const floor = height / 2 + 14;
    pen.font = colours.font();
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillStyle = colours.of("var(--ink-soft)");
    pen.fillText("score", GUTTER - 6, zero - 6);
    pen.fillText(`±${most.toFixed(1)}`, GUTTER - 6, zero + 7);
    pen.fillText("weight", GUTTER - 6, bottom - 7);
    pen.fillText(percent(heavy), GUTTER - 6, floor + 4);
    pen.fillStyle = colours.of("var(--line)");
    pen.fillRect(GUTTER, zero, width - GUTTER, 1);
    pen.fillRect(GUTTER, bottom, width - GUTTER, 1);
    for (let at = 0; at < scores.length; at += 1) {
      const [left, colour] = [GUTTER + at * wide, COLOURS[lesson.tokens[at]?.modality ?? 2]];
      pen.globalAlpha = key === null || key === at ? 1 : 0.55;
      pen.fillStyle = colour;
      const up = (scores[at] / most) * tall;
      pen.fillRect(left, up > 0 ? zero - up : zero, bar, Math.max(1, Math.abs(up)));
      const weight = (weights[at] / heavy) * (bottom - floor);
      pen.fillRect(left, bottom - weight, bar, weight);
      pen.fillRect(left, bottom + 4, Math.max(bar, wide), 4);
    }
    pen.globalAlpha = 1;
    if (key !== null && key < scores.length) {
      pen.strokeStyle = colours.of("var(--ink)");
      pen.strokeRect(GUTTER + key * wide - 0.5, 1.5, bar + 1, height - 6);
    }
  }

  function tell() {
    if (!scores.length) return;
    let most = -Infinity;
    for (const score of scores) most = Math.max(most, score);
    let total = 0;
    for (const score of scores) total += Math.exp(score - most);
    const at = key ?? weights.indexOf(Math.max(...weights));
    const power = Math.exp(scores[at] - most);
    sum.replaceChildren(
      element("b", { text: lesson.words(lesson.tokens[at].token) }),
      ` (position ${at}): score ${scores[at].toFixed(2)}, e`,
      element("sup", { text: `${scores[at].toFixed(2)} − ${most.toFixed(2)}` }),
      ` = ${power.toPrecision(2)}, of ${total.toPrecision(3)} in all: `,
      element("b", { text: percent(weights[at]) }),
    );
  }

  return {
    node,
    /** @param {Float32Array} newScores @param {Float32Array} newWeights */
    show(newScores, newWeights) {
      [scores, weights] = [newScores, newWeights];
      const shares = [0, 0, 0];
      weights.forEach((weight, at) => (shares[lesson.tokens[at]?.modality ?? 2] += weight));
      const best = [...weights.keys()].sort((one, other) => weights[other] - weights[one]).slice(0, 5);
      list.replaceChildren(
        ...best.map((at) => {
          const { token } = lesson.tokens[at];
          return element(
            "span.chm-teach-chip",
            { role: "listitem" },
            lesson.swatch(token),
            `${lesson.words(token)} `,
            element("b", { text: percent(weights[at]) }),
          );
        }),
        element("span.chm-teach-note", { text: KINDS.map((kind, at) => `${kind} ${percent(shares[at])}`).join(" · ") }),
      );
      tell();
      frame.ask();
    },
    /** @param {number | null} at a position that is read */
    mark(at) {
      const next = at !== null && at < scores.length ? at : null;
      if (next === key) return;
      key = next;
      tell();
      frame.ask();
    },
    dispose() {
      frame.dispose();
      size.dispose();
      forgetTheme();
    },
  };
}
