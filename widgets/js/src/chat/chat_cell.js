// The chat cell: a transcript that grows, a box to write in, settings, and a lamp that says what is going on.

import { button, copyText, download, element, icon, lamp, root } from "../frame/dom.js";
import { connect } from "../frame/link.js";
import { hidesStill, stillKeeper } from "../frame/still.js";
import { composer, pack } from "./composer.js";
import { exchangeView } from "./exchange.js";
import { settingsPanel } from "./settings.js";
import { lampWords } from "./words.js";

const BUSY = ["reading", "writing", "drawing"];

/** @param {{model: import("../frame/link.js").Model, el: HTMLElement}} context */
function render({ model, el }) {
  /** @type {Map<number, ReturnType<typeof exchangeView>>} */
  const views = new Map();
  /** @type {number[]} */
  let order = [];
  let number = 0;
  let whole = false; // whether everything said so far has arrived
  let working = false; // whether the kernel has a message to reply to
  let sending = false;
  /** @type {"copy" | "save" | null} */
  let exporting = null;

  const box = root("Chat with the model", "chat");
  const signal = lamp();
  const stills = element("div", { hidden: true });
  const log = element("div", {
    class: "chm-log",
    role: "log",
    "aria-live": "polite",
    "aria-label": "Conversation",
    tabindex: "0",
  });
  const start = element("div", { class: "chm-start" });
  const latest = button("Go to the latest", "down", () => toEnd(true), {
    class: "chm-button chm-latest",
    hidden: true,
  });
  const notice = element("div", { class: "chm-notice", role: "alert", hidden: true });
  const field = composer({
    label: "Message to the model",
    placeholder: "Write, paste or drop a picture …",
    submit: send,
    cancel,
    trouble: tell,
    change: () => {
      tell("");
      refresh();
    },
  });
  const go = button("Send", "send", () => (busy() ? stop() : send()), { class: "chm-button chm-go" });
  const panel = settingsPanel(model, {
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

  box.append(
    stills,
    element(
      "header",
      { class: "chm-head" },
      signal.node,
      element(
        "div",
        { class: "chm-tools", role: "toolbar", "aria-label": "Conversation" },
        copy,
        save,
        clear,
        settings,
      ),
    ),
    panel.node,
    element("div", { class: "chm-body" }, log, latest),
    notice,
    element("div", { class: "chm-composer" }, field.attach, field.files, field.box, go),
  );
  el.replaceChildren(box);
  field.takeDropsOn(box);

  const link = connect(model, { receive, change: refresh });
  const keeper = stillKeeper(model, link);

  function state() {
    const key = order.at(-1);
    const last = key === undefined ? undefined : views.get(key)?.now.state;
    return working && !BUSY.includes(last?.name ?? "") ? { name: "reading" } : last;
  }

  function busy() {
    return BUSY.includes(state()?.name ?? "") && link.state !== "silent";
  }

  function refresh() {
    const [name, words] = lampWords(link?.state ?? "connecting", state());
    signal.show(name, words);
    const going = link && busy();
    if (go.dataset.glyph !== (going ? "stop" : "send")) {
      go.dataset.glyph = going ? "stop" : "send";
      go.replaceChildren(icon(going ? "stop" : "send"));
      go.title = going ? "Stop (Esc)" : "Send (Enter)";
      go.setAttribute("aria-label", going ? "Stop" : "Send");
    }
    go.classList.toggle("chm-stop", Boolean(going));
    go.disabled = !going && (sending || !field.parts().length);
    const silent = link?.state === "silent";
    box.classList.toggle("chm-orphan", silent && !whole);
    stills.replaceChildren(...(whole ? [hidesStill(model.get("still_name") ?? "")] : []));
    for (const tool of [copy, save, clear]) tool.disabled = !order.length || silent;
    if (!order.length && whole && !start.isConnected) showStart();
    if (order.length && start.isConnected) start.remove();
  }

  function showStart() {
    const offers = /** @type {string[]} */ (model.get("suggestions") ?? []);
    start.replaceChildren(
      element("p", { class: "chm-lead", text: "Ask for a picture, or show one." }),
      element(
        "div",
        { class: "chm-offers" },
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

  /** @param {any} message @param {DataView[]} buffers */
  function receive(message, buffers) {
    if (message.kind === "export") return finishExport(message.text);
    if (message.kind === "still") return keeper.receive(message);
    if (message.kind !== "update") return;
    if (!message.whole && (!whole || message.number !== number + 1)) {
      if (whole) link.request({ kind: "hello" });
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
        view = exchangeView({ request: link.request, focusComposer: field.focus, trouble: tell });
        views.set(news.key, view);
        log.append(view.node);
      }
      view.apply(news, buffers);
    }
    order.forEach((key, at) => views.get(key)?.mark(at === order.length - 1));
    log.setAttribute("aria-busy", String(busy()));
    refresh();
    if (stay) toEnd();
  }

  function atEnd() {
    return log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  }

  function toEnd(focus = false) {
    log.scrollTop = log.scrollHeight;
    if (focus) field.focus();
  }

  /** @param {string} text */
  function tell(text) {
    if (notice.textContent === text) return;
    notice.hidden = !text;
    notice.textContent = text;
  }

  async function send() {
    const parts = field.parts();
    if (!parts.length || sending) return;
    if (busy()) return tell("The model is still replying. Esc stops it; your message stays here.");
    const packed = pack(parts);
    sending = true;
    field.lock(true);
    const arrived = await link.request({ kind: "send", parts: packed.parts }, packed.buffers);
    sending = false;
    field.lock(false);
    if (arrived) field.clear();
    else tell("The message has not arrived: the kernel is busy with another cell, or gone. It stays here.");
    toEnd(true);
    refresh();
  }

  function stop() {
    link.request({ kind: "stop" });
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
    link.request({ kind: "clear" });
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
    link.request({ kind: "export" });
  }

  /** @param {string} text */
  async function finishExport(text) {
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
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.defaultPrevented) cancel();
  });
  const watch = setInterval(() => {
    if (busy() && link.quiet() > 5000) link.request({ kind: "ping" });
  }, 2500);
  refresh();
  link.request({ kind: "hello" });

  return () => {
    clearInterval(watch);
    unsure();
    panel.dispose();
    keeper.dispose();
    link.close();
  };
}

export default { render };
