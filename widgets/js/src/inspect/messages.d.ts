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

/** The document. Buffers: log-probabilities and entropies as float32 (nan: none), then each image as PNG, empty where it is not whole. */
export interface InspectedDocument {
  kind: "document";
  tokens: TokenFacts[];
  images: number;
  layers: number;
  heads: number;
}

/** What goes on, and what went wrong, in words. */
export interface InspectorState {
  kind: "state";
  doing: string;
  trouble: string;
}

/** Rows of attention, a float32 buffer for each head: over positions 0 to `position` ("from"), or from there to the last ("by"). Layer -1 is rollout, through all layers. */
export interface HeadRows {
  kind: "rows";
  layer: number;
  heads: number[];
  position: number;
  way: "from" | "by";
}

/** What could have stood at a position: its probability, that under guidance (None where there is none), and whether it stands there. `swatch`: whether a buffer with its look comes along. */
export interface Alternative {
  words: string;
  probability: number;
  guided: number | null;
  chosen: boolean;
  swatch: boolean;
}

/** The chosen position. `shares`: of each layer and head, how much of its row falls on words, patches, sinks, and other special tokens. Buffers: looks of codes as PNG. */
export interface TokenDetail {
  kind: "detail";
  position: number | null;
  alternatives: Alternative[];
  shares: number[][][];
}

/** An image as the stream after a layer would draw it, as PNG. */
export interface LensPicture {
  kind: "lens";
  image: number;
  layer: number;
}

/** The change, in nats, of the log-probability of the token at `of` when no other token sees `position`. */
export interface KnockOut {
  kind: "knockout";
  position: number;
  of: number;
  nats: number;
}

export type InspectorMessage = InspectedDocument | InspectorState | HeadRows | TokenDetail | LensPicture | KnockOut;
