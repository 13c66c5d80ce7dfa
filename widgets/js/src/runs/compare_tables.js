// The tables of a comparison: what each run came to, with a switch for each, and the settings in which they differ.

import { figure, grouped } from "../charts/axis.js";
import { element } from "../frame/dom.js";

/**
 * @typedef {import("./messages.js").ComparedFacts} Run
 * @typedef {import("./messages.js").AlarmFacts} Alarm
 * @typedef {import("./messages.js").OutcomeColumn} Column
 */

/** The colour of the run at a place. @param {number} at */
export const colourOf = (at) => `var(--curve-${(at % 8) + 1})`;

/** Colours come again after eight runs; then lines are dashed. @param {number} at */
export const dashedAt = (at) => at % 16 >= 8;

/** A piece of a run's line. @param {number} at */
export const swatch = (at) =>
  element("i", { style: `--key:${colourOf(at)}`, class: dashedAt(at) ? "chm-compare-dashed" : null });

/** A number as it came over: JSON has no nan and no infinity. @param {number | string | boolean} value */
export const number = (value) =>
  typeof value === "number" ? value : ({ nan: NaN, inf: Infinity, "-inf": -Infinity }[String(value)] ?? NaN);

/** @param {string} key @param {any} value */
export function cell(key, value) {
  if (value === null || value === undefined) return "–";
  const plain = number(value);
  if (key === "steps" || key === "alarms") return grouped(plain);
  if (key === "tokens_per_second") return grouped(Math.round(plain));
  return key.endsWith("loss") && Number.isFinite(plain) && Math.abs(plain) < 1000 ? plain.toFixed(3) : figure(plain);
}

/** How a run stands, in a word or two. @param {Run} run */
export function standing({ row, progress, over }) {
  const share = Math.floor(100 * progress);
  return over || !(share > 0 && share < 100) ? row.status : `${row.status}, ${share} %`;
}

/**
 * The lowest of two runs or more, where less is better.
 * @param {Run[]} runs
 */
export function best(runs) {
  /** @type {Record<string, number>} */
  const lowest = {};
  for (const key of ["held_out_loss", "lowest_loss"]) {
    const finite = runs.map(({ row }) => (row[key] === null ? NaN : number(row[key]))).filter(Number.isFinite);
    if (finite.length > 1) lowest[key] = Math.min(...finite);
  }
  return lowest;
}

/**
 * A group's value of a column: the mean of its runs, and the range in words.
 * @param {string} key @param {Run[]} runs
 */
export function groupCell(key, runs) {
  const values = runs.map(({ row }) => row[key]).flatMap((value) => (value === null ? [] : [number(value)]));
  if (!values.length) return { text: "–", title: "" };
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const whole = ["steps", "alarms"].includes(key);
  const text = whole && !Number.isInteger(mean) ? mean.toFixed(1) : cell(key, mean);
  const [low, high] = [Math.min(...values), Math.max(...values)].map((each) => cell(key, each));
  return { text, title: low === high ? "All the same" : `Mean of ${values.length}, from ${low} to ${high}` };
}

/**
 * Runs as rows; those that differ by seed alone as one, until it is opened.
 * @param {object} hooks
 * @param {(name: string) => void} hooks.toggle shows or hides a run
 * @param {(name: string) => void} hooks.open opens or closes a group
 */
export function outcomeTable({ toggle, open }) {
  const headings = element("tr");
  const body = element("tbody");
  const node = element("table.chm-compare-runs", element("thead", headings), body);
  /** @param {import("./messages.js").SeedGroup} group @param {Run[]} runs @param {Column[]} columns @param {boolean} unfolded */
  function groupRow({ name, runs: places }, runs, columns, unfolded) {
    const members = places.map((at) => runs[at]);
    const states = [...new Set(members.map(standing))];
    return element(
      "tr.chm-compare-group",
      element(
        "th",
        { scope: "row" },
        element(
          "button",
          {
            type: "button",
            class: "chm-compare-key",
            "aria-expanded": String(unfolded),
            "data-run": `group ${name}`,
            title: `${unfolded ? "Draw the seeds as one line" : "Show each seed"} of ${name}`,
            on: { click: () => open(name) },
          },
          element("span.chm-compare-fold", { "aria-hidden": "true", text: unfolded ? "▾" : "▸" }),
          ...(unfolded ? [] : [swatch(places[0])]),
          element("span", { text: `${name}, ${members.length} seeds` }),
        ),
      ),
      element("td.chm-compare-words", { text: states.length > 1 ? states.join(", ") : states[0] }),
      ...columns.map(({ key }) => element("td", groupCell(key, members))),
    );
  }

  return {
    node,
    /**
     * @param {Run[]} runs @param {string[]} hidden @param {Alarm[][]} alarms of each run @param {Column[]} columns
     * @param {import("./messages.js").SeedGroup[]} [groups] @param {string[]} [opened]
     */
    show(runs, hidden, alarms, columns, groups = [], opened = []) {
      headings.replaceChildren(
        element("th", { scope: "col", text: "Run" }),
        element("th", { scope: "col", text: "Status", class: "chm-compare-words" }),
        ...columns.map(({ heading: text, hint: title }) => element("th", { scope: "col", text, title })),
      );
      const winners = best(runs);
      const focused = body.contains(document.activeElement) ? document.activeElement?.getAttribute("data-run") : null;
      body.replaceChildren(
        ...runs.flatMap((run, at) => {
          const { row, forked } = run;
          const name = String(row.run);
          const group = groups.find((each) => each.runs.includes(at));
          const head =
            group && group.runs[0] === at ? [groupRow(group, runs, columns, opened.includes(group.name))] : [];
          if (group && !opened.includes(group.name)) return head;
          const on = !hidden.includes(name);
          const key = element(
            "button",
            {
              type: "button",
              class: "chm-compare-key",
              "aria-pressed": String(on),
              "data-run": name,
              title: `${on ? "Hide" : "Show"} ${name}`,
              on: { click: () => toggle(name) },
            },
            swatch(at),
            element("span", { text: name }),
          );
          const cells = columns.map(({ key: each }) =>
            element("td", {
              text: cell(each, row[each]),
              class: winners[each] === row[each] ? "chm-compare-best" : null,
              title:
                winners[each] === row[each]
                  ? "The lowest"
                  : each === "alarms" && alarms[at]?.length
                    ? alarmWords(alarms[at])
                    : null,
            }),
          );
          const rows = [
            ...head,
            element(
              "tr",
              { class: [on ? "" : "chm-compare-off", group ? "chm-compare-seed" : ""].join(" ").trim() || null },
              element("th", { scope: "row" }, key),
              element("td", { class: `chm-compare-words chm-compare-${row.status}`, text: standing(run) }),
              ...cells,
            ),
          ];
          const below = (/** @type {Node} */ node) =>
            rows.push(element("tr", element("td", { colspan: columns.length + 2 }, node)));
          if (forked) below(element("div.chm-compare-note.chm-compare-forked", { text: forked }));
          if (row.error) below(element("div.chm-alert", { role: "alert", text: row.error }));
          return rows;
        }),
      );
      if (focused) [...body.querySelectorAll("button")].find((each) => each.dataset.run === focused)?.focus();
    },
  };
}

/** @param {Alarm[]} alarms */
function alarmWords(alarms) {
  const lines = alarms.slice(0, 6).map(({ step, level, message }) => `step ${grouped(step)}, ${level}: ${message}`);
  return [...lines, ...(alarms.length > 6 ? [`and ${alarms.length - 6} more`] : [])].join("\n");
}

/** Settings as rows and runs as columns; the other way round where the runs are many. */
export function differenceTable() {
  const words = element("span.chm-compare-note");
  const table = element("table.chm-compare-settings");
  const node = element(
    "section.chm-compare-differences",
    { "aria-label": "Settings that differ" },
    element("div.chm-compare-title", element("b", { text: "Settings that differ" }), words),
    element("div.chm-compare-scroll", { tabindex: 0, role: "group", "aria-label": "Settings by run" }, table),
  );
  return {
    node,
    /** @param {Run[]} runs @param {{key: string, values: (string | null)[]}[]} differences */
    show(runs, differences) {
      node.hidden = runs.length < 2;
      const silent = runs.filter(({ configured }) => !configured).map(({ row }) => row.run);
      const unknown = silent.length ? `No config of ${silent.join(", ")}.` : "";
      const none = silent.length >= runs.length - 1 ? "" : "None: the configs are equal.";
      words.textContent = [differences.length ? "" : none, unknown].join(" ").trim();
      table.hidden = !differences.length;
      const names = runs.map(
        ({ row }, at) =>
          (/** @type {string} */ scope) =>
            element(
              "th",
              { scope },
              element("span.chm-compare-run", swatch(at), element("span", { text: row.run, title: row.run })),
            ),
      );
      const settings = differences.map(
        ({ key }) =>
          (/** @type {string} */ scope) =>
            element("th", { scope, text: key, class: "chm-compare-setting" }),
      );
      const value = (/** @type {number} */ setting, /** @type {number} */ run) => {
        const text = differences[setting].values[run];
        if (text === null)
          return element("td", { text: runs[run].configured ? "–" : "not recorded", class: "chm-compare-none" });
        return element("td", { text, class: text.length > 36 ? "chm-compare-long" : null });
      };
      const many = runs.length > 6 && runs.length > differences.length;
      const [across, down] = many ? [settings, names] : [names, settings];
      table.replaceChildren(
        element(
          "thead",
          element(
            "tr",
            element("th", { scope: "col", text: many ? "Run" : "Setting" }),
            ...across.map((head) => head("col")),
          ),
        ),
        element(
          "tbody",
          ...down.map((head, row) =>
            element("tr", head("row"), ...across.map((_, column) => (many ? value(column, row) : value(row, column)))),
          ),
        ),
      );
    },
  };
}
