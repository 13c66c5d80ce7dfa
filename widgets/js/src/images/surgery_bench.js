// The bench: the current code, the brush's size, the codes used last, and random ones.

import { element, glyph, group } from "../frame/dom.js";
import { GLYPHS, segments, worded } from "./surgery_tools.js";

const LARGEST_SEED = 2 ** 31 - 1;

/**
 * @param {object} hooks
 * @param {HTMLElement} hooks.face swatch of the current code
 * @param {HTMLElement} hooks.recent
 * @param {(code: number) => void} hooks.chosen
 * @param {(text: string) => void} hooks.say
 * @param {() => void} hooks.sized
 * @param {() => void} hooks.scatter
 */
export function bench({ face, recent, chosen, say, sized, scatter }) {
  let [code, size, seed] = [0, 1, 1];
  let codebook = /** @type {number | null} */ (null);
  const field = element("input", {
    type: "number",
    min: 0,
    step: 1,
    "aria-label": "Current code",
    on: { input: typed, change: typed, blur: () => set(code) },
  });
  const sizes = segments(
    "Brush size",
    [1, 2, 3].map((each) => [
      each,
      element("i", { style: `--cells:${each}` }),
      `${each} × ${each}`,
      `Brush of ${each} × ${each} cells (${each})`,
    ]),
    resize,
  );
  const seedField = element("input", {
    type: "number",
    min: 0,
    max: LARGEST_SEED,
    step: 1,
    "aria-label": "Seed",
    on: { change: () => reseed(Number(seedField.value)) },
  });
  const random = worded("Random", glyph(GLYPHS.random), scatter, "Random codes, in the selection or everywhere (R)");
  const node = element(
    "div.chm-bench",
    group("chm-current", "Brush", face, element("label", element("span", { text: "Code" }), field), sizes.node),
    recent,
    group("chm-random", "Random codes", random, element("label", element("span", { text: "seed" }), seedField)),
  );

  function typed() {
    const value = Number(field.value);
    const fits = field.value !== "" && Number.isInteger(value) && value >= 0 && value < (codebook ?? 2 ** 31);
    if (fits && value !== code) set(value);
    field.setAttribute("aria-invalid", String(!fits));
    say(fits ? "" : `Codes are whole numbers${codebook ? ` from 0 to ${codebook - 1}` : ""}.`);
  }

  /** @param {number} value */
  function set(value) {
    field.value = String(value);
    field.removeAttribute("aria-invalid");
    if (value === code) return;
    code = value;
    chosen(code);
  }

  /** @param {number} value */
  function resize(value) {
    size = value;
    sizes.show(size);
    sized();
  }

  /** @param {number} value */
  function reseed(value) {
    seed = Math.min(LARGEST_SEED, Math.max(0, Math.round(value) || 0));
    seedField.value = String(seed);
  }

  sizes.show(size);
  reseed(seed);
  return {
    node,
    set,
    resize,
    get code() {
      return code;
    },
    get size() {
      return size;
    },
    get codebook() {
      return codebook;
    },
    /** A seed, and each time another. */
    seed() {
      reseed(seed + 1);
      return seed - 1;
    },
    /** @param {number | null} count of codes there are */
    know(count) {
      codebook = count;
      if (codebook) field.max = String(codebook - 1);
      random.disabled = !codebook;
      if (!codebook) random.title = "How many codes there are is not known: pass codebook= to CodeSurgery";
    },
  };
}
