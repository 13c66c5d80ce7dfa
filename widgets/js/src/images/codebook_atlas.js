// The codebook atlas: all codes on one map, how evenly they are used, and everything about the one that is chosen.

import { grouped, percent, short } from "../charts/axis.js";
import { element } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { numbers } from "../frame/line.js";
import { codebookDetail } from "./codebook_detail.js";
import { codebookMap } from "./codebook_map.js";
import { growthPlot, sortedPlot } from "./codebook_plots.js";
import { ranked, share, ticks, times } from "./codebook_scale.js";

const WIDE = 700; // pixels from which on the detail stands beside the map
const FINE = 60; // columns from which on each pixel of a cell counts

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  /** @type {import("./codebook_map.js").Book} */
  const book = {
    order: new Uint32Array(),
    cells: new Uint32Array(),
    columns: 0,
    scale: [],
    counts: new Float64Array(),
    most: 0,
    tokens: 0,
    colours: null,
    view: "usage",
  };
  let { byCount, ranks } = ranked([]);
  let facts = /** @type {import("./messages.js").AtlasUsage | null} */ (null);
  /** @type {Omit<import("./messages.js").AtlasState, "kind">} */
  let state = { doing: "", trouble: [] };
  let side = 3; // of the block that is decoded for one code
  let selected = /** @type {number | null} */ (null);
  /** @type {number | null} */
  let choice = null; // chosen here, and not yet known to have arrived
  let near = /** @type {number[]} */ ([]);

  /** @param {number} code */
  const name = (code) => `Code ${code}, ${book.tokens ? times(book.counts[code]) : "nothing seen yet"}`;

  /** @type {import("../frame/frame.js").Receivers<import("./messages.js").AtlasMessage>} */
  const receive = {
    state: (message) => (state = message),
    map: arrange,
    usage: count,
    picture: (message, buffers) => detail.show(message, buffers[0], numbers(Uint32Array, buffers[1])),
    code: describe,
    patches: (message, buffers) => detail.patches(message.codes, buffers),
    colours(_, buffers) {
      book.colours = numbers(Uint8Array, buffers[0]);
      if (book.view === "colour") map.repaint();
    },
  };
  const page = frame(context, {
    label: "Codebook atlas",
    kind: "atlas",
    receive,
    refresh,
    ready: () => book.columns > 0,
    state() {
      if (state.doing) return ["working", state.doing];
      return page.notice || state.trouble.length ? ["error", "Error"] : ["idle", "Ready"];
    },
    trouble: () => state.trouble,
    repaint: () => map.repaint(),
    traits: ["status"],
  });
  const group = `chm-show-${Math.random().toString(36).slice(2, 8)}`;
  const views = /** @type {const} */ (["usage", "colour"]).map((view) => {
    const input = element("input", { type: "radio", name: group, value: view, on: { change: () => look(view) } });
    input.checked = view === book.view;
    return element("label", input, element("span", { text: view === "usage" ? "usage" : "decoded colour" }));
  });
  const go = element("input", { type: "number", min: 0, step: 1, placeholder: "0", on: { change: goTo } });
  const map = codebookMap({ book, name, choose, painted: drawLegend });
  const legend = element("div.chm-atlas-legend");
  const detail = codebookDetail({ choose, turn, point: (code) => map.mark(selected, near, code) });
  const figures = element("div.chm-atlas-facts", {
    role: "list",
    "aria-label": "Use of the codebook",
    title: "Few tokens make usage and perplexity low: compare with what drawing as many codes evenly would show.",
  });
  const [sorted, growth] = [sortedPlot(), growthPlot()];
  const body = element(
    "div.chm-atlas-body",
    { hidden: true },
    element("div.chm-atlas-left", map.node, legend),
    detail.node,
  );
  const feet = element("footer.chm-atlas-feet", { hidden: true }, figures, sorted.node, growth.node);

  /** @param {number} code */
  function choose(code) {
    choice = code;
    select(code);
    page.ask({ kind: "select", value: code }).then(() => {
      if (choice === code) choice = null;
    });
  }

  /** @param {number | null} code */
  function select(code) {
    if (code !== selected) near = [];
    selected = code;
    if (document.activeElement !== go) go.value = code === null ? "" : String(code);
    map.mark(selected, near, null);
    tellDetail();
    sorted.draw(book, byCount, selected);
  }

  function tellDetail() {
    const rank =
      selected === null || !book.counts[selected]
        ? ""
        : `, rank ${grouped(ranks[selected])} of ${grouped(ranks.length)}`;
    detail.choose(selected, selected === null ? 0 : book.counts[selected], rank, side);
  }

  function goTo() {
    if (go.value === "" && !go.validity.badInput) return;
    const code = Number(go.value);
    if (go.value !== "" && Number.isInteger(code) && code >= 0 && code < book.order.length) return choose(code);
    page.tell(`There is no code ${go.value || "of that name"}: they go from 0 to ${book.order.length - 1}.`);
  }

  /** @param {"usage" | "colour"} view */
  function look(view) {
    book.view = view;
    page.ask({ kind: "colours", value: view === "colour" });
    map.repaint();
  }

  /** @param {number} at */
  function turn(at) {
    page.ask({ kind: "picture", value: at });
  }

  function refresh() {
    body.hidden = feet.hidden = !book.columns || !facts;
  }

  function layout() {
    const width = page.box.clientWidth;
    if (!width || body.hidden) return;
    const wide = width >= WIDE;
    body.classList.toggle("chm-atlas-wide", wide);
    map.fit(wide ? width * (book.columns > FINE ? 0.64 : 0.6) : width - 34);
    drawPlots();
  }

  function drawPlots() {
    if (!facts) return;
    sorted.draw(book, byCount, selected);
    growth.draw(facts);
  }

  /** @param {string[]} stops */
  function drawLegend(stops) {
    const dead = element(
      "span.chm-atlas-never",
      element("i", { text: "×", "aria-hidden": "true" }),
      `${grouped(facts?.dead ?? 0)} never seen`,
    );
    legend.classList.toggle("chm-atlas-plain", book.view === "colour");
    if (!book.tokens) legend.replaceChildren("No tokens seen: give the atlas pictures, or a usage.");
    else if (book.view === "colour")
      legend.replaceChildren(dead, `mean colour of each code, decoded as the middle of ${side} × ${side} of itself`);
    else
      legend.replaceChildren(
        dead,
        "times seen",
        element(
          "span.chm-atlas-bar",
          element("i", { style: `background:linear-gradient(to right,${stops.join(",")})` }),
          ...ticks(book.most).map((count) =>
            element("span", { text: short(count), style: `left:${(100 * share(count, book.most)).toFixed(1)}%` }),
          ),
        ),
      );
  }

  function drawFacts() {
    if (!facts) return;
    const size = book.counts.length;
    /** @type {[string, string, string][]} */
    const rows = [
      [grouped(size - facts.dead), `of ${grouped(size)} codes used`, ""],
      [percent(facts.usage), "usage", `${percent(facts.even)} if even`],
      [grouped(facts.dead), facts.dead === 1 ? "dead code" : "dead codes", ""],
      [facts.perplexity.toFixed(facts.perplexity < 10 ? 1 : 0), "perplexity", ""],
      [
        grouped(facts.tokens),
        "tokens seen",
        facts.external
          ? "elsewhere"
          : `in ${grouped(facts.names.length)} picture${facts.names.length === 1 ? "" : "s"}`,
      ],
    ];
    figures.replaceChildren(
      ...rows.map(([value, words, more]) =>
        element(
          "div",
          { role: "listitem" },
          element("b", { text: value }),
          element("span", words, more ? element("i", { text: more }) : null),
        ),
      ),
    );
  }

  /** @param {import("./messages.js").AtlasMap} message @param {DataView[]} buffers */
  function arrange(message, [order]) {
    Object.assign(book, { order: numbers(Uint32Array, order), columns: message.columns, scale: message.scale });
    book.cells = new Uint32Array(book.order.length);
    book.order.forEach((code, at) => (book.cells[code] = at));
    go.max = String(book.order.length - 1);
    side = message.block;
    page.refresh();
    layout();
  }

  /** @param {import("./messages.js").AtlasUsage} message @param {DataView[]} buffers */
  function count(message, [counts]) {
    facts = message;
    book.counts = numbers(Float64Array, counts);
    book.most = book.counts.reduce((most, each) => Math.max(most, each), 0);
    book.tokens = message.tokens;
    ({ byCount, ranks } = ranked(book.counts));
    detail.named(message.names);
    drawFacts();
    tellDetail();
    map.repaint();
    page.refresh();
    layout();
  }

  /** @param {import("./messages.js").AtlasCode} message @param {DataView[]} buffers */
  function describe(message, buffers) {
    if (choice !== null && message.code !== choice) return;
    if (message.code !== selected) select(message.code);
    near = message.near.map(([code]) => code);
    if (selected === null) return;
    map.mark(selected, near, null);
    detail.receive(message, buffers, name);
  }

  const sizes = new ResizeObserver(() => layout());
  sizes.observe(page.box);
  return page.open(
    [
      page.header("Views", [
        element("fieldset.chm-atlas-views", element("legend", { text: "Show" }), ...views),
        element("label.chm-atlas-go", "Go to code", go),
      ]),
      page.alert,
      body,
      feet,
    ],
    [() => sizes.disconnect(), detail.dispose, map.dispose],
  );
}

export default { render };
