// Written by widgets/js/messages.py from chameleon_widgets.chat.messages: change that, and run `make bundles`.

/** What is going on with a reply; a picture being drawn says how far it is. */
export interface ReplyState {
  name: "reading" | "writing" | "drawing" | "done" | "stopped" | "error";
  row?: number;
  rows?: number;
}

/** What is new of one part: text to be put after `start` characters, or the number of a buffer with a picture. */
export interface PartNews {
  at: number;
  start?: number;
  text?: string;
  picture?: number;
  row?: number;
  rows?: number;
}

/** What is new of an exchange: only the fields that changed. */
export interface ExchangeNews {
  key: number;
  state?: ReplyState;
  running?: boolean;
  about?: string;
  seed?: number | null;
  error?: string;
  user?: PartNews[];
  reply?: PartNews[];
}

/** What is new, or everything where it is `whole`. `busy`: a message has not been replied to yet. */
export interface ConversationUpdate {
  kind: "update";
  number: number;
  busy: boolean;
  whole: boolean;
  order: number[];
  changed: ExchangeNews[];
}

/** The conversation as JSON. */
export interface ConversationExport {
  kind: "export";
  text: string;
}

export type ChatMessage = ConversationUpdate | ConversationExport;
