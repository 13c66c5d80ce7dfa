"""`Settings`: how to sample, as one value that is shown, changed and saved with a model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from chameleon_lab.documents import Document
from chameleon_lab.generation import guidance as known
from chameleon_lab.generation.guidance import Guidance, TwoWay
from chameleon_lab.generation.samplers import Sampler


@dataclass(frozen=True)
class Settings:
    """How to sample: text and images each with a `Sampler`, and how strongly images follow the words.

    What begins with `image_` is for images; None there is "as for text". `guidance` is a number (`TwoWay`; 1 is not at
    all guided) or any `Guidance`. `repetition` is about the words of the reply: image tokens and the prompt are spared.
    `max_tokens` bounds the reply; None lets it fill the model's context. `window` is how many tokens of a conversation
    the model is given: older turns are left out (None: none are).
    """

    temperature: float = 0.7
    image_temperature: float = 0.7
    top_p: float = 0.95
    guidance: float | Guidance = 1.0
    max_tokens: int | None = None
    window: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition: float = 1.0
    image_top_p: float | None = None
    image_top_k: int | None = None
    image_min_p: float | None = None

    def __post_init__(self) -> None:
        guides = isinstance(self.guidance, int | float) or callable(getattr(self.guidance, "mix", None))
        if isinstance(self.guidance, type) or not guides:  # a class, too, has its methods
            raise TypeError(
                "guidance is a number, or an object such as ThreeWay() or TwoWay(3.0, without=Negative(document)), not "
                f"{self.guidance!r}."
            )
        _ = self.text_sampler, self.image_sampler, self.guide
        if self.max_tokens is not None and (self.max_tokens < 1 or self.max_tokens != int(self.max_tokens)):
            raise ValueError(f"max_tokens must be a whole number, 1 or more, not {self.max_tokens}.")

    @property
    def text_sampler(self) -> Sampler:
        return Sampler(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition)

    @property
    def image_sampler(self) -> Sampler:
        return Sampler(
            self.image_temperature,
            self.top_p if self.image_top_p is None else self.image_top_p,
            self.top_k if self.image_top_k is None else self.image_top_k,
            self.min_p if self.image_min_p is None else self.image_min_p,
        )

    @property
    def guide(self) -> Guidance | None:
        """The guidance, or None where there is none."""
        if not isinstance(self.guidance, int | float):
            return self.guidance
        guide = TwoWay(self.guidance)
        return None if self.guidance == 1 else guide

    def changed(
        self,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        guidance: float | Guidance | None = None,
        max_tokens: int | None = None,
    ) -> Settings:
        """These settings with what is given replaced; `temperature` and `top_p` are set for both modalities.

        For the rest, `dataclasses.replace(settings, image_top_k=2000)`.
        """
        both = {} if temperature is None else {"temperature": temperature, "image_temperature": temperature}
        both |= {} if top_p is None else {"top_p": top_p, "image_top_p": None}
        rest = {"guidance": guidance, "max_tokens": max_tokens}
        return replace(self, **both, **{name: value for name, value in rest.items() if value is not None})

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON. Raises ValueError on a guidance of your own, which nobody could read back."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Settings:
        """The settings that `to_plain` wrote. Raises ValueError on what it cannot have written."""
        return cls(**{name: _unplain(value) for name, value in plain.items()})


KNOWN: dict[str, Any] = {
    each.__name__: each
    for each in (
        *(known.TwoWay, known.ThreeWay, known.Linear, known.Between, known.Negative),
        *(known.without_words, known.image_alone, known.from_begin_image, known.masked_words),
    )
}
"""Classes and functions that saved settings may name."""


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Document):
        return {"document": value.to_json()}
    if (name := getattr(value, "__name__", None)) and KNOWN.get(name) is value:
        return {"is": name}
    if KNOWN.get(type(value).__name__) is not type(value):
        raise ValueError(
            f"{value!r} is not the lab's own, so no saved settings can name it: pass it to stream and generate "
            f"instead. The lab's are {', '.join(KNOWN)}."
        )
    return {"is": type(value).__name__} | {each.name: _plain(getattr(value, each.name)) for each in fields(value)}


def _unplain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "document" in value and "is" not in value:
        return Document.from_json(value["document"])
    if (name := value.get("is")) not in KNOWN:
        raise ValueError(f"Saved settings name {name!r}, which this lab does not know; it knows {', '.join(KNOWN)}.")
    found = KNOWN[name]
    rest = {key: _unplain(inner) for key, inner in value.items() if key != "is"}
    return found(**rest) if isinstance(found, type) else found
