"""What the page is given of one document: each question to a `Look`, answered as a message with its buffers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import PIL.Image

from chameleon_lab.readings import Contribution, TokenReading
from chameleon_lab.vocabulary import Modality
from chameleon_widgets.inspect.messages import (
    Alternative,
    EdgeCut,
    HeadRows,
    InspectedDocument,
    InspectorMessage,
    KnockedAlternatives,
    KnockOut,
    LayerReading,
    LensPicture,
    PartSums,
    Rollouts,
    TokenDetail,
    TokenFacts,
)
from chameleon_widgets.pictures import png
from chameleon_widgets.threads import log

SINKS = ("begin_document", "begin_image")  # heads rest there that have nothing to read
ALTERNATIVES = 6
EVERY_TOKEN = 2**31  # alternatives: as many as the vocabulary has
SWATCH_PIXELS = 32
ROLLOUT, RELEVANCE = -1, -2  # in place of a layer

Way = Literal["from", "by"]
LookAnswer = tuple[InspectorMessage, list[bytes]]


class Look(Protocol):
    """What the inspector asks of a model and a document; `Chameleon.inspect` gives one."""

    @property
    def readings(self) -> list[TokenReading]: ...

    @property
    def depth(self) -> tuple[int, int]: ...

    @property
    def guide(self) -> object | None: ...

    def words(self, token: int) -> str: ...

    def alternatives(self, position: int, k: int, without: Sequence[int] = ()) -> list[tuple[int, float]]: ...

    def guided(self, position: int, k: int) -> list[tuple[int, float, float]]: ...

    def heads(self, layer: int, position: int) -> np.ndarray: ...

    def readers(self, layer: int, head: int, position: int) -> np.ndarray: ...

    def rollout(self, position: int) -> np.ndarray: ...

    def rollout_readers(self, position: int) -> np.ndarray: ...

    def rollout_so_far(self, position: int, readers: bool = False) -> tuple[np.ndarray, int]: ...

    def rollouts(self) -> np.ndarray: ...

    def rollout_steps(self) -> Iterator[float]: ...

    def relevance(self, position: int) -> np.ndarray: ...

    def lens(self, layer: int, positions: slice) -> np.ndarray: ...

    def contributions(self, position: int) -> list[Contribution]: ...

    def image(self, image: int) -> PIL.Image.Image: ...

    def picture(self, layer: int, image: int) -> PIL.Image.Image: ...

    def swatch(self, token: int, position: int) -> PIL.Image.Image | None: ...

    def knock_out(self, positions: Sequence[int]) -> np.ndarray: ...

    def cut(self, layer: int, head: int, source: int, target: int, of: int) -> float: ...

    def branch(
        self,
        position: int,
        token: int | None = None,
        *,
        seed: int = 0,
        without: Sequence[int] = (),
        each: Callable[[int], object] | None = None,
    ) -> Any:
        """Another look."""
        ...


class Offer(NamedTuple):
    """A token that could stand somewhere: its probability, that under guidance, and that before a knock-out."""

    token: int
    probability: float
    guided: float | None = None
    before: float | None = None


class LookReader:
    """A look at the document numbered `branch`, and what is read of it at the start: its tokens.

    Images and the looks of codes are drawn one at a time, when they are asked for: an image tokenizer may take long.
    """

    def __init__(self, look: Look, branch: int, branches: bool = True) -> None:
        self.look, self.branch, self.branches = look, branch, branches
        self.readings = look.readings
        self.images = 1 + max((each.image for each in self.readings if each.image is not None), default=-1)
        self.pictures: dict[int, PIL.Image.Image | None] = {}  # those drawn so far; None: it has no look
        self.kinds = np.array([self._kind(each) for each in self.readings], np.int64)
        self._looks: dict[tuple[int, int], bytes] = {}  # by token and position; empty for a word

    def __len__(self) -> int:
        return len(self.readings)

    @property
    def depth(self) -> tuple[int, int]:
        return self.look.depth

    def document(self) -> LookAnswer:
        facts = np.array([[each.log_probability, each.entropy] for each in self.readings], np.float32)  # None: nan
        layers, heads = self.look.depth
        message = InspectedDocument(
            kind="document",
            branch=self.branch,
            tokens=[
                TokenFacts(
                    words=each.words,
                    modality=int(each.modality),
                    sink=bool(kind == 2),
                    image=each.image,
                    row=each.row,
                    column=each.column,
                    rank=each.rank,
                )
                for each, kind in zip(self.readings, self.kinds, strict=True)
            ],
            images=self.images,
            layers=layers,
            heads=heads,
            branches=self.branches,
        )
        return message, [*map(_floats, facts.T)]

    def rows(self, way: Way, layer: int, head: int, position: int) -> LookAnswer:
        heads = [head]
        if layer == RELEVANCE:
            rows = [self.look.relevance(position)]
        elif layer == ROLLOUT:
            rows = [self.look.rollout(position) if way == "from" else self.look.rollout_readers(position)]
        elif way == "from":  # a layer's heads come for the price of one
            rows = [*self.look.heads(layer, position)]
            heads = [*range(len(rows))]
        else:
            rows = [self.look.readers(layer, head, position)]
        return self._head_rows(way, layer, heads, position, self.look.depth[0], rows)

    def rollout_so_far(self, way: Way, position: int) -> LookAnswer | None:
        """A row of rollout through the layers that are done; None while none is."""
        row, through = self.look.rollout_so_far(position, readers=way == "by")
        return self._head_rows(way, ROLLOUT, [0], position, through, [row]) if through else None

    def rollouts(self) -> LookAnswer:
        """All rows of rollout, a byte a weight: what a page without a kernel answers hovers from."""
        rows_TT = self.look.rollouts()
        most_T = rows_TT.max(1)
        roots_TT = np.sqrt(rows_TT / np.maximum(most_T, 1e-30)[:, None])
        codes = np.rint(255 * roots_TT)[np.tril_indices(len(rows_TT))]
        return Rollouts(kind="rollouts", branch=self.branch), [_floats(most_T), codes.astype(np.uint8).tobytes()]

    def detail(self, position: int) -> TokenDetail:
        """Without the looks of codes, which `with_looks` adds."""
        reading, offers = self.readings[position], list[Offer]()
        if position and reading.modality == Modality.IMAGE and self.look.guide is not None:
            guided = self.look.guided(position, ALTERNATIVES)
            offers = [Offer(token, probability, guided=share) for token, share, probability in guided]
        elif position:
            offers = [Offer(*each) for each in self.look.alternatives(position, ALTERNATIVES)]
        if position and reading.token not in [offer.token for offer in offers]:
            offers.append(Offer(reading.token, math.exp(reading.log_probability or 0.0)))
        layers = list[LayerReading]()
        for layer in range(self.look.depth[0]) if position else ():
            logits_V = self.look.lens(layer, slice(position - 1, position))[0].astype(np.float64)
            shares_V = np.exp(logits_V - logits_V.max())
            shares_V /= shares_V.sum()
            token = int(shares_V.argmax())
            layers.append(
                LayerReading(
                    token=token,
                    words=self.look.words(token),
                    probability=float(shares_V[token]),
                    own=float(shares_V[reading.token]),
                    swatch=False,
                )
            )
        shares = [self._shares(self.look.heads(layer, position)) for layer in range(self.look.depth[0])]
        return TokenDetail(
            kind="detail",
            branch=self.branch,
            position=position,
            alternatives=self._alternatives(position, offers),
            shares=shares,
            layers=layers,
        )

    def with_looks(self, message: TokenDetail | KnockedAlternatives) -> LookAnswer:
        """The message with the looks of codes that are drawn so far."""
        looks, message = list[bytes](), copy.deepcopy(message)
        for each in (*message["alternatives"], *(message["layers"] if message["kind"] == "detail" else ())):
            if look := self._looks.get((each["token"], message["position"])):
                each["swatch"] = True
                looks.append(look)
        return message, looks

    def undrawn(self, message: TokenDetail | KnockedAlternatives) -> list[int]:
        """Tokens of a message whose looks are not drawn yet."""
        tokens = [each["token"] for each in message["alternatives"]]
        tokens += [each["token"] for each in (message["layers"] if message["kind"] == "detail" else ())]
        return [token for token in dict.fromkeys(tokens) if (token, message["position"]) not in self._looks]

    def draw(self, token: int, position: int) -> None:
        """Draws the look of a token at a position; of a word there is none."""
        swatch = self.look.swatch(token, position)
        self._looks[token, position] = b"" if swatch is None else png(swatch, SWATCH_PIXELS)

    def lens(self, image: int, layer: int) -> LookAnswer:
        """An image as a layer has it; as it stands, for the number of layers."""
        message = LensPicture(kind="lens", branch=self.branch, image=image, layer=layer)
        if layer < self.look.depth[0]:
            return message, [png(self.look.picture(layer, image))]
        if image not in self.pictures:
            self.pictures[image] = self._picture(image)
        picture = self.pictures[image]
        return message, [b"" if picture is None else png(picture)]

    def knock_out(self, positions: list[int]) -> LookAnswer:
        message = KnockOut(kind="knockout", branch=self.branch, positions=positions)
        return message, [_floats(self.look.knock_out(positions))]

    def knocked_alternatives(self, positions: list[int], position: int) -> KnockedAlternatives:
        before, without = (dict(self.look.alternatives(position, EVERY_TOKEN, some)) for some in ((), positions))
        tokens = {self.readings[position].token, *[*before][:ALTERNATIVES], *[*without][:ALTERNATIVES]}
        offers = [Offer(token, without[token], before=before[token]) for token in without if token in tokens]
        return KnockedAlternatives(
            kind="knocked",
            branch=self.branch,
            positions=positions,
            position=position,
            alternatives=self._alternatives(position, offers),
        )

    def cut(self, layer: int, head: int, source: int, of: int) -> LookAnswer:
        """The edge is cut in the row from which the token at `of` is chosen: that of the token before it."""
        nats = self.look.cut(layer, head, source, of - 1, of)
        return EdgeCut(
            kind="cut", branch=self.branch, layer=layer, head=head, source=source, of=of, nats=nats
        ), []  # fmt: skip

    def parts(self, position: int) -> LookAnswer:
        layers, heads = self.look.depth
        message = PartSums(
            kind="parts",
            branch=self.branch,
            position=position,
            embedding=0.0,
            heads=[[0.0] * heads for _ in range(layers)],
            feed_forwards=[0.0] * layers,
            trouble="",
        )
        try:
            contributions = self.look.contributions(position)
        except ValueError as error:  # a model whose branches are no sums: that is an answer
            message["trouble"] = str(error)
            return message, []
        for each in contributions:
            if each.layer is None:
                message["embedding"] += each.logit
            elif each.head is None:
                message["feed_forwards"][each.layer] += each.logit
            else:
                message["heads"][each.layer][each.head] += each.logit
        return message, []

    # Parts

    def _head_rows(
        self, way: Way, layer: int, heads: list[int], position: int, through: int, rows: list[np.ndarray]
    ) -> LookAnswer:
        message = HeadRows(
            kind="rows", branch=self.branch, layer=layer, through=through, heads=heads, position=position, way=way
        )
        return message, [*map(_floats, rows)]

    def _alternatives(self, position: int, offers: list[Offer]) -> list[Alternative]:
        return [
            Alternative(
                token=offer.token,
                words=self.look.words(offer.token),
                probability=offer.probability,
                guided=offer.guided,
                before=offer.before,
                chosen=offer.token == self.readings[position].token,
                swatch=False,
            )
            for offer in offers
        ]

    def _shares(self, rows_HS: np.ndarray) -> list[list[float]]:
        kinds = self.kinds[: rows_HS.shape[1]]
        return [[round(float(row[kinds == kind].sum()), 4) for kind in range(4)] for row in rows_HS]

    @staticmethod
    def _kind(reading: TokenReading) -> int:
        """0 words, 1 patches, 2 sinks, 3 other special tokens."""
        return int(reading.modality) + (reading.modality == Modality.SPECIAL and reading.words not in SINKS)

    def _picture(self, image: int) -> PIL.Image.Image | None:
        try:
            return self.look.image(image)
        except Exception:  # an image still under way, or one that its tokenizer cannot draw: cells without a look
            log.info("image %d has no look", image, exc_info=True)
            return None


def _floats(row: Sequence[float] | np.ndarray) -> bytes:
    return np.asarray(row, "<f4").tobytes()
