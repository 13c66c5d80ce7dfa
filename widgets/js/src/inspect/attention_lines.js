// Lines from a token to those that it reads most, over words and cells alike.

import { shape } from "../frame/dom.js";

const LINES = 24; // more are a thicket
const FAINTEST = 0.04; // of the strongest

export function attentionLines() {
  const node = /** @type {SVGElement} */ (shape("svg", { class: "chm-inspect-lines", "aria-hidden": "true" }));

  return {
    node,
    /**
     * @param {HTMLElement} flow that the tokens scroll in
     * @param {HTMLElement[]} tokens
     * @param {number | null} at from where; null draws none
     * @param {Float32Array | null} heat
     */
    draw(flow, tokens, at, heat) {
      if (at === null || !heat || !tokens[at]) return node.replaceChildren();
      const frame = flow.getBoundingClientRect();
      /** @param {HTMLElement} each */
      const middle = (each) => {
        const { left, top, width, height } = each.getBoundingClientRect();
        return [left - frame.left + flow.scrollLeft + width / 2, top - frame.top + flow.scrollTop + height / 2];
      };
      const strongest = [...heat.keys()]
        .filter((each) => each !== at && Math.abs(heat[each]) > FAINTEST)
        .sort((a, b) => Math.abs(heat[b]) - Math.abs(heat[a]))
        .slice(0, LINES);
      node.style.width = `${flow.clientWidth}px`;
      node.style.height = `${flow.scrollHeight}px`;
      const [x, y] = middle(tokens[at]);
      node.replaceChildren(
        ...strongest.map((each) => {
          const [right, down] = middle(tokens[each]);
          const bow = Math.min(60, Math.hypot(right - x, down - y) / 4);
          const strength = Math.abs(heat[each]);
          return shape("path", {
            d: `M${x.toFixed(1)} ${y.toFixed(1)}Q${((x + right) / 2).toFixed(1)} ${((y + down) / 2 - bow).toFixed(1)} ${right.toFixed(1)} ${down.toFixed(1)}`,
            "stroke-width": (0.6 + 3.4 * strength).toFixed(2),
            "stroke-opacity": (0.25 + 0.65 * strength).toFixed(2),
          });
        }),
      );
    },
  };
}
