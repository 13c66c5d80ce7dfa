// Panels of which one is open, and the tabs that open them.

import { element } from "../frame/dom.js";

/**
 * @param {string} label
 * @param {[string, HTMLElement][]} panels with their names
 * @param {(at: number) => void} opened
 */
export function tabs(label, panels, opened) {
  const id = `chm-tabs-${Math.random().toString(36).slice(2, 8)}`;
  let open = 0;
  const heads = panels.map(([name, panel], at) => {
    panel.id = `${id}-${at}`;
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-label", name);
    return element("button", {
      type: "button",
      role: "tab",
      "aria-controls": panel.id,
      text: name,
      on: { click: () => turn(at) },
    });
  });
  const bar = element("div.chm-inspect-tabs", { role: "tablist", "aria-label": label }, ...heads);
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    turn((open + step + heads.length) % heads.length);
    heads[open].focus();
  });

  /** @param {number} at */
  function turn(at) {
    open = at;
    heads.forEach((head, each) => {
      head.setAttribute("aria-selected", String(each === at));
      head.tabIndex = each === at ? 0 : -1;
      panels[each][1].hidden = each !== at;
    });
    opened(at);
  }

  turn(0);
  return {
    node: element("div", bar, ...panels.map(([, panel]) => panel)),
    get open() {
      return open;
    },
  };
}
