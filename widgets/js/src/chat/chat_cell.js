// The chat cell: a transcript that grows, a box to write in, settings, branches, and a lamp that says what is going on.

import { button, element, icon } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { composer, pack } from "./composer.js";
import { exchangeView } from "./exchange.js";
import { filesPanel } from "./files.js";
import { modalityChoice, settingsPanel } from "./settings.js";
import { replyStrip } from "./strip.js";
import { tool } from "./tools.js";
import { treeView } from "./tree.js";
import { lampWords } from "./words.js";

const BUSY = ["reading", "writing", "drawing"];
const ALONE = { messages: [], replies: [] };
const RESTARTED = "If it was restarted, run the cell again.";

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const { model } = context;
  const offers = model.get("offers") ?? {};
  const views = /** @type {Map<number, ReturnType<typeof exchangeView>>} */ (new Map());
  let order = /** @type {number[]} */ ([]);
  let shape = /** @type {import("./messages.js").ConversationShape} */ ({ variants: [], tree: [], strip: [] });
  let number = 0;
  let whole = false; // whether everything said so far has arrived
  let working = false; // whether the kernel has a message to reply to
  let sending = false;
  let step = /** @type {{from: "messages" | "replies", by: 1 | -1, before: number[]} | null} */ (null);

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").ChatMessage>} */
  const receive = {
    update,
    export: (message, buffers) => files.take(message, buffers[0]),
    notice: (message) => page.tell(message.text),
  };
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
    lastSeed: () => {
      const seeds = order.map((key) => views.get(key)?.now.seed ?? null).filter((seed) => seed !== null);
      return seeds.at(-1) ?? null;
    },
    close: () => open(settings, panel.node, false),
    best: offers.best ?? 0,
    setBest: (count) => {
      acts.offers.best = count;
      for (const view of views.values()) view.settle();
    },
  });
  const modality = modalityChoice(model, offers.modalities ?? {}, page.set);
  const files = filesPanel(offers.exports ?? {}, {
    ask: (format, use) => page.request({ kind: "export", format, use }),
    load: (part, buffers) =>
      page.ask({ kind: "load", ...part }, { buffers, lost: "The file has not arrived: the kernel" }),
  });
  const tree = treeView((key) => page.request({ kind: "walk", key }));
  const strip = replyStrip((key) => {
    page.request({ kind: "walk", key });
    field.focus();
  });
  const settings = button("Settings", "settings", () => open(settings, panel.node), { "aria-expanded": "false" });
  const saving = tool("Save and load", "files", () => open(saving, files.node), { "aria-expanded": "false" });
  const branches = tool("Branches", "tree", () => open(branches, tree.node), {
    "aria-expanded": "false",
    hidden: true,
  });
  const clear = tool("New conversation", "fresh", () => {
    page.request({ kind: "clear" });
    field.focus();
  });

  /** @returns {import("./messages.js").ReplyState | undefined} */
  function state() {
    const key = order.at(-1);
    const running = [...views.values()].find((view) => view.now.running)?.now.state;
    const last = running ?? (key === undefined ? undefined : views.get(key)?.now.state);
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
    clear.disabled = !order.length || page.silent;
    saving.disabled = page.silent;
    files.refresh(!order.length);
    if (!order.length && whole && !start.isConnected) showStart();
    if (order.length && start.isConnected) start.remove();
  }

  function showStart() {
    const suggestions = /** @type {string[]} */ (model.get("suggestions") ?? []);
    start.replaceChildren(
      element("p.chm-lead", { text: "Ask for a picture, or show one." }),
      ...(offers.note ? [element("p.chm-note", { text: offers.note })] : []),
      element(
        "div.chm-offers",
        ...suggestions.map((text) =>
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

  const acts = {
    request: page.request,
    focusComposer: field.focus,
    trouble: page.tell,
    offers: { ...offers },
    /** @param {number} key @param {"messages" | "replies"} from @param {1 | -1} by */
    walk(key, from, by) {
      step = { from, by, before: order };
      page.request({ kind: "walk", key });
    },
    /** @param {string} id @param {HTMLElement} holder */
    async nest(id, holder) {
      const manager = model.widget_manager;
      if (!manager) throw new Error("This page has no place for an inspector: open the notebook in JupyterLab.");
      const view = await manager.create_view(await manager.get_model(id));
      holder.replaceChildren(view.el);
    },
  };

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
    shape = message.shape ?? shape;
    const visible = new Set([...order, ...shape.strip]);
    for (const [key, view] of views) {
      if (!visible.has(key)) {
        view.node.remove();
        views.delete(key);
      }
    }
    for (const news of message.changed) {
      let view = views.get(news.key);
      if (!view) views.set(news.key, (view = exchangeView(acts)));
      view.apply(news, buffers);
    }
    place();
    if (message.shape) showShape();
    log.setAttribute("aria-busy", String(busy()));
    page.refresh();
    if (stay) toEnd();
  }

  /** Brings the exchanges of the path into the log in their order, and moves none that stands where it should. */
  function place() {
    order.forEach((key, at) => {
      const node = views.get(key)?.node;
      if (node && log.children[at] !== node) log.insertBefore(node, log.children[at] ?? null);
    });
    while (log.children.length > order.length && log.lastElementChild !== start) log.lastElementChild?.remove();
  }

  function showShape() {
    const beside = new Map(shape.variants.map((each) => [each.key, each]));
    for (const [key, view] of views) view.branch(beside.get(key) ?? ALONE);
    const holder = shape.strip.find((key) => order.includes(key));
    const list = shape.strip.map((key) => views.get(key)).filter((view) => view !== undefined);
    strip.show(holder === undefined ? [] : list);
    if (holder !== undefined) views.get(holder)?.node.append(strip.node);
    const drawn = shape.tree.length > 0;
    if (drawn && branches.hidden) open(branches, tree.node, true, false);
    branches.hidden = !drawn;
    if (!drawn) open(branches, tree.node, false, false);
    tree.show(shape.tree, order);
    const moved = order.findIndex((key, at) => key !== step?.before[at]);
    if (step && moved >= 0) {
      views.get(order[moved])?.focusWalker(step.from, step.by);
      step = null;
    }
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
    else page.tell(`${page.notice} ${RESTARTED} Your message stays here.`);
    toEnd(true);
    page.refresh();
  }

  function stop() {
    page.request({ kind: "stop" });
    field.focus();
  }

  function cancel() {
    if (!panel.node.hidden) open(settings, panel.node, false);
    else if (!files.node.hidden) open(saving, files.node, false);
    else if (busy()) stop();
  }

  /**
   * Opens what a button of the toolbar opens, or closes it.
   * @param {HTMLElement} opener @param {HTMLElement} node @param {boolean} [opens] @param {boolean} [focus]
   */
  function open(opener, node, opens = Boolean(node.hidden), focus = true) {
    const inside = node.contains(document.activeElement);
    node.hidden = !opens;
    opener.setAttribute("aria-expanded", String(opens));
    if (opens && focus) {
      const first = /** @type {HTMLElement | null} */ (
        node.querySelector("input:not([hidden]), button:not(:disabled)")
      );
      (first ?? node).focus();
    } else if (inside) opener.focus();
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
      page.header("Conversation", [branches, clear, saving, settings]),
      panel.node,
      files.node,
      tree.node,
      element("div.chm-body", log, latest),
      page.alert,
      element("div.chm-composer", field.attach, field.files, field.box, modality.node, go),
    ],
    [() => clearInterval(watch), modality.dispose, panel.dispose],
  );
}

export default { render };
