// The ribbon over the document: how surprising each token was (−log p), and how unsure the model was before it.

import { element } from "../frame/dom.js";
import { SURPRISE } from "./reading.js";

const HEIGHT = 44;

/** @param {(at: number | null) => void} point @param {(at: number) => void} choose */
export function ribbon(point, choose) {
  const canvas = element("canvas", { height: HEIGHT, role: "img" });
  const mark = element("i", { hidden: true }); // an element of its own: to draw thousands of bars anew takes longer
  const node = element(
    "figure.chm-inspect-ribbon",
    element("span.chm-inspect-scale", element("span", { text: `${SURPRISE} nats` }), element("span", { text: "0" })),
    element("div.chm-inspect-track", mark, canvas),
  );
  let [logs, entropies] = /** @type {Float32Array[]} */ ([new Float32Array(), new Float32Array()]);
  let marked = /** @type {number | null} */ (null);

  /** @param {PointerEvent | MouseEvent} event */
  const place = ({ offsetX }) =>
    Math.max(0, Math.min(logs.length - 1, Math.floor((offsetX / canvas.clientWidth) * logs.length)));
  canvas.addEventListener("pointermove", (event) => logs.length && point(place(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => logs.length && choose(place(event)));

  function paint() {
    const [width, ratio] = [canvas.clientWidth, globalThis.devicePixelRatio || 1];
    if (!width || !logs.length) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(HEIGHT * ratio);
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const style = getComputedStyle(node);
    pen.scale(ratio, ratio);
    const step = width / logs.length;
    /** @param {number} nats */
    const height = (nats) => (Number.isNaN(nats) ? 0 : (Math.min(nats, SURPRISE) / SURPRISE) * (HEIGHT - 2));
    pen.fillStyle = style.getPropertyValue("--surprise-colour");
    logs.forEach((log, at) => {
      pen.fillRect(at * step, HEIGHT - height(-log), Math.max(0.75, step - (step > 3 ? 1 : 0)), height(-log));
    });
    pen.strokeStyle = style.getPropertyValue("--ink");
    pen.lineWidth = 1.25;
    pen.beginPath();
    entropies.forEach((entropy, at) => {
      if (!Number.isNaN(entropy)) pen.lineTo((at + 0.5) * step, HEIGHT - 1 - height(entropy));
    });
    pen.stroke();
  }

  return {
    node,
    paint,
    /** @param {Float32Array} surprises log-probabilities @param {Float32Array} unsure entropies, in nats */
    show(surprises, unsure) {
      [logs, entropies, marked] = [surprises, unsure, null];
      mark.hidden = true;
      const values = [...logs].filter((log) => !Number.isNaN(log));
      const mean = -values.reduce((sum, log) => sum + log, 0) / Math.max(1, values.length);
      canvas.setAttribute(
        "aria-label",
        `Surprise of ${logs.length} tokens, ${mean.toFixed(2)} nats on average, and entropy as a line`,
      );
      paint();
    },
    /** @param {number | null} at */
    mark(at) {
      if (at === marked) return;
      marked = at;
      mark.hidden = at === null;
      mark.style.width = `max(3px, ${(100 / logs.length).toFixed(4)}%)`;
      mark.style.left = `${((100 * (at ?? 0)) / logs.length).toFixed(4)}%`;
    },
  };
}
