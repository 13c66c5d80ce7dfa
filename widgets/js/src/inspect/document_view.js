// The document: its words in a row, its images with a cell for each patch, and each of them a thing to point at.

import { button, element, press } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";
import { neighbour, plainWords, spoken, surprise } from "./reading.js";

const FRAME = 350; // milliseconds of a layer while the lens plays

/**
 * @param {object} hooks
 * @param {(at: number | null) => void} hooks.point
 * @param {(at: number) => void} hooks.choose
 * @param {(at: number) => void} hooks.knock
 * @param {(image: number, layer: number) => void} hooks.lens asks for an image as a layer has it
 */
export function documentView({ point, choose, knock, lens }) {
  const node = element("div.chm-inspect-flow", { role: "group", "aria-label": "The document. Arrow keys move." });
  const places = /** @type {Map<EventTarget | null, number>} */ (new Map());
  const pictures = /** @type {ReturnType<typeof lensFigure>[]} */ ([]);
  let nodes = /** @type {HTMLElement[]} */ ([]);
  let painted = new Float32Array();
  let home = 0;

  /** @param {number} at */
  function rove(at) {
    nodes[home].tabIndex = -1;
    home = at;
    nodes[home].tabIndex = 0;
  }

  /** @param {Event} event */
  const place = ({ target }) => places.get(target) ?? null;
  node.addEventListener("pointerover", (event) => point(place(event)));
  node.addEventListener("pointerleave", () => point(places.get(document.activeElement) ?? null));
  node.addEventListener("focusin", (event) => {
    const at = place(event);
    if (at === null) return;
    rove(at);
    point(at);
  });
  node.addEventListener("focusout", () => point(null));
  node.addEventListener("click", (event) => {
    const at = place(event);
    if (at !== null) choose(at);
  });
  node.addEventListener("keydown", (event) => {
    const at = place(event);
    if (at === null || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "k") return knock(at);
    if (!/^(Arrow|Home|End)/.test(event.key)) return;
    event.preventDefault();
    nodes[
      neighbour(
        event.key,
        at,
        nodes.map((each) => each.getBoundingClientRect()),
      )
    ].focus();
  });

  return {
    node,
    /**
     * @param {import("./messages.js").InspectedDocument} message @param {Float32Array} logs @param {DataView[]} images
     */
    show({ tokens, layers }, logs, images) {
      for (let image = 0; image < images.length; image += 1) {
        const cells = tokens.filter((token) => token.image === image);
        const rows = 1 + Math.max(...cells.map(({ row }) => row ?? 0));
        const columns = 1 + Math.max(...cells.map(({ column }) => column ?? 0));
        pictures.push(lensFigure(image, images[image], rows, columns, layers, (layer) => lens(image, layer)));
      }
      const flow = /** @type {HTMLElement[]} */ ([]);
      nodes = tokens.map((token, at) => {
        const cell = token.image !== null;
        const each = element(`button.${cell ? "chm-inspect-cell" : "chm-inspect-word"}`, {
          type: "button",
          tabindex: at ? -1 : 0,
          "aria-label": spoken(token, logs[at]),
          "aria-pressed": "false",
          text: cell ? "" : plainWords(token),
        });
        if (token.modality === 2) each.classList.add("chm-inspect-special");
        each.style.setProperty("--surprise", surprise(logs[at]).toFixed(3));
        places.set(each, at);
        if (token.image === null) flow.push(each);
        else {
          const picture = pictures[token.image];
          each.style.gridArea = `${(token.row ?? 0) + 1} / ${(token.column ?? 0) + 1}`;
          picture.cells.append(each);
          if (flow.at(-1) !== picture.node && !flow.includes(picture.node)) flow.push(picture.node);
        }
        return each;
      });
      painted = new Float32Array(nodes.length);
      node.replaceChildren(...flow);
    },
    /** Paints all tokens, each 0 to 1; null paints none. @param {Float32Array | null} heat */
    paint(heat) {
      node.classList.toggle("chm-inspect-painted", heat !== null);
      nodes.forEach((each, at) => {
        const next = heat ? heat[at] : 0;
        if (Math.abs(next - painted[at]) < 0.004 && (next !== 0 || painted[at] === 0)) return;
        painted[at] = next;
        if (next) each.style.setProperty("--heat", next.toFixed(3));
        else each.style.removeProperty("--heat");
      });
    },
    /** @param {number | null} pointed @param {number | null} chosen @param {Set<number>} out tokens that were knocked out */
    mark(pointed, chosen, out) {
      nodes.forEach((each, at) => {
        each.classList.toggle("chm-inspect-here", at === pointed);
        each.classList.toggle("chm-inspect-out", out.has(at));
        if ((at === chosen) !== (each.getAttribute("aria-pressed") === "true")) press(each, at === chosen);
      });
    },
    /** @param {boolean} on */
    surprising(on) {
      node.classList.toggle("chm-inspect-surprising", on);
    },
    /** @param {number} image @param {number} layer @param {DataView} png */
    lens(image, layer, png) {
      pictures[image]?.put(layer, png);
    },
    dispose() {
      for (const picture of pictures) picture.dispose();
    },
  };
}

/**
 * An image, the grid over it, and the slider that shows it as each layer would draw it.
 * @param {number} image @param {DataView} png empty where there is no look @param {number} rows @param {number} columns
 * @param {number} layers
 * @param {(layer: number) => void} ask for the picture of a layer
 */
function lensFigure(image, png, rows, columns, layers, ask) {
  const looks = /** @type {Map<number, string>} */ (new Map()); // by layer; `layers` is the image itself
  if (png.byteLength) looks.set(layers, pngUrl(png));
  const img = element("img", { alt: "", draggable: "false" });
  const cells = element("div.chm-inspect-cells");
  const words = element("output");
  const slider = element("input", {
    type: "range",
    min: 0,
    max: layers,
    step: 1,
    value: layers,
    "aria-label": `Image ${image + 1} as it is after layer`,
    on: { input: turn },
  });
  let playing = /** @type {any} */ (null);
  const play = button("Play the layers", "play", () => {
    clearInterval(playing);
    slider.value = "0";
    turn();
    playing = setInterval(() => {
      if (!looks.has(Number(slider.value))) return; // it is on its way
      slider.value = String(Number(slider.value) + 1);
      turn();
      if (Number(slider.value) === layers) clearInterval(playing);
    }, FRAME);
  });

  function turn() {
    const layer = Number(slider.value);
    const label = layer === layers ? "as it stands" : `after layer ${layer}`;
    words.textContent = label;
    slider.setAttribute("aria-valuetext", label);
    const look = looks.get(layer);
    if (look) img.src = look;
    else if (layer < layers) ask(layer);
  }

  const node = element(
    "figure.chm-inspect-picture",
    { "aria-label": `Image ${image + 1}` },
    element("div.chm-inspect-stage", img, cells),
    element("figcaption", play, slider, words),
  );
  const width = Math.max(288, Math.min(512, 16 * columns));
  node.style.setProperty("--width", `${width}px`);
  node.style.setProperty("--rows", String(rows));
  node.style.setProperty("--columns", String(columns));
  img.hidden = slider.disabled = play.disabled = !png.byteLength;
  turn();
  return {
    node,
    cells,
    /** @param {number} layer @param {DataView} picture */
    put(layer, picture) {
      if (!looks.has(layer)) looks.set(layer, pngUrl(picture));
      if (layer === Number(slider.value)) turn();
    },
    dispose() {
      clearInterval(playing);
      for (const look of looks.values()) URL.revokeObjectURL(look);
    },
  };
}
