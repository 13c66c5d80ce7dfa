// The arena: a prompt, one reply or two side by side, and questions about them. Digits answer, Backspace goes back.

import { button, element, group, press, write } from "../frame/dom.js";
import { frame } from "../frame/frame.js";
import { pngUrl } from "../frame/pictures.js";

/** @typedef {import("./messages.js").ArenaItem} ArenaItem */

/** @param {import("../frame/frame.js").Context} context */
function render(context) {
  let item = /** @type {ArenaItem | null} */ (null);
  let choices = /** @type {Record<string, string>} */ ({});
  let waiting = false; // for the next item: the answer is on its way to the disk
  let urls = /** @type {string[]} */ ([]);
  let drawn = /** @type {ArenaItem | null} */ (null);

  const progress = element("progress.chm-judge-progress", { max: "1", value: "0", "aria-label": "Judged" });
  const count = element("span.chm-judge-count");
  const back = button("Back", null, () => page.ask({ kind: "back" }), { title: "The item before (Backspace)" });
  const prompt = group("chm-judge-prompt", "Prompt");
  const replies = element("div.chm-judge-replies");
  const questions = element("div.chm-judge-questions");
  const next = button("Next", null, submit, { class: "chm-button chm-primary", title: "Next (Enter)" });
  const hint = element("span.chm-judge-hint");
  const done = element("p.chm-judge-done", { role: "status", hidden: true });
  const foot = element("div.chm-judge-foot", hint, next);
  const body = element("div.chm-judge-body", prompt, replies, questions, foot);

  const receive = /** @type {import("../frame/frame.js").Receivers<import("./messages.js").ArenaItem>} */ ({
    item(message, buffers) {
      for (const url of urls) URL.revokeObjectURL(url);
      urls = buffers.map(pngUrl);
      [item, choices, waiting] = [message, { ...message.before }, false];
    },
  });

  const page = frame(context, {
    label: "Arena",
    kind: "judge",
    receive,
    refresh,
    ready: () => item !== null,
    state: () => (waiting ? ["working", "Writing it down"] : ["idle", item ? `${item.annotator} judges` : "Ready"]),
  });

  /** @param {import("./messages.js").ShownPart[]} parts @param {string} whose */
  function nodesOf(parts, whose) {
    const nodes = parts.map(({ text, picture }) =>
      picture === undefined
        ? element("p", { text })
        : element("img", { src: urls[picture], alt: `A picture of ${whose}`, draggable: "false" }),
    );
    return nodes.length ? nodes : [element("p.chm-judge-nothing", { text: "(nothing)" })];
  }

  function draw() {
    if (!item || item === drawn) return;
    const fresh = drawn?.number !== item.number;
    drawn = item;
    const over = item.number >= item.total;
    body.hidden = over;
    done.hidden = !over;
    write(done, over ? `All ${item.total} are judged. Thank you! They are in ${item.journal}.` : "");
    progress.max = item.total;
    progress.value = item.judged;
    write(count, over ? `${item.judged} of ${item.total}` : `${item.number + 1} of ${item.total}`);
    count.title = `${item.judged} judged`;
    prompt.replaceChildren(element("h4", { text: "Prompt" }), ...nodesOf(item.prompt, "the prompt"));
    const names = item.replies.length > 1 ? ["First", "Second"] : ["Reply"];
    replies.classList.toggle("chm-judge-pair", item.replies.length > 1);
    replies.replaceChildren(
      ...item.replies.map((parts, at) =>
        group(
          "chm-judge-reply",
          names[at],
          element("h4", { text: names[at] }),
          ...nodesOf(parts, `the ${names[at].toLowerCase()}${names.length > 1 ? " reply" : ""}`),
        ),
      ),
    );
    const single = item.questions.length === 1;
    questions.classList.toggle("chm-judge-single", single);
    questions.replaceChildren(
      ...item.questions.map(({ name, words, answers }) => {
        const buttons = answers.map(([answer, label], at) => {
          const node = button(label, null, () => choose(name, answer), { class: "chm-button chm-judge-answer" });
          node.dataset.answer = answer;
          if (single) node.prepend(element("kbd", { text: String(at + 1) }));
          return node;
        });
        const node = group("chm-judge-question", words, element("span", { text: words }), ...buttons);
        node.dataset.question = name;
        return node;
      }),
    );
    next.hidden = single;
    write(hint, single ? "Keys 1, 2, 3; Backspace goes back" : "Digits answer the marked question, Enter goes on");
    if (fresh && body.contains(document.activeElement)) body.focus();
  }

  function refresh() {
    draw();
    if (!item) return;
    const open = unanswered();
    for (const node of /** @type {HTMLElement[]} */ ([...questions.children])) {
      const name = node.dataset.question ?? "";
      node.classList.toggle("chm-judge-current", item.questions.length > 1 && open?.name === name);
      for (const each of node.querySelectorAll("button")) {
        press(each, choices[name] === each.dataset.answer);
        each.disabled = waiting || page.silent;
      }
    }
    next.disabled = Boolean(open) || waiting || page.silent;
    back.disabled = item.number === 0 || waiting || page.silent;
  }

  const unanswered = () => item?.questions.find(({ name }) => !(name in choices));

  /** @param {string} name @param {string} answer */
  function choose(name, answer) {
    if (waiting) return;
    choices[name] = answer;
    if (item?.questions.length === 1) submit();
    else refresh();
  }

  async function submit() {
    if (!item || waiting || unanswered()) return;
    waiting = true;
    page.refresh();
    const { number } = item;
    await page.ask({ kind: "answer", number, answers: choices });
    // The next item ends the waiting. Where the kernel refused the answer, or has not heard it, it can be given again.
    if (item?.number === number) {
      waiting = false;
      page.refresh();
    }
  }

  body.tabIndex = -1;
  page.box.addEventListener("keydown", (event) => {
    if (!item || item.number > item.total || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.repeat && event.key !== "Backspace") return; // a key that is held down answers one item, not all
    if (event.key === "Backspace" && !back.disabled) {
      event.preventDefault();
      back.click();
    } else if (
      event.key === "Enter" &&
      !next.hidden &&
      !next.disabled &&
      !(event.target instanceof HTMLButtonElement)
    ) {
      event.preventDefault();
      submit();
    } else if (/^[1-9]$/.test(event.key)) {
      const question = unanswered() ?? item.questions[0];
      const answer = question?.answers[Number(event.key) - 1];
      if (answer && !page.silent) {
        event.preventDefault();
        choose(question.name, answer[0]);
      }
    }
  });

  return page.open(
    [page.header("Judging", [count, progress, back]), page.alert, body, done],
    [
      () => {
        for (const url of urls) URL.revokeObjectURL(url);
      },
    ],
  );
}

export default { render };
