// The chosen token: how likely it was, what could have stood there, and what each layer would have written.

import { button, element } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";
import { layerTable } from "./layer_table.js";
import { partsMap } from "./parts_map.js";
import { percentage, plainWords, wordsOf } from "./reading.js";
import { tabs } from "./tabs.js";

/** @typedef {import("./messages.js").TokenFacts} TokenFacts */
/** @typedef {import("./messages.js").Alternative} Alternative */

const PARTS = 2; // the tab of what adds up

/**
 * @param {object} hooks
 * @param {(token: number) => void} hooks.force
 * @param {() => void} hooks.resample
 * @param {() => void} hooks.parts asks for what adds up to the chosen token's logit
 * @param {(head: {layer: number, head: number} | null) => void} hooks.point at a head
 */
export function tokenDetail({ force, resample, parts, point }) {
  const title = element("div.chm-inspect-token", { role: "status" });
  const facts = element("div.chm-inspect-facts");
  const heading = element("b.chm-inspect-title");
  const list = element("div.chm-inspect-bars", { role: "list", "aria-label": "What could have stood there" });
  const again = button("Draw anew from here", "again", resample);
  const table = layerTable();
  const map = partsMap(point);
  const choices = element("div", heading, list, again);
  const layers = element("div", table.node);
  const sums = element("div", map.node);
  const looks = /** @type {string[]} */ ([]);
  let usual = /** @type {Node[]} */ ([]); // the list without a knock-out
  const knocked = /** @type {string[]} */ ([]);
  let token = /** @type {TokenFacts | null} */ (null);
  let usually = ""; // the heading without one
  let may = false; // whether branches can be drawn
  again.append("Draw anew from here");
  const panels = tabs(
    "The chosen token",
    [
      ["Alternatives", choices],
      ["Layer by layer", layers],
      ["What adds up", sums],
    ],
    (at) => at === PARTS && token && parts(),
  );

  /** @param {string} kind @param {string} words @param {number} share @param {Node | string} [look] */
  const bar = (kind, words, share, look = "") =>
    element(
      `span.chm-inspect-bar${kind}`,
      element("span.chm-inspect-name", look, words),
      element("i", { style: `--share:${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%` }),
      element("span.chm-inspect-value", { text: percentage(share) }),
    );

  /** @param {Alternative} alternative @param {string | undefined} url of its look */
  function choice({ token, words, probability, guided, before, chosen }, url) {
    const name = wordsOf(words);
    const look = url ? element("img", { alt: "", src: url }) : "";
    const bars = [bar(chosen ? ".chm-inspect-chosen" : "", name, before ?? probability, look)];
    if (guided !== null) bars.push(bar(".chm-inspect-second.chm-inspect-guided", "with guidance", guided));
    if (before !== null) bars.push(bar(".chm-inspect-second.chm-inspect-less", "knocked out", probability));
    const values = [percentage(probability), guided === null ? "" : `with guidance ${percentage(guided)}`];
    const node = element(
      "button.chm-inspect-choice",
      {
        type: "button",
        disabled: chosen || !may,
        title: chosen ? "This is what stands there" : may ? "Force this one: a branch goes on with it" : null,
        "aria-label": `${chosen ? "" : "Force "}${name}, ${values.filter(Boolean).join(", ")}`,
        on: { click: () => force(token) },
      },
      ...bars,
    );
    return element("div", { role: "listitem" }, node);
  }

  /** @param {Alternative[]} alternatives @param {DataView[]} buffers @param {string[]} urls that are in use */
  function listed(alternatives, buffers, urls) {
    urls.push(...buffers.map(pngUrl));
    const each = urls.values();
    return alternatives.map((alternative) => choice(alternative, alternative.swatch ? each.next().value : undefined));
  }

  list.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...list.querySelectorAll("button:not(:disabled)")];
    const next = all[all.indexOf(/** @type {Element} */ (event.target)) + step];
    if (next instanceof HTMLElement) next.focus();
  });

  /** @param {string[]} urls */
  function revoke(urls) {
    for (const url of urls.splice(0)) URL.revokeObjectURL(url);
  }

  function clear() {
    revoke(looks);
    revoke(knocked);
    usual = [];
    list.replaceChildren();
    table.show([], [], "");
    map.say("");
  }

  panels.node.hidden = true;
  title.textContent = "Choose a word or a patch.";
  return {
    node: element("div.chm-inspect-detail", title, facts, panels.node),
    /** @param {boolean} branches whether they can be drawn */
    allow(branches) {
      may = branches;
      again.disabled = !branches;
    },
    /** @param {TokenFacts | null} chosen @param {number} log @param {number} entropy */
    choose(chosen, log, entropy) {
      token = chosen;
      clear();
      panels.node.hidden = !token || Number.isNaN(log);
      if (!token) {
        title.textContent = "Choose a word or a patch.";
        return facts.replaceChildren();
      }
      usually = heading.textContent = "Looking up what could have stood there…";
      const place = token.row === null ? "" : `row ${token.row + 1}, column ${(token.column ?? 0) + 1}`;
      title.replaceChildren(element("b", { text: plainWords(token) }), element("span", { text: place }));
      facts.textContent = Number.isNaN(log)
        ? "Nothing comes before it."
        : `probability ${percentage(Math.exp(log))} · rank ${(token.rank ?? 0) + 1} · surprise ${(-log).toFixed(2)} nats · entropy ${entropy.toFixed(2)} nats`;
      if (panels.open === PARTS && !panels.node.hidden) parts();
    },
    /** @param {import("./messages.js").TokenDetail} message @param {DataView[]} buffers */
    receive({ alternatives, layers }, buffers) {
      clear();
      const guidance = alternatives.some(({ guided }) => guided !== null);
      usually = `What could have stood there${guidance ? ", without and with guidance" : ""}`;
      heading.textContent = usually;
      const count = alternatives.filter(({ swatch }) => swatch).length;
      usual = listed(alternatives, buffers.slice(0, count), looks);
      list.replaceChildren(...usual);
      const rest = buffers.slice(count).map(pngUrl);
      looks.push(...rest);
      const urls = rest.values();
      table.show(
        layers,
        layers.map(({ swatch }) => (swatch ? (urls.next().value ?? null) : null)),
        token?.words ?? "",
      );
      if (panels.open === PARTS) parts();
    },
    /** Says that nothing is known of this token here. @param {string} text */
    say(text) {
      usually = heading.textContent = text;
      table.show([], [], "");
    },
    /**
     * Puts the alternatives under a knock-out in place of the usual ones; null puts those back.
     * @param {import("./messages.js").KnockedAlternatives | null} message @param {DataView[]} [buffers]
     */
    knock(message, buffers = []) {
      revoke(knocked);
      list.replaceChildren(...(message ? listed(message.alternatives, buffers, knocked) : usual));
      heading.textContent = message ? "What could have stood there, before and after the knock-out" : usually;
    },
    parts: map,
    dispose: clear,
  };
}
