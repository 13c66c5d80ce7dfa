// Buttons of the chat with pictograms of its own.

import { button, glyph } from "../frame/dom.js";

const PATHS = {
  left: "M14.5 6 8.5 12l6 6",
  right: "M9.5 6l6 6-6 6",
  fresh: "M12 5v14M5 12h14",
  tree: "M6 5v6c0 3 3 3 6 3h6M6 11v8M15 11l3 3-3 3",
  look: "M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13M15.5 15.5 20.5 20.5",
  best: "M4 5h6v6H4zM14 5h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z",
  facts: "M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17M12 11v5.5M12 7.5v.01",
  files: "M6 3.5h8l4 4v13H6zM14 3.5v4h4",
  proceed: "M5 5l7 7-7 7M13 5l7 7-7 7",
};

/**
 * A button with a pictogram, its label as tooltip and spoken name.
 * @param {string} label @param {keyof typeof PATHS} name @param {() => void} act @param {Record<string, any>} [props]
 */
export function tool(label, name, act, props = {}) {
  const node = button("", null, act, { title: label, "aria-label": label, ...props });
  node.append(glyph(PATHS[name]));
  return node;
}
