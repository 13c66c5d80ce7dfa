// Pictures: from a file, a paste or a drop to bytes for the kernel; and the map of where two pictures differ.

export const LARGEST_SIDE = 1024; // longer ones are made smaller here: a message to the kernel holds 10 MB at most
const KEPT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];

/**
 * @typedef {object} Picture
 * @property {ArrayBuffer} bytes an image file
 * @property {string} url of the same, for this page
 * @property {string} name
 */

/**
 * Image files among what was pasted, dropped or chosen; other files are named in `others`.
 * @param {Iterable<File> | null | undefined} files
 */
export function sortFiles(files) {
  const all = [...(files ?? [])];
  return {
    pictures: all.filter((file) => file.type.startsWith("image/")),
    others: all.filter((file) => !file.type.startsWith("image/")).map((file) => file.name),
  };
}

/** @param {string} name */
export const notPicture = (name) =>
  `“${name || "This file"}” is not a picture that can be read here. Use a PNG, JPEG, WebP or GIF file.`;

/**
 * The picture in a file. Throws an Error written for the person who chose it.
 * @param {File} file
 * @returns {Promise<Picture>}
 */
export async function readPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(notPicture(file.name));
  }
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  /** @type {Blob} */
  let blob = file;
  if (scale < 1 || !KEPT_AS_THEY_ARE.includes(file.type)) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    blob = await new Promise((resolve, reject) =>
      canvas.toBlob((made) => (made ? resolve(made) : reject(new Error(notPicture(file.name)))), "image/png"),
    );
  }
  bitmap.close();
  return { bytes: await blob.arrayBuffer(), url: URL.createObjectURL(blob), name: file.name };
}

/**
 * Lets the person choose picture files.
 * @param {(files: File[]) => void} take
 * @param {boolean} [several]
 */
export function chooser(take, several = true) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", accept: "image/*", multiple: several, hidden: true, tabIndex: -1 });
  input.setAttribute("aria-hidden", "true");
  input.addEventListener("change", () => {
    take([...(input.files ?? [])]);
    input.value = "";
  });
  return input;
}

/**
 * Makes `node` take dropped pictures.
 * @param {HTMLElement} node
 * @param {(files: File[], event: DragEvent) => void} take
 */
export function dropTarget(node, take) {
  let depth = 0;
  /** @param {DragEvent} event */
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  node.addEventListener("dragenter", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    depth += 1;
    node.classList.add("chm-dropping");
  });
  node.addEventListener("dragleave", (event) => {
    if (holdsFiles(event) && --depth <= 0) node.classList.remove("chm-dropping");
  });
  node.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.dataTransfer) event.dataTransfer.dropEffect = "copy";
  });
  node.addEventListener("drop", (event) => {
    depth = 0;
    node.classList.remove("chm-dropping");
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    take([...(event.dataTransfer?.files ?? [])], event);
  });
}

/**
 * PNG bytes from the kernel as an address for an <img>.
 * @param {DataView} view
 */
export const pngUrl = (view) => URL.createObjectURL(new Blob([/** @type {any} */ (view)], { type: "image/png" }));

/**
 * Shows a new picture in an <img> without a blank moment in between.
 * @param {HTMLImageElement} img
 * @param {string} url
 */
export async function swap(img, url) {
  const old = img.dataset.url;
  img.dataset.url = url;
  if (!old) {
    img.src = url;
    return;
  }
  const ready = new Image();
  ready.src = url;
  await ready.decode().catch(() => {});
  if (img.dataset.url === url) img.src = url;
  setTimeout(() => URL.revokeObjectURL(old), 1000);
}

/**
 * The width, in CSS pixels, at which pictures of one subject are all shown: a whole multiple of each one's own width
 * where there is one, else of the widest that fits; where none fits, the room.
 * @param {{width: number, height: number}[]} sizes
 * @param {number} room for the width
 * @param {number} tallest height
 */
export function shownWidth(sizes, room, tallest) {
  const most = Math.floor(Math.min(room, ...sizes.map(({ width, height }) => (tallest * width) / height)));
  const fitting = sizes.map(({ width }) => width).filter((width) => width <= most);
  if (!fitting.length) return Math.max(1, most);
  /** @param {number} a @param {number} b @returns {number} */
  const divisor = (a, b) => (b ? divisor(b, a % b) : a);
  const common = fitting.reduce((a, b) => (a * b) / divisor(a, b));
  const base = common <= most ? common : Math.max(...fitting);
  return base * Math.floor(most / base);
}

const HEAT = [
  [0, 0, 4],
  [40, 11, 84],
  [101, 21, 110],
  [159, 42, 99],
  [212, 72, 66],
  [245, 125, 21],
  [250, 193, 39],
  [252, 255, 164],
];

/**
 * Colour of a share in [0, 1], dark to bright.
 * @param {number} share
 * @returns {[number, number, number]}
 */
export function heat(share) {
  const place = Math.min(1, Math.max(0, share)) * (HEAT.length - 1);
  const low = Math.min(HEAT.length - 2, Math.floor(place));
  const part = place - low;
  const mix = (/** @type {number} */ channel) =>
    Math.round(HEAT[low][channel] * (1 - part) + HEAT[low + 1][channel] * part);
  return [mix(0), mix(1), mix(2)];
}

/**
 * The absolute difference of two RGBA pictures, mean over the three colours, as a heat map.
 * @param {ArrayLike<number>} one
 * @param {ArrayLike<number>} other
 * @param {number} [most] difference, of 255, that gets the brightest colour; left out, the largest there is
 */
export function errorMap(one, other, most) {
  const count = one.length / 4;
  const errors = new Float32Array(count);
  let largest = 0;
  let sum = 0;
  for (let pixel = 0; pixel < count; pixel += 1) {
    let error = 0;
    for (let channel = 0; channel < 3; channel += 1)
      error += Math.abs(one[4 * pixel + channel] - other[4 * pixel + channel]) / 3;
    errors[pixel] = error;
    largest = Math.max(largest, error);
    sum += error;
  }
  const rgba = new Uint8ClampedArray(4 * count);
  const scale = most ?? largest;
  for (let pixel = 0; pixel < count; pixel += 1) {
    rgba.set(heat(scale ? errors[pixel] / scale : 0), 4 * pixel);
    rgba[4 * pixel + 3] = 255;
  }
  return { rgba, largest, mean: count ? sum / count : 0 };
}
