// Written by widgets/js/messages.py from chameleon_widgets.inspect.messages: change that, and run `make bundles`.

/** A token, its `Modality`, and which cell of which image it is. `sink`: heads rest there that read nothing. */
export interface TokenFacts {
  words: string;
  modality: number;
  sink: boolean;
  image: number | null;
  row: number | null;
  column: number | null;
  rank: number | null;
}

/** The document. Buffers: log-probabilities and entropies as float32 (nan: none). Its images come as `LensPicture`. `branches`: whether others can be drawn from it. */
export interface InspectedDocument {
  kind: "document";
  branch: number;
  tokens: TokenFacts[];
  images: number;
  layers: number;
  heads: number;
  branches: boolean;
}

/** A document and what made it, in words; `parent` and `position` say from which token of which it was drawn. */
export interface BranchFacts {
  parent: number | null;
  position: number | null;
  words: string;
}

/** All documents, and which of them is looked at. */
export interface BranchTree {
  kind: "branches";
  branches: BranchFacts[];
  visible: number;
}

/** The chosen position. */
export interface Selection {
  kind: "selection";
  branch: number;
  position: number | null;
}

/** What goes on, and what went wrong, in words. `drawing`: number of tokens of the branch under way, None without one. */
export interface InspectorState {
  kind: "state";
  doing: string;
  trouble: string;
  drawing: number | null;
}

/** Rows of attention, a float32 buffer for each head: over positions 0 to `position` ("from"), or from there to the last ("by"). Layer -1 is rollout, through `through` layers so far; -2 is attention times gradient. */
export interface HeadRows {
  kind: "rows";
  branch: number;
  layer: number;
  through: number;
  heads: number[];
  position: number;
  way: "from" | "by";
}

/** Rollout of all positions. Buffers: each row's greatest weight as float32, then the rows (that of position p has p + 1 numbers) as bytes: 255 times the root of the weight's share in the greatest. */
export interface Rollouts {
  kind: "rollouts";
  branch: number;
}

/** What could have stood at a position: its probability, that under guidance (None where there is none), that before a knock-out (None without one), and whether it stands there. `swatch`: whether a buffer with its look comes along. */
export interface Alternative {
  token: number;
  words: string;
  probability: number;
  guided: number | null;
  before: number | null;
  chosen: boolean;
  swatch: boolean;
}

/** What a layer would have written at a position: its likeliest token, and how likely it holds the one that stands there. `swatch`: whether a buffer with its look comes along. */
export interface LayerReading {
  token: number;
  words: string;
  probability: number;
  own: number;
  swatch: boolean;
}

/** A position. `shares`: of each layer and head, how much of its row falls on words, patches, sinks, and other special tokens. `layers`: what each would have written. Buffers: looks of codes as PNG, of the alternatives and then of the layers; it comes once without them, and again when they are drawn. */
export interface TokenDetail {
  kind: "detail";
  branch: number;
  position: number;
  alternatives: Alternative[];
  shares: number[][][];
  layers: LayerReading[];
}

/** An image as the stream after a layer would draw it, or, after the last, as it stands. Buffer: a PNG, empty for an image that is not whole. */
export interface LensPicture {
  kind: "lens";
  branch: number;
  image: number;
  layer: number;
}

/** What the embedding, each head and each feed-forward add to a token's logit. `trouble`: why they cannot be told apart. */
export interface PartSums {
  kind: "parts";
  branch: number;
  position: number;
  embedding: number;
  heads: number[][];
  feed_forwards: number[];
  trouble: string;
}

/** The change, in nats, of every token's log-probability when no other token sees any of `positions`. Buffer: as float32. */
export interface KnockOut {
  kind: "knockout";
  branch: number;
  positions: number[];
}

/** What could have stood at a position, likeliest first, when no other token sees any of `positions`. Buffers: looks of codes as PNG. */
export interface KnockedAlternatives {
  kind: "knocked";
  branch: number;
  positions: number[];
  position: number;
  alternatives: Alternative[];
}

/** The change, in nats, of the log-probability of the token at `of` when one head cannot read `source` to choose it. */
export interface EdgeCut {
  kind: "cut";
  branch: number;
  layer: number;
  head: number;
  source: number;
  of: number;
  nats: number;
}

/** A page of what was looked up, for a browser to save. Buffer: the page. */
export interface SavedPage {
  kind: "page";
  name: string;
}

export type InspectorMessage =
  | InspectedDocument
  | BranchTree
  | Selection
  | InspectorState
  | HeadRows
  | Rollouts
  | TokenDetail
  | LensPicture
  | PartSums
  | KnockOut
  | KnockedAlternatives
  | EdgeCut
  | SavedPage;
