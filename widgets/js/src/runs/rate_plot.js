// The held-out loss against the learning rate, a line for each configuration: how much a choice of rate matters.

import { figure, linearTicks } from "../charts/axis.js";
import { element, shape } from "../frame/dom.js";
import { colourOf, number } from "./compare_tables.js";
import { capital } from "./run_records.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [54, 16, 12, 34];

/** @typedef {import("./messages.js").RateGroup} Group */

/**
 * Losses as they count: at most the one at the start, which is also what one that is no number counts as.
 * @param {Group} group @param {number} start
 */
export function counted({ losses }, start) {
  return losses
    .map(([rate, of]) => {
      const seeds = of
        .map(number)
        .map((loss) => (Number.isNaN(loss) ? start : Math.min(loss, start)))
        .filter(Number.isFinite);
      return { rate, seeds, mean: seeds.reduce((sum, each) => sum + each, 0) / seeds.length };
    })
    .filter(({ seeds }) => seeds.length);
}

export function ratePlot() {
  const plot = shape("svg", { role: "img", class: "chm-rates-plot" });
  const legend = element("ul.chm-rates-legend");
  const words = element("p.chm-compare-note");
  const [subject, axes] = [element("b"), element("span")];
  const node = element("figure.chm-rates", element("figcaption", subject, axes), plot, legend, words);
  let facts = /** @type {import("./messages.js").RateFacts} */ ({ words: "", unit: "", start: "inf", groups: [] });
  const room = new ResizeObserver(draw);
  room.observe(plot);

  function draw() {
    const start = number(facts.start);
    const lines = facts.groups.map((group) => counted(group, start));
    const points = lines.flat();
    const [width, height] = [plot.clientWidth, plot.clientHeight];
    if (!width || !points.length) return void plot.replaceChildren();
    const rates = [...new Set(points.map(({ rate }) => rate))].sort((one, other) => one - other);
    const all = points.flatMap(({ seeds }) => seeds);
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const spare = (most - least || 1) * 0.08;
    const [low, high] = [least - spare, most + spare];
    const span = Math.log(rates[rates.length - 1] / rates[0]) || 1;
    const inset = 18;
    const x = (/** @type {number} */ rate) =>
      rates.length < 2
        ? width / 2
        : LEFT + inset + (Math.log(rate / rates[0]) / span) * (width - LEFT - RIGHT - 2 * inset);
    const y = (/** @type {number} */ loss) => height - BOTTOM - ((loss - low) / (high - low)) * (height - TOP - BOTTOM);
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    plot.setAttribute(
      "aria-label",
      `${capital(facts.words)} against learning rate. ${facts.groups
        .map(
          (group, at) =>
            `${group.name}: ${lines[at].map(({ rate, mean }) => `${figure(mean)} at ${figure(rate)}`).join(", ")}`,
        )
        .join(". ")}`,
    );
    let free = -Infinity; // where the last label of a rate ended
    plot.replaceChildren(
      ...linearTicks(low, high, Math.max(2, Math.floor(height / 40))).flatMap((tick) => [
        shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick), class: "chm-rates-rule" }),
        shape("text", { x: LEFT - 7, y: y(tick) + 3.5, "text-anchor": "end" }, figure(tick)),
      ]),
      ...rates.flatMap((rate) => {
        if (x(rate) - free < 34) return [];
        free = x(rate);
        return [shape("text", { x: x(rate), y: height - BOTTOM + 15, "text-anchor": "middle" }, figure(rate))];
      }),
      shape("line", { x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM, class: "chm-rates-rule" }),
      shape("text", { x: (LEFT + width - RIGHT) / 2, y: height - 4, "text-anchor": "middle" }, "learning rate"),
      ...lines.flatMap((line, at) => {
        const colour = `--key:${colourOf(at)}`;
        return [
          ...line
            .filter(({ seeds }) => seeds.length > 1)
            .map(({ rate, seeds }) =>
              shape("line", {
                x1: x(rate),
                x2: x(rate),
                y1: y(Math.min(...seeds)),
                y2: y(Math.max(...seeds)),
                class: "chm-rates-range",
                style: colour,
              }),
            ),
          shape("polyline", {
            points: line.map(({ rate, mean }) => `${x(rate).toFixed(1)},${y(mean).toFixed(1)}`).join(" "),
            class: "chm-rates-line",
            style: colour,
          }),
          ...line.map(({ rate, mean, seeds }) =>
            shape(
              "circle",
              { cx: x(rate), cy: y(mean), r: 3.6, class: "chm-rates-dot", style: colour },
              shape(
                "title",
                {},
                `${facts.groups[at].name}: ${figure(mean)} at ${figure(rate)}, ${seeds.length} ${seeds.length > 1 ? "seeds" : "seed"}`,
              ),
            ),
          ),
        ];
      }),
    );
  }

  return {
    node,
    /** @param {typeof facts} rates */
    show(rates) {
      facts = rates;
      subject.textContent = capital(rates.words);
      axes.textContent = ` against learning rate, ${rates.unit}`;
      legend.replaceChildren(
        ...rates.groups.map((group, at) =>
          element(
            "li",
            element("i", { style: `--key:${colourOf(at)}` }),
            element("span", { text: group.name }),
            element("output", { text: `sensitivity ${figure(number(group.number))}` }),
          ),
        ),
      );
      const start = number(rates.start);
      words.textContent =
        "Sensitivity: mean over rates of the loss less the best of them (Wortsman et al. 2023)." +
        (Number.isFinite(start) ? ` No loss counts for more than the one at the start, ${figure(start)}.` : "");
      draw();
    },
    dispose: () => room.disconnect(),
  };
}
