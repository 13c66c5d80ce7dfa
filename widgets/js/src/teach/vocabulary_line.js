// The vocabulary as one line of ids: its blocks, and two rulers, of codes and of tokens, that stand apart by an offset.

import { element } from "../frame/dom.js";
import { IMAGE, KINDS, TEXT } from "./lesson.js";

/**
 * The ids whose places on the rulers are drawn: those around a token and where each block begins, null for a gap.
 * @param {{first: number, stop: number}[]} blocks @param {number} token @param {number} [near]
 * @returns {(number | null)[]}
 */
export function ticks(blocks, token, near = 2) {
  const ids = new Set(/** @type {number[]} */ ([]));
  const size = blocks.at(-1)?.stop ?? 0;
  for (const { first, stop } of blocks) for (const id of [first, first + 1]) if (id < stop) ids.add(id);
  for (let id = token - near; id <= token + near; id += 1) if (id >= 0 && id < size) ids.add(id);
  const out = /** @type {(number | null)[]} */ ([]);
  for (const id of [...ids].sort((one, other) => one - other)) {
    const before = out.at(-1);
    if (before !== undefined && before !== null && id === before + 2) out.push(before + 1);
    else if (before !== undefined && before !== null && id > before + 2) out.push(null);
    out.push(id);
  }
  return out;
}

/** @param {import("./lesson.js").Lesson} lesson */
export function vocabularyLine(lesson) {
  const marker = element("i.chm-teach-marker");
  const line = element("div.chm-teach-line", { role: "img" });
  const ruler = element("div.chm-teach-ruler", { role: "img" });
  const sum = element("p.chm-teach-sum", { role: "status" });
  const node = element("div.chm-teach-vocabulary", sum, ruler, line);

  function blocks() {
    line.replaceChildren(
      ...lesson.blocks.map(({ name, first, stop, modality }) => {
        const block = element(
          `div.chm-teach-block.chm-teach-${KINDS[modality]}`,
          { title: `${name}: tokens ${first} to ${stop - 1}` },
          element("span", { text: name }),
          element("small", { text: `${first} – ${stop - 1}` }),
        );
        block.style.flexGrow = String(stop - first);
        return block;
      }),
      marker,
    );
  }

  /** Where a token lies on the line, as a share of its width. @param {number} token */
  function place(token) {
    const at = lesson.blocks.findIndex(({ stop }) => token < stop);
    const block = /** @type {HTMLElement | undefined} */ (line.children[at]);
    if (!block || !line.clientWidth) return 0;
    const { first, stop } = lesson.blocks[at];
    return (block.offsetLeft + ((token - first + 0.5) / (stop - first)) * block.offsetWidth) / line.clientWidth;
  }

  return {
    node,
    /** @param {number} token */
    show(token) {
      if (line.children.length !== lesson.blocks.length + 1) blocks();
      const { first, modality } = lesson.block(token);
      const code = lesson.code(token);
      marker.style.left = `${100 * place(token)}%`;
      const swatch = lesson.swatch(token);
      /** @param {string} text */
      const strong = (text) => element("b", { text });
      if (code !== null) {
        const offset = token - first;
        const permuted = offset === code ? [] : [element("span", { text: `, place ${offset} in this model's order,` })];
        sum.replaceChildren(
          ...(swatch ? [swatch] : []),
          strong(`code ${code}`),
          ...permuted,
          ` + first image token ${first} = `,
          strong(`token ${token}`),
        );
      } else if (modality === TEXT)
        sum.replaceChildren(
          strong(`“${lesson.words(token)}”`),
          ` is piece ${token - first} + first text token ${first} = `,
          strong(`token ${token}`),
        );
      else sum.replaceChildren(strong(lesson.words(token)), ` is a token of its own: `, strong(`token ${token}`));
      line.setAttribute("aria-label", `The vocabulary's line, with token ${token} marked`);
      ruler.setAttribute("aria-label", sum.textContent ?? "");
      ruler.replaceChildren(
        element("div.chm-teach-tick.chm-teach-head", element("span", "code"), element("span", "token")),
        ...ticks(lesson.blocks, token).map((id) => {
          if (id === null) return element("div.chm-teach-gap", "…");
          const kind = lesson.modality(id);
          const above = kind === IMAGE ? lesson.codes[id - lesson.firstImage] : kind === TEXT ? lesson.words(id) : "–";
          const tick = element(
            `div.chm-teach-tick.chm-teach-${KINDS[kind]}`,
            element("span", { text: above }),
            element("span", { text: id }),
          );
          tick.classList.toggle("chm-teach-this", id === token);
          tick.title = lesson.words(id);
          return tick;
        }),
      );
    },
  };
}
