// What each layer would have written at the chosen position: its likeliest token, and how likely it held the one there.

import { element } from "../frame/dom.js";
import { percentage, wordsOf } from "./reading.js";

export function layerTable() {
  const body = element("tbody");
  const node = element(
    "table.chm-inspect-layers",
    element(
      "thead",
      element("tr", ...["layer", "would write", "", "this one"].map((text) => element("th", { scope: "col", text }))),
    ),
    body,
  );
  return {
    node,
    /**
     * @param {import("./messages.js").LayerReading[]} layers @param {(string | null)[]} looks of each layer's token
     * @param {string} own words of the token that stands there
     */
    show(layers, looks, own) {
      body.replaceChildren(
        ...layers
          .map(({ words, probability, own: share }, layer) =>
            element(
              `tr${words === own ? ".chm-inspect-agrees" : ""}`,
              element("th", { scope: "row", text: layer }),
              element(
                "td",
                element(
                  "span.chm-inspect-name",
                  looks[layer] ? element("img", { alt: "", src: looks[layer] }) : "",
                  wordsOf(words),
                ),
              ),
              element(
                "td",
                element("i", { style: `--share:${(100 * probability).toFixed(1)}%` }),
                element("span", { text: percentage(probability) }),
              ),
              element("td", { text: percentage(share) }),
            ),
          )
          .reverse(),
      );
    },
  };
}
