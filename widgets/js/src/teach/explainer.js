// The explainer: seven stations on the way from words and patches to the next token, and then round again.

import { button, element, press, pressed, toggle, write } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { numbers } from "../frame/line.js";
import { pngUrl } from "../frame/pictures.js";
import { isCalm } from "../frame/theme.js";
import { attentionChart } from "./attention_chart.js";
import { codeFigure } from "./code_figure.js";
import { drawLine } from "./draw_line.js";
import { IMAGE, lesson as makeLesson } from "./lesson.js";
import { maskTriangle } from "./mask_triangle.js";
import { promptBox } from "./prompt_box.js";
import { samplerPanel } from "./sampler_panel.js";
import { choice, mixed, penalized, ranked, softmax } from "./sampling.js";
import { sequence } from "./sequence.js";
import { softmaxChart } from "./softmax_chart.js";
import { vocabularyLine } from "./vocabulary_line.js";

const WIDE = 820; // pixels from which on the words of a station stand beside its drawing
const PACE = { words: 600, cells: 90 }; // milliseconds that a playing walk rests after a token

/** @type {[string, string][]} */
const STATIONS = [
  [
    "Tokens",
    "Words are cut into pieces, and a picture into cells. Every piece and every cell is a number, and all of them lie on one line: the vocabulary. A cell's code is moved along by the first image token. Point at a word or a cell.",
  ],
  [
    "Sequence",
    "Words and cells stand in one row, a position each (above), a token each (below). begin_image and end_image say where a picture stands. This row of numbers is all that the model reads.",
  ],
  [
    "Mask",
    "A position reads itself and what stands before it, never what comes behind. So every position of a document can be learned at once, and writing goes from left to right, through words and pictures alike.",
  ],
  [
    "Attention",
    "At a position each head scores every token that it may read: words and cells alike. A softmax makes weights of the scores, which sum to 100 %. Raw attention shows where a head looked, not what mattered.",
  ],
  [
    "Softmax",
    "At the last position the model gives a number to every token of its vocabulary, and one softmax makes shares of them: words and patches compete for the same 100 %.",
  ],
  [
    "Sampling",
    "The grammar takes out what cannot stand here; guidance, in a picture, pushes codes towards the words; temperature sharpens or flattens; top-k, top-p and min-p cut the tail. Move the sliders.",
  ],
  [
    "Next token",
    "What is left lies on one line, likeliest first. A number between 0 and 1, drawn with a seed, says which token it is. It goes behind the sequence, and the walk begins again.",
  ],
];
const [TOKENS, SEQUENCE, MASK, ATTENTION, SOFTMAX, SAMPLING, DRAW] = STATIONS.keys();

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  const lesson = makeLesson();
  let state = { doing: "", trouble: "" };
  let station = TOKENS;
  let pointed = /** @type {number | null} */ (null);
  let selected = /** @type {number | null} */ (null);
  let layer = 0;
  let head = 0;
  let rest = /** @type {any} */ (null); // the timer of a playing walk
  let quiet = false; // a walk plays, and where it ends is shown to who wants less motion: not each token on the way
  const rows = /** @type {Map<string, {scores: Float32Array, weights: Float32Array}>} */ (new Map());
  let asking = ""; // for which row
  let order = /** @type {{of: object, strengths: string, ids: Uint32Array, logits: Float32Array} | null} */ (null);
  let lookTimer = /** @type {any} */ (null);
  const requestedLooks = /** @type {Set<number>} */ (new Set());

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").ExplainerMessage>} */
  const receive = {
    facts(message, [codes]) {
      [lesson.names, lesson.blocks] = [message.names, message.blocks];
      lesson.codes = numbers(Int32Array, codes);
      const { layers, heads } = message;
      if (lesson.depth.layers !== layers || lesson.depth.heads !== heads) {
        lesson.depth = { layers, heads };
        layer = Math.floor(layers / 2);
        fill(layerChoice, layers, layer);
        fill(headChoice, heads, head);
      }
    },
    step(message, [logits, allowed]) {
      if (!lesson.blocks.length) return; // sent before this view has greeted; it comes again
      const flat = numbers(Float32Array, logits);
      const size = flat.length / message.streams;
      lesson.step = message;
      lesson.tokens = [...lesson.tokens.slice(0, message.start), ...message.tokens];
      lesson.streams = Array.from({ length: message.streams }, (_, at) => flat.subarray(at * size, (at + 1) * size));
      lesson.allowed = numbers(Uint8Array, allowed);
      for (const name of rows.keys()) if (Number(name.split(" ")[1]) >= message.start) rows.delete(name);
      if (selected !== null && selected >= lesson.tokens.length) selected = null;
      pointed = null;
      strip.forget(message.start);
      quiet = pressed(play) && isCalm();
      if (!quiet) showStep();
      if (pressed(play)) goOn();
    },
    scores({ layer, position }, [scores, weights]) {
      const [flat, heavy] = [numbers(Float32Array, scores), numbers(Float32Array, weights)];
      for (let each = 0; each < lesson.depth.heads; each += 1) {
        const [first, stop] = [each * (position + 1), (each + 1) * (position + 1)];
        rows.set(`${layer} ${position} ${each}`, {
          scores: flat.subarray(first, stop),
          weights: heavy.subarray(first, stop),
        });
      }
      asking = "";
      paint();
    },
    looks({ codes }, [png]) {
      lesson.addLooks(codes, pngUrl(png));
      for (const place of /** @type {NodeListOf<HTMLElement>} */ (body.querySelectorAll("[data-code]")))
        lesson.paintLook(place, Number(place.dataset.code));
    },
    picture({ image }, [png]) {
      strip.picture(image, png);
      if (quiet) return;
      strip.show();
      paint();
    },
    state(message) {
      state = message;
      if (message.trouble) {
        asking = "";
        stop();
      }
    },
  };
  const page = frame(context, {
    label: "Explainer",
    kind: "teach",
    receive,
    refresh,
    ready: () => lesson.step !== null,
    state() {
      if (state.doing) return ["working", state.doing];
      return page.notice || state.trouble ? ["error", "Error"] : ["idle", "Ready"];
    },
    trouble: () => [state.trouble],
  });
  const strip = sequence(lesson, {
    point(at) {
      pointed = at;
      paint(false);
    },
    choose(at) {
      selected = selected === at ? null : at;
      paint(false);
    },
  });
  /** @type {{point: (at: number | null) => void, choose: (at: number) => void}} */
  const hands = {
    point(at) {
      pointed = at;
      paint(false);
    },
    choose(at) {
      selected = at;
      paint(false);
    },
  };
  const vocabulary = vocabularyLine(lesson);
  const figure = codeFigure(lesson, { ...hands, url: strip.url });
  const mask = maskTriangle(lesson, hands);
  let keyed = /** @type {number | null} */ (null); // the position that is read, in the row of attention
  const attention = attentionChart(lesson, (at) => {
    keyed = at;
    paint(false);
  });
  const chart = softmaxChart(lesson, take);
  const panel = samplerPanel(() => paint());
  const line = drawLine(lesson, (seed) => page.ask({ kind: "seed", seed }));
  const prompt = promptBox({
    submit(text, keep, buffers) {
      stop();
      selected = null;
      page.ask({ kind: "prompt", text, keep }, { buffers });
      press(editing, false);
      prompt.node.hidden = true;
    },
    trouble: page.tell,
  });

  // The head: the walk's own buttons

  const editing = toggle("Your own prompt", "edit", (on) => {
    prompt.node.hidden = !on;
    if (on) prompt.focus();
  });
  const restart = button("Back to the prompt", "again", () => {
    stop();
    page.ask({ kind: "restart" });
  });
  const back = button("Step back", null, () => {
    stop();
    page.ask({ kind: "back" });
  });
  const next = button("Draw the next token", null, () => {
    stop();
    draw();
  });
  next.classList.add("chm-primary");
  const play = toggle("Play until the reply ends", "play", (on) => (on ? draw() : stop()));
  const standing = element("span.chm-teach-state", { role: "status" });

  // The stations

  const tabs = STATIONS.map(([name], at) =>
    element(
      "button.chm-teach-tab",
      { type: "button", role: "tab", on: { click: () => go(at) } },
      element("i", { text: at + 1 }),
      element("span", { text: name }),
    ),
  );
  const nav = element("div.chm-teach-tabs", { role: "tablist", "aria-label": "Stations of the walk" }, ...tabs);
  nav.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: station - 1, ArrowRight: station + 1, Home: 0, End: STATIONS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(Math.min(STATIONS.length - 1, Math.max(0, to)));
    tabs[station].focus();
  });
  const title = element("b.chm-teach-title");
  const text = element("p");
  const onward = button("", null, () => (station < DRAW ? go(station + 1) : round()), {
    class: "chm-button chm-teach-onward",
  });
  const layerChoice = element("select", { "aria-label": "Layer", on: { change: chooseHead } });
  const headChoice = element("select", { "aria-label": "Head", on: { change: chooseHead } });
  const reader = element("p.chm-teach-note");
  const heads = element(
    "div.chm-teach-heads",
    element("label", "Layer ", layerChoice),
    element("label", "Head ", headChoice),
    reader,
  );
  const stage = element("div.chm-teach-stage");
  const words = element("div.chm-teach-text", title, text, heads, panel.node, onward);
  const body = element(
    "div.chm-teach-body",
    { hidden: true },
    strip.node,
    nav,
    element("div.chm-teach-station", { role: "tabpanel" }, words, stage),
  );

  /** @param {HTMLSelectElement} select @param {number} count @param {number} value */
  function fill(select, count, value) {
    select.replaceChildren(...Array.from({ length: count }, (_, at) => element("option", { value: at, text: at })));
    select.value = String(value);
  }

  function chooseHead() {
    [layer, head] = [Number(layerChoice.value), Number(headChoice.value)];
    paint();
  }

  /** @param {number} at */
  function go(at) {
    station = at;
    keyed = null;
    paint();
    refresh();
  }

  function round() {
    stop();
    draw();
  }

  // The walk

  function draw() {
    if (lesson.step?.ended) return stop();
    page.ask({ kind: "draw", ...panel.request }).then((arrived) => {
      if (!arrived) stop();
    });
  }

  /** @param {number} token */
  function take(token) {
    stop();
    page.ask({ kind: "take", token, ...panel.request });
  }

  function goOn() {
    clearTimeout(rest);
    if (lesson.step?.ended) return stop();
    const pace = quiet ? 0 : lesson.step?.drawing ? PACE.cells : PACE.words;
    rest = setTimeout(() => pressed(play) && draw(), pace);
  }

  function stop() {
    clearTimeout(rest);
    press(play, false);
    if (!quiet) return;
    quiet = false;
    showStep();
  }

  // The page

  /** What may come next, with the settings as they stand. */
  function distribution() {
    const strengths = panel.strengths.join(" ");
    if (order?.of !== lesson.step || order.strengths !== strengths) {
      const logits = lesson.step?.drawing ? mixed(lesson.streams, panel.strengths) : penalty();
      order = { of: /** @type {object} */ (lesson.step), strengths, ids: ranked(logits, lesson.allowed), logits };
    }
    return choice(order.ids, order.logits, panel.sampler);
  }

  function penalty() {
    return penalized(lesson.streams[0], lesson.written, panel.sampler.repetition);
  }

  /** @param {import("./sampling.js").Choice} left */
  function sharesOf(left) {
    const after = new Float64Array(lesson.allowed.length);
    for (let rank = 0; rank < left.count; rank += 1) after[left.order[rank]] = left.shares[rank] / left.total;
    return after;
  }

  /** Shows the walk as it stands, with all of its tokens. */
  function showStep() {
    const { step, tokens } = lesson;
    if (!step) return;
    strip.show();
    strip.end();
    panel.show(step);
    prompt.show(
      step.text,
      tokens.slice(0, step.prompt).some(({ modality }) => modality === IMAGE),
    );
    paint();
  }

  /** @param {boolean} [all] whether what does not follow the pointer is painted, too */
  function paint(all = true) {
    if (!lesson.step || !lesson.tokens.length || quiet) return;
    if (all) dress();
    const last = lesson.tokens.length - 1;
    const at = Math.min(last, pointed ?? selected ?? (station === TOKENS ? typical() : last));
    strip.unroll(station === SEQUENCE);
    if (station === TOKENS || station === SEQUENCE) vocabulary.show(lesson.tokens[at].token);
    if (station === TOKENS) figure.show(at);
    if (station === MASK) mask.show(at);
    let heat = /** @type {((at: number) => number) | null} */ (null);
    if (station === ATTENTION) heat = look(Math.min(last, selected ?? last));
    if (station >= SOFTMAX && all) weigh();
    strip.mark(
      station === ATTENTION ? (pointed ?? keyed) : pointed,
      selected ?? (station === MASK || station === ATTENTION ? last : null),
      (each) => (station === MASK || station === ATTENTION) && each > (station === MASK ? at : (selected ?? last)),
      heat,
    );
  }

  function typical() {
    const cells = [...lesson.tokens.keys()].filter((at) => lesson.tokens[at].image === 0);
    return cells[cells.length >> 1] ?? Math.min(1, lesson.tokens.length - 1);
  }

  /** @param {number} at the position that reads */
  function look(at) {
    const row = rows.get(`${layer} ${at} ${head}`);
    if (!row) {
      const name = `${layer} ${at}`;
      if (asking !== name) {
        asking = name;
        page.request({ kind: "scores", layer, position: at });
      }
      return null;
    }
    attention.show(row.scores, row.weights);
    attention.mark(pointed ?? keyed);
    write(reader, `${lesson.words(lesson.tokens[at].token)} at position ${at} reads. Choose another in the sequence.`);
    let most = 1e-3;
    row.weights.forEach((weight, each) => {
      if (lesson.tokens[each].modality < 2) most = Math.max(most, weight);
    });
    return (/** @type {number} */ each) => (each <= at ? Math.min(1, row.weights[each] / most) : 0);
  }

  function weigh() {
    const before = softmax(lesson.streams[0]);
    if (station === SOFTMAX || lesson.step?.ended) {
      chart.show({ before, after: null, why: () => "", drawn: null });
      if (station === DRAW) line.show(distribution());
    } else {
      const left = distribution();
      const ranks = new Map(Array.from(left.order, (token, rank) => [token, rank]));
      const drawn = station === DRAW ? line.show(left) : null;
      /** @param {number} token */
      const why = (token) => lesson.reason(token) || left.cut(ranks.get(token) ?? 0);
      chart.show({ before, after: sharesOf(left), why, drawn }, station === DRAW ? 6 : 10);
    }
    clearTimeout(lookTimer);
    lookTimer = setTimeout(() => {
      const codes = chart.missing.filter((code) => !requestedLooks.has(code));
      for (const code of codes) requestedLooks.add(code);
      if (codes.length) page.request({ kind: "looks", codes });
    }, 150);
  }

  function refresh() {
    body.hidden = !lesson.step;
    const { ended = null, prompt: begin = 0, state: where = "" } = lesson.step ?? {};
    write(standing, where);
    for (const each of [back, restart]) each.disabled = lesson.tokens.length === begin && !ended;
    for (const each of [next, play]) each.disabled = ended !== null;
    tabs.forEach((tab, at) => {
      tab.setAttribute("aria-selected", String(at === station));
      tab.tabIndex = at === station ? 0 : -1;
    });
  }

  function dress() {
    const [name, about] = STATIONS[station];
    title.textContent = `${station + 1}. ${name}`;
    text.textContent = about;
    onward.textContent = station < DRAW ? `Next: ${STATIONS[station + 1][0]} →` : "Draw it, and round again ↻";
    heads.hidden = station !== ATTENTION;
    panel.node.hidden = station < SAMPLING;
    const drawings = {
      [TOKENS]: [vocabulary.node, figure.node],
      [SEQUENCE]: [vocabulary.node],
      [MASK]: [mask.node],
      [ATTENTION]: [attention.node],
      [SOFTMAX]: [chart.node],
      [SAMPLING]: [chart.node],
      [DRAW]: [line.node, chart.node],
    }[station];
    if ([...stage.children].some((each, at) => each !== drawings?.[at]) || stage.children.length !== drawings?.length)
      stage.replaceChildren(...(drawings ?? []));
  }

  function layout() {
    body.classList.toggle("chm-teach-wide", page.box.clientWidth >= WIDE);
    paint();
  }

  const sizes = new ResizeObserver(layout);
  sizes.observe(page.box);
  return page.open(
    [page.header("The walk", [editing, restart, back, play, next], [standing]), prompt.node, page.alert, body],
    [
      () => sizes.disconnect(),
      () => clearTimeout(rest),
      () => clearTimeout(lookTimer),
      strip.dispose,
      attention.dispose,
      chart.dispose,
      prompt.dispose,
      lesson.dispose,
    ],
  );
}

export default { render };
