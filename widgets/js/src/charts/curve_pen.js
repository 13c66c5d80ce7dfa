// What a chart of curves draws: lines of few points and of many, marks on the axis of steps, the steps themselves.

import { linearTicks, stepText } from "./axis.js";

/** CSS pixels around the plot, the same wherever steps run across, so that things below one another agree. */
export const GUTTER = { left: 54, right: 14, top: 12, bottom: 20 };

/**
 * @typedef {object} View where things are on the canvas, in CSS pixels
 * @property {[number, number]} ends steps at the two ends
 * @property {number} width of the canvas
 * @property {number} bottom of the plot
 * @property {boolean} log
 * @property {(value: number) => number} y
 */

/** @param {number} step @param {[number, number]} ends @param {number} width */
export const placeOf = (step, [from, to], width) =>
  GUTTER.left + ((step - from) / (to - from)) * (width - GUTTER.left - GUTTER.right);

/** @param {CanvasRenderingContext2D} pen @param {ReturnType<typeof import("./canvas.js").palette>} colours */
export function curvePen(pen, colours) {
  /** @param {number} x1 @param {number} y1 @param {number} x2 @param {number} y2 */
  function rule(x1, y1, x2, y2) {
    pen.beginPath();
    pen.moveTo(x1, y1);
    pen.lineTo(x2, y2);
    pen.stroke();
  }

  /** @param {number} at @param {number} up @param {number} radius @param {string} colour */
  function dot(at, up, radius, colour) {
    pen.beginPath();
    pen.arc(at, up, radius, 0, 2 * Math.PI);
    pen.fillStyle = colour;
    pen.fill();
    pen.lineWidth = 1.5;
    pen.strokeStyle = colours.of("var(--paper)");
    pen.stroke();
  }

  /** The steps below the plot. @param {Omit<View, "y">} view */
  function steps({ ends, width, bottom }) {
    pen.fillStyle = colours.of("var(--ink-soft)");
    pen.textAlign = "center";
    for (const step of linearTicks(ends[0], ends[1], Math.max(2, Math.floor(width / 90)))) {
      if (!Number.isInteger(step)) continue;
      const text = stepText(step);
      const half = pen.measureText(text).width / 2;
      pen.fillText(text, Math.min(width - half - 1, placeOf(step, ends, width)), bottom + 14);
    }
  }

  /** @param {import("./curves.js").Mark} mark @param {Omit<View, "y">} view */
  function drawMark(mark, { ends, width, bottom }) {
    if (mark.step < ends[0] || mark.step > ends[1]) return;
    const at = Math.round(placeOf(mark.step, ends, width)) + 0.5;
    const colour = colours.of(mark.colour);
    pen.globalAlpha = 0.5;
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    pen.setLineDash({ change: [3, 3], stage: [1, 3], alarm: [] }[mark.kind]);
    rule(at, 8, at, bottom);
    pen.setLineDash([]);
    pen.globalAlpha = 1;
    pen.fillStyle = colour;
    pen.beginPath();
    if (mark.kind === "stage") pen.rect(at - 3.5, 1, 7, 7);
    else if (mark.kind === "change")
      for (const [dx, dy] of [
        [0, 0.5],
        [4, 4.5],
        [0, 8.5],
        [-4, 4.5],
      ])
        pen.lineTo(at + dx, dy);
    else
      for (const [dx, dy] of [
        [-4.5, 1],
        [4.5, 1],
        [0, 9],
      ])
        pen.lineTo(at + dx, dy);
    pen.fill();
  }

  /** From a place on, CSS pixels. @param {import("./curves.js").Line} line @param {View} view @param {number} start */
  function drawLine(line, view, start) {
    const { ends, width, bottom } = view;
    if (line.band) drawBand(line, view);
    const columns = Math.max(1, Math.round(width - GUTTER.left - GUTTER.right));
    const { first, last } = line.points.between(...ends);
    const skip = Math.max(0, start - GUTTER.left - 2);
    const broken =
      last - first > 3 * columns ? drawDense(line, view, columns, skip) : drawPath(line, view, skip / columns);
    pen.strokeStyle = colours.of("var(--danger)");
    pen.lineWidth = 1.4;
    let before = -Infinity;
    for (const at of broken) {
      if (at < before + 7) continue;
      rule(at - 3, bottom - 9, at + 3, bottom - 3);
      rule(at - 3, bottom - 3, at + 3, bottom - 9);
      before = at;
    }
  }

  /** From the lowest to the highest; what is no number leaves a gap. @param {import("./curves.js").Line} line @param {View} view */
  function drawBand({ band, colour }, { ends, width, log, y }) {
    if (!band) return;
    const { first, last } = band.low.between(...ends);
    const every = Math.max(1, Math.floor((last - first) / (2 * width)));
    const inside = (/** @type {number} */ at) =>
      [band.low, band.high].every(({ values }) => Number.isFinite(values[at]) && (!log || values[at] > 0));
    pen.fillStyle = colours.of(colour);
    pen.globalAlpha = 0.18;
    for (let at = first; at <= last; at += every) {
      const run = [];
      for (; at <= last && inside(at); at += every) run.push(at);
      if (!run.length) continue;
      pen.beginPath();
      for (const each of run) pen.lineTo(placeOf(band.high.steps[each], ends, width), y(band.high.values[each]));
      for (const each of run.reverse())
        pen.lineTo(placeOf(band.low.steps[each], ends, width), y(band.low.values[each]));
      pen.fill();
    }
    pen.globalAlpha = 1;
  }

  /**
   * Few points: a line through all of them. Gives where it is broken, in CSS pixels.
   * @param {import("./curves.js").Line} line @param {View} view @param {number} skip share of the width that need not be drawn
   */
  function drawPath({ points, colour, dashed, dots }, { ends, width, log, y }, skip) {
    const { steps, values } = points;
    const { first: all, last } = points.between(...ends);
    const first = skip && !dashed ? points.between(ends[0] + skip * (ends[1] - ends[0]), ends[1]).first : all;
    const inside = (/** @type {number} */ at) => Number.isFinite(values[at]) && (!log || values[at] > 0);
    const broken = [];
    pen.strokeStyle = colours.of(colour);
    pen.lineWidth = 1.5;
    pen.lineJoin = last - all > 400 ? "bevel" : "round";
    pen.setLineDash(dashed ? [5, 3] : []);
    pen.beginPath();
    for (let at = first, open = false; at <= last; at += 1) {
      const place = placeOf(steps[at], ends, width);
      if (!Number.isFinite(values[at])) broken.push(place);
      if (!inside(at)) open = false;
      else if (open) pen.lineTo(place, y(values[at]));
      else {
        pen.moveTo(place, y(values[at]));
        open = true;
      }
    }
    pen.stroke();
    pen.setLineDash([]);
    const spare = last - all < 60;
    for (let at = first; at <= last; at += 1) {
      const alone = !inside(at - 1) && !inside(at + 1);
      if (inside(at) && ((dots && spare) || alone))
        dot(placeOf(steps[at], ends, width), y(values[at]), 2.6, colours.of(colour));
    }
    return broken;
  }

  /**
   * Many points: a bar from the lowest to the highest in each column, which costs the same for any number of them.
   * @param {import("./curves.js").Line} line @param {View} view @param {number} columns @param {number} skip how many need not be drawn
   */
  function drawDense({ points, colour }, { ends, log, y }, columns, skip) {
    const { low, high, broken } = points.columns(ends[0], ends[1], columns, log, skip);
    const marks = [];
    pen.fillStyle = colours.of(colour);
    let [above, below] = [NaN, NaN]; // the bar before, which this one touches
    for (let column = skip; column < columns; column += 1) {
      const at = GUTTER.left + column;
      if (broken[column]) marks.push(at);
      if (low[column] > high[column]) {
        if (broken[column]) above = below = NaN;
        continue;
      }
      let [top, bottom] = [y(high[column]), y(low[column])];
      if (top > below) top = below;
      if (bottom < above) bottom = above;
      pen.fillRect(at, top - 0.75, 1, bottom - top + 1.5);
      [above, below] = [y(high[column]), y(low[column])];
    }
    return marks;
  }

  return { rule, dot, steps, mark: drawMark, line: drawLine };
}
