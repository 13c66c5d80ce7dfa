// One exchange on the screen: the user's message, the reply as it grows, and what can be done with either.

import { button, copyText, element, group, once, toggle } from "../frame/dom.js";
import { composer, pack } from "./composer.js";
import { pictureBlock, textBlock } from "./parts.js";
import { tool } from "./tools.js";
import { walker } from "./walker.js";

/**
 * @typedef {import("./messages.js").PartNews} Part
 * @typedef {import("./messages.js").ExchangeNews} News
 * @typedef {object} Acts what an exchange asks of the chat
 * @property {(content: any, buffers?: ArrayBuffer[]) => Promise<boolean>} request
 * @property {() => void} focusComposer
 * @property {(text: string) => void} trouble
 * @property {(key: number, from: "messages" | "replies", by: 1 | -1) => void} walk
 * @property {(id: string, holder: HTMLElement) => Promise<void>} nest puts another widget's view into the page
 * @property {{best: number, inspect: boolean}} offers
 */

const COMING = "…"; // in place of an inspector's model id, while the model looks

/** @param {Acts} acts */
export function exchangeView(acts) {
  /** @type {News} */
  const now = { key: 0, about: "", error: "", running: false };
  const userParts = element("div.chm-bubble");
  const edit = button("Edit this message", "edit", startEdit);
  const wordings = walker("wording", (key) => walk(key, "messages"));
  const userRow = element(
    "div.chm-user",
    element("span.chm-sr", { text: "You: " }),
    userParts,
    element("div.chm-actions", edit),
  );
  const replyParts = element("div.chm-reply");
  const waiting = element("div.chm-waiting", { "aria-hidden": "true" }, element("i"), element("i"), element("i"));
  const about = element("span.chm-about");
  const replies = walker("reply", (key) => walk(key, "replies"));
  const proceed = tool("Continue this reply", "proceed", () => act("proceed"), { class: "chm-button chm-proceed" });
  proceed.append("Continue");
  const copy = button("Copy the text", "copy", () => copyText(replyText()));
  const again = button("Regenerate", "again", () => act("again"));
  const best = tool(`Draw ${acts.offers.best} to choose from`, "best", () => act("best"));
  const look = tool("Look inside", "look", inspect, { "aria-expanded": "false" });
  const facts = element("dl.chm-facts", { hidden: true });
  const how = toggle("How it was made", null, (on) => (facts.hidden = !on), { class: "chm-button chm-how" });
  const foot = element(
    "div.chm-foot",
    replies.node,
    about,
    proceed,
    element("div.chm-actions", copy, again, best, look, how),
  );
  const alert = element("div.chm-alert", { role: "alert", hidden: true });
  const inside = element("div.chm-inside", { hidden: true });
  const replyRow = element(
    "div.chm-model",
    element("span.chm-sr", { text: "Model: " }),
    replyParts,
    waiting,
    alert,
    foot,
    facts,
    inside,
  );
  const node = element("div.chm-exchange", userRow, wordings.node, replyRow);
  /** @type {{user: any[], reply: any[]}} */
  const blocks = { user: [], reply: [] };

  /** @param {number} key @param {"messages" | "replies"} from */
  function walk(key, from) {
    const keys = variants[from];
    acts.walk(key, from, keys.indexOf(key) < keys.indexOf(now.key) ? -1 : 1);
  }
  let variants = { messages: /** @type {number[]} */ ([]), replies: /** @type {number[]} */ ([]) };

  function replyText() {
    return blocks.reply
      .map((block) => block.text ?? "")
      .join("")
      .trim();
  }

  const act = once((/** @type {"again" | "best" | "proceed"} */ what) => {
    if (what === "again") acts.request({ kind: "again", key: now.key });
    else if (what === "best") acts.request({ kind: "best", key: now.key, count: acts.offers.best });
    else acts.request({ kind: "proceed", key: now.key });
    acts.focusComposer();
  });

  function inspect() {
    acts.request({ kind: "inspect", key: now.key, open: !now.inspector });
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
        element("span.chm-hint", { text: "This begins another branch; what is there stays." }),
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
    waiting.hidden = !(running && !blocks.reply.length);
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
        alert.append(button("Retry", "again", () => act("again"), { class: "chm-button chm-retry" }));
    }
    foot.hidden = running || Boolean(now.error && !blocks.reply.length && variants.replies.length < 2);
    proceed.hidden = !now.resumable;
    copy.hidden = !replyText();
    again.hidden = !blocks.user.length || Boolean(now.error);
    best.hidden = !acts.offers.best || again.hidden;
    best.title = `Draw ${acts.offers.best} to choose from`;
    best.setAttribute("aria-label", best.title);
    look.hidden = !acts.offers.inspect || !blocks.reply.length;
    how.hidden = !now.facts?.length;
    edit.hidden = !blocks.user.length;
  }

  function showFacts() {
    facts.replaceChildren(
      ...(now.facts ?? []).map(([name, value]) =>
        element("div", element("dt", { text: name }), element("dd", { text: value })),
      ),
    );
  }

  function showInside() {
    const id = now.inspector ?? "";
    inside.hidden = !id;
    look.setAttribute("aria-expanded", String(Boolean(id)));
    const label = id ? "Close the inspector" : "Look inside";
    look.setAttribute("aria-label", label);
    look.title = label;
    if (!id) inside.replaceChildren();
    else if (id === COMING) inside.replaceChildren(element("p.chm-hint", { text: "Looking inside …" }));
    else if (inside.dataset.of !== id) {
      acts.nest(id, inside).catch((error) => inside.replaceChildren(element("p.chm-hint", { text: error.message })));
    }
    inside.dataset.of = id;
  }

  return {
    node,
    now,
    replyRow,
    settle,
    /** Puts the reply back to its message, from the strip in which it could be chosen. */
    restore() {
      if (replyRow.parentNode !== node) node.append(replyRow);
    },
    /** @param {News} news @param {DataView[]} buffers */
    apply(news, buffers) {
      Object.assign(now, news);
      for (const side of /** @type {const} */ (["user", "reply"])) {
        const holder = side === "user" ? userParts : replyParts;
        for (const part of news[side] ?? []) {
          blocks[side][part.at] ??= part.text === undefined ? pictureBlock(holder, side === "user") : textBlock(holder);
          if (part.text === undefined) blocks[side][part.at].apply(part, buffers);
          else blocks[side][part.at].apply(part, Boolean(now.running));
        }
      }
      if (news.facts) showFacts();
      if (news.inspector !== undefined) showInside();
      settle();
    },
    /** @param {{messages: number[], replies: number[]}} beside what stands beside it, by key */
    branch(beside) {
      variants = beside;
      wordings.show(beside.messages, now.key);
      replies.show(beside.replies, now.key);
      settle();
    },
    /** @param {"messages" | "replies"} from @param {1 | -1} by */
    focusWalker(from, by) {
      (from === "messages" ? wordings : replies).focus(by);
    },
  };
}
