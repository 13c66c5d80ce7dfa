// A picture as the model reads it: cells, and in each the number of its code.

import { element } from "../frame/dom.js";
import { IMAGE } from "./lesson.js";

const LARGEST = 16; // columns up to which the numbers can be read

/**
 * @param {import("./lesson.js").Lesson} lesson
 * @param {object} hooks
 * @param {(at: number | null) => void} hooks.point
 * @param {(at: number) => void} hooks.choose
 * @param {(image: number) => string | undefined} hooks.url of a whole picture
 */
export function codeFigure(lesson, { point, choose, url }) {
  const node = element("div.chm-teach-codes", { role: "img", "aria-label": "A picture with the code of each cell" });
  const places = /** @type {Map<HTMLElement, number>} */ (new Map());
  let drawn = "";
  node.addEventListener("pointerover", ({ target }) => point(places.get(/** @type {HTMLElement} */ (target)) ?? null));
  node.addEventListener("pointerleave", () => point(null));
  node.addEventListener("click", ({ target }) => {
    const at = places.get(/** @type {HTMLElement} */ (target));
    if (at !== undefined) choose(at);
  });

  return {
    node,
    /** Shows the picture in which a position lies, or else the first. @param {number} at */
    show(at) {
      const image = lesson.tokens[at]?.image ?? lesson.tokens.find(({ modality }) => modality === IMAGE)?.image ?? null;
      node.hidden = image === null;
      if (image === null) return;
      const cells = lesson.tokens.flatMap((token, position) => (token.image === image ? [{ ...token, position }] : []));
      const picture = url(image);
      const name = `${image} ${cells.map(({ token }) => token).join()} ${picture}`;
      if (name !== drawn) {
        drawn = name;
        places.clear();
        const columns = 1 + Math.max(...cells.map(({ column }) => column ?? 0));
        const open = image === lesson.tokens.at(-1)?.image && !picture ? lesson.step?.grid : null;
        const [rows, across] = open ?? [1 + (cells.at(-1)?.row ?? 0), columns];
        node.style.setProperty("--columns", String(across));
        node.style.setProperty("--rows", String(rows));
        node.replaceChildren(
          ...(picture ? [element("img", { src: picture, alt: "", draggable: "false" })] : []),
          ...cells.map(({ token, row, column, position }) => {
            const code = lesson.code(token);
            const cell = element("span", { text: across <= LARGEST ? code : "" });
            cell.style.gridArea = `${(row ?? 0) + 1} / ${(column ?? 0) + 1}`;
            if (!picture) {
              cell.dataset.code = String(code);
              lesson.paintLook(cell, code);
            }
            places.set(cell, position);
            return cell;
          }),
        );
      }
      for (const [cell, position] of places) cell.classList.toggle("chm-teach-here", position === at);
    },
  };
}
