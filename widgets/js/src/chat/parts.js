// The parts of a message or a reply: text that grows, and pictures, drawn row by row or shown as the model sees them.

import { button, download, element, write } from "../frame/dom.js";
import { pngUrl, swap } from "../frame/pictures.js";
import { sentences } from "./words.js";

/** @typedef {import("./messages.js").PartNews} Part */

const SIDE = 256; // CSS pixels: the longer side of a drawn picture
const USER_SIDE = 144;
const LARGEST_UPSCALE = 8;

/** @param {HTMLElement} holder */
export function textBlock(holder) {
  const whole = element("span"); // whole sentences: read aloud when they are added, and never written again
  const tail = element("span", { "aria-hidden": "true" });
  const node = element("p.chm-text", whole, tail);
  holder.append(node);
  let text = "";
  let spoken = 0; // characters in `whole`
  return {
    node,
    get text() {
      return text;
    },
    /** @param {Part} part @param {boolean} running */
    apply(part, running) {
      const start = part.start ?? 0;
      if (start < spoken) {
        whole.replaceChildren();
        spoken = 0;
      }
      text = text.slice(0, start) + (part.text ?? "");
      this.settle(running);
    },
    /** @param {boolean} running */
    settle(running) {
      const rest = text.slice(spoken);
      const [done, more] = running ? sentences(rest) : [rest, ""];
      if (done) {
        const lead = spoken || whole.childNodes.length ? done : done.replace(/^\s+/, "");
        whole.append(running ? lead : lead.trimEnd());
        spoken += done.length;
      }
      write(tail, spoken ? more : more.replace(/^\s+/, ""));
    },
  };
}

/** @param {HTMLElement} holder @param {boolean} mine */
export function pictureBlock(holder, mine) {
  const img = element("img", { draggable: "false" });
  const veil = element("div.chm-veil");
  const progress = element("span.chm-progress", { "aria-hidden": "true" });
  const save = button("Save this picture", "save", async () => {
    download("picture.png", await (await fetch(img.src)).blob());
  });
  const frame = element("div.chm-frame", img, veil, progress, mine ? null : save);
  const node = element("figure.chm-picture", frame);
  holder.append(node);
  const side = mine ? USER_SIDE : SIDE;
  img.addEventListener("load", () => fit(frame, img, side));
  let [row, rows] = [0, 0];
  let view = /** @type {HTMLImageElement | null} */ (null);

  /** Shows beside the picture what its tokens keep of it. @param {DataView} png */
  function reconstruct(png) {
    if (!view) {
      const copy = element("img", { draggable: "false", alt: "Your picture as the model sees it" });
      const box = element("div.chm-frame", copy);
      copy.addEventListener("load", () => fit(box, copy, side));
      node.classList.add("chm-with-view");
      node.append(element("figcaption.chm-hint", { text: "as the model sees it" }), box);
      view = copy;
    }
    swap(view, pngUrl(png));
  }

  return {
    node,
    img,
    /** @param {Part} part @param {DataView[]} buffers */
    apply(part, buffers) {
      if (part.reconstruction !== undefined) return reconstruct(buffers[part.reconstruction]);
      swap(img, pngUrl(buffers[part.picture ?? 0]));
      [row, rows] = [part.row ?? 0, part.rows ?? 0];
    },
    /** @param {boolean} running */
    settle(running) {
      const growing = row < rows;
      frame.classList.toggle("chm-growing", growing && running);
      frame.classList.toggle("chm-unfinished", growing && !running);
      frame.style.setProperty("--drawn", rows ? `${(100 * row) / rows}%` : "100%");
      progress.textContent = growing ? `row ${Math.min(row + Number(running), rows)}/${rows}` : "";
      img.alt = mine
        ? "Your picture"
        : growing
          ? `Picture ${running ? "being drawn" : "left unfinished"}, ${row} of ${rows} rows`
          : "Picture drawn by the model";
      node.setAttribute("aria-hidden", String(growing && running));
    },
  };
}

/** @param {HTMLElement} frame @param {HTMLImageElement} img @param {number} side */
function fit(frame, img, side) {
  const scale = Math.min(side / Math.max(img.naturalWidth, img.naturalHeight), LARGEST_UPSCALE);
  frame.style.width = `${Math.max(24, Math.round(img.naturalWidth * scale))}px`;
  frame.style.aspectRatio = `${img.naturalWidth} / ${img.naturalHeight}`;
}
