// Files for surgery: pictures, and codes in JSON, by choice, paste or drop.

import { icon } from "../frame/dom.js";
import { chooser, dropTarget, notPicture, readPicture, sortFiles } from "../frame/pictures.js";
import { readCodes } from "./strokes.js";
import { worded } from "./surgery_tools.js";

const LARGEST_FILE = 2 ** 21; // bytes of codes: many times the largest grid

/**
 * @param {HTMLElement} box that takes what is pasted and dropped
 * @param {object} hooks
 * @param {(content: any, buffers?: ArrayBuffer[]) => void} hooks.open
 * @param {(text: string) => void} hooks.tell what is wrong with a file
 */
export function filesFor(box, { open, tell }) {
  const input = chooser((chosen) => take(chosen), false);
  input.accept = "image/*,.json,application/json";

  /** @param {Iterable<File>} list */
  async function take(list) {
    const codes = [...list].find((file) => file.type === "application/json" || /\.json$/i.test(file.name));
    const { pictures, others } = sortFiles(list);
    try {
      if (codes && codes.size > LARGEST_FILE) throw new Error(`“${codes.name}” is too large to hold a grid of codes.`);
      if (codes) return open({ kind: "codes", name: codes.name, ...readCodes(await codes.text(), codes.name) });
      if (!pictures.length) throw new Error(notPicture(others[0] ?? ""));
      const picture = await readPicture(pictures[0]);
      URL.revokeObjectURL(picture.url);
      open({ kind: "picture", name: picture.name }, [picture.bytes]);
    } catch (problem) {
      tell(/** @type {Error} */ (problem).message);
    }
  }

  dropTarget(box, (dropped) => take(dropped));
  box.addEventListener("paste", (event) => {
    const pasted = event.clipboardData?.files;
    if (!pasted?.length && event.target instanceof HTMLInputElement) return; // text for a field
    event.preventDefault();
    if (pasted?.length) take(pasted);
    else tell("There is no picture on the clipboard. Copy a picture, not a file's name or text.");
  });
  return [worded("Open", icon("attach"), () => input.click(), "Open a picture, or codes in a JSON file"), input];
}
