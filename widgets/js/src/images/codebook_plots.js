// Two plots of a codebook's use: the counts sorted, on a log axis, and the share of the book used as tokens come in.

import { grouped, percent, short } from "../charts/axis.js";
import { element, shape } from "../frame/dom.js";
import { share, ticks } from "./codebook_scale.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [40, 10, 8, 20];
const STEPS = 400; // points of a drawn curve at most
let patterns = 0;

/** @param {string} title */
function frame(title) {
  const words = element("span");
  const plot = shape("svg", { role: "img", class: "chm-atlas-plot" });
  const node = element("figure.chm-atlas-figure", element("figcaption", element("b", { text: title }), words), plot);

  /** The empty axes. @param {string} label @param {[number, string][]} across @param {[number, string][]} up */
  function axes(label, across, up) {
    const [width, height] = [Math.max(120, plot.clientWidth || 260), plot.clientHeight || 120];
    const x = (/** @type {number} */ part) => LEFT + part * (width - LEFT - RIGHT);
    const y = (/** @type {number} */ part) => height - BOTTOM - part * (height - TOP - BOTTOM);
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    plot.setAttribute("aria-label", label);
    plot.replaceChildren(
      ...up.flatMap(([part, text]) => [
        shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(part), y2: y(part), class: "chm-atlas-rule" }),
        shape("text", { x: LEFT - 6, y: y(part) + 3.5, "text-anchor": "end" }, text),
      ]),
      ...across.map(([part, text]) =>
        shape(
          "text",
          { x: x(part), y: height - 5, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" },
          text,
        ),
      ),
      shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(0), y2: y(0), class: "chm-atlas-axis" }),
    );
    return { plot, x, y };
  }
  return { node, words, axes };
}

/** @param {string} words @param {boolean} [even] */
const key = (words, even = false) => [
  element("i", { class: `chm-atlas-key ${even ? "chm-atlas-key-even" : ""}` }),
  element("span", { text: words, title: even ? "as many tokens, drawn evenly among all codes" : null }),
];

/** @param {[number, number][]} points */
const path = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** Counts of all codes, most seen first, on a log axis; the codes never seen are the hatched end. */
export function sortedPlot() {
  const { node, words, axes } = frame("Codes by use");
  const hatch = `chm-hatch-${(patterns += 1)}`;
  return {
    node,
    /** @param {import("./codebook_map.js").Book} book @param {Uint32Array} byCount @param {number | null} selected */
    draw(book, byCount, selected) {
      const size = byCount.length;
      const used = book.counts.reduce((sum, count) => sum + (count > 0 ? 1 : 0), 0);
      words.replaceChildren(...(book.tokens ? ["times seen ", ...key("even", true)] : ["nothing seen yet"]));
      const label =
        `Codes by use: ${used} of ${size} codes seen, the most seen ${grouped(book.most)} times, ` +
        `${size - used} never`;
      const { plot, x, y } = axes(
        label,
        [
          [0, "rank 1"],
          [1, grouped(size)],
        ],
        book.tokens ? ticks(book.most).map((count) => [share(count, book.most), short(count)]) : [],
      );
      if (!book.tokens) return;
      const step = Math.max(1, Math.floor(used / STEPS));
      const points = /** @type {[number, number][]} */ ([]);
      for (let rank = 0; rank < used; rank += step)
        points.push([x(rank / size), y(share(book.counts[byCount[rank]], book.most))]);
      points.push([x(used / size), y(share(book.counts[byCount[used - 1]], book.most))]);
      const even = book.tokens / size;
      plot.append(
        shape("path", { d: `${path(points)}V${y(0)}H${x(0)}Z`, class: "chm-atlas-area" }),
        shape("path", { d: path(points), class: "chm-atlas-line" }),
      );
      if (even >= 1)
        plot.append(
          shape(
            "line",
            {
              x1: x(0),
              x2: x(1),
              y1: y(share(even, book.most)),
              y2: y(share(even, book.most)),
              class: "chm-atlas-even",
            },
            shape("title", {}, `drawn evenly: ${even.toFixed(1)} times each`),
          ),
        );
      if (used < size) {
        const wide = Math.max(2, x(1) - x(used / size));
        const beside = used > size / 3;
        const dead = shape(
          "text",
          {
            x: beside ? x(used / size) - 5 : x(used / size) + 6,
            y: y(0.88),
            "text-anchor": beside ? "end" : "start",
            class: "chm-atlas-dead",
          },
          `× ${grouped(size - used)} dead`,
        );
        plot.append(
          shape(
            "defs",
            {},
            shape(
              "pattern",
              { id: hatch, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
              shape("rect", { width: 1.4, height: 5, class: "chm-atlas-hatch" }),
            ),
          ),
          shape("rect", { x: x(1) - wide, y: y(1), width: wide, height: y(0) - y(1), fill: `url(#${hatch})` }),
          dead,
        );
      }
      if (selected !== null && book.counts[selected] > 0) {
        const rank = byCount.indexOf(selected);
        plot.append(
          shape("circle", {
            cx: x(rank / size),
            cy: y(share(book.counts[selected], book.most)),
            r: 3.5,
            class: "chm-atlas-dot",
          }),
        );
      }
    },
  };
}

/** The share of the codebook used, against tokens seen, beside what drawing codes evenly would give. */
export function growthPlot() {
  const { node, words, axes } = frame("Use against tokens");
  return {
    node,
    /** @param {{tokens: number, usage: number, even: number, measured: [number, number][], evenly: [number, number][]}} facts */
    draw({ tokens, usage, even, measured, evenly }) {
      words.replaceChildren(...(tokens ? [...key("measured"), " ", ...key("even", true)] : ["nothing seen yet"]));
      const top = Math.max(0.02, usage, even);
      const unit = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5].find((each) => top / each <= 4.01) ?? 0.25;
      const most = Math.min(1, Math.ceil(top / unit) * unit);
      const up = /** @type {[number, string][]} */ ([]);
      for (let tick = 0; tick <= most + 1e-9; tick += unit) up.push([tick / most, `${Math.round(100 * tick)} %`]);
      const { plot, x, y } = axes(
        `Share of the codebook used: ${percent(usage)} after ${grouped(tokens)} tokens; ` +
          `${percent(even)} if drawn evenly`,
        [
          [0, "0"],
          [1, `${grouped(tokens)} tokens`],
        ],
        tokens ? up : [],
      );
      if (!tokens) return;
      /** @param {[number, number][]} curve @returns {[number, number][]} */
      const placed = (curve) => [
        [x(0), y(0)],
        ...curve.map(([at, part]) => /** @type {[number, number]} */ ([x(at / tokens), y(part / most)])),
      ];
      plot.append(shape("path", { d: path(placed(evenly)), class: "chm-atlas-even" }));
      if (measured.length > 1) plot.append(shape("path", { d: path(placed(measured)), class: "chm-atlas-line" }));
      plot.append(shape("circle", { cx: x(1), cy: y(usage / most), r: 3, class: "chm-atlas-dot" }));
    },
  };
}
