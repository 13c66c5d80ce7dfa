// Written by widgets/js/messages.py from chameleon_widgets.judge.messages: change that, and run `make bundles`.

/** Words, or a picture: its place among the message's buffers. */
export interface ShownPart {
  text?: string;
  picture?: number;
}

/** A question, and its answers as (name, words) in the order in which they stand on the page. */
export interface AskedQuestion {
  name: string;
  words: string;
  answers: [string, string][];
}

/** What is judged now: the item's number among all, from 0; `before`: what was answered to it. None of it, and the number of all, where all are judged. */
export interface ArenaItem {
  kind: "item";
  study: string;
  annotator: string;
  number: number;
  total: number;
  judged: number;
  prompt: ShownPart[];
  replies: ShownPart[][];
  questions: AskedQuestion[];
  before: Record<string, string>;
  journal: string;
}
