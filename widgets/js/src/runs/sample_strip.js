// The strip of samples: what the model made of the same few prompts, along the steps; a fork's below its parent's.

import { stepText } from "../charts/axis.js";
import { oncePerFrame, sized } from "../charts/canvas.js";
import { placeOf } from "../charts/curve_pen.js";
import { element, write } from "../frame/dom.js";
import { pngUrl } from "../frame/pictures.js";

const THUMB = 42; // CSS pixels from one thumbnail to the next, at least

/**
 * @typedef {object} Sample
 * @property {string} run empty for this one, else a fork's name
 * @property {number} step
 * @property {string} name
 * @property {string} words
 * @property {string} picture address; empty where there is none
 * @property {string} original
 */

/**
 * Which of these places are shown, so that none lies on another: the last always, and before it as many as fit.
 * @param {number[]} places rising, CSS pixels @param {number} room
 */
export function spread(places, room) {
  const visible = /** @type {number[]} */ ([]);
  for (let at = places.length - 1, next = Infinity; at >= 0; at -= 1)
    if (places[at] <= next) {
      visible.unshift(at);
      next = places[at] - room;
    }
  return visible;
}

/** @param {object} hooks @param {(step: number | null) => void} hooks.pointed a sample's step is looked at, or none */
export function sampleStrip({ pointed }) {
  let epoch = -1;
  let samples = /** @type {Sample[]} */ ([]);
  let steps = /** @type {number[]} */ ([]); // at which there are samples, rising
  let chosen = /** @type {number | null} */ (null); // by the slider; null: the newest
  let cursor = /** @type {number | null} */ (null);
  let range = /** @type {[number, number] | null} */ (null);
  let [nowKey, rowsKey] = ["", ""];

  const when = element("span");
  const scrub = element("input.chm-samples-scrub", {
    type: "range",
    min: 0,
    step: 1,
    "aria-label": "Step of the samples",
    on: { input: scrubbed },
  });
  const now = element("div.chm-samples-now");
  const rows = element("div.chm-samples-rows");
  const large = element("div.chm-samples-large", { hidden: true, "aria-hidden": "true" });
  const node = element(
    "section.chm-samples",
    { "aria-label": "Samples", hidden: true },
    element("div.chm-run-title", element("b", { text: "Samples" }), when, scrub),
    now,
    rows,
    large,
  );
  const frame = oncePerFrame(draw);
  const size = sized(node, frame.ask);

  function scrubbed() {
    const at = Number(scrub.value);
    chosen = at >= steps.length - 1 ? null : steps[at];
    cursor = null;
    pointed(chosen);
    frame.ask();
  }

  /** The step whose samples are looked at: the last that is not beyond the cursor. */
  function current() {
    const limit = cursor ?? chosen ?? Infinity;
    return steps.filter((step) => step <= limit).at(-1) ?? steps[0];
  }

  const names = () => [...new Set(samples.map(({ name }) => name))];
  const runs = () => [...new Set(samples.map(({ run }) => run))];

  /** The newest of a prompt and a run that is not beyond a step. @param {string} name @param {string} run @param {number} step */
  const newest = (name, run, step) =>
    samples.filter((each) => each.name === name && each.run === run && each.step <= step).at(-1);

  function draw() {
    node.hidden = !samples.length;
    if (!samples.length) return;
    const step = current();
    write(when, `step ${stepText(step)}`);
    scrub.max = String(steps.length - 1);
    scrub.value = String(steps.indexOf(step));
    scrub.setAttribute("aria-valuetext", `step ${stepText(step)}`);
    scrub.hidden = steps.length < 2;
    gallery(step);
    strips(step);
  }

  /** @param {number} step */
  function gallery(step) {
    const several = runs().length > 1;
    const groups = names().map((name) => ({ name, of: runs().flatMap((run) => newest(name, run, step) ?? []) }));
    const key = JSON.stringify([epoch, several, groups.map(({ of }) => of.map((each) => samples.indexOf(each)))]);
    if (key === nowKey) return;
    nowKey = key;
    now.replaceChildren(
      ...groups.flatMap(({ name, of }) => {
        if (!of.length) return [];
        const original = of[0].original ? [plate(of[0].original, "original", `Original of ${name}`)] : [];
        const results = of.map((each) => {
          const label = several ? each.run || "this run" : each.words && each.picture ? each.words : "";
          return each.picture
            ? plate(each.picture, label, `${name}, step ${stepText(each.step)}`)
            : element(
                "figure.chm-samples-wordy",
                element("div.chm-samples-words", { text: each.words, tabindex: 0 }),
                element("span", { text: label, title: label }),
              );
        });
        return [
          element(
            "div.chm-samples-one",
            element("div.chm-samples-name", { text: name, title: name }),
            element("div.chm-samples-pair", ...original, ...results),
          ),
        ];
      }),
    );
  }

  /** @param {string} picture @param {string} label @param {string} alt */
  function plate(picture, label, alt) {
    return element(
      "figure",
      element("img", { src: picture, alt, draggable: "false" }),
      element("span", { text: label, title: label }),
    );
  }

  /** @param {number} step */
  function strips(step) {
    const ends = range;
    if (!ends || !size.width || steps.length < 2) return rows.replaceChildren();
    const stripes = names().flatMap((name) =>
      runs().flatMap((run) => {
        const all = samples.filter(
          (each) =>
            each.name === name && each.run === run && each.picture && each.step >= ends[0] && each.step <= ends[1],
        );
        return all.length ? [{ name, run, all }] : [];
      }),
    );
    const key = JSON.stringify([epoch, size.width, ends, stripes.map(({ name, run, all }) => [name, run, all.length])]);
    if (key !== rowsKey) {
      rowsKey = key;
      large.hidden = true;
      rows.replaceChildren(...stripes.map(({ name, run, all }) => stripe(name, run, all, ends)));
    }
    for (const thumb of rows.querySelectorAll("button"))
      thumb.setAttribute("aria-current", String(Number(thumb.dataset.step) === step));
  }

  /** @param {string} name @param {string} run @param {Sample[]} all @param {[number, number]} ends */
  function stripe(name, run, all, ends) {
    // the last step's stands at the curve's end, where half of it would lie outside of the panel
    const places = all.map((each) => Math.min(placeOf(each.step, ends, size.width), size.width - THUMB / 2 - 2));
    const thumbs = spread(places, THUMB).map((at) => {
      const sample = all[at];
      const look = () => enlarge(sample, places[at], thumb);
      const rest = () => (large.hidden = true);
      const thumb = element(
        "button",
        {
          type: "button",
          style: `left:${places[at].toFixed(1)}px`,
          "data-step": sample.step,
          "aria-label": `${run ? `${run}: ` : ""}${name}, step ${stepText(sample.step)}`,
          on: {
            pointerenter: look,
            pointerleave: rest,
            focus: look,
            blur: rest,
            click() {
              chosen = sample.step;
              cursor = null;
              pointed(chosen);
              frame.ask();
            },
          },
        },
        element("img", { src: sample.picture, alt: "", draggable: "false" }),
      );
      return thumb;
    });
    const label = run || name;
    return element(
      "div.chm-samples-row",
      { title: run ? `${run}: ${name}` : name },
      ...(run ? [element("span", { text: label })] : []),
      ...thumbs,
    );
  }

  /** @param {Sample} sample @param {number} place @param {HTMLElement} thumb */
  function enlarge(sample, place, thumb) {
    const half = 106;
    large.replaceChildren(
      element("img", { src: sample.picture, alt: "" }),
      element("p", {
        text: [`step ${stepText(sample.step)}`, sample.run, sample.words, sample.name].filter(Boolean).join(" · "),
      }),
    );
    large.style.left = `${Math.min(size.width - half, Math.max(half, place))}px`;
    large.style.top = `${thumb.getBoundingClientRect().top - node.getBoundingClientRect().top - 4}px`;
    large.hidden = false;
  }

  function forget() {
    for (const { picture, original } of samples)
      for (const url of [picture, original]) if (url) URL.revokeObjectURL(url);
    samples = [];
    steps = [];
  }

  return {
    node,
    /**
     * Takes a message in. What was taken before is passed over; false where something is missing between.
     * @param {import("./messages.js").PanelSamples} message @param {DataView[]} buffers
     */
    take(message, buffers) {
      if (message.epoch !== epoch) {
        if (message.start) return false;
        forget();
        [epoch, chosen] = [message.epoch, null];
      }
      if (message.start > samples.length) return false;
      const url = (/** @type {number | null} */ at) => (at === null ? "" : pngUrl(buffers[at]));
      for (const each of message.list.slice(samples.length - message.start))
        samples.push({ ...each, picture: url(each.picture), original: url(each.original) });
      steps = [...new Set(samples.map(({ step }) => step))].sort((one, other) => one - other);
      frame.ask();
      return true;
    },
    /** @param {[number, number] | null} ends steps at the two ends */
    show(ends) {
      range = ends;
      frame.ask();
    },
    /** The cursor stands at a step; null: nowhere. @param {number | null} step */
    point(step) {
      cursor = step;
      frame.ask();
    },
    dispose() {
      frame.dispose();
      size.dispose();
      forget();
    },
  };
}
