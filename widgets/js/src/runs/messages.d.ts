// Written by widgets/js/messages.py from chameleon_widgets.runs.messages: change that, and run `make bundles`.

/** A measure: how many of the records have it; where not all of them do, which ones is in the buffer of places. */
export interface MeasureColumn {
  name: string;
  count: number;
  whole: boolean;
}

/** A measure of layers: rows, and the shape of one. `heads`: shape of one more row, the newest by head. */
export interface LayersColumn {
  name: string;
  count: number;
  shape: number[];
  heads?: number[];
}

/** The facts about a measure (see `chameleon_lab.measures`). Those of one `base` share the chart called `title`, each as the line of its `part`. `thresholds`: values beyond which the run's rules sound, and the level, mildest first. `family`: what it is looked at with. `about`: what it is, in a sentence. */
export interface MeasureFacts {
  name: string;
  base: string;
  part: string;
  words: string;
  title: string;
  unit: string;
  log: boolean;
  worse: "higher" | "lower" | "neither";
  thresholds: [number, string][];
  family: string;
  about: string;
}

/** Records as columns. Buffers: steps (float64), places (uint32), values (float32), columns in this order. */
export interface RecordColumns {
  count: number;
  measures: MeasureColumn[];
  layers: LayersColumn[];
}

/** An alarm. */
export interface AlarmFacts {
  step: number;
  level: "WARN" | "ALARM" | "CRITICAL";
  rule: string;
  message: string;
}

/** An intervention, its values in words. */
export interface ChangeFacts {
  step: number;
  name: string;
  before: string;
  after: string;
  reason: string;
}

/** A step from which on the plan does something else, in words. */
export interface MilestoneFacts {
  step: number;
  message: string;
}

/** Milestones from the `start`-th on. */
export interface MilestoneNews {
  start: number;
  list: MilestoneFacts[];
}

/** Alarms from the `start`-th on. */
export interface AlarmNews {
  start: number;
  list: AlarmFacts[];
}

/** Changes from the `start`-th on. */
export interface ChangeNews {
  start: number;
  list: ChangeFacts[];
}

/** What is new of a history, from the `start`-th record on. A greater `epoch` begins anew. `run`: its place. `about`: the measures that no message had before. */
export interface RunNews {
  kind: "records";
  run: number;
  epoch: number;
  start: number;
  about: MeasureFacts[];
  records: RecordColumns;
  alarms: AlarmNews;
  changes: ChangeNews;
  milestones: MilestoneNews;
}

/** What the run `run` (empty: this one; else a fork of it) made after a step of the prompt or picture `name`. `picture` and `original`: their places among the buffers, None where there is none. */
export interface SampleFacts {
  run: string;
  step: number;
  name: string;
  words: string;
  picture: number | null;
  original: number | null;
}

/** Samples from the `start`-th on; the pictures are buffers, PNG. A greater `epoch` begins anew. */
export interface PanelSamples {
  kind: "samples";
  epoch: number;
  start: number;
  list: SampleFacts[];
}

/** How the run stands. `left`: seconds. `refusal`: of the last command, `refusals` of them so far. `note`: what else became of a command. `behind`: the run it waits for. `panels`: those of its forks that can be opened beside it. */
export interface PanelState {
  kind: "state";
  name: string;
  status: "waiting" | "running" | "paused" | "finished" | "stopped" | "failed" | "interrupted";
  over: boolean;
  acts: boolean;
  folder: boolean;
  progress: number;
  step: number | null;
  steps: number | null;
  pace: number | string;
  left: number | null;
  error: string;
  refusal: string;
  refusals: number;
  note: string;
  behind: string;
  settings: Record<string, null | boolean | number | string | Record<string, null | boolean | number | string>>;
  offers: string[];
  parent: string;
  forked_at: number | null;
  difference: string;
  forks: string[];
  panels: string[];
}

/** A fork's own panel, by its model. */
export interface PanelFork {
  kind: "fork";
  name: string;
  model: string;
}

/** The run's folder cannot be read. */
export interface PanelUnreadable {
  kind: "unreadable";
  error: string;
}

export type PanelMessage = PanelState | RunNews | PanelSamples | PanelFork | PanelUnreadable;

/** A run: its row of the table, and what sets it apart where it is a fork. */
export interface ComparedFacts {
  row: Record<string, null | boolean | number | string>;
  progress: number;
  over: boolean;
  configured: boolean;
  forked: string;
}

/** A setting in which configs differ: a value in words for each run, None where it has none. */
export interface DifferenceFacts {
  key: string;
  values: (string | null)[];
}

/** A configuration: its LR sensitivity, and held-out losses by rate. */
export interface RateGroup {
  name: string;
  number: number | string;
  losses: [number, (number | string)[]][];
}

/** Losses against learning rates, and the loss at the start; the loss's words and unit. */
export interface RateFacts {
  words: string;
  unit: string;
  start: number | string;
  groups: RateGroup[];
}

/** Runs that differ by seed alone, by their places: one line with a band, and one row, unless it is opened. */
export interface SeedGroup {
  name: string;
  runs: number[];
}

/** A column of the table of outcomes: its key in a row, its heading, and what it is. */
export interface OutcomeColumn {
  key: string;
  heading: string;
  hint: string;
}

/** All of a comparison but the curves. */
export interface ComparisonState {
  kind: "state";
  columns: OutcomeColumn[];
  runs: ComparedFacts[];
  measures: MeasureFacts[];
  groups: SeedGroup[];
  differences: DifferenceFacts[];
  rates: RateFacts;
}

/** A figure to be saved, as a buffer. */
export interface ComparisonFigure {
  kind: "figure";
  format: "png" | "svg";
  view: string;
}

/** What went wrong with a request. */
export interface ComparisonTrouble {
  kind: "trouble";
  error: string;
}

export type ComparisonMessage = ComparisonState | RunNews | ComparisonFigure | ComparisonTrouble;
