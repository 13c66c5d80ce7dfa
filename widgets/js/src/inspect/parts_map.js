// What each head and each feed-forward adds to the chosen token's logit, as a map of layers and heads.

import { element } from "../frame/dom.js";

/** @param {number} value */
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

/** @param {(head: {layer: number, head: number} | null) => void} point at a head */
export function partsMap(point) {
  const node = element("div.chm-inspect-parts");
  const words = element("p.chm-inspect-sum", { role: "status" });

  /** @param {string} name @param {number} value @param {number} most @param {number} layer @param {number | null} head */
  function cell(name, value, most, layer, head) {
    const text = `${name}: ${signed(value)}`;
    const each = element(`td${value < 0 ? ".chm-inspect-loss" : ""}`, {
      title: text,
      "aria-label": text,
      style: `--heat:${(Math.abs(value) / most).toFixed(3)}`,
      text: head === null ? signed(value) : "",
    });
    each.addEventListener("pointerenter", () => {
      words.textContent = text;
      if (head !== null) point({ layer, head });
    });
    each.addEventListener("pointerleave", () => point(null));
    return each;
  }

  return {
    node,
    wait() {
      node.replaceChildren(element("p.chm-inspect-sum", { text: "Adding up…" }));
    },
    /** @param {string} text */
    say(text) {
      node.replaceChildren(element("p.chm-inspect-sum", { text }));
    },
    /** @param {import("./messages.js").PartSums} sums */
    show({ embedding, heads, feed_forwards: feeds, trouble }) {
      if (trouble) return this.say(trouble);
      const most = Math.max(1e-6, ...heads.flat().map(Math.abs), ...feeds.map(Math.abs));
      const total = embedding + heads.flat().reduce((a, b) => a + b, 0) + feeds.reduce((a, b) => a + b, 0);
      words.textContent = `Logit ${signed(total)}: embedding ${signed(embedding)}, and what each head and feed-forward adds.`;
      const count = heads[0]?.length ?? 0;
      node.replaceChildren(
        words,
        element(
          "table",
          element(
            "thead",
            element(
              "tr",
              element("th", { scope: "col", text: "" }),
              element("th", { scope: "colgroup", colspan: count, text: "heads" }),
              element("th", { scope: "col", text: "feed-forward" }),
            ),
          ),
          element(
            "tbody",
            ...heads
              .map((row, layer) =>
                element(
                  "tr",
                  element("th", { scope: "row", text: layer }),
                  ...row.map((value, head) => cell(`Layer ${layer}, head ${head}`, value, most, layer, head)),
                  cell(`Layer ${layer}, feed-forward`, feeds[layer], most, layer, null),
                ),
              )
              .reverse(),
          ),
        ),
        element(
          "div.chm-inspect-legend",
          element("span", element("i.chm-inspect-lost"), `against it, to −${most.toFixed(2)}`),
          element("span", element("i.chm-inspect-won"), `for it, to +${most.toFixed(2)} logits`),
        ),
      );
    },
  };
}
