// The settings of the next reply: a slider for each, and the seed.

import { button, element } from "../frame/dom.js";
import { settingWords } from "./words.js";

/**
 * @param {import("../frame/line.js").Model} model
 * @param {{set: (name: string, value: any) => void, lastSeed: () => number | null, close: () => void}} hooks
 */
export function settingsPanel(model, { set: keep, lastSeed, close }) {
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

  for (const [name, range] of Object.entries(model.get("ranges") ?? {})) {
    const id = `chm-${name}-${Math.random().toString(36).slice(2, 8)}`;
    const output = element("output", { for: id });
    const slider = element("input", {
      id,
      type: "range",
      min: range.min,
      max: range.max,
      step: range.step,
      on: { input: () => set({ [name]: Number(slider.value) }) },
    });
    node.append(
      element(
        "div.chm-setting",
        element("label", { for: id, text: range.label, title: range.hint }),
        output,
        slider,
        element("span.chm-hint", { text: range.hint }),
      ),
    );
    refreshers.push(() => {
      const value = model.get("settings")[name];
      slider.value = String(value ?? (range.min + range.max) / 2);
      slider.classList.toggle("chm-unset", value === null || value === undefined);
      slider.style.setProperty("--part", String((Number(slider.value) - range.min) / (range.max - range.min)));
      output.textContent = settingWords(value ?? null, range.step);
    });
  }

  if ("seed" in initial) {
    const id = `chm-seed-${Math.random().toString(36).slice(2, 8)}`;
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
