"""`Settings`: how to sample, as one value that is shown, changed and saved with a model."""

from __future__ import annotations

import ast
import functools
import inspect
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, TypedDict, TypeVar, Unpack, cast

from chameleon_lab.documents import Document
from chameleon_lab.generation import guidance as guides
from chameleon_lab.generation.guidance import Guidance, TwoWay
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.parts import plain_number


@dataclass(frozen=True)
class Settings:
    """How to sample: text and images each with a `Sampler`, and how strongly images follow the words.

    What begins with `image_` is for images; None there is "as for text". The words beside each
    field are the help of its option on the command line. `guidance` is a number (`TwoWay`) or any `Guidance`.
    """

    temperature: Annotated[float, "0 takes the likeliest token"] = 0.7
    image_temperature: Annotated[float, "the temperature of images alone"] = 0.7
    top_p: Annotated[float, "keep the likeliest tokens that sum to this share"] = 0.95
    guidance: Annotated[float | Guidance, "how strongly pictures follow the words; 1 is not at all guided"] = 1.0
    max_tokens: Annotated[int | None, "most tokens of the reply; otherwise the model's context is the limit"] = None
    window: Annotated[int | None, "tokens of a conversation that the model is given; older turns are left out"] = None
    top_k: Annotated[int, "keep so many of the likeliest tokens; 0 keeps all"] = 0
    min_p: Annotated[float, "keep tokens at least this share as likely as the likeliest"] = 0.0
    repetition: Annotated[float, "penalty on words already in the reply; 1 is none, and image tokens are spared"] = 1.0
    image_top_p: Annotated[float | None, "top-p of images alone"] = None
    image_top_k: Annotated[int | None, "top-k of images alone"] = None
    image_min_p: Annotated[float | None, "min-p of images alone"] = None
    text_guidance: Annotated[float | Guidance, "how strongly words follow what is asked and shown; 1 is unguided"] = 1.0
    drafts: Annotated[int, "codes of a picture that are drafted, and checked in one pass with the next; 0 is none"] = 0

    def __post_init__(self) -> None:
        for name in GUIDANCE_SETTINGS:
            guidance = getattr(self, name)
            mixes = isinstance(guidance, numbers.Real) or callable(getattr(guidance, "mix", None))
            if isinstance(guidance, type) or not mixes:  # a class, too, has its methods
                raise TypeError(
                    f"{name} is a number, or an object such as ThreeWay() or TwoWay(3.0, without=Negative(document)), "
                    f"not {guidance!r}."
                )
        for each in fields(self):
            if each.name in GUIDANCE_SETTINGS and not isinstance(getattr(self, each.name), numbers.Real):
                continue
            value, whole = getattr(self, each.name), each.name.endswith(("top_k", "max_tokens", "window", "drafts"))
            if value is not None or each.default is not None:
                object.__setattr__(self, each.name, plain_number(value, each.name, whole))
        _ = self.text_sampler, self.image_sampler, self.guide, self.text_guide
        if self.drafts < 0:
            raise ValueError(f"drafts must be a whole number, 0 (none) or more, not {self.drafts}.")
        for name, value in (("max_tokens", self.max_tokens), ("window", self.window)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a whole number, 1 or more, not {value}.")

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
        """The guidance of images, or None where there is none."""
        if not isinstance(self.guidance, int | float):
            return self.guidance
        guide = TwoWay(self.guidance)
        return None if self.guidance == 1 else guide

    @property
    def text_guide(self) -> Guidance | None:
        """The guidance of words, or None where there is none; a number leads away from what nobody asked for."""
        if not isinstance(self.text_guidance, int | float):
            return self.text_guidance
        guide = TwoWay(self.text_guidance, guides.turn_alone)
        return None if self.text_guidance == 1 else guide

    def changed(self, **changes: Unpack[Changes]) -> Settings:
        """These settings with the given fields replaced; None leaves a field as it is.

        `temperature`, `top_p`, `top_k` and `min_p` are set for both modalities, unless what is for images is given
        beside them. To set a field back to None, use `dataclasses.replace`. Raises TypeError, naming the fields, for a
        name that is none of them.
        """
        if strange := [name for name in changes if name not in SETTING_NAMES]:
            raise TypeError(f"No setting is called {', '.join(strange)}; there are {', '.join(SETTING_NAMES)}.")
        chosen: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        images: dict[str, Any] = {f"image_{name}": None for name in ("top_p", "top_k", "min_p") if name in chosen}
        if "temperature" in chosen:
            images["image_temperature"] = chosen["temperature"]
        return replace(self, **(images | chosen))

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON. Raises ValueError on a guidance of your own, which nobody could read back.

        `LATER` settings at their defaults are left out, so that files say what they said before there were these.
        """
        values = {each.name: (getattr(self, each.name), each.default) for each in fields(self)}
        return {
            name: _plain_setting(value)
            for name, (value, default) in values.items()
            if name not in LATER or value != default
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Settings:
        """The settings that `to_plain` wrote. Raises ValueError on what it cannot have written."""
        if not isinstance(plain, dict) or not set(plain) <= set(SETTING_NAMES):
            raise ValueError(f"Saved settings are {', '.join(SETTING_NAMES)}, by name, not {plain!r}.")
        try:
            return cls(**{name: _setting_of(value) for name, value in plain.items()})
        except TypeError as error:
            raise ValueError(f"These are no saved settings: {error}") from error


GUIDANCE_SETTINGS = ("guidance", "text_guidance")
"""The settings that are a number or a `Guidance`."""

LATER = ("text_guidance", "drafts")
"""Settings that are saved only where they are not at their defaults."""

SETTING_NAMES = tuple(each.name for each in fields(Settings))
"""The names of all settings."""


class Changes(TypedDict, total=False):
    """Settings by name, as keyword arguments: what `Settings.changed` takes."""

    temperature: float | None
    image_temperature: float | None
    top_p: float | None
    guidance: float | Guidance | None
    max_tokens: int | None
    window: int | None
    top_k: int | None
    min_p: float | None
    repetition: float | None
    image_top_p: float | None
    image_top_k: int | None
    image_min_p: float | None
    text_guidance: float | Guidance | None
    drafts: int | None


Function = TypeVar("Function", bound=Callable[..., Any])


def takes_settings(function: Function) -> Function:
    """Spells out, in a method's signature, the settings that its `**changes` take: help and notebooks show them, and a
    chat cell sees which ones it may offer. The method of an object shows the values that the object's `settings` have,
    None for those that are not set."""
    signature = inspect.signature(function)
    setattr(function, "__signature__", _spelled(signature, None))  # noqa: B010
    return cast(Function, _SettingsMethod(function, signature))


def _spelled(signature: inspect.Signature, settings: Settings | None) -> inspect.Signature:
    named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    spelled = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=getattr(settings, name, None), annotation=annotation
        )
        for name, annotation in Changes.__annotations__.items()
    ]
    return signature.replace(parameters=[*named, *spelled])


class _SettingsMethod:
    """A method whose signature depends on the object that it is a method of."""

    def __init__(self, function: Callable[..., Any], signature: inspect.Signature) -> None:
        self._function, self._signature = function, signature

    def __get__(self, owner: Any, kind: type | None = None) -> Callable[..., Any]:
        if owner is None:
            return self._function
        function = self._function

        @functools.wraps(function)
        def method(*arguments: Any, **keywords: Any) -> Any:
            return function(owner, *arguments, **keywords)

        _, *rest = self._signature.parameters.values()
        method.__signature__ = _spelled(self._signature.replace(parameters=rest), owner.settings)  # type: ignore[attr-defined]
        return method


NAMEABLE: dict[str, Any] = {
    each.__name__: each
    for each in (
        *(guides.TwoWay, guides.ThreeWay, guides.Contrastive, guides.Linear, guides.Between, guides.Negative),
        *(guides.without_words, guides.image_alone, guides.from_begin_image, guides.masked_words),
        *(guides.turn_alone, guides.without_images),
    )
}
"""Classes and functions that saved settings may name."""


def _plain_setting(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Document):
        return {"document": value.to_json()}
    if (name := getattr(value, "__name__", None)) and NAMEABLE.get(name) is value:
        return {"is": name}
    if NAMEABLE.get(type(value).__name__) is not type(value):
        raise ValueError(
            f"{value!r} is not the lab's own, so no saved settings can name it: pass it to stream and generate "
            f"instead. The lab's are {', '.join(NAMEABLE)}."
        )
    return {"is": type(value).__name__} | {
        each.name: _plain_setting(getattr(value, each.name)) for each in fields(value)
    }


def _setting_of(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    if "document" in plain and "is" not in plain:
        return Document.from_json(plain["document"])
    name = plain.get("is")
    if not isinstance(name, str) or name not in NAMEABLE:
        raise ValueError(f"Saved settings name {name!r}, which this lab does not know; it knows {', '.join(NAMEABLE)}.")
    named = NAMEABLE[name]
    rest = {key: _setting_of(inner) for key, inner in plain.items() if key != "is"}
    return named(**rest) if isinstance(named, type) else named


def parse_guidance(words: str) -> float | Guidance:
    """A guidance as a command line has it: a number, or one of the lab's own as it is written in Python.

    `"3"`, `"Contrastive"`, `"Contrastive(alpha=0.1, k=8)"`, `"TwoWay(Linear(4, 1), without=masked_words)"`. Nothing
    is executed. Raises ValueError for anything else, naming what there is.
    """
    try:
        try:
            guidance: Any = float(words)
        except ValueError:
            guidance = _named_in(ast.parse(words.strip(), mode="eval").body)
        return Settings(guidance=guidance() if isinstance(guidance, type) else guidance).guidance
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"No guidance is written {words[:80]!r}: {error}") from error


def _named_in(node: ast.expr) -> Any:
    """What a piece of such an expression stands for: a number, a word, or what `NAMEABLE` has."""
    match node:
        case ast.Constant(value=int() | float() | str() | bool() as value):
            return Document.of(value) if isinstance(value, str) else value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=name) if name in NAMEABLE:
            return NAMEABLE[name]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if isinstance(NAMEABLE.get(name), type):
            named = {str(keyword.arg): _named_in(keyword.value) for keyword in keywords}
            return NAMEABLE[name](*map(_named_in, args), **named)
    raise ValueError(
        f"No guidance holds {ast.unparse(node)[:80]!r}: write a number, or {', '.join(NAMEABLE)} with numbers, and "
        "words in quotes for a negative prompt."
    )


def latest_turns(sizes: Sequence[int], ends: Sequence[int], window: int | None) -> int:
    """With which part of a conversation its latest turns begin: of `sizes` tokens a part, no more than `window`.

    `ends` are the places behind each end of turn. The user's turn and the model's go together, oldest first; the last
    turn always stays. Without a window all stay.
    """
    starts = [0, *(end for end in ends[1::2] if end < len(sizes))]
    most = window or sum(sizes)
    return next((start for start in starts if sum(sizes[start:]) <= most), starts[-1])
