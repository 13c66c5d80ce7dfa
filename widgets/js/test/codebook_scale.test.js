// How counts of codes are shown. Run with `node --test test/codebook_scale.test.js`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { grouped, percent, short } from "../src/charts/axis.js";
import { colourAt } from "../src/charts/canvas.js";
import { ranked, share, ticks, times } from "../src/images/codebook_scale.js";

test("each tenfold is as far on the scale, from one at the start to the most at the end", () => {
  assert.equal(share(1, 1000), 0);
  assert.equal(share(1000, 1000), 1);
  assert.ok(Math.abs(share(100, 1000) - 2 * share(10, 1000)) < 1e-12);
  assert.equal(share(1, 1), 1, "where nothing was seen twice, once is the most");
});

test("colours pass through the stops and stay between them", () => {
  const stops = ["#000000", "#ff0000", "#ffffff"];
  assert.deepEqual(
    [0, 0.5, 1].map((place) => colourAt(stops, place)),
    ["rgb(0 0 0)", "rgb(255 0 0)", "rgb(255 255 255)"],
  );
  assert.equal(colourAt(stops, 0.25), "rgb(128 0 0)");
  assert.equal(colourAt(stops, 7), colourAt(stops, 1));
});

test("ticks are powers of ten, and the most unless it would cover one", () => {
  assert.deepEqual(ticks(1), [1]);
  assert.deepEqual(ticks(61), [1, 10, 61]);
  assert.deepEqual(ticks(110), [1, 10, 100]);
  assert.deepEqual(ticks(1000), [1, 10, 100, 1000]);
});

test("codes of equal count share a rank, and all codes are ranked", () => {
  const { byCount, ranks } = ranked([5, 0, 9, 5, 0, 1]);
  assert.deepEqual([...byCount], [2, 0, 3, 5, 1, 4]);
  assert.deepEqual([...ranks], [2, 5, 1, 2, 5, 4]);
  assert.equal(ranked([]).ranks.length, 0);
});

test("numbers in words", () => {
  assert.deepEqual([0, 1, 2, 1234].map(times), ["never seen", "seen once", "seen 2 times", "seen 1,234 times"]);
  assert.deepEqual(
    [percent(0), percent(0.00123), percent(0.4567), percent(1)],
    ["0.0 %", "0.12 %", "45.7 %", "100.0 %"],
  );
  assert.deepEqual([grouped(8192), short(8192), short(1e5).toLowerCase()], ["8,192", "8,192", "100k"]);
});
