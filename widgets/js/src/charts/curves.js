// Curves: several named series over the steps of training, on one canvas, with marks, a cursor and a legend that toggles.
//
// A chart is made once, given what to show, and asked for a frame when its points have grown:
//
//   const points = new Points();                                    // points.js; grows with points.add(steps, values)
//   const chart = curves({ title: "Loss", unit: "nats a token", height: 180 });
//   parent.append(chart.node);
//   chart.show({ lines: [{ name: "text", colour: "var(--curve-1)", points }], log: false });
//   points.add([10, 20], [3.1, 2.9]);
//   chart.paint();                                                  // one frame, however often it is asked for
//
// Several charts share an axis when each gets the same `range`, and hands its cursor on (`pointed` to the others'
// `point`). Styles are in curves.css, colours from `--curve-1` to `--curve-8` among them.

import { element, group } from "../frame/dom.js";
import { watchTheme } from "../frame/theme.js";
import { figure, linearTicks, logTicks, stepText } from "./axis.js";
import { oncePerFrame, palette, sized, surface } from "./canvas.js";
import { curvePen, GUTTER, placeOf as x } from "./curve_pen.js";

/**
 * @typedef {object} Line one named series
 * @property {string} name in the legend
 * @property {string} colour any CSS colour, variables included
 * @property {import("./points.js").Points} points
 * @property {boolean} [dashed]
 * @property {{low: import("./points.js").Points, high: import("./points.js").Points}} [band] drawn behind it
 * @property {boolean} [dots] a dot at each value: for those that are far apart
 */
/**
 * @typedef {object} Mark something that happened at a step
 * @property {number} step
 * @property {string} colour
 * @property {string} words
 * @property {"alarm" | "change" | "stage"} kind a triangle, a diamond, or a square
 */
/**
 * @typedef {object} Shown
 * @property {Line[]} lines
 * @property {Mark[]} marks
 * @property {boolean} log the values on a log axis; those not above zero are left out
 * @property {[number, number] | null} range steps at the two ends; null: all there are
 * @property {string} title
 * @property {string} unit
 * @property {string} hint words on the title, in lines
 * @property {number[]} rules values at which a faint line runs across, such as thresholds
 */

/**
 * @param {object} options
 * @param {string} options.title
 * @param {string} [options.unit]
 * @param {number} [options.height] of the plot, CSS pixels
 * @param {(step: number | null) => void} [options.pointed] the cursor moved to a step, or away
 * @param {(range: [number, number] | null) => void} [options.zoomed] a range was dragged out; null: a double click
 * @param {(name: string, visible: boolean) => void} [options.toggled] by the legend
 */
export function curves({ title, unit = "", height = 180, pointed, zoomed, toggled }) {
  /** @type {Shown} */
  const content = { lines: [], marks: [], log: false, range: null, title, unit, hint: "", rules: [] };
  const off = /** @type {Set<string>} */ (new Set());
  let cursor = /** @type {number | null} */ (null);
  let highlight = /** @type {Mark | null} */ (null);
  /** @type {number | null} where a drag began, CSS pixels */
  let dragFrom = null;
  let dragTo = 0;
  let legendKey = "";
  let picture = { key: "", step: NaN, theme: 0 }; // what the picture shows, and up to where

  const heading = element("b");
  const units = element("span.chm-curves-unit");
  const legend = group("chm-curves-legend", "Curves");
  const tools = element("div.chm-curves-tools");
  const spoken = element("span.chm-sr", { role: "status" });
  const bubble = element("div.chm-curves-said", { hidden: true, "aria-hidden": "true" });
  const { canvas, pen, clear } = surface();
  const plot = element(
    "div.chm-curves-plot",
    { tabindex: 0, role: "img", style: `height:${height}px` },
    canvas,
    bubble,
  );
  const node = element("figure.chm-curves", element("figcaption", heading, units, legend, tools), plot, spoken);
  const colours = palette(node);
  const { rule, dot, steps, mark: drawMark, line: drawLine } = curvePen(pen, colours);
  const frame = oncePerFrame(draw);

  const visible = () => content.lines.filter((line) => !off.has(line.name) && line.points.count);

  /** Steps at the two ends of the axis. @returns {[number, number] | null} */
  function across() {
    if (content.range) return content.range;
    const lines = content.lines.filter((line) => line.points.count);
    if (!lines.length) return null;
    const low = Math.min(...lines.map(({ points }) => points.steps[0]));
    const high = Math.max(...lines.map(({ points }) => points.steps[points.count - 1]));
    return [low, Math.max(high, low + 1)];
  }

  /** Values at the two ends. @param {[number, number]} ends @returns {[number, number] | null} */
  function along([from, to]) {
    const extents = visible()
      .flatMap(({ points, band }) => [points, ...(band ? [band.low, band.high] : [])])
      .map((points) => points.extent(from, to, content.log))
      .filter((each) => each !== null);
    if (!extents.length) return null;
    const low = Math.min(...extents.map(([each]) => each));
    const high = Math.max(...extents.map(([, each]) => each));
    if (content.log) return [low / 1.15, high * 1.15];
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    if (low >= 0 && low < (high - low) * 0.25) return [0, high + room]; // near zero: then from zero
    return [low - room, high + room];
  }

  function draw() {
    const { width, height: tall } = size;
    if (!width || !tall) return;
    const ends = across();
    const values = ends && along(ends);
    const start = renewed(ends, values);
    pen.save();
    clear(width, tall, start);
    if (start) {
      pen.beginPath();
      pen.rect(start, 0, width, tall);
      pen.clip();
    }
    drawFrom(start, ends, values);
    pen.restore();
    readLegend();
  }

  /**
   * Where to begin: 0, or where only what is newest has to be drawn, since in a long history all the rest stays as it is.
   * @param {[number, number] | null} ends @param {[number, number] | null} values
   */
  function renewed(ends, values) {
    const key = JSON.stringify([
      size.width,
      size.height,
      window.devicePixelRatio,
      picture.theme,
      ends,
      values,
      content.log,
      content.rules,
      content.marks,
      content.lines.map(({ name, colour, dashed, dots }) => [name, colour, dashed, dots, off.has(name)]),
      highlight?.step,
      cursor,
      dragFrom,
      dragTo,
    ]);
    const before = picture;
    picture = { ...picture, key, step: Math.max(...visible().map(({ points }) => points.steps[points.count - 1])) };
    if (key !== before.key || !ends || !(before.step <= picture.step)) return 0;
    return Math.max(0, Math.floor(x(before.step, ends, size.width)) - 8);
  }

  /** @param {number} start CSS pixels @param {[number, number] | null} ends @param {[number, number] | null} values */
  function drawFrom(start, ends, values) {
    const { width, height: tall } = size;
    pen.font = colours.font();
    const [left, right, top, bottom] = [GUTTER.left, width - GUTTER.right, GUTTER.top, tall - GUTTER.bottom];
    const [ink, soft, line] = ["var(--ink)", "var(--ink-soft)", "var(--line)"].map(colours.of);
    pen.lineWidth = 1;
    pen.strokeStyle = line;
    rule(left, bottom + 0.5, right, bottom + 0.5);
    if (!ends || !values) {
      pen.fillStyle = soft;
      pen.textAlign = "center";
      pen.fillText(
        content.lines.some(({ points }) => points.count) ? "No values here to show" : "Nothing recorded yet",
        (left + right) / 2,
        (top + bottom) / 2,
      );
      if (ends) steps({ ends, width, bottom, log: content.log });
      return;
    }
    const [low, high] = values;
    const y = content.log
      ? (/** @type {number} */ value) =>
          bottom - ((Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (bottom - top)
      : (/** @type {number} */ value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const count = Math.max(2, Math.floor((bottom - top) / 30));
    for (const value of (content.log ? logTicks : linearTicks)(low, high, count)) {
      pen.strokeStyle = line;
      rule(left, Math.round(y(value)) + 0.5, right, Math.round(y(value)) + 0.5);
      pen.fillStyle = soft;
      pen.fillText(figure(value), left - 7, y(value));
    }
    pen.textBaseline = "alphabetic";
    const view = { ends, width, bottom, log: content.log, y };
    steps(view);
    pen.save();
    pen.beginPath();
    pen.rect(left - 3, 0, right - left + 6, bottom + 1); // room for half a dot at either end
    pen.clip();
    for (const value of content.rules) {
      if (value <= low || value >= high) continue;
      pen.strokeStyle = colours.of("color-mix(in srgb, var(--warn) 60%, transparent)");
      pen.setLineDash([2, 4]);
      rule(left, Math.round(y(value)) + 0.5, right, Math.round(y(value)) + 0.5);
      pen.setLineDash([]);
    }
    for (const mark of content.marks) drawMark(mark, view);
    for (const each of visible()) drawLine(each, view, start);
    if (highlight) {
      const at = Math.round(x(highlight.step, ends, width)) + 0.5;
      pen.strokeStyle = colours.of(highlight.colour);
      for (const [wide, alpha] of [
        [5, 0.3],
        [1, 1],
      ]) {
        pen.lineWidth = wide;
        pen.globalAlpha = alpha;
        rule(at, 0, at, bottom);
      }
    }
    if (dragFrom !== null && Math.abs(dragTo - dragFrom) > 4) {
      pen.fillStyle = colours.of("color-mix(in srgb, var(--accent) 16%, transparent)");
      pen.fillRect(Math.min(dragFrom, dragTo), top, Math.abs(dragTo - dragFrom), bottom - top);
    }
    if (cursor !== null) {
      const at = Math.round(x(cursor, ends, width)) + 0.5;
      pen.strokeStyle = colours.of("color-mix(in srgb, var(--ink) 45%, transparent)");
      pen.lineWidth = 1;
      rule(at, top - 4, at, bottom);
      for (const { points, colour } of visible()) {
        const index = points.nearest(cursor);
        const value = points.values[index];
        if (!Number.isFinite(value) || (content.log && value <= 0)) continue;
        dot(x(points.steps[index], ends, width), y(value), 3.2, colours.of(colour));
      }
    }
    pen.restore();
    if (cursor !== null) {
      const text = `step ${stepText(cursor)}`;
      const half = pen.measureText(text).width / 2 + 5;
      const at = Math.min(width - half, Math.max(half, x(cursor, ends, width)));
      pen.fillStyle = ink;
      pen.beginPath();
      pen.roundRect(at - half, bottom + 3, 2 * half, 15, 4);
      pen.fill();
      pen.fillStyle = colours.of("var(--paper)");
      pen.textAlign = "center";
      pen.fillText(text, at, bottom + 14);
    }
  }

  /** The values beside the names: those at the cursor, else the last. */
  function readLegend() {
    content.lines.forEach(({ points }, at) => {
      const index = cursor === null ? points.count - 1 : points.nearest(cursor);
      const text = index < 0 ? "" : figure(points.values[index]);
      const cell = legend.children[at]?.lastElementChild;
      if (cell && cell.textContent !== text) cell.textContent = text;
    });
  }

  function makeLegend() {
    const key = JSON.stringify(content.lines.map(({ name, colour, dashed }) => [name, colour, dashed, off.has(name)]));
    if (key === legendKey) return;
    legendKey = key;
    legend.replaceChildren(
      ...content.lines.map(({ name, colour, dashed }) =>
        element(
          "button",
          {
            type: "button",
            class: "chm-curves-key",
            "aria-pressed": String(!off.has(name)),
            title: `Show or hide ${name}`,
            on: { click: () => toggle(name) },
          },
          element("i", { class: dashed ? "chm-curves-dashed" : "", style: `--key:${colour}` }),
          element("span", { text: name === content.title ? "" : name }),
          element("span.chm-curves-value"),
        ),
      ),
    );
  }

  /** @param {string} name */
  function toggle(name) {
    if (!off.delete(name)) off.add(name);
    const at = content.lines.findIndex((line) => line.name === name);
    legend.children[at]?.setAttribute("aria-pressed", String(!off.has(name)));
    toggled?.(name, !off.has(name));
    frame.ask();
  }

  function describe() {
    const words = content.lines
      .filter(({ points }) => points.count)
      .map(
        ({ name, points }) =>
          `${name} ${figure(points.values[points.count - 1])} at step ${stepText(points.steps[points.count - 1])}`,
      );
    return `${content.title}: ${words.join(", ") || "nothing recorded yet"}. Arrow keys read the values.`;
  }

  // The cursor: by pointer or by keys

  /** @param {number | null} step */
  function point(step) {
    if (step === cursor) return;
    cursor = step;
    frame.ask();
  }

  const NEAR = 6; // CSS pixels from a mark within which its words are shown

  /** Marks at a place of the plot. @param {number | null} place CSS pixels */
  function marksAt(place) {
    const ends = across();
    if (!ends || place === null) return [];
    const away = (/** @type {Mark} */ mark) => Math.abs(x(mark.step, ends, size.width) - place);
    const near = content.marks.filter((mark) => mark.step >= ends[0] && mark.step <= ends[1] && away(mark) <= NEAR);
    const nearest = Math.min(...near.map(away));
    return near.filter((mark) => away(mark) - nearest < 1);
  }

  /** The words of the marks at a place. @param {number | null} place CSS pixels */
  function tellMarks(place) {
    const marks = marksAt(place);
    bubble.hidden = !marks.length;
    const ends = across();
    if (!marks.length || !ends) return;
    const words = marks.slice(0, 4).map((mark) => `step ${stepText(mark.step)} · ${mark.words}`);
    if (marks.length > words.length) words.push(`and ${marks.length - words.length} more`);
    bubble.textContent = words.join("\n");
    const at = x(marks[0].step, ends, size.width);
    bubble.style.left = `${Math.max(4, Math.min(at, size.width - 4))}px`;
    bubble.classList.toggle("chm-curves-left", at > size.width / 2);
  }

  /** @param {number | null} step @param {boolean} [aloud] */
  function move(step, aloud = false) {
    point(step);
    pointed?.(step);
    if (aloud && step !== null)
      spoken.textContent = `Step ${stepText(step)}: ${visible()
        .map(({ name, points }) => `${name} ${figure(points.values[points.nearest(step)])}`)
        .join(", ")}`;
  }

  /** The recorded step nearest to a place on the page. @param {MouseEvent} event */
  function under(event) {
    const ends = across();
    const box = plot.getBoundingClientRect();
    const place = event.clientX - box.left;
    if (!ends) return { place, step: null };
    const step = ends[0] + ((place - GUTTER.left) / (box.width - GUTTER.left - GUTTER.right)) * (ends[1] - ends[0]);
    return { place, step: snap(Math.min(ends[1], Math.max(ends[0], step))) };
  }

  /** @param {number} step */
  function snap(step) {
    let best = Infinity;
    for (const { points } of visible()) {
      const near = points.steps[points.nearest(step)];
      if (Math.abs(near - step) < Math.abs(best - step)) best = near;
    }
    return Number.isFinite(best) ? best : Math.round(step);
  }

  plot.addEventListener("pointermove", (event) => {
    const { place, step } = under(event);
    dragTo = place;
    tellMarks(dragFrom === null ? place : null);
    move(step);
    if (dragFrom !== null) frame.ask();
  });
  plot.addEventListener("pointerleave", () => {
    tellMarks(null);
    if (dragFrom === null) move(null);
  });
  plot.addEventListener("pointerdown", (event) => {
    if (!zoomed || event.button) return;
    plot.setPointerCapture(event.pointerId);
    dragFrom = dragTo = under(event).place;
  });
  plot.addEventListener("pointerup", (event) => {
    const [from, ends, width] = [dragFrom, across(), size.width];
    dragFrom = null;
    frame.ask();
    if (from === null || !ends || Math.abs(dragTo - from) <= 4) return;
    const step = (/** @type {number} */ place) =>
      ends[0] + ((place - GUTTER.left) / (width - GUTTER.left - GUTTER.right)) * (ends[1] - ends[0]);
    const low = Math.max(ends[0], Math.floor(step(Math.min(from, dragTo))));
    zoomed?.([low, Math.max(low + 1, Math.min(ends[1], Math.ceil(step(Math.max(from, dragTo)))))]);
    event.preventDefault();
  });
  plot.addEventListener("pointercancel", () => {
    dragFrom = null;
    frame.ask();
  });
  plot.addEventListener("dblclick", () => zoomed?.(null));
  plot.addEventListener("keydown", (event) => {
    const points = visible().reduce(
      (/** @type {import("./points.js").Points | null} */ most, each) =>
        each.points.count > (most?.count ?? 0) ? each.points : most,
      null,
    );
    const ends = across();
    if (!points || !ends) return;
    const [first, last] = [Math.max(0, points.place(ends[0])), Math.max(0, points.place(ends[1]))];
    const stride = event.shiftKey ? Math.max(1, Math.round((last - first) / 10)) : 1;
    const at = cursor === null ? last + 1 : points.nearest(cursor);
    const to = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: first, End: last }[event.key];
    if (event.key === "Escape") {
      move(null);
      zoomed?.(null);
    } else if (to !== undefined) {
      const step = points.steps[Math.min(last, Math.max(first, to))];
      move(step, true);
      tellMarks(x(step, ends, size.width));
    } else return;
    event.preventDefault();
  });
  plot.addEventListener("focus", () => plot.setAttribute("aria-label", describe()));
  plot.addEventListener("blur", () => {
    tellMarks(null);
    move(null);
  });

  const size = sized(plot, frame.ask);
  const forgetTheme = watchTheme(() => {
    colours.forget();
    picture.theme += 1;
    frame.ask();
  });

  /** @param {Partial<Shown>} change what is left out stays as it is */
  function show(change) {
    Object.assign(content, change);
    picture.key = ""; // points may be others
    heading.textContent = content.title;
    units.textContent = content.unit;
    heading.title = content.hint;
    makeLegend();
    plot.setAttribute("aria-label", describe());
    frame.ask();
  }
  show({});

  return {
    node,
    /** Where to put a chart's own controls, at the end of its caption. */
    tools,
    show,
    /** The points have grown. */
    paint: frame.ask,
    /** Other steps at the two ends, for one who asks often. @param {[number, number] | null} range */
    range(range) {
      content.range = range;
      frame.ask();
    },
    point,
    /** Makes a mark stand out; null: none. @param {Mark | null} mark */
    light(mark) {
      highlight = mark;
      frame.ask();
    },
    dispose() {
      frame.dispose();
      size.dispose();
      forgetTheme();
    },
  };
}
