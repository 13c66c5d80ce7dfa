// The grid of codes over a picture: hover or focus a cell to learn its row, its column and its code.

import { element } from "../frame/dom.js";

/**
 * The cell that an arrow key leads to, inside the grid.
 * @param {string} key
 * @param {number} at index of the cell, row by row
 * @param {number} rows
 * @param {number} columns
 */
export function moved(key, at, rows, columns) {
  const [row, column] = [Math.floor(at / columns), at % columns];
  switch (key) {
    case "ArrowLeft":
      return row * columns + Math.max(0, column - 1);
    case "ArrowRight":
      return row * columns + Math.min(columns - 1, column + 1);
    case "ArrowUp":
      return Math.max(0, row - 1) * columns + column;
    case "ArrowDown":
      return Math.min(rows - 1, row + 1) * columns + column;
    case "Home":
      return row * columns;
    case "End":
      return row * columns + columns - 1;
    case "PageUp":
      return column;
    case "PageDown":
      return (rows - 1) * columns + column;
    default:
      return at;
  }
}

/**
 * @param {object} options
 * @param {string} options.label
 * @param {boolean} options.main whether it takes the keyboard and shows the numbers; the other one only mirrors it
 * @param {(at: number | null) => void} options.point
 */
export function codeGrid({ label, main, point }) {
  const node = element("div.chm-grid", {
    ...(main ? { role: "grid", "aria-label": label } : { "aria-hidden": "true" }),
  });
  let cells = /** @type {HTMLElement[]} */ ([]);
  let [rows, columns, home] = [0, 0, 0];

  /** @param {number} at */
  function goTo(at) {
    cells[home]?.setAttribute("tabindex", "-1");
    home = at;
    cells[home]?.setAttribute("tabindex", "0");
    cells[home]?.focus();
  }

  /** @param {Event} event */
  const index = (event) => cells.indexOf(/** @type {HTMLElement} */ (event.target));
  node.addEventListener("pointerover", (event) => index(event) >= 0 && point(index(event)));
  node.addEventListener("pointerleave", () => point(null));
  node.addEventListener("focusin", (event) => index(event) >= 0 && point(index(event)));
  node.addEventListener("focusout", () => point(null));
  node.addEventListener("keydown", (event) => {
    const at = index(event);
    if (at < 0) return;
    const next = moved(event.key, at, rows, columns);
    if (next !== at) goTo(next);
    if (next !== at || event.key.startsWith("Arrow")) event.preventDefault();
  });

  return {
    node,
    /** @param {number[][]} codes */
    show(codes) {
      [rows, columns, home] = [codes.length, codes[0]?.length ?? 0, 0];
      cells = [];
      node.style.setProperty("--rows", String(rows));
      node.style.setProperty("--columns", String(columns));
      node.classList.toggle("chm-numbers", main && columns <= 10);
      node.replaceChildren(
        ...codes.map((line, row) =>
          element(
            "div",
            main ? { role: "row" } : {},
            ...line.map((code, column) => {
              const cell = element(
                "div",
                main
                  ? {
                      role: "gridcell",
                      tabindex: row || column ? -1 : 0,
                      text: code,
                      "aria-label": `Row ${row + 1}, column ${column + 1}, code ${code}`,
                    }
                  : {},
              );
              cells.push(cell);
              return cell;
            }),
          ),
        ),
      );
    },
    /** @param {number | null} at @param {(at: number) => boolean} same whether a cell has the same code */
    mark(at, same) {
      cells.forEach((cell, each) => {
        cell.classList.toggle("chm-here", each === at);
        cell.classList.toggle("chm-same", at !== null && each !== at && same(each));
      });
    },
  };
}
