// Written by widgets/js/messages.py from chameleon_widgets.infill.messages: change that, and run `make bundles`.

/** A picture of `rows` x `columns` cells, or a text in words with the spaces before them (no rows, then). `hidden`: numbers of cells, row by row, or of words. `picture`: the buffer that holds it as PNG; -1 for a text, and for a picture that the views have. */
export interface CanvasSegment {
  words: string[];
  rows: number;
  columns: number;
  hidden: number[];
  picture: number;
}

/** What is on the canvas. `key` is another when the document is, and not when more or less of it is hidden. `fillings` and `seed` are what was asked for last. */
export interface CanvasUpdate {
  kind: "canvas";
  key: number;
  segments: CanvasSegment[];
  undo: number;
  redo: number;
  fillings: number;
  seed: number;
}

/** A piece of text, or a picture (`picture`: its buffer), which has neither words; `filled`: the model wrote it. */
export interface FilledPart {
  text: string;
  filled: boolean;
  picture: number;
}

/** One filling, as far as it has come: parts as they are now. `on_canvas`: it was taken. */
export interface FillingFacts {
  seed: number;
  state: "waiting" | "filling" | "whole";
  on_canvas: boolean;
  parts: FilledPart[];
}

/** The fillings of the last request that have changed, by number, of `count`. */
export interface FillingsUpdate {
  kind: "fillings";
  count: number;
  error: string;
  changed: Record<string, FillingFacts>;
}

export type CanvasMessage = CanvasUpdate | FillingsUpdate;
