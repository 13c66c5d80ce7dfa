// What the page knows of a run: its measures, its layers, its events, put together from the kernel's messages.

import { Layers } from "../charts/layers.js";
import { Points } from "../charts/points.js";
import { numbers } from "../frame/line.js";

/** @typedef {import("./messages.js").MeasureFacts} Measure */
/** @typedef {import("./messages.js").AlarmFacts} Alarm */
/** @typedef {import("./messages.js").ChangeFacts} Change */
/** @typedef {import("./messages.js").MilestoneFacts} Milestone */

export class RunRecords {
  epoch = -1;
  count = 0;
  lastStep = NaN;
  firstStep = NaN;
  /** @type {Map<string, Measure>} what the kernel says of each measure, by name */
  about = new Map();
  /** @type {Map<string, Points>} */
  measures = new Map();
  /** @type {Map<string, Layers>} */
  layers = new Map();
  /** @type {Alarm[]} */
  alarms = [];
  /** @type {Change[]} */
  changes = [];
  /** @type {Milestone[]} */
  milestones = [];

  #clear() {
    this.count = 0;
    this.lastStep = this.firstStep = NaN;
    this.about.clear();
    this.measures.clear();
    this.layers.clear();
    this.alarms = [];
    this.changes = [];
    this.milestones = [];
  }

  /**
   * Takes a message in. What was taken before is passed over; false where something is missing between.
   * @param {import("./messages.js").RunNews} message @param {DataView[]} buffers
   */
  take(message, buffers) {
    const newer = message.epoch !== this.epoch;
    if (newer && (message.start || message.alarms.start || message.changes.start || message.milestones.start))
      return false;
    if (newer) this.#clear();
    this.epoch = message.epoch;
    if (
      message.start > this.count ||
      message.alarms.start > this.alarms.length ||
      message.changes.start > this.changes.length ||
      message.milestones.start > this.milestones.length
    )
      return false;
    for (const each of message.about) this.about.set(each.name, each);
    this.alarms.push(...message.alarms.list.slice(this.alarms.length - message.alarms.start));
    this.changes.push(...message.changes.list.slice(this.changes.length - message.changes.start));
    this.milestones.push(...message.milestones.list.slice(this.milestones.length - message.milestones.start));
    const { count, measures, layers } = message.records;
    const before = this.count - message.start; // of these records, from the first on
    if (before >= count) return true;
    const steps = numbers(Float64Array, buffers[0]);
    const places = numbers(Uint32Array, buffers[1]);
    const values = numbers(Float32Array, buffers[2]);
    let [place, value] = [0, 0];
    /** Steps of the new ones, and how many stand before them. @param {{count: number, whole?: boolean}} column @returns {[Float64Array, number]} */
    const fresh = ({ count: rows, whole }) => {
      if (whole) return [steps.subarray(before), before];
      const mine = places.subarray(place, (place += rows));
      const first = mine.findIndex((each) => each >= before);
      const skip = first < 0 ? rows : first;
      return [Float64Array.from(mine.subarray(skip), (each) => steps[each]), skip];
    };
    for (const column of measures) {
      const [where, skip] = fresh(column);
      let points = this.measures.get(column.name);
      if (!points) this.measures.set(column.name, (points = new Points()));
      points.add(where, values.subarray(value + skip, value + column.count));
      value += column.count;
    }
    for (const column of layers) {
      const [where, skip] = fresh(column);
      let rows = this.layers.get(column.name);
      if (!rows)
        this.layers.set(
          column.name,
          (rows = new Layers(column.name, column.shape, this.about.get(column.name)?.worse)),
        );
      const cells = column.shape.reduce((product, each) => product * each, 1);
      if (String(rows.shape) === String(column.shape))
        rows.add(where, values.subarray(value + skip * cells, value + column.count * cells));
      value += column.count * cells;
      if (column.heads) {
        const size = column.heads[0] * column.heads[1];
        rows.heads = { shape: column.heads, values: values.slice(value, value + size) };
        value += size;
      }
    }
    this.count = message.start + count;
    if (Number.isNaN(this.firstStep)) this.firstStep = steps[0];
    this.lastStep = steps[count - 1];
    return true;
  }
}

/** Words as they begin a title. @param {string} words */
export const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

/** Everything that a chart's name cannot say of its measures. @param {Measure[]} members of one chart @returns {string} */
export function measureWords(members) {
  const { about, unit, worse } = members[0];
  const where = { higher: "Higher is worse.", lower: "Lower is worse.", neither: "" }[worse];
  const side = worse === "lower" ? "below" : "above";
  const rules = members.flatMap(({ thresholds }) => thresholds.map(([limit, level]) => `${level} ${side} ${limit}`));
  return [
    about,
    unit ? `Unit: ${unit}.` : "",
    where,
    rules.length ? `Alarms sound: ${rules.join(", ")}.` : "No rule of this run has a threshold here.",
  ]
    .filter(Boolean)
    .join("\n");
}

/** Families of measures in the order in which they are offered; those of one's own come last. */
const FAMILIES = ["loss", "reward", "codebook", "attention", "norms", "steps", "critic", "pieces"];

/**
 * One measure of each chart, by family.
 * @param {Measure[]} measures @returns {[string, Measure[]][]}
 */
export function familiesOf(measures) {
  /** @type {Map<string, Measure[]>} */
  const families = new Map();
  for (const each of measures) families.set(each.family, [...(families.get(each.family) ?? []), each]);
  const place = (/** @type {string} */ family) => FAMILIES.indexOf(family) + 1 || FAMILIES.length + 1;
  return [...families].sort(([one], [other]) => place(one) - place(other));
}

/** A name of the run's as words. @param {string} name */
export const words = (name) => name.replaceAll("_", " ");

/**
 * Measures that belong on one chart, by their base. The loss comes first, the others by name; of each, the whole comes
 * first, then its parts.
 * @param {Iterable<Measure>} measures
 * @returns {Map<string, Measure[]>}
 */
export function chartsOf(measures) {
  /** @type {Map<string, Measure[]>} */
  const groups = new Map();
  const first = (/** @type {Measure} */ { base }) => Number(base !== "loss");
  const sorted = [...measures].sort(
    (one, other) =>
      first(one) - first(other) || one.base.localeCompare(other.base) || one.part.localeCompare(other.part),
  );
  for (const each of sorted) groups.set(each.base, [...(groups.get(each.base) ?? []), each]);
  return groups;
}

/** How a line of a group is drawn. @param {string} line @param {number} at its place in the group */
export function styled(line, at) {
  const colours = {
    "": "var(--ink-soft)",
    text: "var(--curve-1)",
    image: "var(--curve-2)",
    "held out": "var(--curve-3)",
    special: "var(--curve-4)",
  };
  const colour = /** @type {Record<string, string>} */ (colours)[line] ?? `var(--curve-${4 + (at % 5)})`;
  return { name: line || "all", colour, dots: line.startsWith("held out") };
}
