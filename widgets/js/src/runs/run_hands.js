// The hands on a run: a form of the settings that can be changed while it goes on, and one for forks.

import { element, write } from "../frame/dom.js";
import { words } from "./run_records.js";

/** @typedef {null | boolean | number | string} Plain */

const FORK = "A fork goes on from here with another architecture, in a panel beside this one.";
const FORK_WAITS = " This run goes on, too, and has the machine first: pause it to let the fork train now.";

/**
 * Settings as rows of a form: those that are mappings give one row for each part.
 * @param {Record<string, any>} settings
 * @returns {{path: string[], label: string, value: Plain}[]}
 */
export function rowsOf(settings) {
  return Object.entries(settings).flatMap(([name, value]) =>
    value !== null && typeof value === "object"
      ? Object.entries(value).map(([part, inner]) => ({
          path: [name, part],
          label: `${words(name)}: ${words(part)}`,
          value: /** @type {Plain} */ (inner),
        }))
      : [{ path: [name], label: words(name), value }],
  );
}

/**
 * What is asked for when these rows were changed: whole mappings, since a run takes them as one.
 * @param {Record<string, any>} settings as they are
 * @param {{path: string[], value: Plain}[]} changed
 */
export function changesOf(settings, changed) {
  /** @type {Record<string, any>} */
  const request = {};
  for (const {
    path: [name, part],
    value,
  } of changed) {
    if (part === undefined) request[name] = value;
    else request[name] = { ...(request[name] ?? settings[name]), [part]: value };
  }
  return request;
}

/** @param {Plain} value */
const typed = (value) => (value === null ? "" : String(value));

/** @param {object} hooks @param {(command: string, args: Record<string, any>) => void} hooks.act */
export function runHands({ act }) {
  /** @type {Record<string, any>} */
  let settings = {};
  let shape = "";
  let rows = /** @type {{path: string[], value: Plain, input: HTMLInputElement, node: HTMLElement}[]} */ ([]);

  const fields = element("div.chm-hands-fields");
  const reason = element("input", { type: "text", placeholder: "optional", "aria-label": "Reason for the change" });
  const apply = element("button", { type: "submit", class: "chm-button chm-primary", text: "Apply", disabled: true });
  const undo = element("button", {
    type: "button",
    class: "chm-button",
    text: "Undo",
    hidden: true,
    on: { click: reset },
  });
  const answer = element("span.chm-hands-answer", { role: "status" });
  const form = element(
    "form.chm-hands",
    { "aria-label": "Settings of the run", novalidate: true, hidden: true, on: { submit } },
    fields,
    element(
      "div.chm-hands-foot",
      element("label.chm-field.chm-field-wide", element("span", { text: "reason" }), reason),
      undo,
      apply,
      answer,
    ),
  );

  const fix = element("select.chm-select", { "aria-label": "Fix of the fork" });
  const why = element("input", { type: "text", placeholder: "optional", "aria-label": "Reason for the fork" });
  const start = element("button", { type: "submit", class: "chm-button chm-primary", text: "Fork" });
  const about = element("p.chm-hands-words");
  const fork = element(
    "form.chm-hands",
    { "aria-label": "Fork of the run", hidden: true, on: { submit: submitFork } },
    about,
    element(
      "div.chm-hands-foot",
      element("label.chm-field.chm-field-wide", element("span", { text: "fix" }), fix),
      element("label.chm-field.chm-field-wide", element("span", { text: "reason" }), why),
      start,
    ),
  );

  /** @param {{value: Plain, input: HTMLInputElement}} row @returns {Plain} */
  function read({ value, input }) {
    if (typeof value === "boolean") return input.checked;
    if (typeof value === "string") return input.value;
    if (input.value.trim() === "") return null;
    return Number(input.value);
  }

  /** @param {{value: Plain, input: HTMLInputElement}} row */
  const differs = (row) => row.input.validity.badInput || read(row) !== row.value;

  function refresh() {
    const changed = rows.filter(differs);
    for (const { node, input, value } of rows) {
      node.classList.toggle(
        "chm-field-changed",
        changed.some((each) => each.input === input),
      );
      input.toggleAttribute("aria-invalid", typeof value === "number" && wrong(input));
    }
    apply.disabled = !changed.length || changed.some(({ input, value }) => typeof value === "number" && wrong(input));
    undo.hidden = !changed.length;
  }

  /** @param {HTMLInputElement} input */
  const wrong = (input) =>
    input.validity.badInput || input.value.trim() === "" || !Number.isFinite(Number(input.value));

  function reset() {
    for (const { input, value } of rows) {
      input.value = typed(value);
      input.checked = value === true;
    }
    refresh();
  }

  /** @param {Event} event */
  function submit(event) {
    event.preventDefault();
    refresh();
    if (apply.disabled) return;
    const changed = rows.filter(differs).map((row) => ({ path: row.path, value: read(row) }));
    act("change", { ...changesOf(settings, changed), reason: reason.value.trim() });
    answer.textContent = "Asked for; it holds from the next step on.";
    apply.disabled = true;
  }

  /** @param {Event} event */
  function submitFork(event) {
    event.preventDefault();
    if (fix.value) act("fork", { fix: fix.value, reason: why.value.trim() });
  }

  /** @param {ReturnType<typeof rowsOf>} target */
  function build(target) {
    rows = target.map(({ path, label, value }) => {
      const kind =
        typeof value === "boolean"
          ? { type: "checkbox" }
          : typeof value === "string"
            ? { type: "text" }
            : { type: "number", step: "any" };
      const input = element("input", { ...kind, on: { input: refresh } });
      return { path, value, input, node: element("label.chm-field", element("span", { text: label }), input) };
    });
    fields.replaceChildren(...rows.map(({ node }) => node));
    reset();
  }

  return {
    form,
    fork,
    /** The settings as they are; what is being typed stays. @param {Record<string, any>} now @param {string[]} offers
     * @param {boolean} goesOn whether the run itself trains or will */
    show(now, offers, goesOn) {
      settings = now;
      write(about, FORK + (goesOn ? FORK_WAITS : ""));
      const target = rowsOf(now);
      const next = JSON.stringify(target.map(({ path, value }) => [path, typeof value]));
      if (next !== shape) {
        shape = next;
        build(target);
      }
      let landed = false;
      target.forEach(({ value }, at) => {
        const row = rows[at];
        if (row.value === value) return;
        const [before, touched] = [read(row), differs(row)];
        row.value = value;
        if (!touched) {
          row.input.value = typed(value);
          row.input.checked = value === true;
        } else if (before === value) landed = true;
      });
      if (landed) {
        answer.textContent = "Applied.";
        reason.value = "";
      }
      if (landed || !apply.disabled || !rows.some(differs)) refresh();
      if (JSON.stringify([...fix.options].map((each) => each.value)) !== JSON.stringify(offers))
        fix.replaceChildren(...offers.map((each) => element("option", { value: each, text: words(each) })));
    },
    /** A command was refused: it can be asked for again. */
    refused() {
      answer.textContent = "";
      refresh();
    },
  };
}
