// The palette: swatches of codes, decoded when they come into sight.

import { element, press } from "../frame/dom.js";

const RECENT = 8;

/**
 * @param {object} hooks
 * @param {(code: number) => void} hooks.choose
 * @param {(code: number | null) => void} hooks.point
 * @param {(codes: number[]) => void} hooks.want asks for swatches
 */
export function palette({ choose, point, want }) {
  const swatches = /** @type {Map<number, {url: string, colour: string}>} */ (new Map());
  const requests = /** @type {Set<number>} */ (new Set());
  /** @type {Set<number>} */
  const visible = new Set(); // codes in sight that are to be asked for
  let timer = /** @type {any} */ (null);
  let recent = /** @type {number[]} */ ([]);
  let current = /** @type {number | null} */ (null);
  const rows = { recent: group("Recent", "Codes used last"), here: group("In the picture", "Codes in the picture") };
  const face = swatch();
  const node = element("div.chm-palette", rows.here.node);

  const sight = new IntersectionObserver((entries) => {
    for (const entry of entries)
      if (entry.isIntersecting) ask(Number(/** @type {HTMLElement} */ (entry.target).dataset.code));
  });

  /** @param {string} title @param {string} label */
  function group(title, label) {
    const strip = element("div.chm-strip", { role: "group", "aria-label": label });
    const count = element("span");
    return {
      node: element("div.chm-shelf", element("h4", title, count), strip),
      strip,
      count,
      chips: /** @type {Map<number, HTMLButtonElement>} */ (new Map()),
    };
  }

  function swatch() {
    return element("i.chm-swatch", { "aria-hidden": "true" });
  }

  /** @param {HTMLElement} node @param {number} code */
  function colour(node, code) {
    const swatch = swatches.get(code);
    node.style.backgroundImage = swatch?.url ? `url("${swatch.url}")` : "";
    node.classList.toggle("chm-unknown", !swatch?.url);
  }

  /** @param {number} code */
  function ask(code) {
    if (requests.has(code)) return;
    requests.add(code);
    visible.add(code);
    timer ??= setTimeout(() => {
      timer = null;
      want([...visible]);
      visible.clear();
    }, 40);
  }

  /** @param {typeof rows.here} row @param {number} code */
  function chip(row, code) {
    let node = row.chips.get(code);
    if (!node) {
      const over = {
        pointerenter: () => point(code),
        pointerleave: () => point(null),
        focus: () => point(code),
        blur: () => point(null),
      };
      node = element(
        "button",
        { type: "button", class: "chm-chip-code", "data-code": code, on: { click: () => choose(code), ...over } },
        swatch(),
        element("span", { text: code }),
      );
      colour(/** @type {HTMLElement} */ (node.firstChild), code);
      row.chips.set(code, node);
      row.strip.append(node);
      sight.observe(node);
    }
    press(node, code === current);
    return node;
  }

  /** @param {typeof rows.here} row @param {number[]} codes */
  function show(row, codes) {
    const left = new Set(codes);
    for (const [code, node] of row.chips) {
      if (left.has(code)) continue;
      sight.unobserve(node);
      node.remove();
      row.chips.delete(code);
    }
    codes.forEach((code, at) => {
      const node = chip(row, code);
      if (row.strip.children[at] !== node) row.strip.insertBefore(node, row.strip.children[at] ?? null);
    });
    row.node.hidden = !codes.length;
  }

  function showRecent() {
    show(rows.recent, recent);
    for (const [code, node] of rows.recent.chips) name(node, `Code ${code}`);
  }

  /** @param {HTMLElement} node @param {string} words */
  function name(node, words) {
    node.title = words;
    node.setAttribute("aria-label", words);
  }

  return {
    node,
    /** Another picture was opened. */
    begin: () => show(rows.here, []),
    face, // the current code's swatch
    recent: rows.recent.node,
    /** @param {number} code */
    colourOf: (code) => swatches.get(code)?.colour ?? "",
    /** Asks for a swatch that was not answered, once the kernel is there again. */
    forget: () => requests.forEach((code) => swatches.has(code) || requests.delete(code)),
    /** @param {number} code */
    current(code) {
      current = code;
      if (!recent.includes(code)) recent = [code, ...recent].slice(0, RECENT);
      showRecent();
      rows.here.chips.forEach((node, each) => press(node, each === code));
      colour(face, code);
      ask(code);
    },
    /**
     * Codes keep their places while one paints: those of the original by how often it has them, then new ones.
     * @param {Map<number, number>} before how often
     * @param {Map<number, number>} now
     */
    count(before, now) {
      const order = [...before.keys()].sort((one, other) => Number(before.get(other)) - Number(before.get(one)));
      const fresh = [...rows.here.chips.keys()].filter((code) => now.has(code) && !before.has(code));
      show(rows.here, [...new Set([...order, ...fresh, ...now.keys()])]);
      rows.here.count.textContent = ` ${now.size}`;
      for (const [code, node] of rows.here.chips) {
        const [was, is] = [before.get(code) ?? 0, now.get(code) ?? 0];
        node.classList.toggle("chm-gone", !is);
        name(node, `Code ${code}: ${is} ${is === 1 ? "cell" : "cells"}${was === is ? "" : `, ${was} before`}`);
      }
    },
    /** @param {number} code @param {DataView} png empty where the decoder has none */
    receive(code, png) {
      const url = png.byteLength
        ? URL.createObjectURL(new Blob([/** @type {any} */ (png)], { type: "image/png" }))
        : "";
      swatches.set(code, { url, colour: "" });
      for (const row of Object.values(rows)) {
        const chip = row.chips.get(code);
        if (chip) colour(/** @type {HTMLElement} */ (chip.firstChild), code);
      }
      if (code === current) colour(face, code);
      if (url) average(url).then((mean) => swatches.set(code, { url, colour: mean }));
    },
    dispose() {
      clearTimeout(timer);
      sight.disconnect();
      for (const { url } of swatches.values()) URL.revokeObjectURL(url);
    },
  };
}

/**
 * The mean colour of a picture.
 * @param {string} url
 */
async function average(url) {
  const img = new Image();
  img.src = url;
  await img.decode();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.drawImage(img, 0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  return `rgb(${red} ${green} ${blue})`;
}
