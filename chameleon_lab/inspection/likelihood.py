"""What a model held likely at each token of a document: log-probabilities, ranks, alternatives, what guidance did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chameleon_lab.generation.guidance import Guidance
from chameleon_lab.generation.settings import Settings
from chameleon_lab.inspection.trace import LOGITS_AT_ONCE, Trace, as_index
from chameleon_lab.quantization import QuantizedLinear
from chameleon_lab.readings import TokenReading
from chameleon_lab.records import TokenScores
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality

SPECIALS = ("begin_document", "pad", "end_document", "begin_image", "end_image", "end_turn", "new_line")


class Likelihood(Trace):
    """A document with the likelihood of each of its tokens, each after those before it.

    `log_probabilities` and `entropies` are in nats and `ranks` from 0; the first token, which nothing comes before,
    has nan, nan and -1. All three are of the model itself, without guidance and without grammar. `guide` is the
    guidance with which pictures were drawn; `settings` are what branches are drawn with, and `images` says whether they
    may hold pictures.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: MixedModalTokenizer,
        tokens: Sequence[int] | np.ndarray,
        *,
        guide: Guidance | None = None,
        documents_T: np.ndarray | None = None,
        changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        settings: Settings | None = None,
        images: bool = True,
    ) -> None:
        self.tokenizer, self.guide = tokenizer, guide
        self.settings, self.images = settings or Settings(guidance=guide or 1.0), images
        super().__init__(model, tokenizer.vocabulary.check(tokens), documents_T=documents_T, changes=changes)
        self.log_probabilities, self.entropies = np.full((2, len(self)), np.nan)
        self.ranks = np.full(len(self), -1)
        self._measure()

    @torch.inference_mode()
    def _measure(self) -> None:
        for start in range(0, len(self) - 1, LOGITS_AT_ONCE):
            outputs_TD = self.outputs_TD[start : min(start + LOGITS_AT_ONCE, len(self) - 1)]
            logs_TV = self.model.logits(outputs_TD).log_softmax(-1)
            here = slice(start + 1, start + 1 + len(logs_TV))
            own_T1 = logs_TV.gather(-1, self.tokens_1T[0, here, None])
            self.log_probabilities[here] = own_T1[:, 0].double().cpu().numpy()
            self.ranks[here] = (logs_TV > own_T1).sum(-1).cpu().numpy()
            self.entropies[here] = torch.special.entr(logs_TV.exp()).sum(-1).double().cpu().numpy()

    @property
    def quantized(self) -> bool:
        """Whether the model's matrices are packed: it then has no gradients, and its products are rounded."""
        return any(isinstance(module, QuantizedLinear) for module in self.model.modules())

    @property
    def probabilities(self) -> np.ndarray:
        """Of each token after those before it; nan for the first."""
        return np.exp(self.log_probabilities)

    @property
    def scores(self) -> TokenScores:
        """The log-probabilities of all tokens but the first, by modality: `-look.scores.of(Modality.IMAGE).mean`."""
        return TokenScores(self.tokens[1:], self.log_probabilities[1:], self.modalities[1:])

    @property
    def readings(self) -> list[TokenReading]:
        """All tokens as plain values. As a table: `pandas.DataFrame(look.readings)`."""
        readings, image, code = list[TokenReading](), -1, 0
        vocabulary, grids = self.tokenizer.vocabulary, self.grids
        words = {token: self.words(token) for token in set(self.tokens.tolist())}
        kinds = {int(kind): kind for kind in Modality}
        columns = (self.tokens, self.modalities, self.log_probabilities, self.ranks, self.entropies)
        for position, (token, kind, *measured) in enumerate(zip(*(each.tolist() for each in columns), strict=True)):
            cell: tuple[int, int, int] | tuple[None, None, None] = (None, None, None)
            if token == vocabulary.begin_image:
                image, code = image + 1, 0
            elif kind == Modality.IMAGE:
                cell, code = (image, *divmod(code, grids[image][1])), code + 1
            measures = measured if position else (None, None, None)
            readings.append(TokenReading(position, token, kinds[kind], words[token], *cell, *measures))
        return readings

    @property
    def modalities(self) -> np.ndarray:
        """The `Modality` of each token."""
        return self.tokenizer.vocabulary.modality[self.tokens]

    def words(self, token: int) -> str:
        """A token in words: its piece of text, "code 22", "sentinel 0", or what kind of special token it is.

        Raises ValueError for an id that the vocabulary lacks.
        """
        vocabulary = self.tokenizer.vocabulary
        vocabulary.check([token])
        match Modality(int(vocabulary.modality[token])):
            case Modality.TEXT:
                return self.tokenizer.text.decode([int(token) - vocabulary.first_text])
            case Modality.IMAGE:
                return f"code {int(vocabulary.codes_of_tokens(np.array(token)))}"
        if 0 <= (sentinel := int(token) - vocabulary.first_sentinel) < vocabulary.sentinels:
            return f"sentinel {sentinel}"
        return next((name for name in SPECIALS if getattr(vocabulary, name) == token), f"special {token}")

    @torch.inference_mode()
    def alternatives(self, position: int, k: int = 5) -> list[tuple[int, float]]:
        """(token, probability) of the `k` likeliest tokens at a position, given all before it, likeliest first."""
        self.require(position, 1)
        shares_V = self.model.logits(self.outputs_TD[position - 1 : position])[0].softmax(-1)
        return likeliest(shares_V, k)

    @torch.inference_mode()
    def guided(self, position: int, k: int = 5) -> list[tuple[int, float, float]]:
        """What guidance did to a cell: (token, probability with it, without it) of the `k` likeliest codes with it.

        Raises ValueError where there is no guidance, and for what is no cell of an image.
        """
        self.require(position, 1)
        if self.guide is None:
            raise ValueError("No guidance: inspect a session that had one, or pass guidance= to inspect.")
        if self.modalities[position] != Modality.IMAGE:
            raise ValueError(
                f"Guidance is for cells of images, and position {position} is {self.words(self.tokens[position])!r}."
            )
        vocabulary, image = self.tokenizer.vocabulary, self.image_at(position)
        places, (rows, columns) = self.cells(image), self.grids[image]
        first, drawn = int(places[0]), int((places < position).sum())
        ids_V = torch.as_tensor(vocabulary.tokens_of_codes(np.arange(vocabulary.codes)), device=self.device)
        logits = [self.model.logits(self.outputs_TD[position - 1 : position])[:, ids_V]]
        for stream in self.guide.streams(self.tokens[:first], self.tokenizer):
            tokens_1T = torch.as_tensor(np.concatenate([stream, self.tokens[first:position]]), device=self.device)[None]
            with self.changed():
                outputs_1TD = self.model.trunk(tokens_1T)
            logits.append(self.model.logits(outputs_1TD[0, -1:])[:, ids_V])
        with_V = self.guide.mix(torch.stack(logits), [drawn / (rows * columns)])[0].softmax(-1)
        without_V = logits[0][0].softmax(-1)
        return [(int(ids_V[at]), share, float(without_V[at])) for at, share in likeliest(with_V, k)]

    # Its images

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(rows, columns) of each image of the document; of one under way, what its grid will be."""
        form, grids = self.tokenizer.form, list[tuple[int, int]]()
        for begin in np.flatnonzero(self.tokens == self.tokenizer.vocabulary.begin_image).tolist():
            sides = form.sides
            for place, token in enumerate(self.tokens[begin + 1 : begin + 3].tolist()):
                sides = form.advance(place, sides, token)
            grids.append((sides[0], sides[1]) if len(sides) == 2 else self.tokenizer.grid)
        return grids

    def image_at(self, position: int) -> int:
        """Which image begins last before a position; -1 before all images."""
        return int((self.tokens[:position] == self.tokenizer.vocabulary.begin_image).sum()) - 1

    def cells(self, image: int) -> np.ndarray:
        """The positions of an image's codes, row by row, as many as there are. Raises ValueError without the image."""
        begins = np.flatnonzero(self.tokens == self.tokenizer.vocabulary.begin_image)
        if not 0 <= as_index(image, "image") < len(begins):
            raise ValueError(f"There is no image {image}: this document has {len(begins)}.")
        stop = begins[image + 1] if image + 1 < len(begins) else len(self)
        return begins[image] + np.flatnonzero(self.modalities[begins[image] : stop] == Modality.IMAGE)

    def whole(self, codes_N: np.ndarray, image: int) -> np.ndarray:
        """An image's codes as rows x columns; what is not drawn yet is filled with what stands above it, or before it.

        Raises ValueError for an image without a code.
        """
        rows, columns = self.grids[image]
        if not len(codes_N):
            raise ValueError(f"Image {image} has none of its {rows * columns} codes yet, so there is nothing to show.")
        codes = np.resize(codes_N, rows * columns)
        for cell in range(len(codes_N), len(codes)):
            codes[cell] = codes[cell - columns if cell >= columns else cell - 1]
        return codes.reshape(rows, columns)

    def image(self, image: int = 0) -> PIL.Image.Image:
        """An image of the document, decoded from its own codes; one under way as far as it is, filled up (`whole`)."""
        codes_N = self.tokenizer.vocabulary.codes_of_tokens(self.tokens[self.cells(image)])
        return self.tokenizer.image.decode(self.whole(codes_N, image))

    def swatch(self, token: int, position: int) -> PIL.Image.Image | None:
        """What a code would look like at a position: its image drawn with it, cut out; None for what is no code.

        Where no image has a cell there, it is two rows of two of the code. Raises ValueError for an id that the
        vocabulary lacks.
        """
        vocabulary = self.tokenizer.vocabulary
        vocabulary.check([token])
        if vocabulary.modality[token] != Modality.IMAGE:
            return None
        code, image = vocabulary.codes_of_tokens(np.array(token)), self.image_at(position)
        places = self.cells(image) if image >= 0 else np.empty(0, np.int64)
        if position not in places:
            return self.tokenizer.image.decode(np.full((2, 2), code))
        rows, columns = self.grids[image]
        codes_RC = self.whole(vocabulary.codes_of_tokens(self.tokens[places]), image)
        row, column = divmod(int(np.flatnonzero(places == position)[0]), columns)
        codes_RC[row, column] = code
        picture = self.tokenizer.image.decode(codes_RC)
        width, height = picture.width // columns, picture.height // rows
        return picture.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))


def likeliest(shares_V: Tensor, k: int) -> list[tuple[int, float]]:
    """(token, probability) of the `k` likeliest, likeliest first. Raises ValueError where k is below 1."""
    if as_index(k, "k") < 1:
        raise ValueError(f"k is how many alternatives you want, 1 or more, not {k}.")
    top = shares_V.topk(min(k, len(shares_V)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
