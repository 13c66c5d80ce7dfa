// Written by widgets/js/messages.py from chameleon_widgets.images.messages: change that, and run `make bundles`.

/** A round trip; where `error` is not empty, the figures are empty. None: an infinite PSNR, an undefined SSIM. */
export interface TripFacts {
  tokenizer: string;
  policy: string;
  error: string;
  codes: number[][];
  codebook: number | null;
  bits: number | null;
  psnr: number | null;
  ssim: number | null;
  width: number;
  height: number;
}

/** What can be chosen; a buffer with a picture for each sample. */
export interface ViewerOffers {
  kind: "offers";
  tokenizers: string[];
  policies: string[];
  samples: string[];
}

/** What is shown; original and reconstruction as buffers for each trip without an error. */
export interface ViewerResult {
  kind: "result";
  error: string;
  name: string;
  chosen: string[];
  policy: string;
  trips: TripFacts[];
}

export type ViewerMessage = ViewerOffers | ViewerResult;

/** What goes on, and what went wrong, in words. */
export interface AtlasState {
  kind: "state";
  doing: string;
  trouble: string[];
}

/** The layout; the code of each cell as uint32. `block`: side of the block that is decoded for one code. */
export interface AtlasMap {
  kind: "map";
  columns: number;
  scale: string[];
  block: number;
}

/** How the codes are used; their counts as float64. The curves are (tokens, share of the codes used). */
export interface AtlasUsage {
  kind: "usage";
  names: string[];
  external: boolean;
  tokens: number;
  usage: number;
  perplexity: number;
  dead: number;
  even: number;
  measured: [number, number][];
  evenly: [number, number][];
}

/** A picture as PNG, and its codes as uint32. */
export interface AtlasPicture {
  kind: "picture";
  at: number;
  rows: number;
  columns: number;
  width: number;
  height: number;
}

/** The chosen code: its nearest codes with their distances, and places in the pictures, a patch as PNG for each. */
export interface AtlasCode {
  kind: "code";
  code: number | null;
  near: [number, number][];
  places: [number, number, number][];
  count: number;
}

/** What codes decode to, as PNG. */
export interface AtlasPatches {
  kind: "patches";
  codes: number[];
}

/** The mean decoded colour of each code: RGB, and 255 where it is decoded already. */
export interface AtlasColours {
  kind: "colours";
}

export type AtlasMessage = AtlasState | AtlasMap | AtlasUsage | AtlasPicture | AtlasCode | AtlasPatches | AtlasColours;

/** The codes as edited and as they came, int32 each; steps that can be taken back and forth. */
export interface GridFacts {
  key: number;
  name: string;
  rows: number;
  columns: number;
  undo: number;
  redo: number;
}

/** The decoded picture, and the original's where `before`. `fresh`: it is of the codes sent last. */
export interface PictureFacts {
  fresh: boolean;
  before: boolean;
  width: number;
  height: number;
}

/** What is new. `applied`: number of the last edit of each view. Buffers in the order of the fields. */
export interface SurgeryUpdate {
  kind: "update";
  applied: Record<string, number>;
  samples?: string[];
  codebook?: number | null;
  grid?: GridFacts;
  error?: string;
  picture?: PictureFacts;
  swatches?: number[];
}
