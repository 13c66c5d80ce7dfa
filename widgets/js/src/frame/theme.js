// Canvases do not follow the theme by themselves: this says when to paint them again.

/**
 * Calls `repaint` now and whenever the colours of the page may have changed; the returned function ends that.
 * @param {() => void} repaint
 */
export function watchTheme(repaint) {
  let later = /** @type {any} */ (null);
  function changed() {
    repaint();
    clearTimeout(later);
    later = setTimeout(repaint, 400); // the new style sheet may come after the new name
  }
  const observer = new MutationObserver(changed);
  for (const node of [document.documentElement, document.body]) observer.observe(node, { attributes: true });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", changed);
  changed();
  return () => {
    clearTimeout(later);
    observer.disconnect();
    dark.removeEventListener("change", changed);
  };
}

/** Whether the background of a node is dark. @param {Element} node */
export function isDark(node) {
  const [red, green, blue] = (getComputedStyle(node).backgroundColor.match(/[\d.]+/g) ?? ["255", "255", "255"]).map(
    Number,
  );
  return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
}

/** Whether the reader has asked their system for less motion. The style sheet stops what moves by itself; a script asks. */
export const isCalm = () => globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches ?? false;
