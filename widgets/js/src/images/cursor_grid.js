// A grid with more cells than the page could hold as elements: one real cell goes wherever the pointer or the keys are.

import { element } from "../frame/dom.js";
import { moved } from "./code_grid.js";

/**
 * @param {object} options
 * @param {string} options.label
 * @param {(at: number) => string} options.name what is in a cell, in words
 * @param {(at: number) => void} options.choose by click, Enter or Space
 */
export function cursorGrid({ label, name, choose }) {
  const id = `chm-cell-${Math.random().toString(36).slice(2, 8)}`;
  const cell = element("div.chm-cursor", { role: "gridcell", hidden: true });
  const tip = element("div.chm-cursor-tip", { "aria-hidden": "true", hidden: true });
  const row = element("div.chm-cursor-row", { role: "row" }, cell);
  const node = element("div.chm-cursor-grid", { role: "grid", tabindex: 0, "aria-label": label }, row, tip);
  let [rows, columns, count, home] = [0, 0, 0, 0];

  /** @param {number | null} at */
  function show(at) {
    cell.hidden = tip.hidden = at === null;
    if (at === null) return node.removeAttribute("aria-activedescendant");
    const [line, column] = [Math.floor(at / columns), at % columns];
    for (const [side, part] of [
      ["left", column / columns],
      ["top", line / rows],
      ["width", 1 / columns],
      ["height", 1 / rows],
    ])
      cell.style.setProperty(/** @type {string} */ (side), `${100 * /** @type {number} */ (part)}%`);
    cell.id = `${id}-${at}`; // a new name for each place, so that it is spoken anew
    row.setAttribute("aria-rowindex", String(line + 1));
    cell.setAttribute("aria-colindex", String(column + 1));
    cell.setAttribute("aria-label", name(at));
    node.setAttribute("aria-activedescendant", cell.id);
    tip.textContent = name(at);
    tip.style.left = `${(100 * (column + 0.5)) / columns}%`;
    tip.style.top = `${(100 * line) / rows}%`;
    tip.style.setProperty("--from", `${(-100 * (column + 0.5)) / columns}%`);
    tip.classList.toggle("chm-below", line / rows < 0.12);
    tip.style.setProperty("--down", `${100 / rows}cqh`);
  }

  /** @param {MouseEvent} event */
  function under(event) {
    const box = node.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const line = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const at = line * columns + column;
    return column >= 0 && column < columns && line >= 0 && at >= 0 && at < count ? at : null;
  }

  node.addEventListener("pointermove", (event) => show(under(event)));
  node.addEventListener("pointerleave", () => show(node.matches(":focus-visible") ? home : null));
  node.addEventListener("focus", () => node.matches(":focus-visible") && count && show(home));
  node.addEventListener("blur", () => show(null));
  node.addEventListener("click", (event) => {
    const at = under(event);
    if (at === null) return;
    home = at;
    choose(at);
  });
  node.addEventListener("keydown", (event) => {
    if (!count || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") choose(home);
    else if (/^(Arrow|Home|End|Page)/.test(event.key)) {
      home = Math.min(count - 1, moved(event.key, home, rows, columns));
      show(home);
    } else return;
    event.preventDefault();
  });

  return {
    node,
    /** @param {number} wide columns @param {number} cells in all; the last row may be short */
    shape(wide, cells) {
      [rows, columns, count] = [Math.ceil(cells / wide), wide, cells];
      home = Math.min(home, count - 1);
      node.setAttribute("aria-rowcount", String(rows));
      node.setAttribute("aria-colcount", String(columns));
      show(null);
    },
    /** Where the keys start from. @param {number} at */
    start(at) {
      home = at;
      if (node.matches(":focus-visible")) show(home);
    },
  };
}
