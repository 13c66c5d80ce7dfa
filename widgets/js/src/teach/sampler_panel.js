// The settings of the sampler, as sliders that move the chart: those of words, or of pictures while one is drawn.

import { button, element } from "../frame/dom.js";

/** @typedef {import("./sampling.js").Sampler} Sampler */

/** @type {[keyof Sampler, string, number, number, number, string][]} */
const SLIDERS = [
  [
    "temperature",
    "Temperature",
    0,
    3,
    0.05,
    "divides the logits: below 1 sharper, above 1 flatter; 0 takes the likeliest",
  ],
  ["top_k", "Top-k", 0, 100, 1, "keeps so many of the likeliest; 0 keeps all"],
  ["top_p", "Top-p", 0.01, 1, 0.01, "keeps the fewest that hold this share"],
  ["min_p", "Min-p", 0, 1, 0.01, "keeps what is at least this share as likely as the likeliest"],
];
const GUIDANCE = [
  [["Guidance", "1 leaves the logits as they are; more pushes them away from what would be drawn without the words"]],
  [
    ["Text guidance", "how strongly the words pull"],
    ["Image guidance", "how strongly earlier pictures pull"],
  ],
];

/** @param {() => void} change */
export function samplerPanel(change) {
  const title = element("b");
  const sliders = element("div.chm-teach-sliders");
  const reset = button("As the model has it", null, () => {
    own = structuredClone(initial);
    fill();
    change();
  });
  const node = element("div.chm-teach-sampler", { role: "group", "aria-label": "Sampler" }, title, sliders, reset);
  let initial = /** @type {Settings | null} */ (null); // the model's
  let base = /** @type {Settings | null} */ (null); // the kernel's
  let own = /** @type {Settings | null} */ (null); // the reader's, where something was moved
  let drawing = false;
  let guided = false;

  /** @typedef {{samplers: Record<string, Sampler>, strengths: number[]}} Settings */

  const now = () => /** @type {Settings} */ (own ?? base);
  /** @param {Settings | null} other whether it is what stands now */
  const alike = (other) => JSON.stringify(now()) === JSON.stringify(other);
  const kind = () => (drawing ? "pictures" : "words");

  /**
   * @param {string} name @param {string} hint @param {number} value @param {number[]} range @param {(value: number) => void} put
   */
  function slider(name, hint, value, [min, max, step], put) {
    const output = element("output", { text: words(value, step) });
    const input = element("input", {
      type: "range",
      min,
      max: Math.max(max, value),
      step,
      value,
      "aria-label": name,
      title: hint,
      on: {
        input() {
          own ??= structuredClone(/** @type {Settings} */ (base));
          put(Number(input.value));
          output.textContent = words(Number(input.value), step);
          reset.disabled = alike(initial);
          change();
        },
      },
    });
    return element("label.chm-teach-slider", element("span", { text: name, title: hint }), input, output);
  }

  function fill() {
    if (!base) return;
    title.textContent = drawing ? "Sampler of pictures" : "Sampler of words";
    const sampler = now().samplers[kind()];
    sliders.replaceChildren(
      ...(guided
        ? (GUIDANCE[now().strengths.length - 1] ?? []).map(([name, hint], at) =>
            slider(name, hint, now().strengths[at], [0, 10, 0.1], (value) => (now().strengths[at] = value)),
          )
        : []),
      ...SLIDERS.map(([name, label, min, max, step, hint]) =>
        slider(label, hint, sampler[name], [min, max, step], (value) => (now().samplers[kind()][name] = value)),
      ),
    );
    reset.disabled = alike(initial);
  }

  return {
    node,
    /** @param {import("./messages.js").WalkStep} step */
    show(step) {
      const next = { samplers: /** @type {Record<string, any>} */ (step.samplers), strengths: step.strengths };
      const guides = step.drawing && step.streams > 1;
      const same =
        base && JSON.stringify(base) === JSON.stringify(next) && step.drawing === drawing && guides === guided;
      initial ??= structuredClone(next);
      [base, drawing, guided] = [next, step.drawing, guides];
      if (own && alike(base)) own = null;
      if (!same) fill();
    },
    get sampler() {
      return now().samplers[kind()];
    },
    get strengths() {
      return now().strengths;
    },
    /** What the kernel is told with a draw: nothing where nothing was moved. */
    get request() {
      return own ? { samplers: own.samplers, strengths: own.strengths } : {};
    },
  };
}

/** @param {number} value @param {number} step */
const words = (value, step) => (step === 1 ? (value ? String(value) : "all") : value.toFixed(2));
