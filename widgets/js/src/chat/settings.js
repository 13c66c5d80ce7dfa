// The settings of the next reply: a slider for each, which shows the value that will be used, and the seed.

import { button, element } from "../frame/dom.js";
import { settingWords } from "./words.js";

let ids = 0;

/**
 * @typedef {object} Range
 * @property {string} label
 * @property {number} min
 * @property {number} max
 * @property {number} step
 * @property {string} hint
 * @property {number | null} [own] value that the stream uses by itself, where it tells
 */

/**
 * @param {import("../frame/line.js").Model} model
 * @param {object} hooks
 * @param {(name: string, value: any) => void} hooks.set
 * @param {() => number | null} hooks.lastSeed
 * @param {() => void} hooks.close
 * @param {number} hooks.best how many replies there are to choose from; 0 where there is no choice
 * @param {(count: number) => void} hooks.setBest
 */
export function settingsPanel(model, { set: keep, lastSeed, close, best, setBest }) {
  const initial = { ...model.get("settings") };
  const node = element("div.chm-settings", { role: "group", "aria-label": "Settings of the next reply", hidden: true });
  const refreshers = /** @type {(() => void)[]} */ ([]);

  /** @param {Record<string, any>} change */
  function set(change) {
    keep("settings", { ...model.get("settings"), ...change });
    refresh();
  }

  function refresh() {
    refreshers.forEach((each) => each());
  }

  const ranges = /** @type {Record<string, Range>} */ (model.get("ranges") ?? {});
  for (const [name, range] of Object.entries(ranges)) node.append(slider(name, range));

  /** @param {string} name @param {Range} range */
  function slider(name, range) {
    const id = `chm-setting-${(ids += 1)}`;
    const middle = (range.min + range.max) / 2;
    const output = element("output", { for: id });
    const input = element("input", {
      id,
      type: "range",
      min: range.min,
      max: range.max,
      step: range.step,
      on: { input: () => set({ [name]: Number(input.value) }) },
    });
    const own = button("Model's own", null, () => set({ [name]: null }), { class: "chm-button chm-own" });
    own.setAttribute("aria-label", `${range.label}: the model's own`);
    const hint = element("span.chm-hint");
    const choose = button("Choose a value", null, () => set({ [name]: middle }), { class: "chm-button chm-own" });
    refreshers.push(() => {
      const value = model.get("settings")[name] ?? null;
      const effective = value ?? range.own ?? null;
      input.value = String(effective ?? middle);
      // The browser rounds to the step: the words tell the value that is used
      output.textContent = settingWords(effective, range.step);
      hint.textContent = [range.hint, value === null ? "the model's own" : ""].filter(Boolean).join(" · ");
      input.hidden = effective === null;
      choose.hidden = effective !== null;
      own.hidden = value === null;
    });
    return element(
      "div.chm-setting",
      element("label", { for: id, text: range.label, title: range.hint }),
      output,
      input,
      choose,
      hint,
      own,
    );
  }

  if ("seed" in initial) {
    const id = `chm-setting-${(ids += 1)}`;
    const seed = element("input", {
      id,
      type: "number",
      min: 0,
      max: 2147483647,
      step: 1,
      on: { change: () => set({ seed: Math.min(2147483647, Math.max(0, Math.round(Number(seed.value) || 0))) }) },
    });
    const fresh = element("input", {
      type: "checkbox",
      on: { change: () => set({ seed: fresh.checked ? null : (lastSeed() ?? 0) }) },
    });
    node.append(
      element(
        "div.chm-setting",
        element("label", { for: id, text: "Seed" }),
        seed,
        element("label.chm-check", fresh, "new seed each time"),
      ),
    );
    refreshers.push(() => {
      const value = model.get("settings").seed ?? null;
      fresh.checked = value === null;
      seed.disabled = value === null;
      seed.value = value === null ? "" : String(value);
      seed.placeholder = "drawn anew";
    });
  }
  if (best) {
    const id = `chm-setting-${(ids += 1)}`;
    const count = element("input", {
      id,
      type: "number",
      min: 2,
      max: 16,
      step: 1,
      value: best,
      on: {
        change: () => {
          count.value = String(Math.min(16, Math.max(2, Math.round(Number(count.value) || best))));
          setBest(Number(count.value));
        },
      },
    });
    node.append(
      element(
        "div.chm-setting",
        element("label", { for: id, text: "Best of" }),
        count,
        element("span.chm-hint", { text: "replies to choose from, each of its own seed" }),
      ),
    );
  }
  node.append(
    element(
      "div.chm-setting.chm-last",
      button("Reset", null, () => set(initial)),
      button("Done", null, close),
    ),
  );
  node.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  refresh();
  model.on("change:settings", refresh);
  return { node, dispose: () => model.off("change:settings", refresh) };
}

/**
 * What the next reply may hold, as a list to choose from.
 * @param {import("../frame/line.js").Model} model @param {Record<string, string>} modalities in words, by name
 * @param {(name: string, value: any) => void} set
 */
export function modalityChoice(model, modalities, set) {
  const names = Object.keys(modalities);
  const node = element(
    "select.chm-modality",
    { "aria-label": "What the reply may hold", title: "What the reply may hold", hidden: !names.length },
    ...names.map((name) => element("option", { value: name, text: modalities[name] })),
  );
  const refresh = () => {
    node.value = model.get("settings").modality ?? "free";
  };
  node.addEventListener("change", () => {
    set("settings", { ...model.get("settings"), modality: node.value === "free" ? null : node.value });
  });
  refresh();
  model.on("change:settings", refresh);
  return { node, dispose: () => model.off("change:settings", refresh) };
}
