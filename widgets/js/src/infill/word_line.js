// A text in words, each hidden and uncovered by a click; a pencil lets one write another text.

import { button, element, press, pressed } from "../frame/dom.js";

/**
 * @param {(words: number[]) => void} hide what is hidden now
 * @param {(text: string) => void} reword
 */
export function wordLine(hide, reword) {
  const line = element("span.chm-words", { role: "group", "aria-label": "Words" });
  const field = element("textarea.chm-field", { rows: 1, "aria-label": "The text", hidden: true });
  const edit = button("Change the words", "edit", begin);
  const node = element("p.chm-text", line, field, edit);
  let text = "";

  const words = () => /** @type {HTMLButtonElement[]} */ ([...line.children]);
  const covered = () => words().flatMap((word, at) => (pressed(word) ? [at] : []));

  /** @param {HTMLButtonElement} word @param {unknown} on */
  function cover(word, on) {
    press(word, on);
    word.title = on ? "Hidden: click to uncover" : "Click to hide";
  }

  function begin() {
    [line.hidden, edit.hidden, field.hidden] = [true, true, false];
    field.value = text;
    field.focus();
    field.select();
  }

  /** @param {boolean} take whether the new words count */
  function end(take) {
    if (field.hidden) return;
    [line.hidden, edit.hidden, field.hidden] = [false, false, true];
    if (take && field.value.trim() && field.value !== text) reword(field.value);
  }
  field.addEventListener("blur", () => end(true));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") end(false);
    else if (event.key === "Enter" && !event.shiftKey) end(true);
    else return;
    event.preventDefault();
    edit.focus();
  });

  return {
    node,
    /** @param {import("./messages.js").CanvasSegment} facts */
    show(facts) {
      text = facts.words.join("");
      const same =
        words().length === facts.words.length && facts.words.every((word, at) => words()[at].dataset.word === word);
      if (!same)
        line.replaceChildren(
          ...facts.words.map((word) => {
            const node = element("button.chm-word", { type: "button", text: word.trim() });
            node.dataset.word = word;
            node.addEventListener("click", () => {
              cover(node, !pressed(node));
              hide(covered());
            });
            return node;
          }),
        );
      words().forEach((word, at) => cover(word, facts.hidden.includes(at)));
    },
    clear() {
      if (!covered().length) return;
      words().forEach((word) => cover(word, false));
      hide([]);
    },
    rectangles() {},
    get hidden() {
      return covered().length;
    },
    dispose() {},
  };
}
