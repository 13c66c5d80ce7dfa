// Written by widgets/js/messages.py from chameleon_widgets.line: change that, and run `make bundles`.

/** What the line itself says, for every widget: the views' last requests, the still, a handler's error. `control`: views whose requests have come on the control channel. `traits`: what views have set, for the others. */
export interface LineMessage {
  kind: "line";
  requests: Record<string, number>;
  control: string[];
  traits: Record<string, unknown>;
  still: string;
  revision: number;
  bundle?: Record<string, string>;
  trouble?: string;
}
