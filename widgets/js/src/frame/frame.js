// The page's end of a widget: its root, its lamp, what it says when the kernel is silent, its still, and its colours.

import { element, lamp, root, write } from "./dom.js";
import { connect } from "./line.js";
import { hidesStill, stillKeeper } from "./still.js";
import { isDark, watchTheme } from "./theme.js";

/** @typedef {{model: import("./line.js").Model, el: HTMLElement}} Context of a view, from anywidget */

/**
 * @template {{kind: string}} Message
 * @typedef {{[Kind in Message["kind"]]: (message: Extract<Message, {kind: Kind}>, buffers: DataView[]) => void}} Receivers
 */

/**
 * What every widget has. A widget is then what it shows: it makes its nodes, and returns `page.open(...nodes)`, with
 * `page.header(...)` and `page.alert` among them where it wants them.
 * @param {Context} context
 * @param {object} widget
 * @param {string} widget.label spoken name
 * @param {string} widget.kind for the style sheet: `.chm-kind`
 * @param {Record<string, (message: any, buffers: DataView[]) => void>} widget.receive what each kind of message brings,
 *   as `Receivers` of the widget's messages; the page is refreshed afterwards
 * @param {() => void} widget.refresh brings the page up to date
 * @param {() => boolean} widget.ready whether there is something to see here; the still is hidden from then on
 * @param {() => [string, string]} widget.state colour of the lamp and words beside it, while the kernel answers
 * @param {() => string[]} [widget.trouble] what the kernel has to say in the alert
 * @param {() => void} [widget.repaint] after a change of the page's colours
 * @param {string[]} [widget.traits] that are shown, so that their changes refresh the page
 */
export function frame({ model, el }, { label, kind, receive, refresh, ready, state, trouble, repaint, traits = [] }) {
  const box = root(label, kind);
  const signal = lamp();
  const stills = element("div", { hidden: true });
  const alert = element("div.chm-alert", { role: "alert", hidden: true });
  let notice = ""; // what the page itself has to say
  let still = ""; // class of the still
  let unanswered = 0; // number of the request that `notice` says has not arrived

  const link = connect(model, {
    receive(message, buffers) {
      if (message.kind === "line") {
        still = message.still;
        if (unanswered && link.lastArrival >= unanswered) [notice, unanswered] = ["", 0];
        if (message.trouble) notice = message.trouble;
        keeper.receive(message);
      } else if (Object.hasOwn(receive, message.kind)) receive[message.kind](message, buffers);
      show();
    },
    change: show,
  });
  const keeper = stillKeeper(model, link);

  function show() {
    const words = link.state === "connected" ? state() : SILENCE[link.state];
    signal.show(...words);
    box.classList.toggle("chm-orphan", silent() && !ready());
    const covered = ready() ? still : "";
    if (stills.dataset.of !== covered) stills.replaceChildren(hidesStill((stills.dataset.of = covered)));
    const text = [notice, ...(trouble?.() ?? [])].filter(Boolean).join("\n");
    alert.hidden = !text;
    write(alert, text);
    refresh();
  }

  /** What is cut short with an ellipsis says all of it where it is pointed at, in every widget. @param {Event} event */
  function tellCut(event) {
    const node = event.target;
    if (!(node instanceof HTMLElement) || (node.title && node.title !== node.dataset.cut)) return;
    const cut = node.scrollWidth > node.clientWidth && getComputedStyle(node).textOverflow === "ellipsis";
    if (!cut && !node.dataset.cut) return;
    node.title = node.dataset.cut = cut ? (node.textContent ?? "") : "";
  }
  box.addEventListener("pointerover", tellCut);

  function silent() {
    return link.state === "silent" || link.state === "gone";
  }

  /** Says something in the alert, or no longer. @param {string} text */
  function tell(text) {
    [notice, unanswered] = [text, 0];
    show();
  }

  return {
    box,
    alert,
    /**
     * The header: the lamp with what stands beside it, and a toolbar.
     * @param {string} label of the toolbar
     * @param {Node[]} tools
     * @param {Node[]} beside the lamp
     */
    header(label, tools, beside = []) {
      return element(
        "header.chm-head",
        beside.length ? element("div.chm-who", signal.node, ...beside) : signal.node,
        element("div.chm-tools", { role: "toolbar", "aria-label": label }, ...tools),
      );
    },
    refresh: show,
    request: link.request,
    quiet: link.quiet,
    tell,
    get silent() {
      return silent();
    },
    /** What the alert holds of the page's own. */
    get notice() {
      return notice;
    },
    /**
     * Asks the kernel for something; says so where it does not answer, beginning with `lost`.
     * @param {{kind: string, [field: string]: any}} content
     * @param {{buffers?: ArrayBuffer[], lost?: string}} [options]
     */
    async ask(content, { buffers, lost = "The kernel has not answered: it" } = {}) {
      tell("");
      const answer = link.request(content, buffers);
      const mark = link.lastRequest;
      const arrived = await answer;
      if (!arrived && link.lastArrival < mark)
        [notice, unanswered] =
          link.state === "gone"
            ? [`${lost} is gone.`, 0]
            : [`${lost} is busy with another cell, or gone. Where it is busy, the request waits for it.`, mark];
      show();
      return arrived;
    },
    /** Changes a trait. @param {string} name @param {any} value */
    set(name, value) {
      link.set(name, value);
    },
    /**
     * Puts the widget into the page and greets the kernel; what is returned takes it away.
     * @param {Node[]} nodes
     * @param {(() => void)[]} [ends] called at the end
     */
    open(nodes, ends = []) {
      box.append(stills, ...nodes);
      el.replaceChildren(box);
      for (const trait of traits) model.on(`change:${trait}`, show);
      const forgetTheme = watchTheme(() => {
        box.style.colorScheme = isDark(box) ? "dark" : "light";
        repaint?.();
      });
      show();
      link.request({ kind: "hello" });
      return () => {
        for (const end of ends) end();
        for (const trait of traits) model.off(`change:${trait}`, show);
        forgetTheme();
        keeper.dispose();
        link.close();
      };
    },
  };
}

/** @type {Record<"silent" | "connecting" | "gone", [string, string]>} */
const SILENCE = {
  gone: ["disconnected", "Disconnected: the kernel was restarted or ended"],
  silent: ["disconnected", "Disconnected: the kernel does not answer"],
  connecting: ["connecting", "Connecting"],
};
