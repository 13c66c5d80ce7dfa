// Written by widgets/js/messages.py from chameleon_widgets.teach.messages: change that, and run `make bundles`.

/** Neighbouring ids of one kind, from `first` to before `stop`. */
export interface VocabularyBlock {
  name: string;
  first: number;
  stop: number;
  modality: number;
}

/** What stays the same: every token in words, the blocks of the vocabulary. Buffer: the code of each image token, as int32. */
export interface LessonFacts {
  kind: "facts";
  names: string[];
  blocks: VocabularyBlock[];
  codes: number;
  layers: number;
  heads: number;
}

/** A token of the document, its `Modality`, and which cell of which image it is. */
export interface WalkToken {
  token: number;
  modality: number;
  image: number | null;
  row: number | null;
  column: number | null;
}

/** Where the walk stands. `tokens` stand from position `start` on, where the document is another than before; `grid`: rows and columns of the picture under way; `reasons`: (first id, id behind the last, why none of these may come). Buffers: logits of the row and of each twin, float32, and whether each token may come, a byte each. */
export interface WalkStep {
  kind: "step";
  start: number;
  tokens: WalkToken[];
  prompt: number;
  text: string;
  state: string;
  ended: string | null;
  drawing: boolean;
  grid: [number, number] | null;
  streams: number;
  reasons: [number, number, string][];
  samplers: Record<string, Record<string, number>>;
  strengths: number[];
  draw: number;
  seed: number;
}

/** A row of attention of all heads of a layer. Buffers: scores before the softmax, and weights, float32, each heads x positions 0 to `position`. */
export interface HeadScores {
  kind: "scores";
  layer: number;
  position: number;
}

/** What codes look like: one PNG, from left to right. */
export interface CodeLooks {
  kind: "looks";
  codes: number[];
}

/** An image of the document, as PNG. */
export interface WholePicture {
  kind: "picture";
  image: number;
}

/** What goes on, and what went wrong, in words. */
export interface ExplainerState {
  kind: "state";
  doing: string;
  trouble: string;
}

export type ExplainerMessage = LessonFacts | WalkStep | HeadScores | CodeLooks | WholePicture | ExplainerState;
