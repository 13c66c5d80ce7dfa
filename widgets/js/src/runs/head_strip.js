// The strip of heads: the largest attention logit of every head at one step, coloured against the alarms' thresholds.

import { figure, stepText } from "../charts/axis.js";
import { oncePerFrame, palette, sized, surface } from "../charts/canvas.js";
import { element, write } from "../frame/dom.js";
import { watchTheme } from "../frame/theme.js";

const LEFT = 44;
const BROKEN = "BROKEN"; // the level of what is no number
const CALM = 50; // up to where heads are shaded where nothing sounds

/** @typedef {[number, string][]} Thresholds values beyond which rules sound, and the level; mildest first */

/** The level beyond whose threshold a value lies, "" below them all. @param {number} value @param {Thresholds} thresholds */
export const levelOf = (value, thresholds) =>
  Number.isFinite(value) ? (thresholds.filter(([limit]) => value > limit).at(-1)?.[1] ?? "") : BROKEN;

/** Colours of the levels. @param {string} level @param {number} value @param {Thresholds} thresholds */
const colourOf = (level, value, thresholds) =>
  level === ""
    ? `color-mix(in srgb, var(--ink) ${(4 + (14 * Math.max(0, value)) / (thresholds[0]?.[0] ?? CALM)).toFixed(0)}%, transparent)`
    : level === "WARN"
      ? "color-mix(in srgb, var(--warn) 55%, transparent)"
      : "color-mix(in srgb, var(--danger) 80%, transparent)";

export function headStrip() {
  let reading = /** @type {{shape: number[], values: Float32Array, step: number} | null} */ (null);
  /** @type {import("../charts/layers.js").Layers | undefined} */
  let shownOf;
  let shownAt = -1;
  let under = -1;
  /** @type {Thresholds} */
  let thresholds = [];

  const { canvas, pen, clear } = surface();
  const when = element("span");
  const plot = element("div.chm-heads-plot", { role: "img" }, canvas);
  const key = (/** @type {string} */ level, /** @type {string} */ text) =>
    element("span", element("i", { style: `background:${colourOf(level, 30, thresholds)}` }), text);
  const legend = element("div.chm-heads-legend");
  const readout = element("span.chm-heat-readout");
  const node = element(
    "section.chm-heads",
    { "aria-label": "Attention logits by head" },
    element("div.chm-run-title", element("b", { text: "Largest attention logit by head" }), when),
    plot,
    element("div.chm-heat-feet", legend, readout),
  );
  const colours = palette(node);
  const frame = oncePerFrame(draw);

  function draw() {
    const { width } = size;
    if (!reading || !width) return;
    const {
      shape: [layers, heads],
      values,
    } = reading;
    const across = Math.min(64, (width - LEFT) / heads);
    const down = Math.max(7, Math.min(22, Math.round(220 / layers)));
    const height = `${layers * down + 16}px`;
    if (plot.style.height !== height) plot.style.height = height;
    clear(width, layers * down + 16);
    pen.font = colours.font();
    pen.textBaseline = "middle";
    const gap = across > 8 && down > 8 ? 2 : 0.5;
    const every = Math.ceil(12 / down);
    for (let layer = 0; layer < layers; layer += 1) {
      pen.textAlign = "right";
      pen.fillStyle = colours.of("var(--ink-soft)");
      if (layer % every === 0)
        pen.fillText(layers > 9 ? String(layer) : `block ${layer}`, LEFT - 6, Math.max(6, (layer + 0.5) * down));
      pen.textAlign = "center";
      for (let head = 0; head < heads; head += 1) {
        const value = values[layer * heads + head];
        const level = levelOf(value, thresholds);
        const [x, y] = [LEFT + head * across, layer * down];
        pen.fillStyle = colours.of(colourOf(level, value, thresholds));
        pen.beginPath();
        pen.roundRect(x, y, across - gap, down - gap, Math.min(3, down / 5));
        pen.fill();
        if (layer * heads + head === under) {
          pen.strokeStyle = colours.of("var(--ink)");
          pen.stroke();
        }
        pen.fillStyle = colours.of(level === "" || level === "WARN" ? "var(--ink)" : "#fff");
        const text = level === BROKEN ? "×" : across >= 30 && down >= 14 ? short(value) : "";
        if (text) pen.fillText(text, x + (across - gap) / 2, y + (down - gap) / 2 + 0.5);
      }
    }
    pen.textAlign = "center";
    pen.fillStyle = colours.of("var(--ink-soft)");
    const skip = Math.ceil(18 / across);
    for (let head = 0; head < heads; head += skip)
      pen.fillText(String(head), LEFT + (head + 0.5) * across - gap / 2, layers * down + 9);
    pen.textAlign = "right";
    pen.fillText("head", LEFT - 6, layers * down + 9);
    readout.textContent =
      under >= 0 && under < values.length
        ? `head ${under % heads} of block ${Math.floor(under / heads)}: ${figure(values[under])}`
        : "";
  }

  /** @param {number} value */
  const short = (value) =>
    value >= 1000 ? value.toLocaleString("en-GB", { notation: "compact", maximumFractionDigits: 0 }) : value.toFixed(0);

  plot.addEventListener("pointermove", (event) => {
    if (!reading) return;
    const box = plot.getBoundingClientRect();
    const {
      shape: [layers, heads],
    } = reading;
    const [head, layer] = [
      Math.floor((event.clientX - box.left - LEFT) / Math.min(64, (box.width - LEFT) / heads)),
      Math.floor(((event.clientY - box.top) / (box.height - 16)) * layers),
    ];
    under = head >= 0 && head < heads && layer >= 0 && layer < layers ? layer * heads + head : -1;
    frame.ask();
  });
  plot.addEventListener("pointerleave", () => {
    under = -1;
    frame.ask();
  });
  const size = sized(plot, frame.ask);
  const forgetTheme = watchTheme(() => {
    colours.forget();
    frame.ask();
  });

  return {
    node,
    /**
     * The heads at a step; null: the newest.
     * @param {import("../charts/layers.js").Layers | undefined} rows @param {number | null} step @param {Thresholds} limits
     */
    show(rows, step, limits = []) {
      if (JSON.stringify(limits) !== JSON.stringify(thresholds)) {
        [thresholds, shownAt] = [limits, -1];
        const begin = thresholds.length ? [key("", `up to ${thresholds[0][0]}`)] : [];
        legend.replaceChildren(...begin, ...thresholds.map(([limit, level]) => key(level, `above ${limit}`)));
      }
      const at = !rows ? -1 : step === null || rows.heads ? rows.count - 1 : rows.place(step);
      if (rows && reading && shownOf === rows && shownAt === at) return;
      [reading, shownOf, shownAt] = [null, rows, at];
      if (rows && at >= 0 && (rows.shape.length === 2 || rows.heads)) {
        const { shape, values } = rows.heads ?? { shape: rows.shape, values: rows.row(at) };
        reading = { shape, values, step: rows.steps[at] };
      }
      plot.hidden = legend.hidden = !reading;
      const text = reading ? `step ${stepText(reading.step)}` : "";
      write(when, text);
      if (reading) {
        const {
          shape: [, heads],
          values,
        } = reading;
        const many = values.reduce((sum, value) => sum + (levelOf(value, thresholds) ? 1 : 0), 0);
        const most = values.reduce(
          (best, value, index) => (value > values[best] || Number.isNaN(value) ? index : best),
          0,
        );
        plot.setAttribute(
          "aria-label",
          `${text}: ${thresholds.length ? `${many} of ${values.length} heads above ${thresholds[0][0]}; ` : ""}largest ` +
            `${figure(values[most])}, head ${most % heads} of block ${Math.floor(most / heads)}`,
        );
      }
      frame.ask();
    },
    dispose() {
      frame.dispose();
      size.dispose();
      forgetTheme();
    },
  };
}
