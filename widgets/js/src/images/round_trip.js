// One round trip on the screen: what the encoder saw, what came back, its codes, its errors, and its figures.

import { button, copyPicture, download, element } from "../frame/dom.js";
import { pngUrl, swap } from "../frame/pictures.js";
import { codeGrid } from "./code_grid.js";
import { errorMap } from "./errors.js";
import { facts as factSpans } from "./samples.js";
import { wipe } from "./wipe.js";

/** @typedef {import("./messages.js").TripFacts} Trip */

/** @param {string} title @param {string} alt @param {...Node} tools */
function figure(title, alt, ...tools) {
  const img = element("img", { alt, draggable: "false" });
  const name = element("b", { text: title });
  const words = element("span");
  const frame = element("div.chm-trip-frame", img);
  const node = element("figure.chm-side", element("figcaption", name, words, ...tools), frame);
  return { node, frame, img, name, words };
}

/** @param {HTMLImageElement} img */
function pixels(img) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.drawImage(img, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

/**
 * @param {object} hooks
 * @param {(at: number) => void} hooks.wipes told where the slider is put
 * @param {(words: string, trip: Trip) => void} hooks.reads told of the cell that is pointed at
 * @param {(trouble: string) => void} hooks.tell
 * @param {(trip: Trip) => string} hooks.fileName of the reconstruction, without its ending
 */
export function roundTripView({ wipes, reads, tell, fileName }) {
  const copy = button("Copy the reconstruction", "copy", () => hand(copyPicture), { class: "chm-button chm-small" });
  const save = button(
    "Save the reconstruction as PNG",
    "save",
    () => hand((png) => download(`${(trip ? fileName(trip) : "").replace(/[^\p{L}\p{N}_-]+/gu, "-")}.png`, png)),
    { class: "chm-button chm-small" },
  );
  const original = figure("Original", "The picture as the encoder sees it");
  const rebuilt = figure("Reconstruction", "The picture rebuilt from its codes", element("span.chm-own", copy, save));
  const difference = figure("Error", "Where original and reconstruction differ");
  const slider = wipe({
    frame: rebuilt.frame,
    label: "Wipe between original and reconstruction",
    names: ["Original", "Reconstruction"],
    change: wipes,
  });
  const grids = [
    codeGrid({ label: "", main: false, point: mark }),
    codeGrid({ label: "Codes of the picture", main: true, point: mark }),
  ];
  original.frame.append(grids[0].node);
  rebuilt.frame.append(slider.under, slider.cover, grids[1].node, slider.handle);
  const facts = element("div.chm-facts");
  const refused = element("b");
  const reason = element("div.chm-alert", { role: "alert" });
  const refusal = element("div.chm-side", element("figcaption", refused), reason);

  let trip = /** @type {Trip | null} */ (null);
  let ready = /** @type {Promise<void>} */ (Promise.resolve());
  let errors = /** @type {ReturnType<typeof errorMap> | null} */ (null);
  let painted = -1;

  /** @param {(png: Blob) => void | Promise<void>} act */
  async function hand(act) {
    try {
      await act(await (await fetch(rebuilt.img.src)).blob());
    } catch (problem) {
      return tell(/** @type {Error} */ (problem).message);
    }
    if (act !== copyPicture) return;
    copy.classList.add("chm-done");
    setTimeout(() => copy.classList.remove("chm-done"), 1200);
  }

  /** @param {number | null} at */
  function mark(at) {
    if (!trip) return;
    const codes = trip.codes.flat();
    for (const grid of grids) grid.mark(at, (each) => codes[each] === codes[/** @type {number} */ (at)]);
    if (at === null) return reads("", trip);
    const columns = trip.codes[0].length;
    const times = codes.filter((code) => code === codes[at]).length;
    reads(
      `Row ${Math.floor(at / columns) + 1}, column ${(at % columns) + 1}: code ${codes[at]}` +
        (times > 1 ? `, ${times} times in this picture` : ""),
      trip,
    );
  }

  return {
    figures: { original, rebuilt, difference },
    slider,
    grids,
    facts,
    refusal,
    get trip() {
      return trip;
    },
    /** @param {Trip} next @param {DataView[]} buffers original and reconstruction */
    show(next, buffers) {
      trip = next;
      errors = null;
      painted = -1;
      if (next.error) {
        refused.textContent = next.tokenizer;
        reason.textContent = next.error;
        return;
      }
      for (const grid of grids) grid.show(next.codes);
      facts.replaceChildren(...factSpans(metrics(next)));
      for (const { frame } of [original, rebuilt, difference])
        frame.style.setProperty("--ratio", `${next.width} / ${next.height}`);
      mark(null);
      const [before, after] = buffers.map(pngUrl);
      ready = Promise.all([swap(original.img, before), swap(slider.img, before), swap(rebuilt.img, after)])
        .then(() => Promise.all([original.img.decode(), rebuilt.img.decode()]))
        .then(
          () => {},
          () => {},
        );
    },
    /** The largest error, of 255; waits until the pictures are there. */
    async largest() {
      const mine = trip;
      await ready;
      if (!errors && mine && mine === trip && !mine.error && original.img.naturalWidth === rebuilt.img.naturalWidth)
        errors = errorMap(pixels(original.img), pixels(rebuilt.img));
      return errors?.largest ?? 0;
    },
    /** @param {number} most error that gets the brightest colour */
    paint(most) {
      if (!errors || painted === most) return;
      painted = most;
      const { rgba } = most === errors.largest ? errors : errorMap(pixels(original.img), pixels(rebuilt.img), most);
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [rebuilt.img.naturalWidth, rebuilt.img.naturalHeight];
      /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(
        new ImageData(/** @type {any} */ (rgba), canvas.width, canvas.height),
        0,
        0,
      );
      difference.img.src = canvas.toDataURL();
      difference.words.replaceChildren(
        "0 ",
        element("i.chm-scale"),
        ` ${Math.round(most)} of 255, mean ${errors.mean.toFixed(1)}`,
      );
    },
    /** @param {number} width of each picture, in CSS pixels */
    fit(width) {
      for (const { node, frame } of [original, rebuilt, difference]) {
        node.style.setProperty("--shown", `${width}px`);
        frame.classList.toggle("chm-zoomed", trip !== null && width >= trip.width);
      }
    },
  };
}

/**
 * The facts below a reconstruction: a figure, and what it is.
 * @param {{codes: number[][], bits: number | null, codebook: number | null, psnr: number | null, width: number, height: number}} shown
 * @returns {[string, string][]}
 */
export function counts({ codes, bits, codebook, psnr, width, height }) {
  const all = codes.flat();
  const facts = /** @type {[string, string][]} */ ([[psnr === null ? "∞" : psnr.toFixed(1), "dB PSNR"]]);
  if (bits === null) facts.push([String(all.length), "codes"]);
  else {
    const size = all.length * bits;
    const share = Math.round((width * height * 24) / size);
    facts.push([`${all.length} × ${bits}`, `bits = ${size / 8} bytes`]);
    if (share > 1) facts.push([`${share} ×`, "smaller than the pixels"]);
  }
  facts.push([String(new Set(all).size), codebook === null ? "different codes" : `of ${codebook} codes used`]);
  return facts;
}

/** @param {Trip} trip @returns {[string, string][]} */
function metrics(trip) {
  const [psnr, ...rest] = counts(trip);
  return trip.ssim === null ? [psnr, ...rest] : [psnr, [trip.ssim.toFixed(3), "SSIM"], ...rest];
}
