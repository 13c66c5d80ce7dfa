"""A packed batch as a notebook shows it: what is learned, what is only read, by colour; words escaped, nothing live."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from chameleon_lab.corpora.packing import Batch
from chameleon_lab.documents import png_base64
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer

HUES = {"text": "47,127,208", "image": "217,130,43", "special": "47,127,208", "padding": "128,128,128"}
"""Red, green and blue of what is learned; what is only read is grey."""

LEGEND = {
    ("text", True): "words, learned",
    ("image", True): "pictures, learned",
    ("text", False): "words, only read",
    ("image", False): "pictures, only read",
    ("padding", False): "padding",
}


class TokenRun(NamedTuple):
    """Neighbouring tokens of one kind ("text", "image", "special", "padding") that are all learned or all not."""

    kind: str
    learned: bool
    tokens: np.ndarray


@dataclass(frozen=True, eq=False)
class BatchView:
    """The first `rows` rows of a batch: a strip of what is learned in each, and below it the words and pictures.

    The last expression of a cell shows it; `str` says how much of the batch is learned. Targets are coloured, since
    these are what loss is taken on; a document's first token is the target of none.
    """

    batch: Batch
    tokenizer: MixedModalTokenizer
    rows: int = 4

    def runs(self, row: int) -> list[list[TokenRun]]:
        """The runs of a row's documents, in order, and last those of its padding."""
        batch, vocabulary = self.batch, self.tokenizer.vocabulary
        inputs_T, targets_T, learned_T = (
            each[row].cpu().numpy() for each in (batch.inputs_BT, batch.targets_BT, batch.learned_BT)
        )
        numbers_T = np.zeros(len(inputs_T), np.int64) if batch.documents_BT is None else batch.documents_BT[row].numpy()
        documents = list[list[TokenRun]]()
        for number in range(int(numbers_T.max()) + 1):
            places = np.flatnonzero(numbers_T == number)
            real = places[targets_T[places] != vocabulary.pad]
            if len(real):
                tokens = np.concatenate([inputs_T[real[:1]], targets_T[real]])
                learned = np.concatenate([[False], learned_T[real]])
                documents.append(list(_runs(tokens, learned, self.tokenizer)))
        rest = int((targets_T == vocabulary.pad).sum())
        padding = [[TokenRun("padding", False, np.full(rest, vocabulary.pad))]] if rest else []
        return documents + padding

    @property
    def shares(self) -> dict[tuple[str, bool], float]:
        """The share of the batch's positions by kind and whether it is learned; delimiters count as what they hold."""
        counts = Counter[tuple[str, bool]]()
        for row in range(len(self.batch.inputs_BT)):
            for document in self.runs(row):
                for place, run in enumerate(document):
                    kind = "text" if run.kind == "special" else run.kind
                    counts[kind, run.learned] += len(run.tokens) - (place == 0 and kind != "padding")
        return {key: counts[key] / self.batch.inputs_BT.numel() for key in LEGEND if counts[key]}

    def __str__(self) -> str:
        rows, positions = self.batch.inputs_BT.shape
        shares = ", ".join(f"{LEGEND[key]} {share:.0%}" for key, share in self.shares.items())
        return f"{rows} rows of {positions} positions: {shares}"

    def _repr_html_(self) -> str:
        chips = "".join(
            f'<span style="{_style(*key)};padding:0 .5em">{html.escape(LEGEND[key])} {share:.0%}</span>'
            for key, share in self.shares.items()
        )
        first_rows = range(min(self.rows, len(self.batch.inputs_BT)))
        left_out = len(self.batch.inputs_BT) - len(first_rows)
        more = f"<div>rows below these: {left_out}</div>" if left_out else ""
        return (
            f'<div style="display:flex;flex-direction:column;gap:10px;max-width:60em;line-height:1.6">'
            f'<div style="display:flex;flex-wrap:wrap;gap:8px">{chips}</div>'
            f"{''.join(self._row(row) for row in first_rows)}{more}</div>"
        )

    def _row(self, row: int) -> str:
        documents = self.runs(row)
        strip = "".join(
            f'<span style="{_style(run.kind, run.learned)};flex:{len(run.tokens)} 0 0"></span>'
            for document in documents
            for run in document
        )
        words = "".join(
            f'<div style="padding:1px 0">{"".join(self._run(run) for run in document)}</div>' for document in documents
        )
        return (
            f'<div role="group" aria-label="row {row}" style="border-left:2px solid rgba(128,128,128,.5);'
            f'padding-left:8px"><div style="display:flex;height:10px;margin-bottom:4px">{strip}</div>{words}</div>'
        )

    def _run(self, run: TokenRun) -> str:
        style, state = _style(run.kind, run.learned), "learned" if run.learned else "only read"
        match run.kind:
            case "padding":
                words = f"{len(run.tokens)} positions of padding"
                return f'<span style="{style};padding:0 .5em;opacity:.8">{words}</span>'
            case "image":
                return self._picture(run, style, state)
            case "special":
                names = " ".join(_special_name(int(token), self.tokenizer) for token in run.tokens)
                return (
                    f'<span title="{state}" style="{style};font-size:.75em;opacity:.85;padding:0 .3em;margin:0 1px;'
                    f'white-space:nowrap">'
                    f"{html.escape(names)}</span>"
                )
        pieces = (run.tokens - self.tokenizer.vocabulary.first_text).tolist()
        words = self.tokenizer.text.decode(pieces) if self.tokenizer.can_spell else f"{len(pieces)} tokens of text"
        return f'<span title="{state}" style="{style};white-space:pre-wrap">{html.escape(words)}</span>'

    def _picture(self, run: TokenRun, style: str, state: str) -> str:
        """The picture that its codes are, where it is whole and there is a decoder."""
        codes = run.tokens[1:-1]
        rows, columns = self.tokenizer.form.sides or (0, 0)
        words = html.escape(f"picture of {len(codes)} tokens, {state}")
        if not self.tokenizer.can_draw or len(codes) != rows * columns or not rows:
            return f'<span style="{style};padding:0 .5em">{words}</span>'
        grid = self.tokenizer.vocabulary.codes_of_tokens(codes).reshape(rows, columns)
        picture = png_base64(self.tokenizer.image.decode(grid))
        return (
            f'<img alt="{words}" title="{words}" style="{style};width:44px;padding:3px;vertical-align:middle;'
            f'image-rendering:pixelated" src="data:image/png;base64,{picture}">'
        )


def _runs(tokens: np.ndarray, learned: np.ndarray, tokenizer: MixedModalTokenizer) -> Iterator[TokenRun]:
    """Neighbours of one kind and flag; an image with its delimiters is one run."""
    vocabulary = tokenizer.vocabulary
    kinds = np.array(["text", "image", "special"])[vocabulary.modality[tokens]]
    within = vocabulary.within_images[tokens] | np.isin(tokens, (vocabulary.begin_image, vocabulary.end_image))
    kinds[within] = "image"
    starts = np.flatnonzero(
        np.concatenate([[True], (kinds[1:] != kinds[:-1]) | (learned[1:] != learned[:-1])])
        | (tokens == vocabulary.begin_image)
    )
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        yield TokenRun(str(kinds[start]), bool(learned[start]), tokens[start:stop])


def _special_name(token: int, tokenizer: MixedModalTokenizer) -> str:
    vocabulary = tokenizer.vocabulary
    names = {
        vocabulary.begin_document: "begin",
        vocabulary.end_document: "end",
        vocabulary.end_turn: "end of turn",
    }
    return names.get(token) or vocabulary.spelling(token)


def _style(kind: str, learned: bool) -> str:
    """Readable on white and on black; what is learned has a line below as well, so that colour is not all."""
    if kind == "padding":
        return "border:1px dashed rgba(128,128,128,.6);box-sizing:border-box"
    if not learned:
        return "background:rgba(128,128,128,.18)"
    hue = HUES[kind]
    return f"background:rgba({hue},.28);border-bottom:2px solid rgb({hue})"
