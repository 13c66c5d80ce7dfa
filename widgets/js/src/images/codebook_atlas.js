// The codebook atlas: all codes on one map, how evenly they are used, and everything about the one that is chosen.

import { grouped, percent, short } from "../charts/axis.js";
import { element, lamp, root } from "../frame/dom.js";
import { connect } from "../frame/link.js";
import { hidesStill, stillKeeper } from "../frame/still.js";
import { isDark, watchTheme } from "../frame/theme.js";
import { codebookDetail } from "./codebook_detail.js";
import { codebookMap } from "./codebook_map.js";
import { growthPlot, sortedPlot } from "./codebook_plots.js";
import { ranked, share, ticks, times } from "./codebook_scale.js";

const WIDE = 700; // pixels from which on the detail stands beside the map
const FINE = 60; // columns from which on each pixel of a cell counts

/**
 * @template {Uint32ArrayConstructor | Float64ArrayConstructor | Uint8ArrayConstructor} T
 * @param {T} kind
 * @param {DataView} view
 * @returns {InstanceType<T>}
 */
const numbers = (kind, view) =>
  /** @type {any} */ (
    new kind(/** @type {ArrayBuffer} */ (view.buffer).slice(view.byteOffset, view.byteOffset + view.byteLength))
  );

/** @param {{model: import("../frame/link.js").Model, el: HTMLElement}} context */
function render({ model, el }) {
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
  /** @type {any} */
  let facts = null;
  /** @type {any} */
  let state = { doing: "", trouble: [] };
  let said = ""; // what the page itself has to say
  let side = 3; // of the block that is decoded for one code
  /** @type {number | null} */
  let selected = null;
  /** @type {number | null} */
  let asked = null; // chosen here, and not yet known to have arrived
  /** @type {number[]} */
  let near = [];

  /** @param {number} code */
  const name = (code) => `Code ${code}, ${book.tokens ? times(book.counts[code]) : "nothing seen yet"}`;

  const box = root("Codebook atlas", "atlas");
  const signal = lamp();
  const stills = element("div", { hidden: true });
  const group = `chm-show-${Math.random().toString(36).slice(2, 8)}`;
  const views = /** @type {const} */ (["usage", "colour"]).map((view) => {
    const input = element("input", { type: "radio", name: group, value: view, on: { change: () => look(view) } });
    input.checked = view === book.view;
    return element("label", {}, input, element("span", { text: view === "usage" ? "usage" : "decoded colour" }));
  });
  const go = element("input", { type: "number", min: 0, step: 1, placeholder: "0", on: { change: goTo } });
  const alert = element("div", { class: "chm-alert", role: "alert", hidden: true });
  const map = codebookMap({ book, name, choose, painted: drawLegend });
  const legend = element("div", { class: "chm-atlas-legend" });
  const detail = codebookDetail({ choose, turn, point: (code) => map.mark(selected, near, code) });
  const figures = element("div", {
    class: "chm-atlas-facts",
    role: "list",
    "aria-label": "Use of the codebook",
    title: "Few tokens make usage and perplexity low: compare with what drawing as many codes evenly would show.",
  });
  const [sorted, growth] = [sortedPlot(), growthPlot()];
  const body = element(
    "div",
    { class: "chm-atlas-body", hidden: true },
    element("div", { class: "chm-atlas-left" }, map.node, legend),
    detail.node,
  );
  const feet = element("footer", { class: "chm-atlas-feet", hidden: true }, figures, sorted.node, growth.node);

  box.append(
    stills,
    element(
      "header",
      { class: "chm-head" },
      signal.node,
      element(
        "div",
        { class: "chm-tools chm-atlas-tools" },
        element("fieldset", { class: "chm-atlas-views" }, element("legend", { text: "Show" }), ...views),
        element("label", { class: "chm-atlas-go" }, "Go to code", go),
      ),
    ),
    alert,
    body,
    feet,
  );
  el.replaceChildren(box);

  const link = connect(model, { receive, change: refresh });
  const keeper = stillKeeper(model, link);

  /** @param {any} content */
  async function ask(content) {
    said = "";
    const arrived = await link.request(content);
    if (!arrived) said = "The kernel has not answered: it is busy with another cell, or gone.";
    refresh();
    return arrived;
  }

  /** @param {number} code */
  function choose(code) {
    asked = code;
    select(code);
    ask({ kind: "select", value: code }).then(() => {
      if (asked === code) asked = null;
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
    said = `There is no code ${go.value || "of that name"}: they go from 0 to ${book.order.length - 1}.`;
    refresh();
  }

  /** @param {"usage" | "colour"} view */
  function look(view) {
    book.view = view;
    ask({ kind: "colours", value: view === "colour" });
    map.repaint();
  }

  /** @param {number} at */
  function turn(at) {
    ask({ kind: "picture", value: at });
  }

  function refresh() {
    const now = link?.state ?? "connecting";
    const words = [said, ...state.trouble].filter(Boolean);
    if (now === "silent") signal.show("disconnected", "Disconnected: the kernel does not answer");
    else if (now === "connecting") signal.show("connecting", "Connecting");
    else if (state.doing) signal.show("working", state.doing);
    else if (words.length) signal.show("error", "Error");
    else signal.show("idle", "Ready");
    alert.hidden = !words.length;
    if (alert.textContent !== words.join("\n")) alert.textContent = words.join("\n");
    box.classList.toggle("chm-orphan", now === "silent" && !book.columns);
    stills.replaceChildren(...(book.columns ? [hidesStill(model.get("still_name") ?? "")] : []));
    body.hidden = feet.hidden = !book.columns || !facts;
  }

  function layout() {
    const width = box.clientWidth;
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
      "span",
      { class: "chm-atlas-never" },
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
          "span",
          { class: "chm-atlas-bar" },
          element("i", { style: `background:linear-gradient(to right,${stops.join(",")})` }),
          ...ticks(book.most).map((count) =>
            element("span", { text: short(count), style: `left:${(100 * share(count, book.most)).toFixed(1)}%` }),
          ),
        ),
      );
  }

  function drawFacts() {
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
        facts.given ? "elsewhere" : `in ${grouped(facts.names.length)} picture${facts.names.length === 1 ? "" : "s"}`,
      ],
    ];
    figures.replaceChildren(
      ...rows.map(([value, words, more]) =>
        element(
          "div",
          { role: "listitem" },
          element("b", { text: value }),
          element("span", {}, words, more ? element("i", { text: more }) : null),
        ),
      ),
    );
  }

  /** @param {any} message @param {DataView[]} buffers */
  function receive(message, buffers) {
    switch (message.kind) {
      case "still":
        return keeper.receive(message);
      case "state":
        state = message;
        break;
      case "map":
        Object.assign(book, {
          order: numbers(Uint32Array, buffers[0]),
          columns: message.columns,
          scale: message.scale,
        });
        book.cells = new Uint32Array(book.order.length);
        book.order.forEach((code, at) => (book.cells[code] = at));
        go.max = String(book.order.length - 1);
        side = message.block;
        break;
      case "usage":
        facts = message;
        book.counts = numbers(Float64Array, buffers[0]);
        book.most = book.counts.reduce((most, count) => Math.max(most, count), 0);
        book.tokens = message.tokens;
        ({ byCount, ranks } = ranked(book.counts));
        detail.named(message.names);
        drawFacts();
        tellDetail();
        map.repaint();
        break;
      case "picture":
        detail.show(message, buffers[0], numbers(Uint32Array, buffers[1]));
        break;
      case "code":
        if (asked !== null && message.code !== asked) return;
        if (message.code !== selected) select(message.code);
        near = message.near.map((/** @type {[number, number]} */ [code]) => code);
        if (selected === null) break;
        map.mark(selected, near, null);
        detail.receive(message, buffers, name);
        break;
      case "patches":
        detail.patches(message.codes, buffers);
        break;
      case "colours":
        book.colours = numbers(Uint8Array, buffers[0]);
        if (book.view === "colour") map.repaint();
        break;
      default:
        return;
    }
    refresh();
    if (message.kind === "map" || message.kind === "usage") layout();
  }

  const sizes = new ResizeObserver(() => layout());
  sizes.observe(box);
  const forgetTheme = watchTheme(() => {
    box.style.colorScheme = isDark(box) ? "dark" : "light";
    map.repaint();
  });
  model.on("change:status", refresh);
  refresh();
  link.request({ kind: "hello" });
  return () => {
    model.off("change:status", refresh);
    sizes.disconnect();
    forgetTheme();
    detail.dispose();
    map.dispose();
    keeper.dispose();
    link.close();
  };
}

export default { render };
