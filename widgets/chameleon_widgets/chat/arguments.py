"""What a stream can be asked with: its arguments, which of them a chat cell offers, and what is passed with a reply."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"label": "Temperature", "min": 0.0, "max": 2.0, "step": 0.05, "hint": "0 takes the likeliest"},
    "image_temperature": {
        "label": "Temperature, pictures",
        "min": 0.0,
        "max": 2.0,
        "step": 0.05,
        "hint": "0 takes the likeliest",
    },
    "top_p": {"label": "Top-p", "min": 0.05, "max": 1.0, "step": 0.05, "hint": "share of probability kept"},
    "guidance": {"label": "Guidance", "min": 1.0, "max": 10.0, "step": 0.25, "hint": "pull of the words on a picture"},
}
"""The settings that have a slider. `own`, where it is known, is the value that the stream uses by itself."""

MODALITY_LABELS = {
    "free": "Free",
    "words": "Words only",
    "picture": "A picture only",
    "interleaved": "Words and pictures",
}
"""What a reply may hold, as a stream names it in `modality`, and as a person reads it."""

LARGEST_SEED = 2**31


class StreamArguments:
    """The arguments of one stream.

    `settings` can be changed in the cell: a value, or None for the stream's own. `ranges` are limits and own values of
    those that have a slider. All numbers that the stream has as defaults are passed by name, so that what is kept with
    a reply is what made it. A setting is offered when the stream takes an argument of its name and a number is its
    default, or nothing. Raises ValueError naming a default that the stream cannot take.
    """

    def __init__(self, stream: Callable[..., object], defaults: Mapping[str, Any]) -> None:
        self.names, self.open_ended = arguments_of(stream)
        if strange := [name for name in defaults if not self.takes(name)]:
            names = ", ".join(self.names) or "no settings"
            raise ValueError(f"The stream does not take {', '.join(strange)}; it takes {names}.")
        self.settings: dict[str, Any] = {}
        for name in (*SETTINGS, "seed"):
            value = defaults.get(name)
            own = None if name == "seed" else self.names.get(name)
            if self.takes(name) and all(each is None or _is_number(each) for each in (value, own)):
                self.settings[name] = value
        if "modality" in self.names:
            self.settings["modality"] = defaults.get("modality")
        self._fixed = {name: value for name, value in self.names.items() if _is_number(value) and name != "seed"}
        self._fixed |= {name: value for name, value in defaults.items() if name not in self.settings}
        self.ranges = {name: dict(SETTINGS[name]) for name in self.settings if name in SETTINGS}
        if "image_temperature" in self.ranges and "temperature" in self.ranges:
            self.ranges["temperature"]["label"] = "Temperature, words"
        for name, limits in self.ranges.items():
            limits["own"] = self._fixed.get(name)
            for value in (self.settings[name], limits["own"]):
                if value is not None:
                    limits["min"], limits["max"] = min(limits["min"], value), max(limits["max"], value)

    def takes(self, name: str) -> bool:
        """Whether the stream takes an argument of this name."""
        return name in self.names or self.open_ended

    @property
    def resumes(self) -> bool:
        """Whether a reply can be continued: the stream tells its tokens, and takes some to begin with."""
        return {"prefix", "progress"} <= set(self.names)

    def keywords(self, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """All that is passed with a reply. Raises ValueError for a setting that is none, or of a wrong kind."""
        keywords = dict(self._fixed)
        for name, value in settings.items():
            if name not in self.settings:
                raise ValueError(f"There is no setting {str(name)[:40]!r}; there are {', '.join(self.settings)}.")
            if value is None:
                continue
            if name == "modality":
                if not isinstance(value, str) or value not in MODALITY_LABELS:
                    raise ValueError(f"modality is one of {', '.join(MODALITY_LABELS)}, not {str(value)[:40]!r}.")
            elif not _is_number(value) or (name == "seed" and not 0 <= int(value) < LARGEST_SEED):
                limits = f" of 0 to {LARGEST_SEED - 1}" if name == "seed" else ""
                raise ValueError(f"{name} is a number{limits}, not {str(value)[:40]!r}.")
            keywords[name] = int(value) if name == "seed" else value
        if "seed" in self.settings:
            keywords.setdefault("seed", seed)
        return keywords


def arguments_of(function: Callable[..., object]) -> tuple[dict[str, Any], bool]:
    """Names that can be passed by keyword after the first argument, with their defaults; whether any name will do."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some callables written in C tell nothing
        return {}, True
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = {
        each.name: None if each.default is inspect.Parameter.empty else each.default
        for index, each in enumerate(parameters)
        if each.kind in named and (index or each.kind is inspect.Parameter.KEYWORD_ONLY)
    }
    return takes, any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
