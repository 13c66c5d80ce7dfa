// One filling as it comes: its pictures and its text, what the model wrote marked, and a button that takes it.

import { button, element, write } from "../frame/dom.js";
import { pngUrl, swap } from "../frame/pictures.js";

const WORDS = { waiting: "Waiting", filling: "Filling", whole: "" };

/** @param {() => void} take */
export function fillingCard(take) {
  const seed = element("span.chm-seed-of");
  const chosen = button("Take", null, take, { class: "chm-button chm-take", disabled: true });
  const body = element("div.chm-filling-body");
  const node = element("article.chm-filling", element("header", seed, chosen), body);
  let pictures = /** @type {HTMLImageElement[]} */ ([]);
  /** @type {"waiting" | "filling" | "whole"} */
  let state = "waiting";

  return {
    node,
    get state() {
      return state;
    },
    /** @param {import("./messages.js").FillingFacts} facts @param {DataView[]} buffers */
    show(facts, buffers) {
      state = facts.state;
      node.dataset.state = facts.on_canvas ? "taken" : state;
      write(seed, [`Seed ${facts.seed}`, WORDS[state]].filter(Boolean).join(" · "));
      chosen.disabled = state !== "whole" || facts.on_canvas;
      write(chosen, facts.on_canvas ? "Taken" : "Take");
      let at = 0;
      const nodes = facts.parts.map((part) => {
        if (part.picture < 0) return element(part.filled ? "b.chm-filled" : "span", { text: part.text });
        const img = pictures[at] ?? element("img", { draggable: "false" });
        pictures[at++] = img;
        img.alt = part.filled ? `A picture, filled with seed ${facts.seed}` : "A picture";
        swap(img, pngUrl(buffers[part.picture]));
        return img;
      });
      pictures = pictures.slice(0, at);
      body.replaceChildren(...nodes);
    },
    dispose: () => pictures.forEach((img) => URL.revokeObjectURL(img.src)),
  };
}
