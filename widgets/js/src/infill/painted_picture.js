// A picture whose cells are painted away: a drag paints, from a hidden cell it uncovers; Space and Shift with arrows too.

import { element } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";
import { between, brushed, rectangle } from "../images/strokes.js";
import { board } from "../images/surgery_board.js";

/** @param {(cells: number[]) => void} hide what is hidden now, at the end of a stroke */
export function paintedPicture(hide) {
  const img = element("img", { alt: "The picture as the model sees it", draggable: "false", decoding: "sync" });
  let size = { rows: 0, columns: 0 };
  let hidden = /** @type {Set<number>} */ (new Set());
  let before = hidden; // at the beginning of the stroke
  let covers = true; // whether this stroke hides, or uncovers
  let asRectangle = false;
  let corner = -1;

  const plate = board({
    label: "Cells of the picture",
    describe: (at) =>
      `Row ${Math.floor(at / size.columns) + 1}, column ${(at % size.columns) + 1}${hidden.has(at) ? ", hidden" : ""}`,
    acts: {
      hover: (place) => plate.mark({ preview: place ? [place.at] : [] }),
      down(place) {
        [before, covers, corner] = [new Set(hidden), !hidden.has(place.at), place.at];
        paint(asRectangle ? [place.at] : brushed(place.row, place.column, 1, size));
      },
      drag(from, to) {
        if (asRectangle) hidden = new Set(before);
        paint(
          asRectangle
            ? rectangle(corner, to.at, size)
            : between([from.row, from.column], [to.row, to.column]).flatMap(([row, column]) =>
                brushed(row, column, 1, size),
              ),
        );
      },
      up: () => hide(sorted()),
      press(place) {
        covers = !hidden.has(place.at);
        paint([place.at]);
        hide(sorted());
      },
      extend(anchor, at) {
        covers = true;
        paint(rectangle(anchor, at, size));
        hide(sorted());
      },
    },
  });
  const node = element("div.chm-plate", img, plate.node);

  const sorted = () => [...hidden].sort((one, other) => one - other);

  /** @param {number[]} cells */
  function paint(cells) {
    for (const cell of cells) hidden[covers ? "add" : "delete"](cell);
    mark();
  }

  function mark() {
    plate.mark({ wet: new Map([["var(--chm-cover)", sorted()]]), changed: sorted() });
    plate.say();
  }

  return {
    node,
    /** @param {DataView} png */
    picture(png) {
      const old = img.src;
      img.src = pngUrl(png);
      if (old) setTimeout(() => URL.revokeObjectURL(old), 1000);
    },
    /** @param {import("./messages.js").CanvasSegment} facts */
    show(facts) {
      if (facts.rows !== size.rows || facts.columns !== size.columns) {
        size = { rows: facts.rows, columns: facts.columns };
        node.style.setProperty("--w", String(size.columns));
        node.style.setProperty("--h", String(size.rows));
        plate.shape(size);
      }
      hidden = new Set(facts.hidden);
      mark();
    },
    clear() {
      if (!hidden.size) return;
      hidden = new Set();
      mark();
      hide([]);
    },
    /** @param {boolean} on whether a drag paints the rectangle between its ends */
    rectangles: (on) => (asRectangle = on),
    get hidden() {
      return hidden.size;
    },
    dispose: () => URL.revokeObjectURL(img.src),
  };
}
