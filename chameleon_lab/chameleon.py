"""`Chameleon`: a model, its tokenizer and its vocabulary as the one object that notebooks hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chameleon_lab.checkpoints import huggingface, native
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.generation.engine import Engine, Settings
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.records import Piece
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Vocabulary

HERE = Path(__file__).parent
SHIPPED = (HERE.parent / "data", HERE / "data")
"""Where shipped models lie: in a source checkout, and in an installed wheel."""


class Chameleon:
    """A mixed-modal model ready to use.

    ```python
    lab = Chameleon.load("tiny")
    reply = lab.generate(Document.of("draw a red circle", EndTurn()), seed=7)
    ```

    `settings` are the defaults of `stream` and `generate`; `card` is what is known of the weights.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: MixedModalTokenizer,
        settings: Settings | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        if model.config.vocabulary != tokenizer.vocabulary.size:
            raise ValueError(
                f"The model knows {model.config.vocabulary} tokens and the tokenizer {tokenizer.vocabulary.size}: "
                "they do not belong together."
            )
        self.model, self.tokenizer = model, tokenizer
        self.settings, self.card = settings or Settings(), card or {}
        self.engine = Engine(model, tokenizer)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        fixes: Iterable[type] = (),
        quantizers: Iterable[native.QuantizerClass] = (),
    ) -> Chameleon:
        """A model from a folder, or a shipped one by name ("tiny").

        `device` is a GPU where there is one, otherwise the CPU. `fixes` and `quantizers` are classes of your own
        that the model was trained with. Raises FileNotFoundError for what is no model folder, ValueError for a damaged
        one or a device that is not there.
        """
        target = _device(device)
        parts = native.read(_find(folder), fixes, quantizers)
        parts.model.to(target, dtype)
        parts.tokenizer.image.to(target, dtype)
        return cls(parts.model, parts.tokenizer, parts.settings, parts.card)

    def save(self, folder: Path | str) -> None:
        """Writes the model, in its present dtype, to a folder that `load` reads."""
        native.write(native.Parts(self.model, self.tokenizer, self.settings, self.card), folder)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    def encode(self, document: Document) -> np.ndarray:
        """Document to tokens: 1-D int64."""
        return self.tokenizer.encode(document)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> Document:
        """Tokens to a document. Raises ValueError on unknown ids and broken images."""
        return self.tokenizer.decode(tokens)

    def stream(
        self,
        document: Document,
        *,
        seed: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        max_tokens: int | None = None,
        grammar: Grammar | None = None,
    ) -> Iterator[Piece]:
        """The model's reply as it comes: text, partial pictures, and last a `StopPiece` with the reason.

        What is not given is taken from `settings`. Close the iterator to stop. Raises ValueError for an empty document
        and for one that is too long for the model's context.
        """
        settings = self.settings.changed(temperature=temperature, top_p=top_p, guidance=guidance, max_tokens=max_tokens)
        return self.engine.stream(self.recent(document), settings, seed, grammar)

    def generate(
        self,
        document: Document,
        *,
        seed: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        max_tokens: int | None = None,
        grammar: Grammar | None = None,
    ) -> Document:
        """The whole reply: what `stream` gives for the same seed, as a document."""
        settings = self.settings.changed(temperature=temperature, top_p=top_p, guidance=guidance, max_tokens=max_tokens)
        return self.engine.generate([self.recent(document)], settings, [seed], grammar)[0]

    def recent(self, document: Document) -> Document:
        """What of a conversation the model is given: all of it, or, past `settings.window` tokens, its latest turns.

        The user's turn and the model's go together, oldest first; the last turn always stays. Raises ValueError for a
        document without any text or picture.
        """
        if not isinstance(document, Document):
            raise TypeError(
                f"A prompt is a Document, not a {type(document).__name__}: Document.of('hello', EndTurn())."
            )
        if not any(isinstance(part, Image) or getattr(part, "text", "").strip() for part in document):
            raise ValueError("The prompt is empty: write some text or add a picture.")
        sizes = [self.tokenizer.length(part) for part in document]
        ends = [place + 1 for place, part in enumerate(document) if isinstance(part, EndTurn)]
        starts = [0, *(end for end in ends[1::2] if end < len(document))]
        window = self.settings.window or sum(sizes)
        start = next((start for start in starts if sum(sizes[start:]) <= window), starts[-1])
        return Document(document.segments[start:])


def load_image_tokenizer(
    folder: Path | str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    quantizers: Iterable[native.QuantizerClass] = (),
) -> ImageTokenizer:
    """An image tokenizer alone: a shipped model's by name, the lab's own folders', or Hugging Face's.

    `quantizers` are classes of your own that it was trained with. Raises what `Chameleon.load` raises.
    """
    path, target = _find(folder), _device(device)
    tokenizer = (
        native.read_image_tokenizer(path, quantizers)
        if native.is_native(path)
        else huggingface.load_image_tokenizer(path)
    )
    return tokenizer.to(target, dtype)


def _find(folder: Path | str) -> Path:
    if isinstance(folder, str) and "/" not in folder and not Path(folder).exists():
        for shelf in SHIPPED:
            if (shelf / folder / "config.json").is_file():
                return shelf / folder
    return Path(folder)


def _device(wanted: torch.device | str | None) -> torch.device:
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = "cuda and cpu" if torch.cuda.is_available() else "cpu"
        raise ValueError(f"There is no device {str(wanted)!r} on this machine; use {there}.") from error
    return device
