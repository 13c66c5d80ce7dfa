// ‹ 2/3 ›: from a message or a reply to those that stand beside it. Arrow keys walk too.

import { element } from "../frame/dom.js";
import { tool } from "./tools.js";

/**
 * @param {string} noun what is walked through: "reply", "wording"
 * @param {(key: number) => void} walk
 */
export function walker(noun, walk) {
  let keys = /** @type {number[]} */ ([]);
  let at = 0;
  const before = tool(`Earlier ${noun}`, "left", () => step(-1));
  const after = tool(`Later ${noun}`, "right", () => step(1));
  const place = element("span.chm-place");
  const node = element("div.chm-walker", { role: "group", hidden: true }, before, place, after);

  /** @param {number} by */
  function step(by) {
    const key = keys[at + by];
    if (key !== undefined) walk(key);
  }

  node.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  return {
    node,
    /** @param {number[]} list of keys @param {number} key of the one that is shown */
    show(list, key) {
      keys = list;
      at = Math.max(0, keys.indexOf(key));
      node.hidden = keys.length < 2;
      place.textContent = `${at + 1}/${keys.length}`;
      node.setAttribute("aria-label", `${noun} ${at + 1} of ${keys.length}`);
      before.disabled = at === 0;
      after.disabled = at >= keys.length - 1;
    },
    /** Takes the keys: after a step, another exchange stands where this one stood. @param {1 | -1} [by] */
    focus(by = 1) {
      const side = by < 0 ? before : after;
      (side.disabled ? (by < 0 ? after : before) : side).focus();
    },
  };
}
