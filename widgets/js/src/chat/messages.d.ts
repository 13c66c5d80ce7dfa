// Written by widgets/js/messages.py from chameleon_widgets.chat.messages: change that, and run `make bundles`.

/** What is going on with a reply. A picture being drawn says how far it is, in rows, and in codes where they are known; `room`: tokens that may still come. */
export interface ReplyState {
  name: "reading" | "writing" | "drawing" | "done" | "stopped" | "error";
  row?: number;
  rows?: number;
  codes?: [number, number];
  room?: number;
}

/** What is new of one part: text to be put after `start` characters, or the number of a buffer with a picture, or of one with the picture as the image tokenizer gives it back. */
export interface PartNews {
  at: number;
  start?: number;
  text?: string;
  picture?: number;
  row?: number;
  rows?: number;
  reconstruction?: number;
}

/** What is new of an exchange: only the fields that changed. `facts`: all that made the reply, in names and values; `resumable`: the reply can be continued; `inspector`: the model id of the inspector open under it, "" for none, "…" while it is being made. */
export interface ExchangeNews {
  key: number;
  state?: ReplyState;
  running?: boolean;
  about?: string;
  facts?: [string, string][];
  seed?: number | null;
  error?: string;
  resumable?: boolean;
  inspector?: string;
  user?: PartNews[];
  reply?: PartNews[];
}

/** What stands beside an exchange of the path: an exchange for each other wording of its message, and one for each other reply to the same wording, itself among them. A list of one is left empty. */
export interface Variants {
  key: number;
  messages: number[];
  replies: number[];
}

/** An exchange of the whole tree: its parent (0: none), the first words of its message, and how its reply ended. */
export interface TreeNode {
  key: number;
  parent: number;
  words: string;
  origin: string;
}

/** The tree around the path. `strip`: the replies that wait to be chosen from. */
export interface ConversationShape {
  variants: Variants[];
  tree: TreeNode[];
  strip: number[];
}

/** What is new, or everything where it is `whole`: `order` is the path shown, `shape` comes when it changed. `busy`: a message has not been replied to yet. */
export interface ConversationUpdate {
  kind: "update";
  number: number;
  busy: boolean;
  whole: boolean;
  order: number[];
  changed: ExchangeNews[];
  shape?: ConversationShape;
}

/** A file of the conversation, in the only buffer, and what the browser does with it. */
export interface ConversationExport {
  kind: "export";
  name: string;
  type: string;
  use: "save" | "copy";
}

/** Something the cell has to say in one line: what was wrong with a file, or with a document to look into. */
export interface ConversationNotice {
  kind: "notice";
  text: string;
}

export type ChatMessage = ConversationUpdate | ConversationExport | ConversationNotice;
