// Several replies to one message, side by side, to choose from. Those that are not chosen stay as branches.

import { button, element } from "../frame/dom.js";

/** @typedef {ReturnType<typeof import("./exchange.js").exchangeView>} View */

/** @param {(key: number) => void} choose */
export function replyStrip(choose) {
  const cards = element("div.chm-cards");
  const hint = element("p.chm-hint", { text: "Choose one: the others stay as branches." });
  const node = element("div.chm-strip", { role: "group", "aria-label": "Replies to choose from" }, hint, cards);
  let views = /** @type {View[]} */ ([]);

  node.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const buttons = [.../** @type {NodeListOf<HTMLElement>} */ (cards.querySelectorAll(".chm-choose"))];
    const at = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    if (!by || at < 0) return;
    event.preventDefault();
    buttons[(at + by + buttons.length) % buttons.length].focus();
  });

  return {
    node,
    /** @param {View[]} list in their order; none closes the strip */
    show(list) {
      if (list.length === views.length && list.every((view, at) => view === views[at])) return;
      for (const view of views) if (!list.includes(view)) view.restore();
      views = list;
      cards.replaceChildren(
        ...views.map((view, at) =>
          element(
            "div.chm-card",
            view.replyRow,
            button(`Choose ${at + 1}`, null, () => choose(view.now.key), { class: "chm-button chm-choose" }),
          ),
        ),
      );
      if (!views.length) node.remove();
    },
  };
}
