// The reader's own prompt: words, and a picture before them.

import { button, element } from "../frame/dom.js";
import { chooser, dropTarget, notPicture, readPicture, sortFiles } from "../frame/pictures.js";

/**
 * @param {object} hooks
 * @param {(text: string, keep: boolean, pictures: ArrayBuffer[]) => void} hooks.submit
 * @param {(text: string) => void} hooks.trouble
 */
export function promptBox({ submit, trouble }) {
  let fresh = /** @type {import("../frame/pictures.js").Picture | null} */ (null);
  const input = element("input", {
    type: "text",
    "aria-label": "Words of the prompt",
    placeholder: "draw a red circle",
  });
  const look = element("img", { alt: "The picture of the prompt", hidden: true });
  const files = chooser((chosen) => add(chosen), false);
  const keep = element("input", { type: "checkbox" });
  const keeping = element("label.chm-teach-keep", keep, element("span", { text: "with the picture that is there" }));
  const node = element(
    "form.chm-teach-prompt",
    {
      hidden: true,
      "aria-label": "A prompt of your own",
      on: {
        submit(/** @type {Event} */ event) {
          event.preventDefault();
          submit(input.value, keep.checked && !fresh, fresh ? [fresh.bytes] : []);
        },
        paste(/** @type {ClipboardEvent} */ event) {
          if (event.clipboardData?.files.length) add([...event.clipboardData.files]);
        },
      },
    },
    look,
    button("Add a picture", "attach", () => files.click()),
    files,
    input,
    keeping,
    element("button.chm-button.chm-primary", { type: "submit", text: "Begin" }),
  );
  dropTarget(node, (dropped) => add(dropped));

  /** @param {File[]} chosen */
  async function add(chosen) {
    const { pictures, others } = sortFiles(chosen);
    if (others.length) trouble(notPicture(others[0]));
    if (!pictures.length) return;
    try {
      const picture = await readPicture(pictures[0]);
      if (fresh) URL.revokeObjectURL(fresh.url);
      fresh = picture;
      look.src = picture.url;
      look.hidden = false;
      keeping.hidden = true;
    } catch (problem) {
      trouble(/** @type {Error} */ (problem).message);
    }
  }

  return {
    node,
    /** @param {string} text @param {boolean} pictures whether the prompt has any */
    show(text, pictures) {
      if (document.activeElement !== input) input.value = text;
      keeping.hidden = !pictures || fresh !== null;
      keep.checked = pictures;
    },
    focus: () => input.focus(),
    dispose() {
      if (fresh) URL.revokeObjectURL(fresh.url);
    },
  };
}
