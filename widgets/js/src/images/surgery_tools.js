// The tools of code surgery: their names, keys, pictograms and buttons.

import { button, element, glyph, press } from "../frame/dom.js";

export const TOOLS = /** @type {const} */ ([
  {
    name: "brush",
    label: "Brush",
    key: "B",
    hint: "paints the current code",
    path: "M20 4 10.5 13.5M7.5 13.5c2 0 3.5 1.4 3.5 3.3 0 2.6-2.6 3.7-7 3.2 1.3-1 1-2 1.1-3.4.1-1.8 1-3.1 2.4-3.1z",
  },
  {
    name: "fill",
    label: "Fill",
    key: "F",
    hint: "paints all connected cells of one code",
    path: "M9.5 3.5 18 12l-6.3 6.3a1.7 1.7 0 0 1-2.4 0L3.7 12.7a1.7 1.7 0 0 1 0-2.4L10 4M4 12h14M20.5 16c.8 1.2 1.2 1.9 1.2 2.6a1.2 1.2 0 0 1-2.4 0c0-.7.4-1.4 1.2-2.6z",
  },
  {
    name: "swap",
    label: "Swap",
    key: "S",
    hint: "replaces one code by the current one, everywhere",
    path: "M4 8h14M14.5 4.5 18 8l-3.5 3.5M20 16H6M9.5 12.5 6 16l3.5 3.5",
  },
  {
    name: "pick",
    label: "Pick",
    key: "I",
    hint: "takes the code of a cell; so does Alt+click with any tool",
    path: "M13 7.5 5 15.5V19h3.5l8-8M11.5 6l6.5 6.5M15 8.5l2.3-2.3a1.9 1.9 0 0 1 2.7 0 1.9 1.9 0 0 1 0 2.7L17 11.5",
  },
  {
    name: "select",
    label: "Select",
    key: "M",
    hint: "drag a rectangle; the other tools then stay inside it. Esc ends it",
    path: "M4 8V4h4M11 4h2M16 4h4v4M20 11v2M20 16v4h-4M13 20h-2M8 20H4v-4M4 13v-2",
  },
]);

export const GLYPHS = {
  undo: "M8 5.5 4 9.5l4 4M4 9.5h10a5 5 0 0 1 0 10h-3",
  redo: "M16 5.5l4 4-4 4M20 9.5H10a5 5 0 0 0 0 10h3",
  reset: "M5 12a7 7 0 1 0 2.2-5.1M5 4v4h4",
  grid: "M4 4h16v16H4zM4 9.3h16M4 14.7h16M9.3 4v16M14.7 4v16",
  numbers: "M9.5 4 7.5 20M16.5 4l-2 16M4.5 9h15.5M4 15h15.5",
  random: "M4.5 4.5h15v15h-15zM8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
};

/**
 * A button of a pictogram, with its name, its key and what it does in the tooltip.
 * @param {string} label
 * @param {string} key as it is written, such as "B" or "Ctrl+Z"
 * @param {string} path
 * @param {() => void} act
 * @param {{hint?: string, pressed?: boolean}} [more]
 */
export function toolButton(label, key, path, act, { hint = "", pressed } = {}) {
  const node = button(label, null, act, pressed === undefined ? {} : { "aria-pressed": String(pressed) });
  node.replaceChildren(glyph(path));
  node.title = `${label}${hint ? `: ${hint}` : ""}${key ? ` (${key})` : ""}`;
  node.setAttribute("aria-label", label);
  if (key) node.setAttribute("aria-keyshortcuts", key.replace("Ctrl", "Control"));
  return node;
}

/**
 * A button of a pictogram and a word.
 * @param {string} word
 * @param {Element} pictogram
 * @param {() => void} act
 * @param {string} label
 */
export function worded(word, pictogram, act, label) {
  const node = button(word, null, act, { class: "chm-button chm-worded", title: label, "aria-label": label });
  node.prepend(pictogram);
  return node;
}

/**
 * Buttons of which one is pressed.
 * @template {string | number} T
 * @param {string} label
 * @param {[T, Node | string, string, string?][]} options value, what is on the button, its name, its tooltip
 * @param {(value: T) => void} choose
 */
export function segments(label, options, choose) {
  const buttons = options.map(([value, face, name, title]) =>
    element(
      "button",
      { type: "button", "aria-label": name, title: title ?? name, on: { click: () => choose(value) } },
      face,
    ),
  );
  const node = element("div.chm-segments", { role: "group", "aria-label": label }, ...buttons);
  return {
    node,
    /** @param {T} value */
    show: (value) => options.forEach(([each], at) => press(buttons[at], each === value)),
  };
}
