import assert from "node:assert/strict";
import { test } from "node:test";
import { shownWidth } from "../src/images/errors.js";
import { wiped } from "../src/images/wipe.js";

test("pictures of one subject are shown at one width, a whole multiple of their own where that nearly fills the room", () => {
  const square = (side) => ({ width: side, height: side });
  assert.equal(shownWidth([square(64)], 404, 400), 384);
  assert.equal(shownWidth([square(64), square(128)], 404, 400), 384);
  assert.equal(shownWidth([square(64), square(256)], 404, 400), 400);
  assert.equal(shownWidth([square(96), square(256)], 404, 400), 400);
  assert.equal(shownWidth([square(128)], 600, 560), 512);
  for (let room = 130; room < 700; room += 7) {
    const width = shownWidth([square(128)], room, 10_000);
    assert.ok(width <= room && width >= 0.9 * room);
  }
  assert.equal(shownWidth([square(512)], 404, 400), 400);
  assert.equal(shownWidth([{ width: 80, height: 32 }], 824, 512), 800);
});
test("keys of the wipe stay between 0 and 100", () => {
  assert.equal(wiped("ArrowLeft", 0), 0);
  assert.equal(wiped("ArrowRight", 95, true), 100);
  assert.equal(wiped("PageUp", 50), 60);
  assert.equal(wiped("Home", 50), 0);
  assert.equal(wiped("a", 50), 50);
});
