// The chosen token: how likely it was, what could have stood there, and what it becomes without another token.

import { element } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";
import { nats, percentage, plainWords } from "./reading.js";

/** @typedef {import("./messages.js").TokenFacts} TokenFacts */

export function tokenDetail() {
  const title = element("div.chm-inspect-token", { role: "status" });
  const facts = element("div.chm-inspect-facts");
  const list = element("div.chm-inspect-bars", { role: "list", "aria-label": "What could have stood there" });
  const effects = element("div.chm-inspect-bars", { role: "list", "aria-label": "Without another token" });
  const heading = element("b.chm-inspect-title", { text: "What could have stood there" });
  const second = element("b.chm-inspect-title", { text: "Its log-probability without…" });
  let looks = /** @type {string[]} */ ([]);

  /** @param {Node | string} look @param {string} words @param {number} share @param {string} value @param {string} kind */
  const bar = (look, words, share, value, kind) =>
    element(
      `div.chm-inspect-bar${kind}`,
      { role: "listitem" },
      element("span.chm-inspect-name", look, words),
      element("i", { style: `--share:${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%` }),
      element("span.chm-inspect-value", { text: value }),
    );

  heading.hidden = second.hidden = true;
  title.textContent = "Choose a word or a patch.";
  return {
    node: element("div.chm-inspect-detail", title, facts, heading, list, second, effects),
    /** @param {TokenFacts | null} token @param {number} log @param {number} entropy */
    choose(token, log, entropy) {
      heading.hidden = true;
      list.replaceChildren();
      if (!token) {
        title.textContent = "Choose a word or a patch.";
        return facts.replaceChildren();
      }
      const place = token.row === null ? "" : `row ${token.row + 1}, column ${(token.column ?? 0) + 1}`;
      title.replaceChildren(element("b", { text: plainWords(token) }), element("span", { text: place }));
      facts.textContent = Number.isNaN(log)
        ? "Nothing comes before it."
        : `probability ${percentage(Math.exp(log))} · rank ${(token.rank ?? 0) + 1} · surprise ${(-log).toFixed(2)} nats · entropy ${entropy.toFixed(2)} nats`;
    },
    /** @param {import("./messages.js").TokenDetail} message @param {DataView[]} buffers */
    receive({ alternatives }, buffers) {
      for (const look of looks) URL.revokeObjectURL(look);
      looks = buffers.map(pngUrl);
      const urls = looks.values();
      heading.hidden = !alternatives.length;
      const guidance = alternatives.some(({ guided }) => guided !== null);
      heading.textContent = `What could have stood there${guidance ? ", without and with guidance" : ""}`;
      list.replaceChildren(
        ...alternatives.flatMap(({ words, probability, guided, chosen, swatch }) => {
          const look = swatch ? element("img", { alt: "", src: urls.next().value }) : "";
          const kind = chosen ? ".chm-inspect-chosen" : "";
          const name = plainWords({
            words,
            modality: 0,
            sink: false,
            image: null,
            row: null,
            column: null,
            rank: null,
          });
          const row = bar(look, name, probability, percentage(probability), kind);
          if (guided === null) return [row];
          return [row, bar("", "with guidance", guided, percentage(guided), ".chm-inspect-guided")];
        }),
      );
    },
    /** What knocking out did, null where it is being measured. @param {[TokenFacts, number | null][]} changes */
    effects(changes) {
      second.hidden = !changes.length;
      const most = Math.max(1, ...changes.map(([, change]) => Math.abs(change ?? 0)));
      effects.replaceChildren(
        ...changes.map(([token, change]) => {
          const place = token.row === null ? "" : ` (${token.row + 1}, ${(token.column ?? 0) + 1})`;
          const kind = (change ?? 0) < 0 ? ".chm-inspect-less" : ".chm-inspect-more";
          const share = Math.abs(change ?? 0) / most;
          return bar("", plainWords(token) + place, share, change === null ? "…" : nats(change), kind);
        }),
      );
    },
    dispose() {
      for (const look of looks) URL.revokeObjectURL(look);
    },
  };
}
