// The heat map: a measure of each layer, or of each head, over the steps of training.

import { element, write } from "../frame/dom.js";
import { watchTheme } from "../frame/theme.js";
import { figure, stepText } from "./axis.js";
import { colourAt, oncePerFrame, palette, sized, surface } from "./canvas.js";
import { GUTTER } from "./curve_pen.js";
import { BROKEN, FINE } from "./layers.js";

/** Colours from low to high. Lightness rises evenly along them, so that they read without hue, on white and on black. */
export const HEAT = [
  "#440154",
  "#482777",
  "#3e4989",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
];
const TABLE = Array.from({ length: 256 }, (_, at) => (colourAt(HEAT, at / 255).match(/\d+/g) ?? []).map(Number));
const BREAK = [211, 47, 47];

/**
 * Place of a value on the scale, in [0, 1].
 * @param {number} value @param {[number, number]} ends @param {boolean} log
 */
export function placed(value, [low, high], log) {
  if (!(high > low)) return 0.5;
  if (!log) return Math.min(1, Math.max(0, (value - low) / (high - low)));
  return value <= low ? 0 : Math.min(1, Math.log(value / low) / Math.log(high / low));
}

/** @param {object} hooks @param {(step: number | null) => void} hooks.pointed */
export function heatMap({ pointed }) {
  let rows = /** @type {import("./layers.js").Layers | null} */ (null);
  let range = /** @type {[number, number] | null} */ (null);
  let log = false;
  let count = 0; // rows when it was drawn
  let cursor = /** @type {number | null} */ (null);
  let cell = -1; // the one under the pointer
  /** @type {[number, number]} values at the ends of the colours */
  let scale = [0, 1];

  const { canvas, pen, clear } = surface();
  const picture = document.createElement("canvas");
  const brush = /** @type {CanvasRenderingContext2D} */ (picture.getContext("2d"));
  const plot = element("div.chm-heat-plot", { role: "img", tabindex: 0 }, canvas);
  const readout = element("span.chm-heat-readout");
  const spoken = element("span.chm-sr", { role: "status" });
  const ends = [0, 1].map(() => element("span"));
  const legend = element(
    "div.chm-heat-legend",
    ends[0],
    element("i", { style: `background:linear-gradient(to right,${HEAT.join(",")})` }),
    ends[1],
    element("span.chm-heat-broken", element("i"), "not a number"),
  );
  const feet = element("div.chm-heat-feet", legend, readout);
  const node = element("div.chm-heat", plot, feet, spoken);
  const colours = palette(node);
  const frame = oncePerFrame(draw);

  function inner() {
    return { left: GUTTER.left, wide: Math.max(1, size.width - GUTTER.left - GUTTER.right), tall: size.height };
  }

  function draw() {
    const { left, wide, tall } = inner();
    if (!size.width || !tall) return;
    clear(size.width, tall);
    if (!rows || !range || !rows.count) return;
    const columns = Math.round(wide);
    const cells = rows.picture(range[0], range[1], columns);
    let [low, high, broken] = [Infinity, -Infinity, false];
    for (let at = 0; at < cells.values.length; at += 1) {
      if (cells.states[at] === BROKEN) broken = true;
      if (cells.states[at] !== FINE || (log && cells.values[at] <= 0)) continue;
      low = Math.min(low, cells.values[at]);
      high = Math.max(high, cells.values[at]);
    }
    if (low > high) [low, high] = [0, 1];
    scale = [low, high];
    paint(cells, columns);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, left, 0, wide, tall);
    label(tall);
    scale.forEach((value, at) => {
      if (ends[at].textContent !== figure(value)) ends[at].textContent = figure(value);
    });
    const key = /** @type {HTMLElement} */ (legend.lastElementChild);
    if (key.hidden === broken) key.hidden = !broken;
    if (cursor !== null) {
      const at = Math.round(left + ((cursor - range[0]) / (range[1] - range[0])) * wide) + 0.5;
      pen.fillStyle = "rgb(255 255 255 / .8)";
      pen.fillRect(at - 1.5, 0, 3, tall);
      pen.fillStyle = "rgb(0 0 0 / .8)";
      pen.fillRect(at - 0.5, 0, 1, tall);
    }
    read();
  }

  /** @param {{values: Float32Array, states: Uint8Array}} cells @param {number} columns */
  function paint({ values, states }, columns) {
    const cells = rows?.cells ?? 1;
    if (picture.width !== columns || picture.height !== cells)
      Object.assign(picture, { width: columns, height: cells });
    const pixels = brush.createImageData(columns, cells);
    for (let column = 0; column < columns; column += 1)
      for (let row = 0; row < cells; row += 1) {
        const state = states[column * cells + row];
        if (!state) continue;
        const value = values[column * cells + row];
        const colour = state === BROKEN ? BREAK : TABLE[Math.round(255 * placed(value, scale, log))];
        const at = 4 * (row * columns + column);
        pixels.data[at] = colour[0];
        pixels.data[at + 1] = colour[1];
        pixels.data[at + 2] = colour[2];
        pixels.data[at + 3] = 255;
      }
    brush.putImageData(pixels, 0, 0);
  }

  /** Names of the blocks beside the rows, and lines between them. @param {number} tall */
  function label(tall) {
    if (!rows) return;
    const [layers, heads] = [rows.shape[0], rows.shape[1] ?? 1];
    const each = tall / layers;
    const every = Math.ceil(12 / each);
    pen.font = colours.font();
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let layer = 0; layer < layers; layer += 1) {
      pen.fillStyle = colours.of("var(--ink-soft)");
      if (layer % every === 0)
        pen.fillText(layers > 9 ? String(layer) : `block ${layer}`, GUTTER.left - 7, Math.max(6, (layer + 0.5) * each));
      pen.fillStyle = colours.of("var(--paper)");
      if (layer && heads > 1) pen.fillRect(GUTTER.left, Math.round(layer * each) - 1, size.width, 2);
    }
  }

  /** Whether it would look the same: nothing new, and the ends moved by less than half a pixel. @param {{rows: typeof rows, range: typeof range, log: boolean}} what */
  function same(what) {
    if (!rows || !range || !what.range || what.rows !== rows || what.log !== log || rows.count !== count) return false;
    const pixel = (range[1] - range[0]) / inner().wide;
    return range.every((end, at) => Math.abs(end - (what.range?.[at] ?? NaN)) < pixel / 2);
  }

  /** What stands at the cursor, in words. */
  function words() {
    if (!rows || cursor === null) return "";
    const at = rows.place(cursor);
    if (at < 0) return "";
    const row = rows.row(at);
    const which = cell >= 0 && cell < row.length ? cell : worst(row);
    return `step ${stepText(rows.steps[at])}, ${rows.named(which)}: ${figure(row[which])}`;
  }

  /** @param {Float32Array} row */
  function worst(row) {
    const bad = row.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) return bad;
    return row.reduce((best, value, at) => ((rows?.low ? value < row[best] : value > row[best]) ? at : best), 0);
  }

  function read() {
    const text = words();
    write(readout, text);
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const { left, wide, tall } = inner();
    if (!rows || !range) return;
    const part = (event.clientX - box.left - left) / wide;
    cell = Math.min(rows.cells - 1, Math.max(0, Math.floor(((event.clientY - box.top) / tall) * rows.cells)));
    const at = Math.max(0, rows.place(range[0] + Math.min(1, Math.max(0, part)) * (range[1] - range[0])));
    point(rows.steps[at] ?? null);
    pointed(cursor);
    frame.ask();
  });
  plot.addEventListener("pointerleave", () => leave());
  plot.addEventListener("blur", () => leave());
  function leave() {
    cell = -1;
    point(null);
    pointed(null);
  }
  plot.addEventListener("keydown", (event) => {
    if (!rows?.count || !range) return;
    const [first, last] = [Math.max(0, rows.place(range[0])), rows.place(range[1])];
    const at = cursor === null ? last + 1 : rows.place(cursor);
    const to = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      Home: first,
      End: last,
      ArrowUp: Math.min(at, last),
      ArrowDown: Math.min(at, last),
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (cell < 0) cell = worst(rows.row(Math.min(last, at)));
    else if (event.key === "ArrowUp") cell = Math.max(0, cell - 1);
    else if (event.key === "ArrowDown") cell = Math.min(rows.cells - 1, cell + 1);
    point(rows.steps[Math.min(last, Math.max(first, to))]);
    pointed(cursor);
    spoken.textContent = words();
  });

  /** @param {number | null} step */
  function point(step) {
    cursor = step;
    frame.ask();
  }

  const size = sized(plot, frame.ask);
  const forgetTheme = watchTheme(() => {
    colours.forget();
    frame.ask();
  });

  return {
    node,
    paint: frame.ask,
    point,
    /** @param {{rows: typeof rows, range: [number, number] | null, log: boolean}} what */
    show(what) {
      if (same(what)) return;
      ({ rows, range, log } = what);
      count = rows?.count ?? 0;
      const height = `${Math.min(240, Math.max(56, (rows?.cells ?? 4) * 13))}px`;
      if (plot.style.height !== height) plot.style.height = height;
      plot.setAttribute(
        "aria-label",
        rows?.count
          ? `Heat map of ${rows.name.replaceAll("_", " ")}, ${rows.cells} rows, up to step ${stepText(rows.steps[rows.count - 1])}. Arrow keys read the values.`
          : "Heat map: nothing recorded yet",
      );
      frame.ask();
    },
    dispose() {
      frame.dispose();
      size.dispose();
      forgetTheme();
    },
  };
}
