// Pictures: from a file, a paste or a drop to bytes for the kernel, and from the kernel to the page.

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
  let blob = /** @type {Blob} */ (file);
  if (scale < 1 || !KEPT_AS_THEY_ARE.includes(file.type)) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    blob = await new Promise((resolve, reject) =>
      canvas.toBlob((png) => (png ? resolve(png) : reject(new Error(notPicture(file.name)))), "image/png"),
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
