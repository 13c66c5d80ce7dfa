// The knock-out: which tokens no other can see now, what that changes, and which edges of single heads were cut.

import { button, element } from "../frame/dom.js";
import { named, nats } from "./reading.js";

/** @typedef {import("./messages.js").TokenFacts} TokenFacts */

/**
 * @param {object} hooks
 * @param {(at: number) => void} hooks.restore a token
 * @param {() => void} hooks.clear
 * @param {() => void} hooks.answer without these tokens
 */
export function knockPanel({ restore, clear, answer }) {
  const chips = element("div.chm-inspect-chips", { role: "group", "aria-label": "Knocked out" });
  const change = element("p.chm-inspect-change", { role: "status" });
  const most = element("span");
  const least = element("span");
  const scale = element("div.chm-inspect-signedscale", least, element("i"), most);
  const tools = element(
    "div.chm-inspect-tools",
    button("Answer without them", null, answer, {
      title: "A branch whose prompt lacks these words, and its answer drawn anew",
    }),
    button("Restore all", null, clear),
  );
  const edges = element("ul.chm-inspect-edges", { "aria-label": "Edges that were cut" });
  const node = element("div.chm-inspect-knock", { hidden: true }, chips, change, scale, tools, edges);
  const cuts = /** @type {Map<string, {words: string, change: number | null}>} */ (new Map());

  function list() {
    edges.replaceChildren(
      ...[...cuts.values()]
        .reverse()
        .map(({ words, change }) =>
          element("li", words, " ", element("b", { text: change === null ? "…" : nats(change) })),
        ),
    );
    edges.hidden = !cuts.size;
  }

  /**
   * Only what changed is made anew: a click on a chip that is replaced meanwhile would be lost.
   * @param {TokenFacts[]} tokens @param {number[]} out
   */
  function chip(tokens, out) {
    const names = out.map((at) => `${at} ${named(tokens[at])}`).join("\n");
    if (names === chips.dataset.of) return;
    chips.dataset.of = names;
    const focused = chips.contains(document.activeElement);
    chips.replaceChildren(
      ...out.map((at) =>
        element("button.chm-inspect-chip", {
          type: "button",
          text: named(tokens[at]),
          title: "Restore",
          "aria-label": `Restore ${named(tokens[at])}`,
          on: { click: () => restore(at) },
        }),
      ),
    );
    if (focused) chips.querySelector("button")?.focus();
  }

  list();
  return {
    node,
    /**
     * @param {boolean} on
     * @param {TokenFacts[]} tokens
     * @param {number[]} out positions
     * @param {number | null} chosen
     * @param {{changes: Float32Array | undefined, most: number, may: boolean}} effect its changes, undefined while they are
     *   measured; the greatest; whether branches can be drawn
     */
    show(on, tokens, out, chosen, { changes, most: greatest, may }) {
      node.hidden = !on && !cuts.size;
      chip(tokens, out);
      scale.hidden = tools.hidden = !out.length;
      least.textContent = `−${greatest.toFixed(1)}`;
      most.textContent = `+${greatest.toFixed(1)} nats`;
      const [first, second] = /** @type {NodeListOf<HTMLButtonElement>} */ (tools.querySelectorAll("button"));
      first.disabled = !may || out.some((at) => tokens[at].modality !== 0);
      first.title = first.disabled
        ? "Only words can be left out of a prompt; the heat shows what becomes of each token without a cell"
        : "A branch whose prompt lacks these words, and its answer drawn anew";
      second.hidden = !out.length;
      if (!out.length)
        change.textContent = on ? "Click tokens away: no other token sees them then (or press k on one)." : "";
      else if (!changes) change.textContent = "Measuring…";
      else if (chosen === null) change.textContent = "The heat shows how each token’s log-probability changes.";
      else if (Number.isNaN(changes[chosen])) change.textContent = "Nothing comes before the chosen token.";
      else
        change.replaceChildren(
          element("b", { text: named(tokens[chosen]) }),
          ` ${nats(changes[chosen])} without ${out.length === 1 ? "it" : "them"}`,
        );
    },
    /** @param {string} key @param {string} words @param {number | null} change in nats, null while it is measured */
    cut(key, words, change) {
      cuts.delete(key);
      cuts.set(key, { words, change });
      list();
      node.hidden = false;
    },
    forget() {
      cuts.clear();
      list();
    },
  };
}
