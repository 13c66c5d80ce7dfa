// The inspector: a document with each word and patch to point at, where the model looked, and what it thought there.

import { button, element, press, pressed, toggle } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { numbers } from "../frame/line.js";
import { documentView } from "./document_view.js";
import { headGrid } from "./head_grid.js";
import { percentage, plainWords, ROLLOUT, sharesOf, strengths } from "./reading.js";
import { rowStore } from "./row_store.js";
import { tokenDetail } from "./token_detail.js";

const WIDE = 720; // pixels from which on the heads and the token stand beside the document
const CAUTION = "Raw attention shows where a head looked, not what mattered; knock a token out to measure.";

/** @typedef {"from" | "before" | "by"} Way whether the row of a token is read, of the one before it, or its column */
/** @type {[Way, string, string][]} */
const WAYS = [
  ["from", "looked at", "What this token read, on the way to the next one"],
  ["before", "chosen from", "What the token before it read: from there this one was chosen"],
  ["by", "read by", "Which later tokens read this one"],
];

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  let facts = /** @type {import("./messages.js").InspectedDocument | null} */ (null);
  let [logs, entropies] = [new Float32Array(), new Float32Array()];
  let state = { doing: "", trouble: "" };
  let pointed = /** @type {number | null} */ (null);
  let selected = /** @type {number | null} */ (null);
  let choice = /** @type {number | null} */ (null); // chosen here, and not yet known to have arrived
  let lock = { layer: ROLLOUT, head: 0 };
  let preview = /** @type {typeof lock | null} */ (null);
  let way = /** @type {Way} */ ("from");
  const changes = /** @type {Map<number, Map<number, number | null>>} */ (new Map()); // by token, by what it lacked

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").InspectorMessage>} */
  const receive = {
    document: open,
    state(message) {
      state = message;
      if (message.trouble) rows.forget();
    },
    rows({ layer, heads, position, way }, buffers) {
      heads.forEach((head, at) => rows.put({ way, layer, head, position }, numbers(Float32Array, buffers[at])));
      rows.proceed();
      paint();
    },
    detail(message, buffers) {
      if (choice !== null && message.position !== choice) return;
      if (message.position !== selected) select(message.position);
      detail.receive(message, buffers);
      heads.paint(message.shares);
    },
    lens: ({ image, layer }, [png]) => view.lens(image, layer, png),
    knockout({ position, of, nats }) {
      changesOf(of).set(position, nats);
      tellEffects();
    },
  };
  const page = frame(context, {
    label: "Inspector",
    kind: "inspect",
    receive,
    refresh,
    ready: () => facts !== null,
    state() {
      if (state.doing) return ["working", state.doing];
      return page.notice || state.trouble ? ["error", "Error"] : ["idle", "Ready"];
    },
    trouble: () => [state.trouble],
  });
  const rows = rowStore(({ way, layer, head, position }) => {
    page.request({ kind: "rows", way, layer, head, position });
  });
  const view = documentView({
    point(at) {
      pointed = at;
      paint();
    },
    choose: (at) => (pressed(knocking) ? knock(at) : choose(at)),
    knock,
    lens: (image, layer) => page.ask({ kind: "lens", image, layer }),
  });
  const heads = headGrid({
    choose(layer, head) {
      lock = { layer, head };
      paint();
    },
    point(head) {
      preview = head;
      paint();
    },
  });
  const detail = tokenDetail();
  const readout = element("div.chm-inspect-readout");
  const knocking = toggle("Knock out", null, () => page.refresh(), {
    title: "Tokens you click now are hidden from all others, one at a time (or press k on one)",
  });
  const group = `chm-way-${Math.random().toString(36).slice(2, 8)}`;
  const ways = WAYS.map(([name, words, title]) => {
    const input = element("input", { type: "radio", name: group, value: name });
    input.checked = name === way;
    input.addEventListener("change", () => {
      way = name;
      paint();
    });
    return element("label", { title }, input, element("span", { text: words }));
  });
  const heat = toggle("Surprise", null, (on) => view.surprising(on), {
    title: "How surprising each patch was (−log p)",
  });
  const hint = element("p.chm-inspect-hint", { role: "status" });
  const body = element(
    "div.chm-inspect-body",
    { hidden: true },
    element(
      "div.chm-inspect-left",
      view.node,
      readout,
      element(
        "div.chm-inspect-legend",
        element("span", element("i.chm-inspect-patches"), "where it looked, by the strongest that is no sink"),
        element("span", element("i.chm-inspect-line"), "surprise (−log p, full at 8 nats)"),
      ),
    ),
    element(
      "aside.chm-inspect-aside",
      { "aria-label": "Heads, and the chosen token" },
      element("div", element("b.chm-inspect-title", { text: "Layer (down) and head (across)" }), heads.node, legend()),
      detail.node,
      element("p.chm-inspect-caution", CAUTION, " ", knocking),
      hint,
    ),
  );

  /** @param {import("./messages.js").InspectedDocument} message @param {DataView[]} buffers */
  function open(message, buffers) {
    if (facts) return; // it stays the same; another view has greeted
    facts = message;
    [logs, entropies] = [numbers(Float32Array, buffers[0]), numbers(Float32Array, buffers[1])];
    view.show(message, logs, buffers.slice(2));
    heads.shape(message.layers, message.heads);
    layout();
  }

  /** @param {number} of */
  function changesOf(of) {
    const lacks = changes.get(of) ?? new Map();
    changes.set(of, lacks);
    return /** @type {Map<number, number | null>} */ (lacks);
  }

  /** @param {number} at */
  function choose(at) {
    choice = at;
    select(at);
    page.ask({ kind: "select", position: at }).then(() => {
      if (choice === at) choice = null;
    });
  }

  /** @param {number | null} at */
  function select(at) {
    selected = at;
    detail.choose(at === null ? null : (facts?.tokens[at] ?? null), logs[at ?? 0], entropies[at ?? 0]);
    tellEffects();
    paint();
  }

  /** @param {number} at */
  function knock(at) {
    if (selected === null) page.tell("Choose a token first, then knock out one that stands before it.");
    else if (at >= selected) page.tell("Only tokens before the chosen one can matter to it: knock out an earlier one.");
    else if (typeof changesOf(selected).get(at) !== "number") {
      changesOf(selected).set(at, null);
      tellEffects();
      page.ask({ kind: "without", position: at, of: selected });
    }
  }

  function tellEffects() {
    const measured = [...(selected === null ? [] : changesOf(selected))].reverse();
    detail.effects(
      measured.flatMap(([at, change]) =>
        facts ? [/** @type {[any, number | null]} */ ([facts.tokens[at], change])] : [],
      ),
    );
    mark();
  }

  function mark() {
    view.mark(pointed, selected, new Set(selected === null ? [] : changesOf(selected).keys()));
  }

  function paint() {
    mark();
    const at = pointed ?? selected;
    if (!facts || at === null) {
      view.paint(null);
      return readout.replaceChildren("Point at a word or a patch.");
    }
    const head = preview ?? lock;
    const position = way === "before" ? at - 1 : at;
    if (position < 0) {
      view.paint(null);
      return readout.replaceChildren("Nothing comes before the first token.");
    }
    const row = rows.get({ way: way === "by" ? "by" : "from", ...head, position });
    if (!row) return; // what is painted stays until it is here
    view.paint(strengths(row, way === "by" ? position : 0, facts.tokens));
    const where = head.layer === ROLLOUT ? "All layers" : `Layer ${head.layer}, head ${head.head}`;
    const verb = { from: "looked at from", before: "looked at to choose", by: "read later" }[way];
    const shares = sharesOf(row, facts.tokens);
    const falls =
      way === "by"
        ? ""
        : `: words ${percentage(shares[0])} · patches ${percentage(shares[1])} · sinks ${percentage(shares[2])} · other ${percentage(shares[3])}`;
    readout.replaceChildren(
      `${where}, ${verb} `,
      element("b", { text: plainWords(facts.tokens[at]) }),
      falls.replaceAll(" %", "\u00a0%"),
    );
  }

  function refresh() {
    body.hidden = !facts;
    hint.textContent = !pressed(knocking)
      ? ""
      : selected === null
        ? "Choose a token, then press “Knock out” and click what it may not see."
        : "Click the tokens to knock out, each by itself.";
  }

  function layout() {
    body.classList.toggle("chm-inspect-wide", page.box.clientWidth >= WIDE);
  }

  const sizes = new ResizeObserver(layout);
  sizes.observe(page.box);
  readout.textContent = "Point at a word or a patch.";
  const release = button("Let go", null, () => {
    press(knocking, false);
    choice = null;
    select(null);
    page.refresh();
  });
  release.title = "Choose no token";
  return page.open(
    [
      page.header("Views", [
        element("fieldset.chm-inspect-ways", element("legend.chm-sr", { text: "Direction" }), ...ways),
        heat,
        release,
      ]),
      page.alert,
      body,
    ],
    [() => sizes.disconnect(), view.dispose, detail.dispose],
  );
}

function legend() {
  const parts = /** @type {const} */ (["words", "patches", "sinks"]);
  return element(
    "div.chm-inspect-legend",
    ...parts.map((name) => element("span", element(`i.chm-inspect-${name}`), name)),
    element("span", { text: "looked at from the chosen token" }),
  );
}

export default { render };
