// The inspector: a document with each word and patch to point at, where the model looked, and what it thought there.

import { button, download, element, once, press, pressed, toggle } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { numbers } from "../frame/line.js";
import { branchTree } from "./branch_tree.js";
import { documentView } from "./document_view.js";
import { findings } from "./findings.js";
import { headGrid } from "./head_grid.js";
import { knockPanel } from "./knock_panel.js";
import {
  changeStrengths,
  named,
  nats,
  percentage,
  plainWords,
  RELEVANCE,
  ROLLOUT,
  sharesOf,
  strengths,
} from "./reading.js";
import { ribbon } from "./ribbon.js";
import { rowStore } from "./row_store.js";
import { tokenDetail } from "./token_detail.js";

const WIDE = 720; // pixels from which on the heads and the token stand beside the document
const CAUTION = "Raw attention shows where a head looked, not what mattered; knock a token out to measure.";
const ABSENT = "not looked up before this page was saved";
const NO_KERNEL =
  "The kernel does not answer: it is busy, or it was restarted. Then run the cell again; what is here stays.";
const KEYS =
  "Arrows move between words and cells · Enter chooses · k knocks out · x cuts the locked head’s edge · r draws anew from here · Esc lets go";

/** @typedef {"from" | "before" | "by"} Way whether the row of a token is read, of the one before it, or its column */
/** @type {[Way, string, string][]} */
const WAYS = [
  ["from", "looked at", "What this token read, on the way to the next one"],
  ["before", "chosen from", "What the token before it read: from there this one was chosen"],
  ["by", "read by", "Which later tokens read this one"],
];

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const recorded = Boolean(context.model.get("recorded")); // a page without a kernel
  const store = findings();
  let doc = /** @type {import("./findings.js").Opened | null} */ (null);
  let tree = /** @type {import("./messages.js").BranchTree} */ ({ kind: "branches", branches: [], visible: 0 });
  let visible = 0;
  let state = /** @type {{doing: string, trouble: string, drawing: number | null}} */ ({
    doing: "",
    trouble: "",
    drawing: null,
  });
  let pointed = /** @type {number | null} */ (null);
  let choice = /** @type {number | null} */ (null); // chosen here, and not yet known to have arrived
  let lock = { layer: ROLLOUT, head: 0 };
  let preview = /** @type {typeof lock | null} */ (null);
  let way = /** @type {Way} */ ("from");
  let greeted = false; // the kernel has been or will be told that the first document is on the screen

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").InspectorMessage>} */
  const receive = {
    document(message, buffers) {
      if (store.documents.has(message.branch)) return; // it stays the same; another view has greeted
      const [logs, entropies] = [numbers(Float32Array, buffers[0]), numbers(Float32Array, buffers[1])];
      store.documents.set(message.branch, { facts: message, logs, entropies, selected: null, out: new Set() });
      if (message.branch === visible) open();
    },
    branches(message) {
      const fresh = message.branches.length > tree.branches.length || message.visible !== tree.visible;
      tree = message;
      if (fresh) visible = message.visible;
      open();
    },
    selection({ branch, position }) {
      const one = store.documents.get(branch);
      if (!one || (choice !== null && position !== choice)) return;
      one.selected = position;
      if (one === doc) select(position);
    },
    state(message) {
      state = message;
      if (message.trouble) rows.forget();
    },
    rows({ branch, layer, through, heads, position, way }, buffers) {
      const whole = through >= (store.documents.get(branch)?.facts.layers ?? 0);
      heads.forEach((head, at) => {
        const [place, row] = [{ branch, way, layer, head, position }, numbers(Float32Array, buffers[at])];
        if (whole) rows.put(place, row);
        else rows.sketch(place, row, through);
      });
      rows.proceed();
      paint();
    },
    rollouts({ branch }, [most, codes]) {
      rows.putRollouts(
        branch,
        numbers(Float32Array, most),
        new Uint8Array(codes.buffer, codes.byteOffset, codes.byteLength),
      );
    },
    detail(message, buffers) {
      store.putDetail(message, buffers);
      if (message.branch === visible && message.position === doc?.selected) showDetail();
    },
    lens(message, [png]) {
      store.putLens(message, png);
      if (message.branch === visible) view.lens(message.image, message.layer, png);
    },
    parts(message) {
      store.putParts(message);
      if (message.branch === visible && message.position === doc?.selected) detail.parts.show(message);
    },
    knockout({ branch, positions }, [changes]) {
      store.putChanges(branch, positions, numbers(Float32Array, changes));
      paint();
    },
    knocked(message, buffers) {
      store.putKnocked(message, buffers);
      paint();
    },
    cut({ branch, layer, head, source, of, nats }) {
      const facts = store.documents.get(branch)?.facts;
      if (facts)
        panel.cut(`${branch} ${layer} ${head} ${source} ${of}`, cutWords(facts, layer, head, source, of), nats);
    },
    page: ({ name }, [page]) => download(name, new Blob([/** @type {any} */ (page)], { type: "text/html" })),
  };
  const page = frame(context, {
    label: "Inspector",
    kind: "inspect",
    receive,
    refresh,
    ready: () => doc !== null,
    state() {
      if (recorded) return ["idle", "A saved page, without a kernel"];
      if (state.drawing !== null) return ["drawing", `${state.doing} · ${state.drawing} tokens`];
      if (state.doing) return ["working", state.doing];
      return page.notice || state.trouble ? ["error", "Error"] : ["idle", "Ready"];
    },
    trouble: () => [page?.silent ? NO_KERNEL : state.trouble],
    repaint() {
      strip.paint();
      view.repaint();
    },
  });
  const rows = rowStore(({ branch, way, layer, head, position }) => {
    page.request({ kind: "rows", branch, way, layer, head, position });
  });
  const view = documentView({
    point,
    choose: (at) => (pressed(knocking) ? knock(at) : pressed(cutting) ? cut(at) : choose(at)),
    key,
    lens(image, layer) {
      const png = store.lens(visible, image, layer);
      if (png) view.lens(image, layer, png);
      else ask({ kind: "lens", image, layer });
    },
  });
  const strip = ribbon(point, (at) => {
    choose(at);
    view.focus(at);
  });
  const branches = branchTree(show);
  const heads = headGrid({
    choose(layer, head) {
      lock = { layer, head };
      page.refresh();
      paint();
    },
    point(head) {
      preview = head;
      paint();
    },
  });
  const force = once((position, token) => ask({ kind: "force", position, token }));
  const resample = once((position) => ask({ kind: "resample", position }));
  const detail = tokenDetail({
    force: (token) => force(doc?.selected, token),
    resample: () => resample(doc?.selected),
    parts: wantParts,
    point(head) {
      preview = head;
      paint();
    },
  });
  const panel = knockPanel({
    restore: knock,
    clear() {
      doc?.out.clear();
      paint();
    },
    answer: () => ask({ kind: "answer", positions: [...(doc?.out ?? [])] }),
  });
  const readout = element("div.chm-inspect-readout");
  const knocking = toggle(
    "Knock out",
    null,
    (on) => {
      if (on) press(cutting, false);
      page.refresh();
      paint();
    },
    { title: "Tokens you click now are hidden from all others, together (or press k on one)" },
  );
  const cutting = toggle(
    "Cut an edge",
    null,
    (on) => {
      if (on) press(knocking, false);
      page.refresh();
    },
    { title: "The locked head can no longer read the token you click, to choose the chosen one (or press x on one)" },
  );
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
  const lines = toggle("Lines", null, paint, { title: "Lines to the tokens it looked at most" });
  const heat = toggle("Surprise", null, (on) => view.surprising(on), {
    title: "How surprising each patch was (−log p)",
  });
  const save = button("Save as a page that needs no kernel", "save", () => page.ask({ kind: "page" }));
  const stop = button("Stop", "stop", () => page.ask({ kind: "stop" }));
  stop.append("Stop");
  const hint = element("p.chm-inspect-hint", { role: "status" });
  const body = element(
    "div.chm-inspect-body",
    { hidden: true },
    element(
      "div.chm-inspect-left",
      branches.node,
      strip.node,
      view.node,
      readout,
      element(
        "div.chm-inspect-legend",
        element(
          "span.chm-inspect-looks",
          element("i.chm-inspect-patches"),
          "where it looked, by the strongest that is no sink",
        ),
        element("span.chm-inspect-effects", element("i.chm-inspect-lost"), "less likely without"),
        element("span.chm-inspect-effects", element("i.chm-inspect-won"), "more likely without"),
        element("span", element("i.chm-inspect-line"), "surprise (−log p, full at 8 nats)"),
        element("span", element("i.chm-inspect-entropy"), "entropy before it (nats)"),
      ),
      element("p.chm-inspect-keys", { text: KEYS }),
    ),
    element(
      "aside.chm-inspect-aside",
      { "aria-label": "Heads, and the chosen token" },
      element("div", element("b.chm-inspect-title", { text: "Layer (down) and head (across)" }), heads.node, legend()),
      element("p.chm-inspect-caution", CAUTION, " ", element("span", knocking, cutting)),
      hint,
      panel.node,
      detail.node,
    ),
  );

  /** @param {number | null} at */
  function point(at) {
    pointed = at;
    paint();
  }

  /** Asks about the visible document. @param {{kind: string, [field: string]: any}} content */
  function ask(content) {
    return page.ask({ branch: visible, ...content });
  }

  /** Shows the visible document, if it is here. */
  function open() {
    branches.show(tree.branches, visible);
    const next = store.documents.get(visible);
    if (!next || next === doc) return;
    doc = next;
    pointed = null;
    view.show(doc.facts, doc.logs);
    for (let image = 0; image < doc.facts.images; image += 1) {
      const png = store.lens(visible, image, doc.facts.layers);
      if (png) view.lens(image, doc.facts.layers, png);
    }
    strip.show(doc.logs, doc.entropies);
    heads.shape(doc.facts.layers, doc.facts.heads, lock);
    detail.allow(doc.facts.branches && !recorded);
    layout();
    select(doc.selected);
    if (!recorded && !greeted) afterPaint(() => page.request({ kind: "painted" }));
    greeted = true;
  }

  /** @param {number} branch */
  function show(branch) {
    if (branch === visible) return;
    const before = doc?.selected ?? null;
    visible = branch;
    const next = store.documents.get(branch);
    if (next && next.selected === null && before !== null && before < next.logs.length) next.selected = before;
    open();
    page.request({ kind: "show", branch, note: true });
    if (next?.selected !== null && next?.selected !== undefined) choose(next.selected);
  }

  /** @param {number} at */
  function choose(at) {
    choice = at;
    if (doc) doc.selected = at;
    select(at);
    const note = store.detail(visible, at) !== undefined;
    if (recorded && !note) return detail.say(`Its alternatives were ${ABSENT}.`);
    (note ? page.request : page.ask)({ kind: "select", branch: visible, position: at, note }).then(() => {
      if (choice === at) choice = null;
    });
  }

  /** @param {number | null} at */
  function select(at) {
    detail.choose(
      at === null || !doc ? null : (doc.facts.tokens[at] ?? null),
      doc?.logs[at ?? 0] ?? 0,
      doc?.entropies[at ?? 0] ?? 0,
    );
    heads.paint([]);
    showDetail();
    paint();
  }

  function showDetail() {
    const at = doc?.selected ?? null;
    const answer = at === null ? undefined : store.detail(visible, at);
    if (!answer) return;
    detail.receive(answer.message, answer.buffers);
    heads.paint(answer.message.shares);
    knockedNow = null;
    paint();
  }

  function wantParts() {
    const at = doc?.selected ?? null;
    if (at === null) return;
    const sums = store.parts(visible, at);
    if (sums) return detail.parts.show(sums);
    if (recorded) return detail.parts.say(`What adds up was ${ABSENT}.`);
    detail.parts.wait();
    ask({ kind: "parts", position: at });
  }

  /** @param {string} name @param {number} at */
  function key(name, at) {
    if (name === "k") {
      if (!pressed(knocking)) knocking.click();
      knock(at);
    } else if (name === "x") cut(at);
    else if (name === "r") {
      if (at) resample(at);
    } else if (name === "Escape") letGo();
    else return false;
    return true;
  }

  function letGo() {
    if (state.drawing !== null) ask({ kind: "stop" });
    press(knocking, false);
    press(cutting, false);
    choice = null;
    if (doc) doc.selected = null;
    select(null);
    page.request({ kind: "select", branch: visible, position: null, note: true });
    page.refresh();
  }

  /** @param {number} at */
  function knock(at) {
    if (!doc) return;
    if (!doc.out.delete(at)) doc.out.add(at);
    paint();
  }

  /** @param {number} at */
  function cut(at) {
    const of = doc?.selected ?? null;
    if (lock.layer < 0) return page.tell("Lock a head first: press one in the grid of layers and heads.");
    if (of === null || !doc) return page.tell("Choose a token first, then cut the edge to one that stands before it.");
    if (at >= of - 1) return page.tell("An edge leads to a token before the one from which the chosen one was picked.");
    const { layer, head } = lock;
    panel.cut(`${visible} ${layer} ${head} ${at} ${of}`, cutWords(doc.facts, layer, head, at, of), null);
    ask({ kind: "cut", layer, head, source: at, of });
  }

  let question = ""; // the knock-out that was asked for last
  let knockedNow = /** @type {any} */ (null); // the alternatives under a knock-out that are on the page

  /** The changes of the present knock-out; asked for where they are not here. */
  function knockOut() {
    const out = doc?.out ?? new Set();
    if (!doc || !pressed(knocking) || !out.size) return null;
    const at = doc.selected || null;
    const changes = store.changes(visible, out);
    const knocked = at === null ? undefined : store.knocked(visible, at, out);
    const name = `${visible} ${at} ${[...out].sort((a, b) => a - b).join(" ")}`;
    if ((!changes || (at !== null && !knocked)) && question !== name && !recorded) {
      question = name;
      ask({ kind: "without", positions: [...out], of: at });
    }
    return { changes, knocked };
  }

  function paint() {
    if (!doc) return;
    const { facts, selected, out } = doc;
    const effect = knockOut();
    const scale = effect?.changes ? changeStrengths(effect.changes) : null;
    view.mark(pointed, selected, pressed(knocking) ? out : new Set());
    strip.mark(pointed ?? selected);
    const may = facts.branches && !recorded;
    panel.show(
      pressed(knocking),
      facts.tokens,
      [...out].sort((a, b) => a - b),
      selected,
      { changes: effect?.changes, most: scale?.most ?? 1, may },
    );
    if ((effect?.knocked ?? null) !== knockedNow) {
      knockedNow = effect?.knocked ?? null;
      detail.knock(knockedNow?.message ?? null, knockedNow?.buffers);
    }
    const at = pointed ?? selected;
    body.classList.toggle("chm-inspect-changes", effect !== null);
    if (effect) {
      if (scale) view.paint(scale.heat, true);
      view.draw(null, null);
      if (at === null || !effect.changes)
        return readout.replaceChildren(effect.changes ? "Point at a word or a patch." : "Measuring…");
      return readout.replaceChildren(
        element("b", { text: named(facts.tokens[at]) }),
        `: ${changeOf(effect.changes[at])}`,
      );
    }
    paintAttention(facts, at);
  }

  /** @param {import("./messages.js").InspectedDocument} facts @param {number | null} at */
  function paintAttention(facts, at) {
    /** @param {...(Node | string)} words */
    const nothing = (...words) => {
      view.paint(null);
      view.draw(null, null);
      readout.replaceChildren(...words);
    };
    if (at === null) return nothing("Point at a word or a patch.");
    const head = preview ?? lock;
    const relevant = head.layer === RELEVANCE;
    const position = way === "before" && !relevant ? at - 1 : at;
    if (position < 0 || (relevant && !at)) return nothing("Nothing comes before the first token.");
    const direction = way === "by" && !relevant ? "by" : "from";
    const place = { branch: visible, way: /** @type {"by" | "from"} */ (direction), ...head, position };
    const where =
      head.layer === ROLLOUT
        ? allLayers(rows.through(place), facts.layers)
        : relevant
          ? "Attention × gradient"
          : `Layer ${head.layer}, head ${head.head}`;
    const row = rows.get(place, recorded);
    if (!row && recorded)
      return nothing(`${where} of `, element("b", { text: named(facts.tokens[at]) }), `: ${ABSENT}.`);
    if (!row) return; // what is painted stays until it is here
    const painted = strengths(row, direction === "by" ? position : 0, facts.tokens);
    view.paint(painted);
    view.draw(pressed(lines) ? at : null, painted);
    const verb = relevant
      ? "what spoke for"
      : { from: "looked at from", before: "looked at to choose", by: "read later" }[way];
    const shares = sharesOf(row, facts.tokens);
    const falls =
      direction === "by" || relevant
        ? ""
        : `: words ${percentage(shares[0])} · patches ${percentage(shares[1])} · sinks ${percentage(shares[2])} · other ${percentage(shares[3])}`;
    readout.replaceChildren(
      `${where}, ${verb} `,
      element("b", { text: plainWords(facts.tokens[at]) }),
      falls.replaceAll(" %", "\u00a0%"),
    );
  }

  function refresh() {
    body.hidden = !doc;
    const drawing = state.drawing !== null;
    if (stop.hidden === drawing) stop.hidden = !drawing;
    const text = pressed(cutting)
      ? lock.layer < 0
        ? "Lock a head: press one above. Then click the token that it may not read."
        : "Click the token that this head may not read when the chosen token is picked."
      : "";
    if (hint.textContent !== text) hint.textContent = text;
  }

  function layout() {
    body.classList.toggle("chm-inspect-wide", page.box.clientWidth >= WIDE);
    strip.paint();
  }

  const sizes = new ResizeObserver(layout);
  sizes.observe(page.box);
  readout.textContent = "Point at a word or a patch.";
  const release = button("Let go", null, letGo);
  release.title = "Choose no token (Esc)";
  for (const tool of recorded ? [save, cutting] : []) tool.hidden = true;
  return page.open(
    [
      page.header(
        "Views",
        [
          element("fieldset.chm-inspect-ways", element("legend.chm-sr", { text: "Direction" }), ...ways),
          lines,
          heat,
          release,
          save,
        ],
        [stop],
      ),
      page.alert,
      body,
    ],
    [() => sizes.disconnect(), view.dispose, detail.dispose],
  );
}

/** Calls once what changed is on the screen. @param {() => void} call */
const afterPaint = (call) => requestAnimationFrame(() => setTimeout(call));

/** @param {number} through layers that rollout has gone through so far; 0: all @param {number} layers */
const allLayers = (through, layers) => (through ? `The first ${through} of ${layers} layers so far` : "All layers");

/** @param {number} change in nats */
const changeOf = (change) => (Number.isNaN(change) ? "nothing comes before it" : nats(change));

/**
 * @param {import("./messages.js").InspectedDocument} facts @param {number} layer @param {number} head
 * @param {number} source @param {number} of
 */
const cutWords = ({ tokens }, layer, head, source, of) =>
  `${named(tokens[of])} where layer ${layer}, head ${head} cannot read ${named(tokens[source])}:`;

function legend() {
  const parts = /** @type {const} */ (["words", "patches", "sinks"]);
  return element(
    "div.chm-inspect-legend",
    ...parts.map((name) => element("span", element(`i.chm-inspect-${name}`), name)),
    element("span", { text: "looked at from the chosen token" }),
  );
}

export default { render };
