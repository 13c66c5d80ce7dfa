"""`Chameleon`: a model, its tokenizer and its vocabulary as the one object that notebooks hold."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch

from chameleon_lab.candidates import Candidate, Scorer, ranked, score_of
from chameleon_lab.checkpoints import formats, huggingface, native, provenance
from chameleon_lab.checkpoints.adapters import apply_adapter, base_of, is_adapter
from chameleon_lab.checkpoints.evidence import home, snapshot
from chameleon_lab.checkpoints.opened import Parts, QuantizerClass, ReadOptions
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation.engine import Engine
from chameleon_lab.generation.fused import compile_steps
from chameleon_lab.generation.grammar import MODALITY_SWITCHES, Rules
from chameleon_lab.generation.guidance import Guidance
from chameleon_lab.generation.session import Session
from chameleon_lab.generation.settings import Changes, Settings, latest_turns, takes_settings
from chameleon_lab.inspection import Inspection
from chameleon_lab.parts import require, require_count
from chameleon_lab.records import FilledSegment, Piece, ReplyProgress, TokenScores
from chameleon_lab.storage import recover
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Vocabulary
from chameleon_lab.walk import Walk

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
SHIPPED = (HERE.parent / "data", HERE / "data")
"""Where shipped models lie: in a source checkout, and in an installed wheel."""


ModalityChoice = Literal["free", "words", "picture", "interleaved"]


class Chameleon:
    """A mixed-modal model ready to use.

    ```python
    lab = Chameleon.load("tiny")
    reply = lab.generate(Document.of("draw a red circle", EndTurn()), seed=7)
    ```

    `settings` are the defaults of `stream` and `generate`; `card` is what is known of the weights. Where their licence
    forbids them to draw (see `checkpoints.provenance`), they answer in text only, unless `acknowledge_licence`.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: MixedModalTokenizer,
        settings: Settings | None = None,
        card: dict[str, Any] | None = None,
        *,
        acknowledge_licence: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.settings, self.card = settings or Settings(), card or {}
        self.acknowledge_licence, self._warned, self._guesses = acknowledge_licence, False, False
        _ = self.engine  # refuses parts that do not belong together

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        layout: str | None = None,
        tokenizer: Path | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weights: str | None = None,
        licence: str | None = None,
        acknowledge_licence: bool = False,
        fixes: Iterable[type] = (),
        quantizers: Iterable[QuantizerClass] = (),
    ) -> Chameleon:
        """A model from a folder in any of the family's layouts, a GGUF file, or a shipped one by name ("tiny").

        `layout` says which one it is (see `checkpoints.formats`), where the folder does not; `tokenizer` is a folder,
        or a text_tokenizer.json, for a model whose own has none. `device` is a GPU where there is one, otherwise the
        CPU; `dtype` float32, or bfloat16 beside `weights` of "int8" or "int4". `licence` is that of the weights,
        where it is not what their layout suggests, and `acknowledge_licence` lets weights draw that Meta's does not
        allow to (see `checkpoints.provenance`). `fixes` and `quantizers` are classes of your own that the model was
        trained with. A folder with an adapter alone (`checkpoints.adapters`) is its base with that merged. Raises
        FileNotFoundError for what is no model folder, ValueError for a damaged or ambiguous one
        or a device that is not there.
        """
        dtype = dtype or (torch.float32 if weights is None else torch.bfloat16)
        options = ReadOptions(tuple(fixes), tuple(quantizers), licence, dtype, _device(device))
        place = find(folder)
        adapter = place if is_adapter(place) else None
        if adapter is not None:
            if weights is not None:
                raise ValueError(
                    f"{adapter} holds an adapter, which is merged into plain weights, not {weights!r} ones."
                )
            place = find(base_of(adapter))
            if not place.exists():
                raise FileNotFoundError(
                    f"{adapter} holds an adapter to {place}, which is not here, and the lab downloads nothing: get "
                    "that model, and name its folder in adapter_config.json (base_model_name_or_path)."
                )
        parts = formats.read_parts(place, layout, tokenizer, options, weights)
        if adapter is not None:
            apply_adapter(parts.model, adapter)
        return cls(parts.model, parts.tokenizer, parts.settings, parts.card, acknowledge_licence=acknowledge_licence)

    def save(
        self,
        folder: Path | str,
        format: str = "native",
        *,
        shards: int | None = None,
        pictures: bool = True,
        weights: str | None = None,
    ) -> None:
        """Writes the model, in its present dtype, to a folder that `load` reads.

        `format` is "native", "meta", "huggingface", "lumina", "anole", or llama.cpp's "gguf", which holds words alone
        and may be given a file, `lab.save("mine.gguf", format="gguf", weights="q8_0")`; `weights` is how its matrices
        are packed: "f32", "f16", "bf16", "q8_0" or "q4_0". `shards`: how many files Meta's has; `pictures=False` leaves
        the image tokenizer out. Raises ValueError for what the format cannot express.
        """
        parts = Parts(self.model, self.tokenizer, self.settings, self.card)
        formats.write_parts(parts, folder, format, shards=shards, pictures=pictures, weights=weights)

    @property
    def engine(self) -> Engine:
        """What continues and scores documents, with the model and the tokenizer that the lab holds now.

        Raises ValueError for a model and a tokenizer of different vocabularies.
        """
        in_model, in_tokenizer = self.model.config.vocabulary, self.tokenizer.vocabulary.size
        if in_model != in_tokenizer:
            raise ValueError(
                f"The model knows {in_model} tokens and the tokenizer {in_tokenizer}: they do not belong together."
            )
        images = self.acknowledge_licence or not provenance.forbids_drawing(self.card)
        return Engine(self.model, self.tokenizer, images)

    def compile_steps(self) -> None:
        """Has the steps of replies on a GPU compiled, up to a quarter faster: for whoever draws much.

        The first reply of each number of rows (one, two where guided) takes ten seconds longer. Needs Triton, which
        torch brings for a GPU under Linux; where it fails, replies go on as before. Raises ValueError for a model that
        is not on a GPU, or has blocks of one's own (see `generation.fused`).
        """
        compile_steps(self.model)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    def encode(self, document: Document) -> np.ndarray:
        """Document to tokens: 1-D int64."""
        return self.tokenizer.encode(_document(document))

    def decode(self, tokens: Sequence[int] | np.ndarray) -> Document:
        """Tokens to a document. Raises ValueError on unknown ids and broken images."""
        return self.tokenizer.decode(tokens)

    @takes_settings
    def stream(
        self,
        document: Document,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        grammar: Rules | None = None,
        modality: ModalityChoice | None = None,
        prefix: Sequence[int] = (),
        progress: Callable[[ReplyProgress], object] | None = None,
        **changes: Unpack[Changes],
    ) -> Iterator[Piece]:
        """The model's reply as it comes: text, partial pictures, and last a `StopPiece` with the reason.

        `settings` are the lab's own unless given, and `changes` are made to them (see `Settings.changed`):
        `lab.stream(document, temperature=0.9, image_top_k=100)`. `grammar` says what may be written (text and images),
        or `modality` in a word: "words" or a "picture" alone, "interleaved" words and pictures, "free" for whatever
        comes. The reply begins with the tokens of `prefix`, as if the model had written them: an image may be under way
        there. `progress` is called after each new token. Close the iterator to stop. Raises ValueError for an empty
        document and for one that is too long for the model's context, for a prefix that no reply can begin with, and
        for a modality beside a grammar.
        """
        request = self._request(document, seed, settings, grammar, modality, changes)
        return self.engine.stream(*request, prefix, progress)

    @takes_settings
    def generate(
        self,
        document: Document,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        grammar: Rules | None = None,
        modality: ModalityChoice | None = None,
        prefix: Sequence[int] = (),
        **changes: Unpack[Changes],
    ) -> Document:
        """The whole reply: what `stream` gives for the same seed, as a document."""
        document, settings, seed, grammar = self._request(document, seed, settings, grammar, modality, changes)
        return self.engine.generate([document], settings, [seed], grammar, prefix)[0]

    @takes_settings
    def candidates(
        self,
        document: Document,
        count: int,
        *,
        scorer: Scorer,
        mixture: Sequence[Settings] = (),
        seed: int = 0,
        settings: Settings | None = None,
        grammar: Rules | None = None,
        modality: ModalityChoice | None = None,
        **changes: Unpack[Changes],
    ) -> list[Candidate]:
        """The best of `count` replies first, as `scorer` ranks them: it gets the document with a reply behind it.

        They are drawn at once, with a seed each from `seed` on. A `mixture` of several settings deals the replies out
        in turn, so that of two each draws half; `changes` are made to each. Raises what `generate` raises, and
        ValueError for no reply, a mixture of more settings than replies, and a score that is no number.
        """
        require(scorer, "a scorer", "__call__")
        require_count(count, "candidates", max(1, len(mixture)))
        candidates: list[Candidate] = []
        for place, each in enumerate(mixture or [settings]):
            request, chosen, first, rules = self._request(document, seed + place, each, grammar, modality, changes)
            seeds = range(first, seed + count, max(1, len(mixture)))
            replies = self.engine.generate([request] * len(seeds), chosen, seeds, rules)
            pairs = zip(replies, seeds, strict=True)
            candidates += [
                Candidate(reply, score_of(scorer, Document((*document, *reply))), chosen, own) for reply, own in pairs
            ]
        return ranked(sorted(candidates, key=lambda each: each.seed))

    @takes_settings
    def begin(
        self,
        document: Document,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        grammar: Rules | None = None,
        modality: ModalityChoice | None = None,
        prefix: Sequence[int] = (),
        **changes: Unpack[Changes],
    ) -> Session:
        """The same reply as a session, which can be left after any piece, continued, and appended to: nothing that it
        has computed is computed again."""
        return self.engine.begin(*self._request(document, seed, settings, grammar, modality, changes), prefix)

    @takes_settings
    def infill(
        self,
        document: Document,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        **changes: Unpack[Changes],
    ) -> Document:
        """The document with its blanks filled: each `Blank()` by words, and the masked cells of each `Image` by codes.

        ```python
        lab = Chameleon.load("infilling")
        lab.infill(Document.of("a large red ", Blank(), " on a mint background", picture))
        lab.infill(Document.of(caption, Image(picture, mask=rectangle((2, 6), (2, 6)))), seed=7)
        ```

        Words beside a blank become one text with its filling. Raises ValueError for a document without blanks, with a
        mask of another grid, or too long for the model's context with its fillings, and for a vocabulary with too few
        sentinels.
        """
        return self.engine.infill([document], self._infill_settings(document, settings, changes), [seed])[0]

    @takes_settings
    def stream_infill(
        self,
        document: Document,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        **changes: Unpack[Changes],
    ) -> Iterator[FilledSegment]:
        """What `infill` fills as it comes: a blank's words with each token, an image with each run of its cells."""
        return self.engine.stream_infill(document, self._infill_settings(document, settings, changes), seed)

    def _infill_settings(self, document: Document, settings: Settings | None, changes: Changes) -> Settings:
        """The settings with their changes. Raises LicenceError, which is a ValueError, for masked images where the
        weights' licence forbids them to draw."""
        masked = any(isinstance(part, Image) and part.mask is not None for part in _document(document))
        if masked and provenance.forbids_drawing(self.card) and not self.acknowledge_licence:
            raise provenance.licence_refusal(self.card)
        if provenance.never_filled(self.card) and not self._guesses:
            self._guesses = True
            log.warning(
                "This model was trained on whole documents alone (infill 0 in its card): it fills blanks with guesses. "
                "One that has learned to fill them is Chameleon.load('infilling')."
            )
        return (settings or self.settings).changed(**changes)

    def score(self, document: Document, *, given: Document | None = None, grammar: Rules | None = None) -> TokenScores:
        """How likely the model holds a document, token by token and by modality, after `given` (nothing: on its own).

        With a grammar, tokens compete only with those it allows. `lab.engine.score` takes several documents at once.
        Raises ValueError for a document beyond the model's context.
        """
        return self.engine.score([_document(document)], given and _document(given), grammar)[0]

    def inspect(
        self,
        document: Document | Session,
        *,
        guidance: float | Guidance | None = None,
        changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> Inspection:
        """What the model saw and thought at every token of a document, or of a session as far as it is written.

        `changes` are functions of submodules' outputs by name, under which it is looked at (`taps.change`); `guidance`
        is what pictures were drawn with, by default the session's, or that of `settings`, which branches are drawn with
        too. Raises ValueError for a
        document beyond the model's context.
        """
        tokens = document.tokens if isinstance(document, Session) else self.encode(document)
        settings = document.settings if isinstance(document, Session) else self.settings
        settings, images = settings.changed(guidance=guidance), self.engine.images
        return Inspection(
            self.model, self.tokenizer, tokens,
            guide=settings.guide, changes=changes, settings=settings, images=images,
        )  # fmt: skip

    @takes_settings
    def walk(
        self,
        document: Document,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        grammar: Rules | None = None,
        **changes: Unpack[Changes],
    ) -> Walk:
        """The same reply as `stream` writes, a token at a time, with all that decides each of them laid open."""
        document, settings, seed, grammar = self._request(document, seed, settings, grammar, None, changes)
        rules, chosen = grammar or self.engine.default_grammar(), settings
        return Walk(
            *(self.model, self.tokenizer, document, settings, rules, seed),
            encode=lambda each: self.encode(self.recent(each, chosen)),
        )

    def _request(
        self,
        document: Document,
        seed: int,
        settings: Settings | None,
        grammar: Rules | None,
        modality: str | None,
        changes: Changes,
    ) -> tuple[Document, Settings, int, Rules | None]:
        """What the engine is asked for: the latest turns, the settings with their changes, and the grammar, which is
        looked at where the weights' licence forbids images; without a grammar the engine draws none.

        Raises LicenceError, which is a ValueError, for a grammar with images unless the licence is acknowledged.
        """
        if settings is not None and not isinstance(settings, Settings):
            raise TypeError(f"settings are Settings(...), not {settings!r}; single ones are given by their names.")
        if modality is not None:
            if modality not in MODALITY_SWITCHES or grammar is not None:
                beside = " beside a grammar" if modality in MODALITY_SWITCHES else ""
                raise ValueError(
                    f"modality is one of {', '.join(MODALITY_SWITCHES)} without a grammar, not {modality!r}{beside}."
                )
            grammar = self.engine.grammar_of(MODALITY_SWITCHES[modality]) if modality != "free" else None
        if grammar is not None:
            require(grammar, "a grammar", "start", "allowed", "advance", "share", "images")
        settings = (settings or self.settings).changed(**changes)
        _check_words(_document(document))
        document = self.recent(document, settings)
        if grammar is not None and grammar.images and not self.tokenizer.can_draw:
            self.tokenizer.image.require_decoder()  # at once, not where the first picture begins
        if provenance.forbids_drawing(self.card) and (grammar is None or grammar.images):
            if grammar is not None and not self.acknowledge_licence:
                raise provenance.licence_refusal(self.card)
            if not self._warned:
                self._warned = True
                provenance.warn(self.card, self.acknowledge_licence)
        return document, settings, seed, grammar

    def recent(self, document: Document, settings: Settings | None = None) -> Document:
        """What of a conversation the model is given: all of it, or, past `settings.window` tokens, its latest turns.

        The user's turn and the model's go together, oldest first; the last turn always stays. Raises ValueError for a
        document without any text or picture.
        """
        if not any(isinstance(part, Image) or getattr(part, "text", "").strip() for part in _document(document)):
            raise ValueError("The prompt is empty: write some text or add a picture.")
        sizes = [self.tokenizer.length(part) for part in document]
        ends = [place + 1 for place, part in enumerate(document) if isinstance(part, EndTurn)]
        return Document(document.segments[latest_turns(sizes, ends, (settings or self.settings).window) :])


def load_image_tokenizer(
    folder: Path | str,
    *,
    layout: str | None = None,
    tokenizer: Path | str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    quantizers: Iterable[QuantizerClass] = (),
) -> ImageTokenizer:
    """An image tokenizer alone: a shipped model's by name, the lab's own folders', Meta's, Hugging Face's, or one that
    taming-transformers, latent-diffusion or LlamaGen published (the folder, or a file of it).

    `layout` and `tokenizer` say of a model's folder what `Chameleon.load` is told; `quantizers` are classes of your own
    that it was trained with. Raises what `Chameleon.load` raises.
    """
    path, options = snapshot(find(folder)), ReadOptions((), tuple(quantizers), None, dtype, _device(device))
    if layout is not None or tokenizer is not None:
        image = formats.read_image_tokenizer(formats.detect(path, layout, tokenizer).tokenizers, options)
        if image is None:
            raise ValueError(f"Neither {path} nor {tokenizer or 'what lies around it'} holds an image tokenizer.")
        return image
    if native.is_native(path):
        return native.read_native_images(path, quantizers, dtype=dtype, device=options.device)
    if (image := formats.read_image_tokenizer([path], options)) is not None:
        return image
    if (path / "config.json").is_file():
        return huggingface.read_port_images(path, dtype=dtype, device=options.device)
    if (image := formats.read_image_tokenizer(formats.detect(path).tokenizers, options)) is None:
        raise ValueError(f"{path} holds no image tokenizer: vqgan.ckpt and vqgan.yaml lie neither there nor beside it.")
    return image


def find(folder: Path | str) -> Path:
    """The folder of a shipped model, by its name; of any other, the one that was given."""
    if isinstance(folder, str) and "/" not in folder and not Path(folder).exists():
        for shelf in SHIPPED:
            if (shelf / folder / "config.json").is_file():
                return shelf / folder
    path = home(folder)
    recover(path.absolute())
    return path


def _document(document: Document) -> Document:
    """The document, if it is one. Raises TypeError, showing how to make one, if not."""
    if not isinstance(document, Document):
        first = document[0] if isinstance(document, list | tuple) and document else document
        others = isinstance(first, Mapping)
        whose = "from_messages" if others and "role" in first else "from_segments"
        how = f"Document.{whose}(...)" if others else "Document.of('hello', EndTurn())"
        raise TypeError(f"A prompt is a Document, not a {type(document).__name__}: {how}.")
    return document


_PICTURE_PATH = re.compile(r"\S.*\.(png|jpe?g|jfif|webp|gif|bmp|tiff?|avif)", re.IGNORECASE)


_PICTURE_WORD = re.compile(r"<\|?image(_pad|_\d{1,3})?\|?>")
"""Words that stand for a picture in prompts to other programs: LLaVA's `<image>`, Lumina-mGPT's `<|image|>`, ..."""


_ADDRESS = re.compile(r"https?://\S+$")


def _check_words(document: Document) -> None:
    """Raises ValueError for other programs' ways to put a picture into a text, which a model would read as words."""
    for part in document:
        words = part.text.strip().strip("'\"") if isinstance(part, Text) else ""
        if placeholder := _PICTURE_WORD.search(words):
            whose = "transformers'" if placeholder[0] == "<image>" else "another program's"
            raise ValueError(
                f"The text holds {placeholder[0]!r}, which is {whose} word for a picture and only a word here: put the "
                "picture itself in its place, Document.of('see ', picture, ' and tell', EndTurn())."
            )
        if words.startswith("data:image/") or (_PICTURE_PATH.fullmatch(words) and _ADDRESS.match(words)):
            raise ValueError(
                f"The text is the address of a picture, {words[:60]!r}, and only words to a model, which fetches "
                "nothing: put the picture itself in its place, Document.of(open_picture(path), ...)."
            )
        if len(words) < 1000 and _PICTURE_PATH.fullmatch(words) and home(words.removeprefix("file:")).is_file():
            raise ValueError(
                f"The text is the path of a picture, {words!r}, and only words to a model: open it, "
                f"Document.of(open_picture({words!r}), ...) with open_picture from chameleon_lab.pictures."
            )


def _device(name: torch.device | str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = "cuda and cpu" if torch.cuda.is_available() else "cpu"
        raise ValueError(f"There is no device {str(name)!r} on this machine; use {there}.") from error
    return device
