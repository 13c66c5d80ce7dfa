// The box to write in: text with pictures in between, at the caret. What comes out is an ordered list of parts.

import { button, element } from "../frame/dom.js";
import { chooser, dropTarget, notPicture, readPicture, sortFiles } from "../frame/pictures.js";

/**
 * @typedef {{text: string}} TextPart
 * @typedef {{url: string, bytes?: ArrayBuffer, keep?: number, name?: string}} PicturePart new bytes, or kept from before
 * @typedef {TextPart | PicturePart} ComposerPart
 */

let chips = 0;

/**
 * Parts as they are sent: text as it is, pictures as numbers of buffers, kept ones by their place in the old message.
 * @param {ComposerPart[]} parts
 * @returns {{parts: any[], buffers: ArrayBuffer[]}}
 */
export function pack(parts) {
  const buffers = /** @type {ArrayBuffer[]} */ ([]);
  const packed = parts.map((part) => {
    if ("text" in part) return { text: part.text };
    if (part.bytes) return { picture: buffers.push(part.bytes) - 1 };
    return { keep: part.keep };
  });
  return { parts: packed, buffers };
}

/**
 * Joins neighbouring text, trims the ends of each run, and leaves out what is empty.
 * @param {ComposerPart[]} parts
 * @returns {ComposerPart[]}
 */
export function tidy(parts) {
  const joined = /** @type {ComposerPart[]} */ ([]);
  for (const part of parts) {
    const last = joined.at(-1);
    if ("text" in part && last && "text" in last) last.text += part.text;
    else joined.push("text" in part ? { text: part.text } : part);
  }
  return joined
    .map((part) => ("text" in part ? { text: part.text.replace(/\u00a0/g, " ").trim() } : part))
    .filter((part) => !("text" in part) || part.text !== "");
}

/**
 * @param {object} options
 * @param {string} options.label
 * @param {string} options.placeholder
 * @param {() => void} options.submit on Enter
 * @param {() => void} options.cancel on Esc
 * @param {(text: string) => void} options.trouble says what is wrong with a picture
 * @param {() => void} [options.change]
 */
export function composer({ label, placeholder, submit, cancel, trouble, change }) {
  const pictures = /** @type {Map<string, PicturePart>} */ (new Map());
  const box = element("div.chm-input", {
    contenteditable: "true",
    role: "textbox",
    "aria-multiline": "true",
    "aria-label": label,
    "data-placeholder": placeholder,
    spellcheck: "true",
    tabindex: "0",
  });
  const files = chooser((chosen) => add(chosen));
  const attach = button("Add a picture", "attach", () => files.click());

  function changed() {
    if (!box.querySelector("[data-chip]") && box.textContent === "" && box.childNodes.length) box.replaceChildren();
    box.classList.toggle("chm-empty", parts().length === 0);
    change?.();
  }

  /** @returns {ComposerPart[]} */
  function parts() {
    const out = /** @type {ComposerPart[]} */ ([]);
    /** @param {Node} node */
    const walk = (node) => {
      if (node instanceof HTMLElement && node.dataset.chip) {
        const picture = pictures.get(node.dataset.chip);
        if (picture) out.push(picture);
      } else if (node.nodeName === "BR") out.push({ text: "\n" });
      else if (node instanceof Text) out.push({ text: node.data });
      else {
        if (node !== box && node.nodeName === "DIV") out.push({ text: "\n" });
        node.childNodes.forEach(walk);
      }
    };
    walk(box);
    return tidy(out);
  }

  function atCaret() {
    const selection = getSelection();
    if (selection?.rangeCount && box.contains(selection.anchorNode)) return selection.getRangeAt(0);
    const range = document.createRange();
    range.selectNodeContents(box);
    range.collapse(false);
    return range;
  }

  /** @param {PicturePart} picture @param {Range} range */
  function insert(picture, range) {
    const id = String((chips += 1));
    pictures.set(id, picture);
    const chip = element(
      "span.chm-chip",
      { contenteditable: "false", "data-chip": id },
      element("img", { src: picture.url, alt: picture.name || "Attached picture", draggable: "false" }),
      button(
        "×",
        null,
        () => {
          chip.remove();
          box.focus();
          changed();
        },
        { class: "chm-remove", "aria-label": "Remove this picture", title: "Remove this picture" },
      ),
    );
    range.deleteContents();
    range.insertNode(chip);
    range.setStartAfter(chip);
    range.collapse(true);
    const selection = getSelection();
    selection?.removeAllRanges();
    selection?.addRange(range);
    changed();
  }

  /** @param {Iterable<File>} list */
  async function add(list) {
    const { pictures: chosen, others } = sortFiles(list);
    if (others.length) trouble(notPicture(others[0]));
    const range = atCaret();
    box.focus();
    for (const file of chosen) {
      try {
        insert(await readPicture(file), range);
      } catch (error) {
        trouble(/** @type {Error} */ (error).message);
      }
    }
  }

  box.addEventListener("input", changed);
  box.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !(event.target instanceof HTMLButtonElement)) {
      event.preventDefault();
      if (event.shiftKey) document.execCommand("insertLineBreak");
      else submit();
    } else if (event.key === "Escape") {
      event.preventDefault();
      cancel();
    }
  });
  box.addEventListener("beforeinput", (event) => {
    if (event.inputType.startsWith("format")) event.preventDefault();
  });
  box.addEventListener("paste", (event) => {
    event.preventDefault();
    const data = event.clipboardData;
    if (data?.files.length) add(data.files);
    else if (data) document.execCommand("insertText", false, data.getData("text/plain"));
  });
  box.addEventListener("drop", (event) => {
    if (event.dataTransfer?.files.length) return; // the whole widget takes files
    event.preventDefault();
    document.execCommand("insertText", false, event.dataTransfer?.getData("text/plain") ?? "");
  });
  box.classList.add("chm-empty");

  return {
    box,
    attach,
    files,
    parts,
    add,
    /** @param {HTMLElement} node where files may be dropped */
    takeDropsOn: (node) => dropTarget(node, (dropped) => add(dropped)),
    /** @param {ComposerPart[]} list */
    fill(list) {
      box.replaceChildren();
      pictures.clear();
      for (const part of list) {
        const range = document.createRange();
        range.selectNodeContents(box);
        range.collapse(false);
        if ("text" in part) range.insertNode(document.createTextNode(part.text));
        else insert(part, range);
      }
      changed();
    },
    clear() {
      box.replaceChildren();
      pictures.clear();
      changed();
    },
    focus() {
      box.focus();
      const range = document.createRange();
      range.selectNodeContents(box);
      range.collapse(false);
      getSelection()?.removeAllRanges();
      getSelection()?.addRange(range);
    },
    /** @param {boolean} locked while a message is on its way */
    lock(locked) {
      box.setAttribute("contenteditable", locked ? "false" : "true");
      box.setAttribute("aria-busy", String(locked));
    },
  };
}
