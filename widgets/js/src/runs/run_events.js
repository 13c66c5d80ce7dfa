// The list of what happened: alarms, and settings that were changed, the newest first.

import { stepText } from "../charts/axis.js";
import { element, write } from "../frame/dom.js";

const MOST = 300; // entries in the page

/** @typedef {import("../charts/curves.js").Mark} Mark */

export const LEVEL_COLOURS = {
  WARN: "var(--warn)",
  ALARM: "color-mix(in srgb, var(--warn) 40%, var(--danger))",
  CRITICAL: "var(--danger)",
};

/** @param {import("./messages.js").AlarmFacts} alarm @param {string} [colour] @returns {Mark} */
export const alarmMark = ({ step, level, message }, colour = LEVEL_COLOURS[level]) => ({
  step,
  colour,
  words: `${level}: ${message}`,
  kind: "alarm",
});

/** @param {import("./messages.js").ChangeFacts} change @param {string} [colour] @returns {Mark} */
export const changeMark = ({ step, name, before, after, reason }, colour = "var(--accent)") => ({
  step,
  colour,
  words: `${name} from ${before} to ${after}${reason ? `: ${reason}` : ""}`,
  kind: "change",
});

/** @param {import("./messages.js").MilestoneFacts} milestone @param {string} [colour] @returns {Mark} */
export const milestoneMark = ({ step, message }, colour = "var(--curve-6)") => ({
  step,
  colour,
  words: message,
  kind: "stage",
});

/**
 * @param {object} hooks
 * @param {(mark: Mark | null) => void} hooks.light an entry is looked at
 * @param {(mark: Mark) => void} hooks.pick an entry was chosen
 */
export function runEvents({ light, pick }) {
  const heading = element("span");
  const list = element("ol.chm-events-list", { role: "log", "aria-label": "Alarms and changes", tabindex: 0 });
  const empty = element("p.chm-run-await");
  const node = element(
    "section.chm-events",
    { "aria-label": "What happened" },
    element("div.chm-run-title", element("b", { text: "Alarms and changes" }), heading),
    empty,
    list,
  );
  let [alarmsShown, changesShown, stagesShown] = [0, 0, 0];

  /** @param {Mark} mark @param {string} label @param {string} text @param {string} kind */
  function entry(mark, label, text, kind) {
    const look = {
      pointerenter: () => light(mark),
      pointerleave: () => light(null),
      focus: () => light(mark),
      blur: () => light(null),
      click: () => pick(mark),
    };
    return element(
      "li",
      element(
        "button",
        { type: "button", class: `chm-event chm-event-${kind}`, on: look },
        element("span.chm-event-step", { text: `step ${stepText(mark.step)}` }),
        element("span.chm-event-level", { style: `--level:${mark.colour}`, text: label }),
        element("span.chm-event-words", { text }),
      ),
    );
  }

  return {
    node,
    /** @param {import("./run_records.js").RunRecords} records @param {boolean} over */
    show({ alarms, changes, milestones }, over) {
      if (alarms.length < alarmsShown || changes.length < changesShown || milestones.length < stagesShown) {
        [alarmsShown, changesShown, stagesShown] = [0, 0, 0];
        list.replaceChildren();
      }
      const fresh = [
        ...alarms
          .slice(alarmsShown)
          .map((each) => ({
            step: each.step,
            node: entry(alarmMark(each), each.level, each.message, each.level.toLowerCase()),
          })),
        ...changes
          .slice(changesShown)
          .map((each) => ({
            step: each.step,
            node: entry(
              changeMark(each),
              "CHANGE",
              `${each.name} ${each.before} → ${each.after}${each.reason ? ` (${each.reason})` : ""}`,
              "change",
            ),
          })),
        ...milestones
          .slice(stagesShown)
          .map((each) => ({ step: each.step, node: entry(milestoneMark(each), "PLAN", each.message, "stage") })),
      ].sort((one, other) => other.step - one.step);
      [alarmsShown, changesShown, stagesShown] = [alarms.length, changes.length, milestones.length];
      if (fresh.length) list.prepend(...fresh.map((each) => each.node));
      while (list.children.length > MOST) list.lastElementChild?.remove();
      const counts = [
        [alarms.length, "alarm"],
        [changes.length, "change"],
        [milestones.length, "stage"],
      ].flatMap(([count, what]) => (count ? [`${count} ${what}${count === 1 ? "" : "s"}`] : []));
      const text = counts.join(", ") + (alarms.length + changes.length > MOST ? `, the newest ${MOST} below` : "");
      write(heading, text);
      list.hidden = !list.children.length;
      empty.hidden = !list.hidden;
      const words = over ? "No alarm sounded, and nothing was changed." : "No alarm so far.";
      write(empty, words);
    },
  };
}
