// Canvases as the charts use them: at the screen's resolution, in the page's colours, drawn once a frame.

import { element } from "../frame/dom.js";

/** A canvas that fills its parent, at the screen's own resolution. */
export function surface() {
  const canvas = element("canvas", { "aria-hidden": "true" });
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  return {
    canvas,
    pen,
    /** Clears it, from a place on, at a size in CSS pixels. @param {number} width @param {number} height @param {number} [from] */
    clear(width, height, from = 0) {
      const ratio = window.devicePixelRatio || 1;
      const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
      if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(from, 0, width - from, height);
    },
  };
}

/**
 * The size of a node as the browser tells it, so that nothing has to be laid out anew to know it.
 * @param {HTMLElement} node @param {() => void} changed
 */
export function sized(node, changed) {
  const size = { width: 0, height: 0, dispose: () => observer.disconnect() };
  const observer = new ResizeObserver((entries) => {
    const { width, height } = entries[entries.length - 1].contentRect;
    Object.assign(size, { width, height });
    changed();
  });
  observer.observe(node);
  return size;
}

/** What CSS colours and the font are, at a place in the page; remembered until `forget`. @param {HTMLElement} place */
export function palette(place) {
  const probe = element("i", { hidden: true, "aria-hidden": "true" });
  place.append(probe);
  const cache = /** @type {Map<string, string>} */ (new Map());
  return {
    forget: () => cache.clear(),
    /** The font of what stands beside the axes. */
    font() {
      if (!cache.has("font")) cache.set("font", `10.5px ${getComputedStyle(place).fontFamily}`);
      return cache.get("font") ?? "";
    },
    /** @param {string} colour */
    of(colour) {
      const before = cache.get(colour);
      if (before) return before;
      probe.style.color = colour;
      const computed = getComputedStyle(probe).color;
      cache.set(colour, computed);
      return computed;
    },
  };
}

/** @param {string} colour #rrggbb @returns {[number, number, number]} */
const channels = (colour) => /** @type {any} */ ([1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));

/**
 * The colour at a place in [0, 1] between the stops of a scale, as CSS.
 * @param {string[]} stops #rrggbb each
 * @param {number} place
 */
export function colourAt(stops, place) {
  const at = Math.min(1, Math.max(0, place)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(at));
  const [from, to] = [channels(stops[low]), channels(stops[low + 1])];
  return `rgb(${from.map((each, index) => Math.round(each + (to[index] - each) * (at - low))).join(" ")})`;
}

/** @type {Set<() => void>} what is to be drawn in the next frame */
const due = new Set();

/**
 * Calls `draw` once in the next frame, however often it is asked for. What is asked for while a frame is drawn comes in
 * the same frame.
 * @param {() => void} draw
 */
export function oncePerFrame(draw) {
  const once = () => draw();
  let disposed = false;
  return {
    ask() {
      if (disposed) return;
      if (!due.size) requestAnimationFrame(drawAll);
      due.add(once);
    },
    dispose() {
      disposed = true;
      due.delete(once);
    },
  };
}

function drawAll() {
  for (const draw of due) {
    try {
      draw();
    } catch (problem) {
      reportError(problem); // the others are drawn all the same
    }
  }
  due.clear();
}
