// One exchange on the screen: the user's message, the reply as it grows, and what can be done with either.

import { button, copyText, download, element, group, write } from "../frame/dom.js";
import { pngUrl, swap } from "../frame/pictures.js";
import { composer, pack } from "./composer.js";
import { sentences } from "./words.js";

/**
 * @typedef {import("./messages.js").PartNews} Part
 * @typedef {import("./messages.js").ExchangeNews} News
 * @typedef {object} Acts what an exchange asks of the chat
 * @property {(content: any, buffers?: ArrayBuffer[]) => Promise<boolean>} request
 * @property {() => void} focusComposer
 * @property {(text: string) => void} trouble
 */

const SIDE = 256; // CSS pixels: the longer side of a drawn picture
const USER_SIDE = 144;

/** @param {HTMLElement} holder */
function textBlock(holder) {
  const sentencesNode = element("span"); // whole sentences: read aloud when they are added
  const tail = element("span", { "aria-hidden": "true" });
  const node = element("p.chm-text", sentencesNode, tail);
  holder.append(node);
  let text = "";
  return {
    node,
    get text() {
      return text;
    },
    /** @param {Part} part @param {boolean} running */
    apply(part, running) {
      text = text.slice(0, part.start ?? 0) + (part.text ?? "");
      this.settle(running);
    },
    /** @param {boolean} running */
    settle(running) {
      const visible = text.replace(/^\s+/, "");
      const [whole, rest] = running ? sentences(visible) : [visible.trimEnd(), ""];
      write(sentencesNode, whole);
      write(tail, rest);
    },
  };
}

/** @param {HTMLElement} holder @param {boolean} mine */
function pictureBlock(holder, mine) {
  const img = element("img", { draggable: "false" });
  const veil = element("div.chm-veil");
  const progress = element("span.chm-progress", { "aria-hidden": "true" });
  const save = button("Save this picture", "save", async () => {
    download("picture.png", await (await fetch(img.src)).blob());
  });
  const frame = element("div.chm-frame", img, veil, progress, mine ? null : save);
  const node = element("figure.chm-picture", frame);
  holder.append(node);
  img.addEventListener("load", () => {
    const side = mine ? USER_SIDE : SIDE;
    const scale = side / Math.max(img.naturalWidth, img.naturalHeight);
    frame.style.width = `${Math.max(24, Math.round(img.naturalWidth * Math.min(scale, 8)))}px`;
    frame.style.aspectRatio = `${img.naturalWidth} / ${img.naturalHeight}`;
  });
  let [row, rows] = [0, 0];
  return {
    node,
    img,
    /** @param {Part} part @param {DataView[]} buffers */
    apply(part, buffers) {
      swap(img, pngUrl(buffers[part.picture ?? 0]));
      [row, rows] = [part.row ?? 0, part.rows ?? 0];
    },
    /** @param {boolean} running */
    settle(running) {
      const growing = row < rows;
      frame.classList.toggle("chm-growing", growing && running);
      frame.classList.toggle("chm-unfinished", growing && !running);
      frame.style.setProperty("--drawn", rows ? `${(100 * row) / rows}%` : "100%");
      progress.textContent = growing ? `row ${Math.min(row + Number(running), rows)}/${rows}` : "";
      img.alt = mine
        ? "Your picture"
        : growing
          ? `Picture ${running ? "being drawn" : "left unfinished"}, ${row} of ${rows} rows`
          : "Picture drawn by the model";
      node.setAttribute("aria-hidden", String(growing && running));
    },
  };
}

/** @param {Acts} acts */
export function exchangeView(acts) {
  /** @type {News} */
  const now = { key: 0, about: "", error: "", running: false };
  const userParts = element("div.chm-bubble");
  const edit = button("Edit this message", "edit", startEdit);
  const userRow = element(
    "div.chm-user",
    element("span.chm-sr", { text: "You: " }),
    userParts,
    element("div.chm-actions", edit),
  );
  const replyParts = element("div.chm-reply");
  const waiting = element("div.chm-waiting", { "aria-hidden": "true" }, element("i"), element("i"), element("i"));
  const about = element("span.chm-about");
  const copy = button("Copy the text", "copy", () => copyText(replyText()));
  const again = button("Regenerate", "again", retry);
  const foot = element("div.chm-foot", about, element("div.chm-actions", copy, again));
  const alert = element("div.chm-alert", { role: "alert", hidden: true });
  const replyRow = element(
    "div.chm-model",
    element("span.chm-sr", { text: "Model: " }),
    replyParts,
    waiting,
    alert,
    foot,
  );
  const node = element("div.chm-exchange", userRow, replyRow);
  /** @type {{user: any[], reply: any[]}} */
  const blocks = { user: [], reply: [] };
  let last = false;

  function replyText() {
    return blocks.reply
      .map((block) => block.text ?? "")
      .join("")
      .trim();
  }

  function retry() {
    acts.request({ kind: "again", key: now.key });
    acts.focusComposer();
  }

  function startEdit() {
    const old = blocks.user.map((block, at) =>
      block.img ? { url: block.img.src, keep: at, name: "Your picture" } : { text: block.text },
    );
    const finish = () => {
      form.remove();
      userParts.hidden = false;
      node.classList.remove("chm-editing");
      acts.focusComposer();
    };
    const send = async () => {
      const parts = field.parts();
      if (!parts.length) return;
      const { parts: packed, buffers } = pack(parts);
      field.lock(true);
      if (await acts.request({ kind: "edit", key: now.key, parts: packed }, buffers)) finish();
      field.lock(false);
    };
    const field = composer({
      label: "Edit your message",
      placeholder: "Your message",
      submit: send,
      cancel: finish,
      trouble: acts.trouble,
    });
    const form = group(
      "chm-editor",
      "Edit your message",
      field.box,
      element(
        "div.chm-row",
        field.attach,
        field.files,
        element("span.chm-hint", { text: "What comes after this message will be forgotten." }),
        button("Cancel", null, finish),
        button("Send", null, send, { class: "chm-button chm-primary" }),
      ),
    );
    field.fill(old);
    userParts.hidden = true;
    node.classList.add("chm-editing");
    userRow.prepend(form);
    field.focus();
  }

  function settle() {
    const running = Boolean(now.running) && now.state?.name !== "stopped";
    blocks.user.forEach((block) => block.settle(false));
    blocks.reply.forEach((block, at) => block.settle(running && at === blocks.reply.length - 1));
    node.dataset.state = now.state?.name ?? "done";
    waiting.hidden = !(running && now.state?.name === "reading");
    const empty = !running && !blocks.reply.length && !now.error;
    const notes = { stopped: "Stopped before the first word.", done: "No reply." };
    replyRow.classList.toggle("chm-empty-reply", empty);
    about.textContent = [empty ? notes[now.state?.name === "stopped" ? "stopped" : "done"] : "", now.about]
      .filter(Boolean)
      .join(" ");
    if (alert.hidden !== !now.error || alert.dataset.text !== now.error) {
      alert.hidden = !now.error;
      alert.dataset.text = now.error;
      alert.replaceChildren(...(now.error ? [element("p", { text: now.error })] : []));
      if (now.error && blocks.user.length)
        alert.append(button("Retry", "again", retry, { class: "chm-button chm-retry" }));
    }
    foot.hidden = running || Boolean(now.error && !blocks.reply.length);
    copy.hidden = !replyText();
    again.hidden = !last || !blocks.user.length || Boolean(now.error);
    edit.hidden = !blocks.user.length;
  }

  return {
    node,
    now,
    /** @param {News} news @param {DataView[]} buffers */
    apply(news, buffers) {
      Object.assign(now, news);
      for (const side of /** @type {const} */ (["user", "reply"])) {
        const holder = side === "user" ? userParts : replyParts;
        for (const part of news[side] ?? []) {
          blocks[side][part.at] ??=
            part.picture === undefined ? textBlock(holder) : pictureBlock(holder, side === "user");
          if (part.picture === undefined) blocks[side][part.at].apply(part, Boolean(now.running));
          else blocks[side][part.at].apply(part, buffers);
        }
      }
      settle();
    },
    /** @param {boolean} isLast */
    mark(isLast) {
      if (isLast !== last) {
        last = isLast;
        settle();
      }
    },
  };
}
