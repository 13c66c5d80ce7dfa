// The whole conversation as a small drawing: a dot for each exchange, its replies to the right, branches below.

import { element, shape, write } from "../frame/dom.js";

/** @typedef {import("./messages.js").TreeNode} TreeNode */

const RADIUS = 4.5;
const MANY = 300; // dots, from which on they stand closer

let trees = 0;

/**
 * Where each node stands: `column` is its depth, `row` that of its parent for a first child, and a new one below all
 * that there are for the others.
 * @param {{key: number, parent: number}[]} nodes each after its parent
 * @returns {Map<number, {column: number, row: number, parent: number}>}
 */
export function layTree(nodes) {
  const children = /** @type {Map<number, number[]>} */ (new Map());
  for (const { key, parent } of nodes) {
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent)?.push(key);
  }
  const places = new Map();
  let rows = 0;
  const stack = [...(children.get(0) ?? [])].reverse().map((key) => ({ key, parent: 0, column: 0, row: -1 }));
  while (stack.length) {
    const { key, parent, column, row } = /** @type {typeof stack[number]} */ (stack.pop());
    const mine = row < 0 ? rows++ : row;
    places.set(key, { column, row: mine, parent });
    const [first, ...others] = children.get(key) ?? [];
    for (const other of others.reverse()) stack.push({ key: other, parent: key, column: column + 1, row: -1 });
    if (first !== undefined) stack.push({ key: first, parent: key, column: column + 1, row: mine });
  }
  return places;
}

/**
 * The key of the node to which an arrow key leads; the same one where there is none.
 * @param {Map<number, {column: number, row: number, parent: number}>} places @param {number} key @param {string} arrow
 */
export function neighbour(places, key, arrow) {
  const here = places.get(key);
  if (!here) return key;
  const all = [...places].map(([other, place]) => ({ key: other, ...place }));
  if (arrow === "ArrowLeft") return here.parent || key;
  if (arrow === "ArrowRight") return all.find((each) => each.parent === key)?.key ?? key;
  const column = all.filter((each) => each.column === here.column).sort((a, b) => a.row - b.row);
  const at = column.findIndex((each) => each.key === key);
  return column[at + (arrow === "ArrowUp" ? -1 : 1)]?.key ?? key;
}

/** @param {(key: number) => void} walk */
export function treeView(walk) {
  const id = `chm-tree-${(trees += 1)}`;
  const drawing = shape("svg", { class: "chm-tree", role: "presentation" });
  const node = element(
    "div.chm-branches",
    { role: "tree", "aria-label": "Branches of the conversation: arrow keys walk", tabindex: "0", hidden: true },
    drawing,
  );
  let places = /** @type {ReturnType<typeof layTree>} */ (new Map());

  node.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const next = neighbour(places, cursor, event.key);
    if (next !== cursor) go(next);
  });
  let cursor = 0;

  /** @param {number} key */
  function go(key) {
    cursor = key;
    walk(key);
    mark();
  }

  function mark() {
    for (const dot of drawing.querySelectorAll("circle"))
      dot.classList.toggle("chm-cursor", Number(dot.dataset.key) === cursor);
    node.setAttribute("aria-activedescendant", `${id}-${cursor}`);
    drawing.querySelector(".chm-cursor")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  return {
    node,
    /** @param {TreeNode[]} tree @param {number[]} path */
    show(tree, path) {
      const on = new Set(path);
      const step = tree.length > MANY ? 11 : 20;
      places = layTree(tree);
      if (!on.has(cursor) || document.activeElement !== node) cursor = path.at(-1) ?? 0;
      const across = 3 * step + step * Math.max(0, ...[...places.values()].map((each) => each.column));
      const down = step + step * Math.max(0, ...[...places.values()].map((each) => each.row));
      const at = (/** @type {number} */ line) => step / 2 + step * line;
      drawing.setAttribute("width", String(across));
      drawing.setAttribute("height", String(down));
      const [edges, dots] = [/** @type {Element[]} */ ([]), /** @type {Element[]} */ ([])];
      for (const each of tree) {
        const place = places.get(each.key);
        if (!place) continue;
        const from = places.get(each.parent) ?? { column: -1, row: 0 };
        const state = on.has(each.key) ? "chm-on" : "chm-off";
        const [x0, y0, x1, y1] = [at(from.column + 1), at(from.row), at(place.column + 1), at(place.row)];
        edges.push(shape("path", { class: state, d: `M${x0} ${y0}C${x0} ${y1} ${x0} ${y1} ${x1} ${y1}` }));
        const words = each.origin === "send" ? each.words : `${each.words} (${each.origin})`;
        const dot = shape("circle", {
          class: state,
          cx: x1,
          cy: y1,
          r: RADIUS,
          id: `${id}-${each.key}`,
          role: "treeitem",
          "aria-label": words,
          "aria-selected": on.has(each.key),
          "data-key": each.key,
        });
        dot.append(shape("title"));
        write(/** @type {Element} */ (dot.firstChild), words);
        dot.addEventListener("click", () => go(each.key));
        dots.push(dot);
      }
      drawing.replaceChildren(
        shape("circle", { class: "chm-root", cx: at(0), cy: at(0), r: 2 }),
        ...edges.sort((a, b) => Number(a.classList.contains("chm-on")) - Number(b.classList.contains("chm-on"))),
        ...dots,
      );
      mark();
    },
  };
}
