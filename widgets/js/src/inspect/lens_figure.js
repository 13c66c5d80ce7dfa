// An image of the document: the grid over it, and the slider that shows it as each layer would draw it.

import { button, element } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";
import { isCalm } from "../frame/theme.js";

const FRAME = 350; // milliseconds of a layer while the lens plays

/**
 * @param {object} options
 * @param {number} options.image
 * @param {number} options.rows
 * @param {number} options.columns
 * @param {number} options.layers
 * @param {(layer: number) => void} options.ask for the picture of a layer
 */
export function lensFigure({ image, rows, columns, layers, ask }) {
  const looks = /** @type {Map<number, string>} */ (new Map()); // by layer; `layers` is the image itself
  const img = element("img", { alt: "", draggable: "false" });
  const cells = element("div.chm-inspect-cells");
  // A pixel a cell: to style thousands of cells at each hover is slow
  const heat = element("canvas.chm-inspect-heat", { width: columns, height: rows });
  const surprise = element("canvas.chm-inspect-surprises", { width: columns, height: rows });
  const words = element("output");
  const slider = element("input", {
    type: "range",
    min: 0,
    max: layers,
    step: 1,
    value: layers,
    "aria-label": `Image ${image + 1} as it is after layer`,
    on: {
      input() {
        stop();
        turn();
      },
    },
  });
  let playing = /** @type {any} */ (null);
  const play = button("Play the layers", "play", () => {
    if (playing) return stop();
    if (isCalm()) {
      slider.value = String((Number(slider.value) + 1) % (layers + 1));
      return turn();
    }
    if (Number(slider.value) === layers) slider.value = "0";
    turn();
    playing = setInterval(() => {
      if (!looks.has(Number(slider.value))) return; // it is on its way
      slider.value = String(Number(slider.value) + 1);
      turn();
      if (Number(slider.value) === layers) stop();
    }, FRAME);
    label();
  });

  function stop() {
    clearInterval(playing);
    playing = null;
    label();
  }

  function label() {
    play.title = playing ? "Pause" : isCalm() ? "Next layer" : "Play the layers";
    play.setAttribute("aria-label", play.title);
    play.setAttribute("aria-pressed", String(playing !== null));
  }

  function turn() {
    const layer = Number(slider.value);
    const text = layer === layers ? "as it stands" : `after layer ${layer}`;
    words.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    const look = looks.get(layer);
    if (look) img.src = look;
    else if (layer < layers) ask(layer);
  }

  const node = element(
    "figure.chm-inspect-picture",
    { "aria-label": `Image ${image + 1}` },
    element("div.chm-inspect-stage", img, surprise, heat, cells),
    element("figcaption", play, slider, words),
  );
  node.style.setProperty("--width", `clamp(288px, 60%, ${Math.max(576, Math.min(640, 16 * columns))}px)`);
  node.style.setProperty("--rows", String(rows));
  node.style.setProperty("--columns", String(columns));
  img.hidden = slider.disabled = play.disabled = true;
  turn();
  label();
  return {
    node,
    cells,
    rows,
    /** Paints cells: each pixel is red, green, blue and alpha. @param {Uint8ClampedArray<ArrayBuffer>} pixels */
    paint: (pixels) => heat.getContext("2d")?.putImageData(new ImageData(pixels, columns, rows), 0, 0),
    /** The same, of how surprising each cell was. @param {Uint8ClampedArray<ArrayBuffer>} pixels */
    surprise: (pixels) => surprise.getContext("2d")?.putImageData(new ImageData(pixels, columns, rows), 0, 0),
    /** The image as a layer has it, or as it stands. @param {number} layer @param {DataView} picture empty where there is none */
    put(layer, picture) {
      if (!picture.byteLength) return;
      if (layer === layers) img.hidden = slider.disabled = play.disabled = false;
      if (!looks.has(layer)) looks.set(layer, pngUrl(picture));
      if (layer === Number(slider.value)) turn();
    },
    dispose() {
      clearInterval(playing);
      for (const look of looks.values()) URL.revokeObjectURL(look);
    },
  };
}
