// The wipe: one picture laid over another, and a slider that says how much of it covers the other.

import { element } from "../frame/dom.js";

/**
 * The percentage that a key leads to.
 * @param {string} key
 * @param {number} at
 * @param {boolean} far whether Shift is held
 */
export function wiped(key, at, far = false) {
  const step = far ? 10 : 1;
  /** @type {Record<string, number>} */
  const steps = {
    ArrowLeft: -step,
    ArrowDown: -step,
    ArrowRight: step,
    ArrowUp: step,
    PageDown: -10,
    PageUp: 10,
    Home: -100,
    End: 100,
  };
  return Math.min(100, Math.max(0, at + (steps[key] ?? 0)));
}

/**
 * @param {object} options
 * @param {HTMLElement} options.frame that holds the picture below; it takes the pointer
 * @param {string} options.label
 * @param {[string, string]} options.names of the picture above, which is on the left, and of the one below
 * @param {(at: number) => void} options.change
 */
export function wipe({ frame, label, names, change }) {
  const img = element("img", { alt: "", draggable: "false" });
  const cover = element("div.chm-cover", { "aria-hidden": "true" }, img, element("span.chm-tag", { text: names[0] }));
  const under = element("span.chm-tag.chm-under", { "aria-hidden": "true", text: names[1] });
  const handle = element(
    "div.chm-handle",
    { role: "slider", tabindex: "0", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 },
    element("i"),
  );
  let on = false;
  let at = 50;

  /** @param {PointerEvent} event */
  function follow(event) {
    const { left, width } = frame.getBoundingClientRect();
    change(Math.min(100, Math.max(0, (100 * (event.clientX - left)) / width)));
  }

  frame.addEventListener("pointerdown", (event) => {
    if (!on || event.button) return;
    frame.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
    follow(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (on && frame.hasPointerCapture(event.pointerId)) follow(event);
  });
  frame.addEventListener("mousedown", (event) => {
    if (on) event.preventDefault(); // the slider keeps the keyboard, not the cell under the pointer
  });
  handle.addEventListener("keydown", (event) => {
    const next = wiped(event.key, Math.round(at), event.shiftKey);
    if (next !== Math.round(at)) change(next);
    if (/^(Arrow|Page|Home|End)/.test(event.key)) event.preventDefault();
  });

  return {
    img,
    cover,
    under,
    handle,
    /** @param {number} percent */
    set(percent) {
      at = percent;
      frame.style.setProperty("--at", `${at}%`);
      handle.setAttribute("aria-valuenow", String(Math.round(at)));
      handle.setAttribute("aria-valuetext", `${Math.round(at)} % ${names[0].toLowerCase()}`);
    },
    /** @param {boolean} wiping */
    turn(wiping) {
      on = wiping;
      frame.classList.toggle("chm-wiping", on);
      for (const node of [cover, under, handle]) node.hidden = !on;
    },
  };
}
