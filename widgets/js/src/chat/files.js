// The conversation as files: what it can be saved as, and a saved one to go on with.

import { button, copyText, download, element } from "../frame/dom.js";

const PART = 4 * 1024 * 1024; // bytes: a message to the kernel holds 10 MB at most

/**
 * @param {Record<string, string>} exports what it can be saved as, in words by name
 * @param {object} hooks
 * @param {(format: string, use: "save" | "copy") => void} hooks.ask
 * @param {(content: any, buffers: ArrayBuffer[]) => Promise<boolean>} hooks.load sends one part of a file
 */
export function filesPanel(exports, { ask, load }) {
  const input = element("input", { type: "file", accept: ".json,application/json", hidden: true, tabindex: "-1" });
  input.setAttribute("aria-hidden", "true");
  input.addEventListener("change", async () => {
    const file = input.files?.[0];
    input.value = "";
    if (file) await send(file);
  });
  const copy = button("Copy as JSON", null, () => ask("document", "copy"), { class: "chm-button chm-offer" });
  const saves = Object.entries(exports).map(([name, label]) =>
    button(label, null, () => ask(name, "save"), { class: "chm-button chm-offer", "data-format": name }),
  );
  const node = element(
    "div.chm-files",
    { role: "group", "aria-label": "Save and load", hidden: true },
    element("span.chm-hint", { text: "Save" }),
    ...saves,
    copy,
    element("span.chm-hint", { text: "Load" }),
    button("A saved conversation …", null, () => input.click(), { class: "chm-button chm-offer chm-load" }),
    input,
  );

  /** @param {File} file */
  async function send(file) {
    const bytes = await file.arrayBuffer();
    for (let start = 0; start === 0 || start < bytes.byteLength; start += PART) {
      const part = bytes.slice(start, start + PART);
      const arrived = await load({ first: start === 0, last: start + PART >= bytes.byteLength }, [part]);
      if (!arrived) return;
    }
  }

  return {
    node,
    /** @param {boolean} empty whether there is nothing to save */
    refresh(empty) {
      for (const each of [...saves, copy]) each.disabled = empty;
    },
    /** Takes a file that the kernel made. @param {import("./messages.js").ConversationExport} message @param {DataView} data */
    async take({ name, type, use }, data) {
      const blob = new Blob([/** @type {any} */ (data)], { type });
      if (use === "save") return download(name, blob);
      await copyText(await blob.text());
      copy.classList.add("chm-done");
      setTimeout(() => copy.classList.remove("chm-done"), 1200);
    },
  };
}
