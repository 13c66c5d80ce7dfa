// The chat cell: a transcript that grows, a box to write in, settings, and a lamp that says what is going on.

import { button, copyText, download, element, icon } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { composer, pack } from "./composer.js";
import { exchangeView } from "./exchange.js";
import { settingsPanel } from "./settings.js";
import { lampWords } from "./words.js";

const BUSY = ["reading", "writing", "drawing"];

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const { model } = context;
  const views = /** @type {Map<number, ReturnType<typeof exchangeView>>} */ (new Map());
  let order = /** @type {number[]} */ ([]);
  let number = 0;
  let whole = false; // whether everything said so far has arrived
  let working = false; // whether the kernel has a message to reply to
  let sending = false;
  let exporting = /** @type {"copy" | "save" | null} */ (null);

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").ChatMessage>} */
  const receive = { update, export: finishExport };
  const page = frame(context, {
    label: "Chat with the model",
    kind: "chat",
    receive,
    refresh,
    ready: () => whole,
    state: () => lampWords(state()),
  });
  const log = element("div.chm-log", {
    role: "log",
    "aria-live": "polite",
    "aria-label": "Conversation",
    tabindex: "0",
  });
  const start = element("div.chm-start");
  const latest = button("Go to the latest", "down", () => toEnd(true), {
    class: "chm-button chm-latest",
    hidden: true,
  });
  const field = composer({
    label: "Message to the model",
    placeholder: "Write, paste or drop a picture …",
    submit: send,
    cancel,
    trouble: page.tell,
    change: () => page.tell(""),
  });
  const go = button("Send", "send", () => (busy() ? stop() : send()), { class: "chm-button chm-go" });
  const panel = settingsPanel(model, {
    set: page.set,
    lastSeed: () =>
      [...views.values()]
        .map((view) => view.now.seed ?? null)
        .filter((seed) => seed !== null)
        .at(-1) ?? null,
    close: () => toggleSettings(false),
  });
  const settings = button("Settings", "settings", () => toggleSettings(), { "aria-expanded": "false" });
  const copy = button("Copy the conversation as JSON", "copy", () => ask("copy"));
  const save = button("Download the conversation as JSON", "save", () => ask("save"));
  const clear = button("Clear the conversation", "clear", sureClear);
  let sure = 0;

  /** @returns {import("./messages.js").ReplyState | undefined} */
  function state() {
    const key = order.at(-1);
    const last = key === undefined ? undefined : views.get(key)?.now.state;
    return working && !BUSY.includes(last?.name ?? "") ? { name: "reading" } : last;
  }

  function busy() {
    return BUSY.includes(state()?.name ?? "") && !page.silent;
  }

  function refresh() {
    const going = busy();
    if (go.dataset.glyph !== (going ? "stop" : "send")) {
      go.dataset.glyph = going ? "stop" : "send";
      go.replaceChildren(icon(going ? "stop" : "send"));
      go.title = going ? "Stop (Esc)" : "Send (Enter)";
      go.setAttribute("aria-label", going ? "Stop" : "Send");
    }
    go.classList.toggle("chm-stop", going);
    go.disabled = !going && (sending || !field.parts().length);
    for (const tool of [copy, save, clear]) tool.disabled = !order.length || page.silent;
    if (!order.length && whole && !start.isConnected) showStart();
    if (order.length && start.isConnected) start.remove();
  }

  function showStart() {
    const offers = /** @type {string[]} */ (model.get("suggestions") ?? []);
    start.replaceChildren(
      element("p.chm-lead", { text: "Ask for a picture, or show one." }),
      element(
        "div.chm-offers",
        ...offers.map((text) =>
          button(
            text,
            null,
            () => {
              field.fill([{ text }]);
              send();
            },
            { class: "chm-offer" },
          ),
        ),
      ),
    );
    log.append(start);
  }

  /** @param {import("./messages.js").ConversationUpdate} message @param {DataView[]} buffers */
  function update(message, buffers) {
    if (!message.whole && (!whole || message.number !== number + 1)) {
      if (whole) page.request({ kind: "hello" });
      whole = false;
      return;
    }
    const stay = atEnd();
    whole = true;
    number = message.number;
    order = message.order;
    working = message.busy;
    for (const [key, view] of views) {
      if (!order.includes(key)) {
        view.node.remove();
        views.delete(key);
      }
    }
    for (const news of message.changed) {
      let view = views.get(news.key);
      if (!view) {
        view = exchangeView({ request: page.request, focusComposer: field.focus, trouble: page.tell });
        views.set(news.key, view);
        log.append(view.node);
      }
      view.apply(news, buffers);
    }
    order.forEach((key, at) => views.get(key)?.mark(at === order.length - 1));
    log.setAttribute("aria-busy", String(busy()));
    page.refresh();
    if (stay) toEnd();
  }

  function atEnd() {
    return log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  }

  function toEnd(focus = false) {
    log.scrollTop = log.scrollHeight;
    if (focus) field.focus();
  }

  async function send() {
    const parts = field.parts();
    if (!parts.length || sending) return;
    if (busy()) return page.tell("The model is still replying. Esc stops it; your message stays here.");
    const packed = pack(parts);
    sending = true;
    field.lock(true);
    const lost = "The message has not arrived: the kernel";
    const arrived = await page.ask({ kind: "send", parts: packed.parts }, { buffers: packed.buffers, lost });
    sending = false;
    field.lock(false);
    if (arrived) field.clear();
    else page.tell(`${page.notice} It stays here.`);
    toEnd(true);
    page.refresh();
  }

  function stop() {
    page.request({ kind: "stop" });
    field.focus();
  }

  function cancel() {
    if (!panel.node.hidden) toggleSettings(false);
    else if (busy()) stop();
  }

  /** @param {boolean} [open] */
  function toggleSettings(open = Boolean(panel.node.hidden)) {
    const inside = panel.node.contains(document.activeElement);
    panel.node.hidden = !open;
    settings.setAttribute("aria-expanded", String(open));
    if (open) /** @type {HTMLElement | null} */ (panel.node.querySelector("input"))?.focus();
    else if (inside) settings.focus();
  }

  function sureClear() {
    if (!sure) {
      clear.classList.add("chm-sure");
      clear.setAttribute("aria-label", "Press again to clear the conversation");
      clear.title = "Press again to clear";
      sure = window.setTimeout(unsure, 3000);
      return;
    }
    unsure();
    page.request({ kind: "clear" });
    field.focus();
  }

  function unsure() {
    clearTimeout(sure);
    sure = 0;
    clear.classList.remove("chm-sure");
    clear.setAttribute("aria-label", "Clear the conversation");
    clear.title = "Clear the conversation";
  }

  /** @param {"copy" | "save"} how */
  function ask(how) {
    exporting = how;
    page.request({ kind: "export" });
  }

  /** @param {import("./messages.js").ConversationExport} message */
  async function finishExport({ text }) {
    if (exporting === "save") download("conversation.json", new Blob([text], { type: "application/json" }));
    if (exporting === "copy") {
      await copyText(text);
      copy.classList.add("chm-done");
      setTimeout(() => copy.classList.remove("chm-done"), 1200);
    }
    exporting = null;
  }

  log.addEventListener("scroll", () => {
    latest.hidden = Boolean(atEnd());
  });
  page.box.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.defaultPrevented) cancel();
  });
  const watch = setInterval(() => {
    if (busy() && page.quiet() > 5000) page.request({ kind: "ping" });
  }, 2500);
  field.takeDropsOn(page.box);
  return page.open(
    [
      page.header("Conversation", [copy, save, clear, settings]),
      panel.node,
      element("div.chm-body", log, latest),
      page.alert,
      element("div.chm-composer", field.attach, field.files, field.box, go),
    ],
    [() => clearInterval(watch), unsure, panel.dispose],
  );
}

export default { render };
