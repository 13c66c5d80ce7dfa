// The reconstruction viewer: what the encoder saw, what came back, the codes in between, and where the two differ.

import { codeGrid } from "./code_grid.js";
import { button, element, icon, lamp, root } from "./dom.js";
import { connect } from "./link.js";
import { chooser, dropTarget, errorMap, notPicture, pngUrl, readPicture, sortFiles, swap } from "./pictures.js";
import { hidesStill, stillKeeper } from "./still.js";
import { counts } from "./words.js";

/** @param {string} title @param {string} alt @param {...Node} over */
function figure(title, alt, ...over) {
  const img = element("img", { alt, draggable: "false" });
  const words = element("span");
  const node = element("figure", { class: "chm-side" },
    element("figcaption", {}, element("b", { text: title }), words),
    element("div", { class: "chm-frame" }, img, ...over));
  return { node, img, words };
}

/** @param {HTMLImageElement} img @param {number} width @param {number} height */
function pixels(img, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.drawImage(img, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

/** @param {{model: import("./link.js").Model, el: HTMLElement}} context */
function render({ model, el }) {
  let whole = false;
  /** @type {any} */
  let shown = null;
  let error = "";

  const box = root("Reconstruction viewer", "reconstruction");
  box.tabIndex = -1;
  const signal = lamp();
  const stills = element("div", { hidden: true });
  const files = chooser((chosen) => take(chosen), false);
  const choose = button("Choose a picture", null, () => files.click(), { class: "chm-button chm-choose" });
  choose.prepend(icon("attach"));
  const gridSwitch = button("Show the grid of codes", "grid", () => toggle(gridSwitch), { "aria-pressed": "false" });
  const heatSwitch = button("Show where the pictures differ", "heat", () => toggle(heatSwitch), { "aria-pressed": "false" });
  const samples = element("div", { class: "chm-samples", role: "group", "aria-label": "Samples" });
  const alert = element("div", { class: "chm-alert", role: "alert", hidden: true });
  const grids = [
    codeGrid({ label: "", main: false, point: mark }),
    codeGrid({ label: "Codes of the picture", main: true, point: mark }),
  ];
  const original = figure("Original", "The picture as the encoder sees it", grids[0].node);
  const rebuilt = figure("Reconstruction", "The picture rebuilt from its codes", grids[1].node);
  const difference = figure("Error", "Where original and reconstruction differ");
  const stage = element("div", { class: "chm-stage" }, original.node, rebuilt.node, difference.node);
  const empty = element("div", { class: "chm-lead chm-empty-stage", text: "Paste, drop or choose a picture." });
  const facts = element("div", { class: "chm-facts" });
  const readout = element("div", { class: "chm-readout", role: "status" });

  box.append(stills,
    element("header", { class: "chm-head" }, signal.node,
      element("div", { class: "chm-tools", role: "toolbar", "aria-label": "Views" }, gridSwitch, heatSwitch, choose, files)),
    samples, alert, empty, stage, element("footer", { class: "chm-feet" }, facts, readout));
  el.replaceChildren(box);

  const link = connect(model, { receive, change: refresh });
  const keeper = stillKeeper(model, link);
  dropTarget(box, (dropped) => take(dropped));
  box.addEventListener("paste", (event) => {
    const { files: pasted } = event.clipboardData ?? { files: null };
    event.preventDefault();
    if (pasted?.length) take(pasted);
    else tell("There is no picture on the clipboard. Copy a picture, not a file's name or text.");
  });

  /** @param {Iterable<File>} list */
  async function take(list) {
    const { pictures, others } = sortFiles(list);
    if (!pictures.length) return tell(notPicture(others[0] ?? ""));
    try {
      const picture = await readPicture(pictures[0]);
      URL.revokeObjectURL(picture.url);
      ask({ kind: "picture", name: picture.name }, [picture.bytes]);
    } catch (problem) {
      tell(/** @type {Error} */ (problem).message);
    }
  }

  /** @param {any} content @param {ArrayBuffer[]} [buffers] */
  async function ask(content, buffers) {
    tell("");
    signal.show("working", "Encoding");
    const arrived = await link.request(content, buffers);
    if (!arrived) tell("The picture has not arrived: the kernel is busy with another cell, or gone.");
    refresh();
  }

  /** @param {string} text */
  function tell(text) {
    error = text;
    alert.hidden = !text;
    alert.textContent = text;
    refresh();
  }

  /** @param {HTMLButtonElement} which */
  function toggle(which) {
    which.setAttribute("aria-pressed", String(which.getAttribute("aria-pressed") !== "true"));
    refresh();
  }

  function refresh() {
    const state = link?.state ?? "connecting";
    const status = model.get("status");
    if (state === "silent") signal.show("disconnected", "Disconnected: the kernel does not answer");
    else if (state === "connecting") signal.show("connecting", "Connecting");
    else if (status === "working") signal.show("working", "Encoding");
    else if (error) signal.show("error", "Error");
    else signal.show("idle", "Ready");
    box.classList.toggle("chm-orphan", state === "silent" && !whole);
    stills.replaceChildren(...(whole ? [hidesStill(model.get("still_name") ?? "")] : []));
    const pressed = (/** @type {HTMLElement} */ which) => which.getAttribute("aria-pressed") === "true";
    stage.hidden = !shown;
    empty.hidden = Boolean(shown);
    for (const grid of grids) grid.node.hidden = !pressed(gridSwitch);
    difference.node.hidden = !pressed(heatSwitch);
    gridSwitch.disabled = heatSwitch.disabled = !shown;
  }

  /** @param {any} message @param {DataView[]} buffers */
  function receive(message, buffers) {
    if (message.kind === "still") return keeper.receive(message);
    if (message.kind !== "update") return;
    let next = 0;
    if (message.samples) {
      samples.replaceChildren(...message.samples.map((/** @type {string} */ name) => {
        const node = button("", null, () => ask({ kind: "sample", name }), { class: "chm-sample", title: name });
        node.append(element("img", { src: pngUrl(buffers[next++]), alt: "", draggable: "false" }),
          element("span", { class: "chm-sample-name", text: name }));
        return node;
      }));
      samples.hidden = !message.samples.length;
    }
    if (message.error !== undefined) {
      whole = true;
      tell(message.error);
    }
    if (message.codes) show(message, buffers.slice(next));
    refresh();
  }

  /** @param {any} message @param {DataView[]} buffers */
  async function show(message, buffers) {
    shown = message;
    for (const node of samples.querySelectorAll("button"))
      node.setAttribute("aria-pressed", String(node.title === message.name));
    for (const grid of grids) grid.show(message.codes);
    original.words.textContent = ` ${message.width} × ${message.height}, as the encoder sees it`;
    const count = message.codes.flat().length;
    rebuilt.words.textContent = ` from ${count} codes`;
    stage.style.setProperty("--ratio", `${message.width} / ${message.height}`);
    facts.replaceChildren(...counts(message).map(([value, words]) =>
      element("span", { class: "chm-fact" }, element("b", { text: value }), ` ${words}`)));
    mark(null);
    await Promise.all([swap(original.img, pngUrl(buffers[0])), swap(rebuilt.img, pngUrl(buffers[1]))]);
    await Promise.all([original.img.decode(), rebuilt.img.decode()]).catch(() => {});
    if (shown !== message) return;
    const [width, height] = [rebuilt.img.naturalWidth, rebuilt.img.naturalHeight];
    const map = errorMap(pixels(original.img, width, height), pixels(rebuilt.img, width, height));
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(
      new ImageData(/** @type {any} */ (map.rgba), width, height), 0, 0);
    difference.img.src = canvas.toDataURL();
    difference.words.textContent = ` 0 to ${Math.round(map.largest)} of 255, mean ${map.mean.toFixed(1)}`;
  }

  /** @param {number | null} at */
  function mark(at) {
    const codes = shown ? shown.codes.flat() : [];
    for (const grid of grids) grid.mark(at, (each) => codes[each] === codes[/** @type {number} */ (at)]);
    if (at === null || !shown) {
      readout.textContent = "";
      return;
    }
    const columns = shown.codes[0].length;
    const times = codes.filter((/** @type {number} */ code) => code === codes[at]).length;
    readout.textContent = `Row ${Math.floor(at / columns) + 1}, column ${(at % columns) + 1}: code ${codes[at]}` +
      (times > 1 ? `, ${times} times in this picture` : "");
  }

  model.on("change:status", refresh);
  refresh();
  link.request({ kind: "hello" });
  return () => {
    model.off("change:status", refresh);
    keeper.dispose();
    link.close();
  };
}

export default { render };
