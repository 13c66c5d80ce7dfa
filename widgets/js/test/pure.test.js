// The functions that need no browser. Run with `npm test`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { pack, tidy } from "../src/chat/composer.js";
import { layTree, neighbour } from "../src/chat/tree.js";
import { lampWords, sentences, settingWords } from "../src/chat/words.js";
import { once } from "../src/frame/dom.js";
import { connect } from "../src/frame/line.js";
import { sortFiles } from "../src/frame/pictures.js";
import { moved } from "../src/images/code_grid.js";
import { errorMap, heat } from "../src/images/errors.js";
import { counts } from "../src/images/round_trip.js";

test("sentences end at punctuation before a space, and nothing is lost", () => {
  for (const text of [
    "",
    "One. Two",
    "3.5 is a number. Yes!",
    "“Really?” he said",
    "no end",
    "a line\nanother",
    "Dr. No.",
  ]) {
    const [whole, rest] = sentences(text);
    assert.equal(whole + rest, text);
  }
  assert.deepEqual(sentences("One. Two"), ["One.", " Two"]);
  assert.deepEqual(sentences("It is 3.5"), ["", "It is 3.5"]);
});

test("the lamp says what is going on", () => {
  assert.deepEqual(lampWords({ name: "drawing", row: 3, rows: 8 }), ["drawing", "Drawing row 3 of 8"]);
  assert.deepEqual(lampWords(undefined), ["idle", "Ready"]);
  assert.deepEqual(lampWords({ name: "writing", room: 1812 }), ["writing", "Words · room left 1,812"]);
  const drawing = { name: "drawing", row: 3, rows: 8, codes: [17, 64], room: 40 };
  assert.deepEqual(lampWords(drawing), ["drawing", "Picture 17/64 · room left 40"]);
});

test("a tree has each node right of its parent and none on another, and arrows lead through all of it", () => {
  let state = 7;
  const random = (/** @type {number} */ below) => (state = (state * 48271) % 2147483647) % below;
  for (let size = 1; size < 60; size += 3) {
    const nodes = Array.from({ length: size }, (_, at) => ({ key: at + 1, parent: random(at + 1) }));
    const places = layTree(nodes);
    assert.equal(places.size, size);
    assert.equal(new Set([...places.values()].map(({ column, row }) => `${column} ${row}`)).size, size);
    for (const { key, parent } of nodes)
      if (parent) assert.equal(places.get(key).column, places.get(parent).column + 1);
    const reached = new Set([1]);
    for (const key of reached)
      for (const arrow of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"])
        reached.add(neighbour(places, key, arrow));
    assert.equal(reached.size, size);
  }
});

test("a setting shows as many digits as its step has", () => {
  assert.equal(settingWords(0.9, 0.05), "0.90");
  assert.equal(settingWords(3, 0.25), "3.00");
  assert.equal(settingWords(3, 0.5), "3.0");
  assert.equal(settingWords(40, 1), "40");
  assert.equal(settingWords(null, 0.05), "");
});

test("parts of a message are joined, trimmed, and keep their order around pictures", () => {
  const picture = { url: "blob:1", bytes: new ArrayBuffer(3) };
  const parts = tidy([{ text: " what" }, { text: "\u00a0is" }, { text: " \n" }, picture, { text: "  " }]);
  assert.deepEqual(parts, [{ text: "what is" }, picture]);
  const { parts: packed, buffers } = pack([picture, { text: "and" }, { url: "blob:2", keep: 1 }, picture]);
  assert.deepEqual(packed, [{ picture: 0 }, { text: "and" }, { keep: 1 }, { picture: 1 }]);
  assert.equal(buffers.length, 2);
});

test("files that are no pictures are named", () => {
  const file = (name, type) => ({ name, type });
  const { pictures, others } = sortFiles([file("a.png", "image/png"), file("b.txt", "text/plain")]);
  assert.equal(pictures.length, 1);
  assert.deepEqual(others, ["b.txt"]);
  assert.deepEqual(sortFiles(null), { pictures: [], others: [] });
});

test("the error map is dark where pictures agree and brightest where they differ most", () => {
  const { rgba, largest, mean } = errorMap([10, 10, 10, 255, 0, 0, 0, 255], [10, 10, 10, 255, 30, 60, 90, 255]);
  assert.deepEqual([...rgba], [...heat(0), 255, ...heat(1), 255]);
  assert.equal(largest, 60);
  assert.equal(mean, 30);
  assert.equal(errorMap([1, 2, 3, 255], [1, 2, 3, 255]).largest, 0);
});

test("arrow keys stay inside the grid", () => {
  assert.equal(moved("ArrowRight", 7, 8, 8), 7);
  assert.equal(moved("ArrowDown", 7, 8, 8), 15);
  assert.equal(moved("Home", 13, 8, 8), 8);
  assert.equal(moved("End", 13, 8, 8), 15);
  assert.equal(moved("PageDown", 13, 8, 8), 61);
  assert.equal(moved("a", 13, 8, 8), 13);
});

test("bits and bytes of a reconstruction", () => {
  const codes = Array.from({ length: 8 }, () => Array(8).fill(3));
  const facts = counts({ codes, bits: 9, codebook: 512, psnr: 27.34, width: 64, height: 64 });
  assert.deepEqual(facts, [
    ["27.3", "dB PSNR"],
    ["64 × 9", "bits = 72 bytes"],
    ["171 ×", "smaller than the pixels"],
    ["1", "of 512 codes used"],
  ]);
});

test("a request is settled by the kernel's answer, or found unanswered", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const sent = [];
  let listener;
  const model = {
    get() {},
    set() {},
    on: (_, each) => (listener = each),
    off() {},
    send: (content) => sent.push(content),
  };
  const states = [];
  const link = connect(model, { receive() {}, change: (state) => states.push(state) });
  const first = link.request({ kind: "send" });
  const [view, number] = sent[0].mark.split("-");
  listener({ kind: "line", requests: { [view]: Number(number) }, control: [], traits: {} }, []);
  assert.equal(await first, true);
  const second = link.request({ kind: "send" });
  context.mock.timers.tick(2100);
  assert.equal(await second, false);
  assert.deepEqual(states, ["connected", "silent"]);
  context.mock.timers.tick(3100);
  assert.equal(sent.at(-1).kind, "hello");
  link.close();
});

/** A signal of JupyterLab's. */
function signal() {
  const slots = new Set();
  return {
    connect: (slot) => slots.add(slot),
    disconnect: (slot) => slots.delete(slot),
    emit: (...values) => slots.forEach((slot) => slot({}, ...values)),
  };
}

/** A model with a kernel whose control channel works, or does not. */
function modelWith(traits = {}) {
  const kernel = {
    statusChanged: signal(),
    connectionStatusChanged: signal(),
    disposed: signal(),
    clientId: "page",
    username: "me",
    sendControlMessage(message) {
      byControl.push(message.content.content);
      return { done: Promise.resolve() };
    },
  };
  const [byControl, byComm, listeners] = [[], [], new Set()];
  const state = { control_comm: "comm", ...traits };
  return {
    kernel,
    byControl,
    byComm,
    state,
    say: (message) =>
      listeners.forEach((listener) => listener({ kind: "line", control: [], traits: {}, ...message }, [])),
    model: {
      widget_manager: { kernel },
      get: (name) => state[name],
      set: (name, value) => (state[name] = value),
      on: (_, listener) => listeners.add(listener),
      off: (_, listener) => listeners.delete(listener),
      send: (content) => byComm.push(content),
    },
  };
}

/** The view that sent a request, and its number. */
const markOf = ({ mark }) => {
  const [view, number] = mark.split("-");
  return { view, number: Number(number) };
};

test("requests go by both roads until the kernel says that they come on the control channel", () => {
  const { model, byControl, byComm, say } = modelWith();
  const link = connect(model, { receive() {}, change() {} });
  link.request({ kind: "hello" });
  link.request({ kind: "act" });
  assert.deepEqual(byControl, byComm);
  const { view, number } = markOf(byControl[1]);
  say({ requests: { [view]: number } });
  link.request({ kind: "act" });
  assert.equal(byComm.length, 3, "an answer alone does not say by which road the request came");
  say({ requests: { [view]: number + 1 }, control: [view] });
  link.request({ kind: "act" });
  assert.equal(byControl.length, 4);
  assert.equal(byComm.length, 3);
  link.close();
});

test("a kernel without a control channel for widgets is spoken to by the comm alone", () => {
  for (const lacking of [{ control_comm: "" }, { control_comm: undefined }]) {
    const { model, byControl, byComm } = modelWith(lacking);
    const link = connect(model, { receive() {}, change() {} });
    link.request({ kind: "hello" });
    assert.deepEqual([byControl.length, byComm.length], [0, 1]);
    link.close();
  }
});

test("an older word about a trait does not undo what was set since", () => {
  const { model, byControl, say, state } = modelWith({ smoothing: 0 });
  const link = connect(model, { receive() {}, change() {} });
  link.set("smoothing", 0.3);
  link.set("smoothing", 0.6);
  assert.equal(state.smoothing, 0.6);
  const { view, number } = markOf(byControl[0]);
  assert.deepEqual(byControl[0].traits, { smoothing: 0.3 });
  say({ requests: { [view]: number }, traits: { smoothing: 0.3 } });
  assert.equal(state.smoothing, 0.6);
  say({ requests: { [view]: number + 1 }, traits: { smoothing: 0.6 } });
  say({ requests: {}, traits: { smoothing: 0.1 } });
  assert.equal(state.smoothing, 0.1, "what another page sets comes here, too");
  link.close();
});

test("a kernel that ends is gone for good, one whose connection breaks is greeted again", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  for (const status of ["restarting", "autorestarting", "dead"]) {
    const { model, kernel, byControl, say } = modelWith();
    const states = [];
    const link = connect(model, { receive() {}, change: (state) => states.push(state) });
    link.request({ kind: "hello" });
    say({ requests: {} });
    kernel.connectionStatusChanged.emit("disconnected");
    kernel.connectionStatusChanged.emit("connected");
    assert.equal(byControl.length, 2);
    say({ requests: {} });
    const request = link.request({ kind: "act" });
    kernel.statusChanged.emit(status);
    assert.equal(await request, false);
    context.mock.timers.tick(10_000);
    say({ requests: {} });
    assert.deepEqual(states, ["connected", "silent", "connected", "gone"]);
    assert.equal(byControl.length, 3, "nobody is left to be greeted");
    link.close();
  }
});

test("an act that was asked for twice at once is done once, and what asks for something else is done, too", () => {
  const done = /** @type {number[][]} */ ([]);
  const act = once((...given) => done.push(given));
  for (const given of [[], [], [3, 7], [3, 7], [3, 8], [4, 8], [4, 8]]) act(...given);
  assert.deepEqual(done, [[], [3, 7], [3, 8], [4, 8]]);
});
