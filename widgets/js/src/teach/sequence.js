// The sequence: every token of the document to point at, rolled up with its pictures as grids, or unrolled in one row.

import { element, press } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";
import { neighbour } from "../inspect/reading.js";
import { IMAGE, SPECIAL } from "./lesson.js";

/**
 * @param {import("./lesson.js").Lesson} lesson
 * @param {object} hooks
 * @param {(at: number | null) => void} hooks.point
 * @param {(at: number) => void} hooks.choose
 */
export function sequence(lesson, { point, choose }) {
  const node = element("div.chm-teach-sequence", { role: "group", "aria-label": "The sequence. Arrow keys move." });
  const places = /** @type {Map<EventTarget | null, number>} */ (new Map());
  const pictures = /** @type {Map<number, string>} */ (new Map());
  let nodes = /** @type {HTMLElement[]} */ ([]);
  let unrolled = false;
  let home = 0;

  /** @param {Event} event */
  const place = ({ target }) => places.get(target) ?? null;
  node.addEventListener("pointerover", (event) => point(place(event)));
  node.addEventListener("pointerleave", () => point(places.get(document.activeElement) ?? null));
  node.addEventListener("focusin", (event) => {
    const at = place(event);
    if (at === null) return;
    nodes[home]?.setAttribute("tabindex", "-1");
    home = at;
    nodes[home].tabIndex = 0;
    point(at);
  });
  node.addEventListener("focusout", () => point(null));
  node.addEventListener("click", (event) => {
    const at = place(event);
    if (at !== null) choose(at);
  });
  node.addEventListener("keydown", (event) => {
    const at = place(event);
    if (at === null || event.altKey || event.ctrlKey || event.metaKey || !/^(Arrow|Home|End)/.test(event.key)) return;
    event.preventDefault();
    const boxes = nodes.map((each) => each.getBoundingClientRect());
    nodes[neighbour(event.key, at, boxes)].focus();
  });

  /** @param {number} at */
  function tile(at) {
    const { token, modality, row, column } = lesson.tokens[at];
    const [words, code] = [lesson.words(token), lesson.code(token)];
    const cell = code !== null;
    const name = cell ? `code ${code}, row ${(row ?? 0) + 1}, column ${(column ?? 0) + 1}` : words;
    const each = element(`button.chm-teach-token.${cell && !unrolled ? "chm-teach-cell" : "chm-teach-word"}`, {
      type: "button",
      tabindex: -1,
      "aria-pressed": "false",
      "aria-label": `Position ${at}: ${name}, token ${token}`,
    });
    if (modality === SPECIAL) each.classList.add("chm-teach-special");
    if (cell) each.classList.add("chm-teach-patch");
    if (at >= (lesson.step?.prompt ?? 0)) each.classList.add("chm-teach-reply");
    if (cell && !unrolled) {
      each.dataset.code = String(code);
      each.style.gridArea = `${(row ?? 0) + 1} / ${(column ?? 0) + 1}`;
      lesson.paintLook(each, code);
    } else {
      const face = element("span.chm-teach-face", { text: cell ? "" : words });
      if (cell) {
        face.classList.add("chm-teach-swatch");
        face.dataset.code = String(code);
        lesson.paintLook(face, code);
      }
      if (unrolled) each.append(element("small", { text: at }), face, element("small.chm-teach-id", { text: token }));
      else each.append(face, element("small.chm-teach-id", { text: token }));
    }
    return each;
  }

  /** @param {number} image */
  function grid(image) {
    const cells = lesson.tokens.filter((token) => token.image === image);
    const url = pictures.get(image);
    const begun = [1 + (cells.at(-1)?.row ?? 0), 1 + Math.max(...cells.map(({ column }) => column ?? 0))];
    const [rows, columns] = (!url && image === lesson.tokens.at(-1)?.image && lesson.step?.grid) || begun;
    const stage = element("div.chm-teach-picture", { role: "group", "aria-label": `Picture ${image + 1}` });
    stage.style.setProperty("--columns", String(columns));
    stage.style.setProperty("--rows", String(rows));
    if (url) stage.append(element("img", { src: url, alt: "", draggable: "false" }));
    return stage;
  }

  return {
    node,
    /** Shows all tokens anew, or those from a position on. */
    show() {
      const focus = places.get(document.activeElement);
      places.clear();
      const flow = /** @type {HTMLElement[]} */ ([]);
      const grids = /** @type {Map<number, HTMLElement>} */ (new Map());
      nodes = lesson.tokens.map(({ image, modality }, at) => {
        if (at === lesson.step?.prompt) flow.push(element("span.chm-teach-divider", { text: "reply" }));
        const each = tile(at);
        places.set(each, at);
        for (const part of each.children) places.set(part, at);
        if (unrolled || image === null || modality !== IMAGE) flow.push(each);
        else {
          let stage = grids.get(image);
          if (!stage) {
            stage = grid(image);
            grids.set(image, stage);
            flow.push(stage);
          }
          stage.append(each);
        }
        return each;
      });
      home = Math.min(home, nodes.length - 1);
      if (nodes[home]) nodes[home].tabIndex = 0;
      node.classList.toggle("chm-teach-unrolled", unrolled);
      node.replaceChildren(...flow);
      if (focus !== undefined) nodes[Math.min(focus, nodes.length - 1)]?.focus({ preventScroll: true });
    },
    /** @param {boolean} on */
    unroll(on) {
      if (unrolled === on) return;
      unrolled = on;
      this.show();
    },
    /** The address of a picture. @param {number} image */
    url: (image) => pictures.get(image),
    /** Takes a picture, as far as it is drawn, for the next time that tokens are shown. @param {number} image @param {DataView} png */
    picture(image, png) {
      const before = pictures.get(image);
      if (before) URL.revokeObjectURL(before);
      pictures.set(image, pngUrl(png));
    },
    /** Forgets the pictures that are no longer whole. @param {number} from the first position that changed */
    forget(from) {
      const whole = new Set(lesson.tokens.slice(0, from).map(({ image }) => image));
      for (const [image, url] of pictures)
        if (!whole.has(image) || lesson.tokens.slice(from).some((token) => token.image === image)) {
          URL.revokeObjectURL(url);
          pictures.delete(image);
        }
    },
    /**
     * @param {number | null} here @param {number | null} chosen
     * @param {(at: number) => boolean} dimmed tokens that may not be read
     * @param {((at: number) => number) | null} heat 0 to 1
     */
    mark(here, chosen, dimmed, heat) {
      nodes.forEach((each, at) => {
        each.classList.toggle("chm-teach-here", at === here);
        each.classList.toggle("chm-teach-dim", dimmed(at));
        if ((at === chosen) !== (each.getAttribute("aria-pressed") === "true")) press(each, at === chosen);
        const strength = heat ? heat(at) : 0;
        if (strength > 0.004) each.style.setProperty("--heat", strength.toFixed(3));
        else each.style.removeProperty("--heat");
      });
      node.classList.toggle("chm-teach-heated", heat !== null);
    },
    /** Brings the end into view, inside the strip. */
    end() {
      node.scrollTop = node.scrollHeight;
    },
    dispose() {
      for (const url of pictures.values()) URL.revokeObjectURL(url);
    },
  };
}
