// A page without a kernel: plays the model of each widget's view from what was recorded, and mounts the views.

/**
 * @typedef {object} Recording
 * @property {string} bundle
 * @property {Record<string, any>} traits
 * @property {[any, string[]][]} messages each with its buffers in base 64
 *
 * @typedef {{bundles: Record<string, {script: string, style: string}>, widgets: Record<string, Recording>}} Content
 */

const ABSENT = "This page has no kernel: only what was looked up before it was saved is in it.";

/** @param {string} text in base 64 */
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

/**
 * The model of a view: greeted, it says all that was recorded; to all else, that there is no kernel.
 * @param {Recording} recording
 * @returns {import("../frame/line.js").Model}
 */
export function recordedModel({ traits, messages }) {
  const state = { ...traits, recorded: true };
  const listeners = /** @type {Map<string, ((...args: any[]) => void)[]>} */ (new Map());
  /** @param {string} event @param {...any} args */
  const call = (event, ...args) => {
    for (const listener of [...(listeners.get(event) ?? [])]) listener(...args);
  };
  return {
    get: (name) => /** @type {Record<string, any>} */ (state)[name],
    set(name, value) {
      /** @type {Record<string, any>} */ (state)[name] = value;
      call(`change:${name}`);
    },
    on: (event, listener) => listeners.set(event, [...(listeners.get(event) ?? []), listener]),
    off(event, listener) {
      listeners.set(
        event,
        (listeners.get(event) ?? []).filter((each) => each !== listener),
      );
    },
    send(content) {
      const [view, number] = String(content.mark).split("-");
      const trouble = content.kind === "hello" || content.note ? {} : { trouble: ABSENT };
      queueMicrotask(() => {
        if (content.kind === "hello")
          for (const [message, buffers] of messages) call("msg:custom", message, buffers.map(bytes));
        const requests = { [view]: Number(number) };
        /** @type {import("../frame/messages").LineMessage} */
        const line = { kind: "line", requests, control: [], traits: {}, still: "", revision: 0, ...trouble };
        call("msg:custom", line, []);
      });
    },
  };
}

/**
 * Mounts a view in each place of the page, when it comes near to what is visible.
 * @param {Content} content
 */
export function mountAll({ bundles, widgets }) {
  const modules = /** @type {Map<string, Promise<any>>} */ (new Map());
  /** @param {string} name */
  const load = (name) => {
    const script = new Blob([bundles[name].script], { type: "text/javascript" });
    if (!modules.has(name)) modules.set(name, import(URL.createObjectURL(script)));
    return modules.get(name);
  };
  const watch = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const recording = widgets[/** @type {HTMLElement} */ (target).dataset.widget ?? ""];
        if (!isIntersecting || !recording) continue;
        watch.unobserve(target);
        load(recording.bundle)?.then((module) => {
          const el = document.createElement("div");
          target.replaceChildren(el);
          module.default.render({ model: recordedModel(recording), el });
        });
      }
    },
    { rootMargin: "400px" },
  );
  for (const { style } of Object.values(bundles)) {
    const sheet = document.createElement("style");
    sheet.textContent = style;
    document.head.append(sheet);
  }
  for (const place of document.querySelectorAll("[data-widget]")) watch.observe(place);
}

const record = globalThis.document?.getElementById("chameleon-record");
if (record) mountAll(JSON.parse(record.textContent ?? ""));
