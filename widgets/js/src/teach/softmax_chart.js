// One softmax for words and patches: the whole vocabulary as one spectrum, its kinds as one bar, and the likeliest.

import { oncePerFrame, palette, sized, surface } from "../charts/canvas.js";
import { element } from "../frame/dom.js";
import { watchTheme } from "../frame/theme.js";
import { COLOURS } from "./attention_chart.js";
import { KINDS, percent } from "./lesson.js";

const GUTTER = 48;
const DECADES = 5; // of probability that the spectrum spans
const NARROW = 34; // pixels that the smallest block gets, at least

/**
 * @typedef {object} Distribution what the chart shows
 * @property {Float64Array} before what the model says, of all tokens
 * @property {Float64Array | null} after what is left of it, of all tokens; null: nothing was done to it yet
 * @property {(token: number) => string} why a token was left out; "" for one that was not
 * @property {number | null} drawn the token that the draw picks
 */

/** @param {number} count */
const many = (count) => `${count.toLocaleString("en")} token${count === 1 ? "" : "s"}`;

/**
 * Where each id lies across a width: blocks in proportion to their ids, small ones as wide as can be read.
 * @param {{first: number, stop: number}[]} blocks @param {number} width
 * @returns {(token: number) => number}
 */
export function spread(blocks, width) {
  const size = blocks.at(-1)?.stop ?? 1;
  const small = blocks.map(({ first, stop }) => ((stop - first) / size) * width < NARROW);
  const rest = blocks.reduce((sum, { first, stop }, at) => sum + (small[at] ? 0 : stop - first), 0);
  const room = width - NARROW * small.filter(Boolean).length;
  let left = 0;
  const edges = blocks.map(({ first, stop }, at) => {
    const wide = small[at] ? NARROW : (room * (stop - first)) / Math.max(1, rest);
    left += wide;
    return { first, stop, start: left - wide, wide };
  });
  return (token) => {
    const edge = edges.find(({ stop }) => token < stop) ?? edges[edges.length - 1];
    return edge.start + ((token - edge.first + 0.5) / (edge.stop - edge.first)) * edge.wide;
  };
}

/** How high a share stands: 0 for 10^-5 and less, 1 for all. @param {number} share */
export const height = (share) => Math.max(0, 1 + Math.log10(Math.max(share, 1e-300)) / DECADES);

/**
 * The rows of the chart: the likeliest of what is left; of a distribution to which nothing was done, the likeliest of
 * each kind.
 * @param {Distribution} distribution @param {(token: number) => number} modality @param {number} count
 */
export function likeliest({ before, after }, modality, count) {
  const shares = after ?? before;
  /** @param {(token: number) => boolean} among @param {ArrayLike<number>} by @param {number} most */
  const best = (among, by, most) => {
    const out = /** @type {number[]} */ ([]);
    for (let token = 0; token < by.length; token += 1) {
      if (!among(token) || (out.length === most && by[token] <= by[out[most - 1]])) continue;
      let at = out.length;
      while (at && by[out[at - 1]] < by[token]) at -= 1;
      out.splice(at, 0, token);
      if (out.length > most) out.pop();
    }
    return out;
  };
  if (!after) return KINDS.map((_, kind) => best((token) => modality(token) === kind, shares, kind === 2 ? 3 : count));
  return [best((token) => after[token] > 0, after, count)];
}

/**
 * Why tokens were left out: of each reason how many, which share they had, and the likeliest of them; the reason that
 * took most comes first.
 * @param {Distribution} distribution @param {number} count
 */
export function leftOut({ before, after, why }, count) {
  const reasons = /** @type {Map<string, {tokens: number[], count: number, share: number}>} */ (new Map());
  for (let token = 0; after && token < before.length; token += 1) {
    if (after[token]) continue;
    const reason = why(token);
    const group = reasons.get(reason) ?? { tokens: [], count: 0, share: 0 };
    reasons.set(reason, group);
    group.count += 1;
    group.share += before[token];
    group.tokens.push(token);
    if (group.tokens.length > 4 * count) trim(group.tokens);
  }
  /** @param {number[]} tokens */
  function trim(tokens) {
    tokens.sort((one, other) => before[other] - before[one]).length = Math.min(tokens.length, count);
  }
  for (const { tokens } of reasons.values()) trim(tokens);
  return [...reasons].sort(([, one], [, other]) => other.share - one.share);
}

/**
 * @param {import("./lesson.js").Lesson} lesson
 * @param {(token: number) => void} take
 */
export function softmaxChart(lesson, take) {
  const { canvas, pen, clear } = surface();
  const plot = element("div.chm-teach-plot.chm-teach-spectrum", { role: "img" }, canvas);
  const readout = element("p.chm-teach-note");
  const kinds = element("div.chm-teach-kinds");
  const columns = element("div.chm-teach-columns");
  const node = element("div.chm-teach-softmax", kinds, plot, readout, columns);
  const colours = palette(node);
  const frame = oncePerFrame(draw);
  const size = sized(plot, frame.ask);
  const forgetTheme = watchTheme(() => {
    colours.forget();
    frame.ask();
  });
  let what = /** @type {Distribution | null} */ (null);
  let here = /** @type {number | null} */ (null);

  function draw() {
    const { width, height: tall } = size;
    if (!width || !what) return;
    clear(width, tall);
    const place = spread(lesson.blocks, width - GUTTER - 4);
    const [top, bottom] = [6, tall - 26];
    pen.font = colours.font();
    pen.textBaseline = "middle";
    for (let decade = 0; decade <= DECADES; decade += 1) {
      const y = Math.round(top + (decade / DECADES) * (bottom - top)) + 0.5;
      pen.fillStyle = colours.of("var(--line)");
      pen.fillRect(GUTTER, y, width - GUTTER, 1);
      pen.fillStyle = colours.of("var(--ink-soft)");
      pen.textAlign = "right";
      if (decade % 2 === 0) pen.fillText(`${100 / 10 ** decade} %`, GUTTER - 5, y);
    }
    const { before, after } = what;
    const grey = colours.of("var(--ink-soft)");
    /** @param {ArrayLike<number>} shares @param {number} alpha @param {boolean} all */
    const spikes = (shares, alpha, all) => {
      for (let token = 0; token < shares.length; token += 1) {
        const up = height(shares[token]) * (bottom - top);
        if (up <= 0) continue;
        pen.globalAlpha = alpha;
        pen.fillStyle = all && after && !after[token] ? grey : COLOURS[lesson.modality(token)];
        pen.fillRect(GUTTER + place(token) - 0.6, bottom - up, 1.4, up);
      }
    };
    spikes(before, after ? 0.28 : 0.9, true);
    if (after) spikes(after, 1, false);
    pen.globalAlpha = 1;
    for (const { first, stop, modality } of lesson.blocks) {
      const [start, end] = [GUTTER + place(first) - 2, GUTTER + place(stop - 1) + 2];
      pen.fillStyle = COLOURS[modality];
      pen.fillRect(start, bottom + 3, Math.max(2, end - start), 4);
      pen.fillStyle = grey;
      pen.textAlign = "left";
      if (end - start > 60) pen.fillText(`${KINDS[modality]} ${first}–${stop - 1}`, start, bottom + 15);
    }
    if (here !== null) {
      const x = GUTTER + place(here);
      pen.fillStyle = colours.of("var(--ink)");
      pen.fillRect(x - 0.5, top, 1, bottom - top + 8);
    }
  }

  /** @param {PointerEvent} event */
  function under(event) {
    if (!what) return null;
    const place = spread(lesson.blocks, size.width - GUTTER - 4);
    const x = event.clientX - plot.getBoundingClientRect().left - GUTTER;
    let [best, near] = [/** @type {number | null} */ (null), 5];
    for (let token = 0; token < what.before.length; token += 1) {
      const far = Math.abs(place(token) - x) - 2 * height(Math.max(what.before[token], what.after?.[token] ?? 0));
      if (far < near) [best, near] = [token, far];
    }
    return best;
  }
  plot.addEventListener("pointermove", (event) => {
    here = under(event);
    tell();
    frame.ask();
  });
  plot.addEventListener("pointerleave", () => {
    here = null;
    tell();
    frame.ask();
  });

  function tell() {
    if (!what) return;
    const { before, after, why } = what;
    if (here === null) {
      const count = after ? after.reduce((sum, share) => sum + (share > 0 ? 1 : 0), 0) : before.length;
      readout.textContent = after
        ? `${count.toLocaleString("en")} of ${before.length.toLocaleString("en")} tokens are left; pale is what the model said, grey what may not come.`
        : `All ${before.length.toLocaleString("en")} tokens of the vocabulary, words and patches, share one 100 %.`;
      return;
    }
    const reason = after ? why(here) : "";
    const now = after ? ` → ${percent(after[here])}` : "";
    readout.textContent = `${lesson.words(here)}, token ${here}: ${percent(before[here])}${now}${reason && after && !after[here] ? `. ${reason}` : ""}`;
  }

  /** @param {number} token @param {number} scale */
  function row(token, scale) {
    const { before, after, drawn } = /** @type {Distribution} */ (what);
    const [old, now] = [before[token], after ? after[token] : before[token]];
    const out = after !== null && !now;
    const name = element("span.chm-teach-name", lesson.swatch(token), lesson.words(token));
    const bars = element(
      "span.chm-teach-bars",
      element(`i.chm-teach-now.chm-teach-back-${KINDS[lesson.modality(token)]}`, {
        style: `width:${(100 * now) / scale}%`,
      }),
      after ? element("i.chm-teach-old", { style: `width:${(100 * Math.min(old, scale)) / scale}%` }) : null,
    );
    const value = element("span.chm-teach-value", { text: out ? percent(old) : percent(now) });
    const each = element(
      "button.chm-teach-row",
      {
        type: "button",
        disabled: Boolean(lesson.reason(token)) || lesson.step?.ended,
        title: lesson.reason(token) || `Put ${lesson.words(token)} behind the sequence`,
        on: { click: () => take(token) },
      },
      name,
      bars,
      value,
    );
    each.classList.toggle("chm-teach-out", out);
    each.classList.toggle("chm-teach-drawn", token === drawn);
    return each;
  }

  /** @param {string} title @param {number[]} tokens @param {number} scale */
  const column = (title, tokens, scale) =>
    element(
      "div.chm-teach-column",
      { role: "group", "aria-label": title },
      element("b", { text: title }),
      ...tokens.map((token) => row(token, scale)),
    );

  return {
    node,
    /** @param {Distribution} distribution @param {number} [count] rows of a column */
    show(distribution, count = 8) {
      what = distribution;
      const { before, after } = what;
      const shares = [0, 0, 0];
      (after ?? before).forEach((share, token) => (shares[lesson.modality(token)] += share));
      kinds.replaceChildren(
        ...KINDS.map((kind, at) =>
          element(
            `div.chm-teach-back-${kind}`,
            { style: `flex-grow:${shares[at].toFixed(5)}`, title: `${kind} ${percent(shares[at])}` },
            shares[at] > 0.12 ? `${kind} ${percent(shares[at])}` : "",
          ),
        ),
      );
      kinds.setAttribute("aria-label", KINDS.map((kind, at) => `${kind} ${percent(shares[at])}`).join(", "));
      kinds.setAttribute("role", "img");
      const groups = likeliest(what, lesson.modality, count);
      const scale = Math.max(
        ...groups.flat().map((token) => Math.max(after ? after[token] : 0, before[token] * (after ? 0 : 1))),
        1e-9,
      );
      const titles = after
        ? ["Left, likeliest first"]
        : ["Likeliest words", "Likeliest patches", "Likeliest special tokens"];
      const lists = groups.map((tokens, at) => column(titles[at], tokens, scale));
      if (after) {
        const out = element(
          "div.chm-teach-column",
          { role: "group", "aria-label": "Left out" },
          element("b", "Left out"),
        );
        for (const [reason, { tokens, count, share }] of leftOut(what, 3))
          out.append(
            element("p.chm-teach-why", `${many(count)}, ${percent(share)}: ${reason}`),
            ...tokens.map((token) => row(token, scale)),
          );
        lists.push(out);
      }
      columns.replaceChildren(...lists);
      plot.setAttribute(
        "aria-label",
        `The probability of each token of the vocabulary: ${kinds.getAttribute("aria-label")}`,
      );
      tell();
      frame.ask();
    },
    /** Codes in its rows whose looks are not here. */
    get missing() {
      const codes = [...node.querySelectorAll("[data-code]")].map((each) => Number(each.getAttribute("data-code")));
      return codes.filter((code) => !lesson.hasLook(code));
    },
    dispose() {
      frame.dispose();
      size.dispose();
      forgetTheme();
    },
  };
}
