// The documents of an inspector as a small tree: what made each, and a way back to it.

import { element } from "../frame/dom.js";

/** @typedef {import("./messages.js").BranchFacts} BranchFacts */

/** Branches as lines of the tree, each below its parent. @param {BranchFacts[]} branches */
export function treeLines(branches) {
  const lines = /** @type {{branch: number, depth: number}[]} */ ([]);
  /** @param {number | null} parent @param {number} depth */
  function walk(parent, depth) {
    branches.forEach((each, branch) => {
      if (each.parent !== parent) return;
      lines.push({ branch, depth });
      walk(branch, depth + 1);
    });
  }
  walk(null, 0);
  return lines;
}

/** @param {(branch: number) => void} show */
export function branchTree(show) {
  const node = element("div.chm-inspect-tree", {
    role: "tree",
    "aria-label": "Branches. Arrow keys move.",
    hidden: true,
  });
  let lines = /** @type {ReturnType<typeof treeLines>} */ ([]);
  let items = /** @type {HTMLElement[]} */ ([]);
  let branches = /** @type {BranchFacts[]} */ ([]);

  /** @param {number} branch */
  const lineOf = (branch) => lines.findIndex((line) => line.branch === branch);
  node.addEventListener("click", ({ target }) => {
    const at = items.indexOf(/** @type {HTMLElement} */ (/** @type {Element} */ (target).closest("button")));
    if (at >= 0) show(lines[at].branch);
  });
  node.addEventListener("keydown", (event) => {
    const at = items.indexOf(/** @type {HTMLElement} */ (event.target));
    if (at < 0) return;
    const { branch } = lines[at];
    const child = lines.findIndex((line) => branches[line.branch].parent === branch);
    const parent = branches[branch].parent;
    const next = {
      ArrowUp: at - 1,
      ArrowDown: at + 1,
      Home: 0,
      End: items.length - 1,
      ArrowRight: child,
      ArrowLeft: parent === null ? -1 : lineOf(parent),
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    items[next]?.focus();
  });
  node.addEventListener("focusin", ({ target }) => {
    for (const item of items) item.tabIndex = item === target ? 0 : -1;
  });

  return {
    node,
    /** @param {BranchFacts[]} all @param {number} visible */
    show(all, visible) {
      const focused = items.indexOf(/** @type {HTMLElement} */ (document.activeElement));
      branches = all;
      lines = treeLines(all);
      node.hidden = all.length < 2;
      items = lines.map(({ branch, depth }) => {
        const { words, position } = all[branch];
        const item = element(
          "button.chm-inspect-branch",
          {
            type: "button",
            role: "treeitem",
            "aria-level": depth + 1,
            "aria-selected": String(branch === visible),
            tabindex: branch === visible ? 0 : -1,
            style: `--depth:${depth}`,
          },
          depth ? element("i", { "aria-hidden": "true", text: "↳" }) : null,
          element("span", { text: words }),
          position === null ? null : element("small", { text: `at ${position}` }),
        );
        return item;
      });
      node.replaceChildren(...items);
      if (focused >= 0) items[lineOf(visible)]?.focus();
    },
  };
}
