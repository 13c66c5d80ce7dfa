// The chosen code: what it decodes to, its nearest codes, real patches that became it, and where it is in a picture.

import { grouped } from "../charts/axis.js";
import { button, element, group, shape } from "../frame/dom.js";
import { pngUrl, swap } from "../frame/pictures.js";
import { times } from "./codebook_scale.js";
import { cursorGrid } from "./cursor_grid.js";

const PICTURE = 168; // pixels of its longer side

/** @param {string} title @param {...(Node | string)} beside */
const heading = (title, ...beside) => element("div.chm-atlas-title", element("b", { text: title }), ...beside);

/**
 * @param {object} hooks
 * @param {(code: number) => void} hooks.choose
 * @param {(code: number | null) => void} hooks.point
 * @param {(at: number) => void} hooks.turn to another picture
 */
export function codebookDetail({ choose, point, turn }) {
  const decoded = /** @type {Map<number, string>} */ (new Map());
  let code = /** @type {number | null} */ (null);
  let names = /** @type {string[]} */ ([]);
  let picture = /** @type {{at: number, rows: number, columns: number, codes: Uint32Array} | null} */ (null);

  const title = element("div.chm-atlas-code", { role: "status" });
  const large = element("img.chm-atlas-large", { alt: "", hidden: true, draggable: "false" });
  const frame = element("div.chm-atlas-frame", large);
  const chips = group("chm-atlas-chips", "Nearest codes");
  const block = element("span");
  const amount = element("div.chm-atlas-note");
  const patches = group("chm-atlas-patches", "Real patches of this code");
  const which = element("select", { "aria-label": "Picture", on: { change: () => turn(which.selectedIndex) } });
  const occurs = element("div.chm-atlas-note", { role: "status" });
  const img = element("img", { alt: "", draggable: "false" });
  const lines = ["chm-atlas-shade", "chm-atlas-halo", "chm-atlas-outline"].map((kind) =>
    shape("path", { class: kind, "fill-rule": "evenodd" }),
  );
  const veil = shape("svg", { preserveAspectRatio: "none", "aria-hidden": "true" }, ...lines);
  const grid = cursorGrid({
    label: "Codes of the picture. Arrow keys move, Enter chooses.",
    name: (at) =>
      picture
        ? `Row ${Math.floor(at / picture.columns) + 1}, column ${(at % picture.columns) + 1}: code ${picture.codes[at]}`
        : "",
    choose: (at) => picture && choose(picture.codes[at]),
  });
  const stage = element("div.chm-atlas-picture", img, veil, grid.node);
  const about = element(
    "div.chm-atlas-about",
    element("div", heading("Decoded", block), frame),
    element("div", heading("Nearest codes"), chips),
  );
  const sightings = element(
    "div.chm-atlas-sightings",
    element("div.chm-atlas-place", heading("In", which), stage, occurs),
    element("div.chm-atlas-real", heading("Real patches"), patches, amount),
  );
  const node = element("aside.chm-atlas-detail", { "aria-label": "The chosen code" }, title, about, sightings);

  /** @param {HTMLElement[]} next */
  function fill(next) {
    for (const old of patches.querySelectorAll("img")) URL.revokeObjectURL(old.src);
    patches.replaceChildren(...next);
  }

  /** Empty places, so that nothing moves when they are filled. */
  function clear() {
    chips.replaceChildren(
      ...Array.from({ length: 8 }, () =>
        element("div.chm-atlas-chip", element("span.chm-atlas-frame"), element("b", { text: "\u00a0" })),
      ),
    );
    fill(Array.from({ length: 12 }, () => element("span.chm-atlas-patch")));
    amount.textContent = "";
  }

  function mark() {
    if (!picture) return;
    const { rows, columns, codes } = picture;
    const cells = [...codes.keys()].filter((at) => codes[at] === code);
    const outline = cells.map((at) => `M${at % columns} ${Math.floor(at / columns)}h1v1h-1z`).join("");
    veil.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    lines.forEach((path, index) =>
      path.setAttribute("d", !cells.length ? "" : index ? outline : `M0 0h${columns}v${rows}h${-columns}z${outline}`),
    );
    occurs.textContent = code === null ? "" : cells.length ? `${cells.length} of ${codes.length} cells` : "not in it";
  }

  function caption() {
    if (!picture) return;
    which.selectedIndex = picture.at;
    img.alt = `${names[picture.at] ?? "Picture"}, as the encoder sees it`;
  }

  function refresh() {
    node.classList.toggle("chm-atlas-none", code === null);
    sightings.hidden = !names.length;
    const url = code === null ? undefined : decoded.get(code);
    large.hidden = !url;
    if (url) large.src = url;
    for (const chip of chips.querySelectorAll("button")) {
      const patch = decoded.get(Number(chip.dataset.code));
      const image = /** @type {HTMLImageElement} */ (chip.querySelector("img"));
      image.hidden = !patch;
      if (patch && image.src !== patch) image.src = patch;
    }
    mark();
  }

  clear();
  return {
    node,
    /** What is known here and now of a code. @param {number | null} next @param {number} count @param {string} rank @param {number} side */
    choose(next, count, rank, side) {
      if (next !== code) clear();
      code = next;
      title.replaceChildren(
        ...(code === null
          ? [
              element("span", {
                text: names.length ? "Choose a code on the map or in the picture." : "Choose a code on the map.",
              }),
            ]
          : [element("b", { text: `Code ${code}` }), element("span", { text: `${times(count)}${rank}` })]),
      );
      large.alt = `What code ${code} decodes to`;
      block.textContent = `middle of ${side}×${side}`;
      block.title = `A grid of ${side} × ${side} of this code is decoded, and its middle shown`;
      refresh();
    },
    /** @param {import("./messages.js").AtlasCode} message @param {DataView[]} buffers @param {(code: number) => string} name */
    receive(message, buffers, name) {
      chips.replaceChildren(
        ...message.near.map(([near, distance]) => {
          const chip = button("", null, () => choose(near), {
            class: "chm-atlas-chip",
            "data-code": near,
            "aria-label": `${name(near)}, at distance ${distance.toPrecision(3)}`,
          });
          chip.append(
            element("span.chm-atlas-frame", element("img", { alt: "", hidden: true, draggable: "false" })),
            element("b", { text: near }),
            element("span", { text: distance.toPrecision(2) }),
          );
          chip.title = /** @type {string} */ (chip.getAttribute("aria-label"));
          for (const type of ["pointerenter", "focus"]) chip.addEventListener(type, () => point(near));
          for (const type of ["pointerleave", "blur"]) chip.addEventListener(type, () => point(null));
          return chip;
        }),
      );
      fill(
        message.places.map(([at, row, column], index) => {
          const words = `${names[at]}, row ${row + 1}, column ${column + 1}`;
          const each = button("", null, () => turn(at), {
            class: "chm-atlas-patch",
            "aria-label": words,
            title: words,
          });
          each.append(element("img", { src: pngUrl(buffers[index]), alt: "", draggable: "false" }));
          return each;
        }),
      );
      const all = message.count <= message.places.length;
      amount.textContent =
        message.count === 0
          ? "none in these pictures"
          : message.count === 1
            ? "the only one"
            : all
              ? `all ${message.count} there are`
              : `${message.places.length} of ${grouped(message.count)}`;
      refresh();
    },
    /** Decoded patches have come. @param {number[]} codes @param {DataView[]} buffers */
    patches(codes, buffers) {
      codes.forEach((each, index) => {
        if (!decoded.has(each)) decoded.set(each, pngUrl(buffers[index]));
      });
      refresh();
    },
    /** @param {string[]} next */
    named(next) {
      if (next.length === names.length) return;
      names = next;
      which.replaceChildren(...names.map((name) => element("option", { text: name })));
      caption();
      refresh();
    },
    /** @param {import("./messages.js").AtlasPicture} message @param {DataView} bytes @param {Uint32Array} codes */
    show(message, bytes, codes) {
      picture = { at: message.at, rows: message.rows, columns: message.columns, codes };
      caption();
      const ratio = message.width / message.height;
      stage.style.aspectRatio = String(ratio);
      stage.style.width = `${Math.round(PICTURE * Math.min(1, ratio))}px`;
      grid.shape(message.columns, codes.length);
      swap(img, pngUrl(bytes));
      mark();
    },
    dispose() {
      for (const url of decoded.values()) URL.revokeObjectURL(url);
    },
  };
}
