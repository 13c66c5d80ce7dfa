// Elements, icons and small pieces of screen that the widgets use. Text from outside only ever becomes text nodes.

/**
 * @template {string} Name
 * @typedef {Name extends `${infer Tag}.${string}` ? Tag : Name} TagOf
 */

/** @param {any} part @returns {part is Record<string, any>} whether these are attributes, and no child */
const isProps = (part) => part !== null && typeof part === "object" && !(part instanceof Node);

/**
 * An element: `element("div.chm-body.chm-wide", { role: "group" }, child, "text")`.
 * @template {string} Name
 * @param {Name} name tag and classes
 * @param {...(Record<string, any> | Node | string | null)} parts attributes first, where there are any: `text` and
 *   `class` as themselves, `on` an object of listeners; then children
 * @returns {TagOf<Name> extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[TagOf<Name>] : never}
 */
export function element(name, ...parts) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  const { on = {}, text, ...props } = isProps(parts[0]) ? /** @type {Record<string, any>} */ (parts.shift()) : {};
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  if (text !== undefined) node.textContent = text;
  set(node, props);
  node.append(.../** @type {(Node | string)[]} */ (parts.filter((part) => part !== null)));
  return /** @type {any} */ (node);
}

/** @param {Element} node @param {Record<string, any>} props attributes: true is one without value, false and null none */
function set(node, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
}

/**
 * A shape of SVG.
 * @param {string} tag @param {Record<string, any>} [props] attributes
 * @param {...(Node | string)} children
 */
export function shape(tag, props = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(node, props);
  node.append(...children);
  return node;
}

/** Writes a text, where it is another: what reads pages aloud is not told twice. @param {Node} node @param {string} text */
export const write = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

/** What is shown and named together. @param {string} name tag and classes @param {string} label @param {...Node} children */
export const group = (name, label, ...children) =>
  element(`div.${name}`, { role: "group", "aria-label": label }, ...children);

const ICONS = {
  send: "M12 19V5M5.5 11.5 12 5l6.5 6.5",
  stop: "M6 6h12v12H6z",
  pause: "M9 5v14M15 5v14",
  play: "M8 5l11 7-11 7z",
  fork: "M7 4v16M7 13c0-4 10-2 10-7M14 8l3-3 3 3",
  attach: "M4 5h16v14H4zM4 16l4.5-4.5 4 4 3-3L20 17M15.5 9.5h.01",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  save: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  clear: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7",
  down: "M12 5v14M6 13l6 6 6-6",
  grid: "M4 4h16v16H4zM4 9.3h16M4 14.7h16M9.3 4v16M14.7 4v16",
  wipe: "M4 5h16v14H4zM12 2.5v19M7 12h.01M17 12h.01",
  heat: "M12 3c1 4 6 6.5 6 11.5a6 6 0 0 1-12 0C6 12 7.5 10 9 8.5c.3 1.5 1 2.3 2 2.8C10.8 8 11.200 5 12 3z",
};

/** A pictogram of a path. @param {string} path */
export const glyph = (path) =>
  shape(
    "svg",
    { class: "chm-icon", viewBox: "0 0 24 24", width: 16, height: 16, "aria-hidden": "true" },
    shape("path", { d: path }),
  );

/** @param {keyof typeof ICONS} name */
export const icon = (name) => glyph(ICONS[name]);

/**
 * A real button, its name spoken and shown as a tooltip.
 * @param {string} label
 * @param {keyof typeof ICONS | null} glyph
 * @param {() => void} act
 * @param {Record<string, any>} [props]
 */
export function button(label, glyph, act, props = {}) {
  const node = element("button", { type: "button", class: "chm-button", ...props, on: { click: act } });
  if (glyph) {
    node.append(icon(glyph));
    node.title = label;
    node.setAttribute("aria-label", label);
  } else node.textContent = label;
  return node;
}

const DOUBLE_CLICK = 500; // milliseconds

/**
 * An act that a double click does once: its second click comes before the kernel has answered the first, and nobody
 * means two replies by it. What follows quickly and asks for something else is done.
 * @template {any[]} Given
 * @param {(...given: Given) => void} act
 * @returns {(...given: Given) => void}
 */
export function once(act) {
  let last = -DOUBLE_CLICK;
  let before = /** @type {any[]} */ ([]);
  return (...given) => {
    const now = performance.now();
    const same = given.every((each, at) => Object.is(each, before[at]));
    if (same && now - last < DOUBLE_CLICK) return;
    last = now;
    before = given;
    act(...given);
  };
}

/** Whether a switch is on. @param {Element} node */
export const pressed = (node) => node.getAttribute("aria-pressed") === "true";

/** @param {Element} node @param {unknown} on */
export const press = (node, on) => node.setAttribute("aria-pressed", String(Boolean(on)));

/**
 * A button that is on or off.
 * @param {string} label
 * @param {keyof typeof ICONS | null} glyph
 * @param {(on: boolean) => void} change
 * @param {Record<string, any>} [props]
 */
export function toggle(label, glyph, change, props = {}) {
  const node = button(
    label,
    glyph,
    () => {
      press(node, !pressed(node));
      change(pressed(node));
    },
    { "aria-pressed": "false", ...props },
  );
  return node;
}

/**
 * The root of a widget: keys typed in it stay in it, so that no shortcut of the notebook fires.
 * @param {string} label
 * @param {string} kind
 */
export function root(label, kind) {
  const node = element("section", { class: `chm chm-${kind} chameleon-live`, "aria-label": label });
  node.dataset.lmSuppressShortcuts = "true";
  for (const type of ["keydown", "keyup", "keypress", "paste", "cut", "copy"])
    node.addEventListener(type, (event) => event.stopPropagation());
  return node;
}

/** The lamp: what the widget is doing, as a dot and in words. */
export function lamp() {
  const words = element("span");
  const node = element("div.chm-lamp", { role: "status", "aria-live": "off" }, element("i"), words);
  return {
    node,
    /** @param {string} name @param {string} text */
    show(name, text) {
      if (node.dataset.state !== name) node.dataset.state = name;
      if (words.textContent !== text) words.textContent = text;
    },
  };
}

/** @param {string} name @param {Blob} blob */
export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** @param {string} text */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { "aria-hidden": "true", style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/**
 * Puts a picture on the clipboard. Throws an Error written for the person who asked, where the browser does not allow it.
 * @param {Blob} png
 */
export async function copyPicture(png) {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
  } catch {
    throw new Error("The browser does not let this page copy pictures. Save the picture instead.");
  }
}
