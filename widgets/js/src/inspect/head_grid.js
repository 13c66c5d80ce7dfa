// The heads of all layers as small buttons: pointed at, one shows its row; pressed, it stays.

import { element, press } from "../frame/dom.js";
import { moved } from "../images/code_grid.js";
import { percentage, RELEVANCE, ROLLOUT } from "./reading.js";

/**
 * @param {object} hooks
 * @param {(layer: number, head: number) => void} hooks.choose
 * @param {(head: {layer: number, head: number} | null) => void} hooks.point
 */
export function headGrid({ choose, point }) {
  const all = element("button.chm-inspect-all", { type: "button", text: "all", title: "Rollout through all layers" });
  const relevance = element("button.chm-inspect-all", {
    type: "button",
    text: "×∇",
    title: "Attention × gradient: of what was read, what spoke for the token",
    "aria-label": "Attention times gradient",
  });
  const grid = element("div.chm-inspect-heads", { role: "grid", "aria-label": "Layers (down) and heads (across)" });
  let [layers, heads, home] = [0, 0, 0];
  let cells = /** @type {HTMLElement[]} */ ([]);

  /** @param {EventTarget | null} target */
  function place(target) {
    const at = cells.indexOf(/** @type {HTMLElement} */ (target));
    return at < 0 ? null : { layer: Math.floor(at / heads), head: at % heads };
  }

  /** @param {number} layer @param {number} head */
  function mark(layer, head) {
    press(all, layer === ROLLOUT);
    press(relevance, layer === RELEVANCE);
    cells.forEach((cell, at) => press(cell, at === layer * heads + head));
  }

  /** @param {number} layer @param {number} head */
  function lock(layer, head) {
    mark(layer, head);
    choose(layer, head);
  }

  all.addEventListener("click", () => lock(ROLLOUT, 0));
  relevance.addEventListener("click", () => lock(RELEVANCE, 0));
  grid.addEventListener("click", ({ target }) => {
    const head = place(target);
    if (head) lock(head.layer, head.head);
  });
  grid.addEventListener("pointerover", ({ target }) => point(place(target)));
  grid.addEventListener("pointerleave", () => point(null));
  grid.addEventListener("focusin", ({ target }) => point(place(target)));
  grid.addEventListener("focusout", () => point(null));
  grid.addEventListener("keydown", (event) => {
    const next = moved(event.key, home, layers, heads);
    if (next === home) return;
    event.preventDefault();
    cells[home].tabIndex = -1;
    home = next;
    cells[home].tabIndex = 0;
    cells[home].focus();
  });

  return {
    node: element("div.chm-inspect-headbox", element("div.chm-inspect-rolled", all, relevance), grid),
    /** @param {number} down layers @param {number} across heads @param {{layer: number, head: number}} locked */
    shape(down, across, locked) {
      if (down === layers && across === heads) return; // another document of the same model
      [layers, heads, home] = [down, across, 0];
      grid.style.setProperty("--heads", String(heads));
      cells = [];
      grid.replaceChildren(
        ...Array.from({ length: layers }, (_, layer) =>
          element(
            "div.chm-inspect-layer",
            { role: "row" },
            ...Array.from({ length: heads }, (_, head) => {
              const name = `Layer ${layer}, head ${head}`;
              const cell = element("button", {
                type: "button",
                role: "gridcell",
                tabindex: layer || head ? -1 : 0,
                "aria-label": name,
                title: name,
              });
              cells.push(cell);
              return cell;
            }),
          ),
        ),
      );
      mark(locked.layer, locked.head);
    },
    /** How each head's row falls on words, patches, sinks, others. @param {number[][][]} shares */
    paint(shares) {
      cells.forEach((cell, at) => {
        const share = shares[Math.floor(at / heads)]?.[at % heads];
        const [words, patches, sinks] = share ?? [0, 0, 0];
        cell.style.setProperty("--words", `${100 * words}%`);
        cell.style.setProperty("--patches", `${100 * (words + patches)}%`);
        const name = `Layer ${Math.floor(at / heads)}, head ${at % heads}`;
        cell.title = share
          ? `${name}: words ${percentage(words)}, patches ${percentage(patches)}, sinks ${percentage(sinks)}`
          : name;
      });
    },
  };
}
