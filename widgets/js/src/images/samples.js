// Pictures offered by name, and the figures below a picture.

import { button, element, group, press } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";

/** @param {(name: string) => void} pick */
export function sampleButtons(pick) {
  const node = group("chm-samples", "Samples");
  node.hidden = true;
  return {
    node,
    /** @param {string[]} names @param {DataView[]} pictures */
    offer(names, pictures) {
      node.replaceChildren(
        ...names.map((name, at) => {
          const sample = button("", null, () => pick(name), { class: "chm-sample", title: name });
          const picture = element("img", { src: pngUrl(pictures[at]), alt: "", draggable: "false" });
          sample.append(picture, element("span.chm-sample-name", { text: name }));
          return sample;
        }),
      );
      node.hidden = !names.length;
    },
    /** Marks the one that is open. @param {string | undefined} name */
    mark(name) {
      for (const sample of node.children) press(sample, sample.getAttribute("title") === name);
    },
  };
}

/** A figure, and what it is. @param {[string | number, string][]} rows */
export const facts = (rows) =>
  rows.map(([value, words]) => element("span.chm-fact", element("b", { text: value }), ` ${words}`));
