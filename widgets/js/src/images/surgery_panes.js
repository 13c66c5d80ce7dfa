// The two panes: the picture under the knife, and beside it the picture before, or where they differ.

import { element } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";
import { errorMap } from "./errors.js";
import { segments } from "./surgery_tools.js";

/** @param {string} title @param {...Node} over */
function pane(title, ...over) {
  const img = element("img", { draggable: "false", decoding: "sync" });
  const name = element("b", { text: title });
  const words = element("span");
  const caption = element("figcaption", name, words);
  const node = element("figure.chm-pane", caption, element("div.chm-plate", img, ...over));
  return { node, img, words, caption };
}

/**
 * Shows a new picture in the next frame; the old one stays until then.
 * @param {HTMLImageElement} img whose decoding is "sync"
 * @param {DataView} png
 */
function put(img, png) {
  const old = img.src;
  img.src = pngUrl(png);
  if (old) setTimeout(() => URL.revokeObjectURL(old), 1000);
}

/** @param {HTMLImageElement} img */
function pixels(img) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.drawImage(img, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** @param {Element} over the edited picture @param {Element} mirror over the other one */
export function panes(over, mirror) {
  const heat = element("canvas", { hidden: true, role: "img", "aria-label": "Where the pictures differ" });
  const edited = pane("Edited", over);
  const other = pane("", heat, mirror);
  edited.img.alt = "The picture decoded from the edited codes";
  other.img.alt = "The picture before surgery";
  let differing = false;
  const which = segments(
    "Compare with",
    [
      ["before", "Before", "Before", "The picture before surgery (D)"],
      ["difference", "Difference", "Difference", "Where the two pictures differ (D)"],
    ],
    (value) => compare(value === "difference"),
  );
  other.caption.prepend(which.node);

  function refresh() {
    which.show(differing ? "difference" : "before");
    heat.hidden = !differing;
    other.img.hidden = differing;
    other.words.textContent = "";
    if (!differing || ![edited.img, other.img].every((img) => img.complete && img.naturalWidth)) return;
    const [now, before] = [pixels(edited.img), pixels(other.img)];
    if (now.width !== before.width || now.height !== before.height) return;
    const map = errorMap(before.data, now.data);
    [heat.width, heat.height] = [now.width, now.height];
    heat.getContext("2d")?.putImageData(new ImageData(/** @type {any} */ (map.rgba), now.width, now.height), 0, 0);
    other.words.textContent = `0 to ${Math.round(map.largest)} of 255, mean ${map.mean.toFixed(1)}`;
  }

  /** @param {boolean} on */
  function compare(on) {
    differing = on;
    refresh();
  }

  for (const { img } of [edited, other]) img.addEventListener("load", () => differing && refresh());
  refresh();
  return {
    edited,
    other,
    compare,
    flip: () => compare(!differing),
    /** @param {DataView} after @param {DataView | null} before left out where it is the same as before */
    show(after, before) {
      put(edited.img, after);
      if (before) put(other.img, before);
    },
    /** The edited picture as a file. */
    file: async () => (await fetch(edited.img.src)).blob(),
  };
}
