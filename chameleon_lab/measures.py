"""Measures: the facts about each watched value, stated once, for alarms, panels, figures and tables.

A name may begin with the part of the data that a value is of: `held_out`, a modality, or both (`held_out_image_loss`).
A measure of your own reads like the one in `MEASURES` that ends its name: `embedding_norm` like `norm`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

SUM = "What is made smaller: the sum of the losses below, as the objective weighs them."
"""What the loss of an image tokenizer is."""

DATA_PARTS = ("held_out", "text", "image", "special")
"""With what a measure's name may begin, where it is of a part of the data."""


@dataclass(frozen=True)
class Measure:
    """A watched value, such as the largest attention logit.

    `words`: its name as a person reads it. `axis`: the one that shows it. `worse`: where trouble lies, and so which
    value stands for several layers, heads or steps (the highest where neither direction is trouble). `per`: the
    smallest thing that has a value of its own. `by_modality`: whether text and image tokens have one each. `of_step`:
    whether the training step itself records it, and no monitor may. `thresholds`: by an alarm's level, the value
    beyond which the default rules sound. `base` and `part`: the name without and only the part of the data.
    `family`: the measures that it is looked at with. `about`: what it is, in a sentence.
    """

    name: str
    words: str = ""
    unit: str = ""
    axis: Literal["linear", "log"] = "linear"
    worse: Literal["higher", "lower", "neither"] = "higher"
    per: Literal["step", "layer", "head"] = "step"
    by_modality: bool = False
    of_step: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)
    base: str = ""
    part: str = ""
    family: str = "own"
    about: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", self.words or self.name.replace("_", " "))
        object.__setattr__(self, "base", self.base or self.name)

    def worst(self, values: ArrayLike, axis: int | None = None) -> np.ndarray:
        """The worst of values along an axis of theirs, or of all; nan where one of them is."""
        return np.asarray((np.min if self.worse == "lower" else np.max)(np.asarray(values), axis=axis))

    def to_plain(self, thresholds: Mapping[str, float] | None = None) -> dict[str, Any]:
        """What a screen has to know, for JSON. `thresholds`: a run's own, by level, in place of the default ones.

        Measures of one `base` belong on one chart, of that `title`; `part` tells them apart there.
        """
        return {
            "name": self.name,
            "base": self.base,
            "part": self.part,
            "words": self.words,
            "title": self.words if self.name == self.base else measure_of(self.base).words,
            "unit": self.unit,
            "log": self.axis == "log",
            "worse": self.worse,
            "thresholds": threshold_lines(self.thresholds if thresholds is None else thresholds),
            "family": self.family,
            "about": self.about,
        }


MEASURES = {
    each.name: each
    for each in (
        Measure(
            "loss",
            unit="nats a token",
            by_modality=True,
            of_step=True,
            family="loss",
            about="How surprised the model is by the next token: minus the logarithm of what it gave that token.",
        ),
        Measure(
            "max_attention_logit",
            axis="log",
            per="head",
            thresholds={"WARN": 50.0, "ALARM": 50.0, "CRITICAL": 100.0},
            family="attention",
            about="The largest product of a query and a key before the softmax: where it grows, a head sees one token.",
        ),
        Measure(
            "attention_entropy",
            worse="lower",
            per="head",
            thresholds={"ALARM": 0.1, "CRITICAL": 0.1},
            family="attention",
            about="How widely a head looks: 1 is evenly over all tokens, 0 at one of them.",
        ),
        Measure(
            "attention_logit_bound",
            axis="log",
            per="layer",
            family="attention",
            about="What no attention logit is above, by the lengths of queries and keys.",
        ),
        Measure(
            "residual_norm",
            axis="log",
            per="layer",
            family="norms",
            about="Root mean square of the stream between layers.",
        ),
        Measure("output_norm", axis="log", family="norms", about="Root mean square of what enters the final norm."),
        Measure(
            "logit_norm",
            axis="log",
            by_modality=True,
            family="norms",
            about="Root mean square of the logits; where it drifts, one modality may shout the other down.",
        ),
        Measure(
            "log_partition",
            "log-partition",
            "log Z",
            by_modality=True,
            family="norms",
            about="The logarithm of the softmax's sum: far from 0, logits drift without changing a probability.",
        ),
        Measure(
            "entropy",
            unit="nats",
            worse="lower",
            by_modality=True,
            family="loss",
            about="How undecided the model is about the next token.",
        ),
        Measure(
            "gradient_norm",
            axis="log",
            of_step=True,
            family="steps",
            about="Length of the gradient before it is clipped.",
        ),
        Measure(
            "gradient_share",
            worse="neither",
            by_modality=True,
            family="steps",
            about="How much of the gradient's length is a modality's.",
        ),
        Measure(
            "gradient_cosine",
            worse="lower",
            per="layer",
            family="steps",
            about="Whether text and images pull the weights the same way: 1 the same, -1 against each other.",
        ),
        Measure(
            "update_ratio",
            axis="log",
            per="layer",
            family="steps",
            about="How far a step moves the weights, as a share of their size.",
        ),
        Measure("clipped_heads", unit="heads", family="attention", about="Heads whose weights QK-clip made smaller."),
        Measure("rate", axis="log", worse="neither", of_step=True, family="steps", about="The learning rate."),
        Measure(
            "tokens",
            unit="a step",
            worse="neither",
            of_step=True,
            family="steps",
            about="Tokens a step learns from.",
        ),
        Measure(
            "skipped",
            unit="steps",
            of_step=True,
            family="steps",
            about="Steps that changed nothing, since their loss or gradient was no number.",
        ),
        Measure("norm", axis="log", family="norms", about="Length of a vector."),
        # Of trainings with a reward, which learn from what the model itself draws.
        Measure(
            "reward",
            worse="lower",
            of_step=True,
            family="reward",
            about="What the reward gave the step's replies, on average.",
        ),
        Measure(
            "right_share",
            "right",
            "of the replies",
            worse="lower",
            of_step=True,
            family="reward",
            about="Replies whose reward reaches that of a right one.",
        ),
        Measure(
            "reward_spread",
            worse="lower",
            of_step=True,
            family="reward",
            about="Standard deviation of rewards within a group, on average: without any there is nothing to learn.",
        ),
        Measure(
            "silent_groups",
            unit="of the groups",
            of_step=True,
            family="reward",
            about="Groups all of whose replies got the same reward, from which nothing is learned.",
        ),
        Measure(
            "distinct_share",
            "distinct replies",
            "of the replies",
            worse="lower",
            of_step=True,
            family="reward",
            about="Different replies to one prompt, as a share of its group: where it falls, the model repeats itself.",
        ),
        Measure(
            "reply_entropy",
            unit="nats a token",
            worse="lower",
            of_step=True,
            family="reward",
            about="How undecided the model is about the tokens it chose, among those that the grammar allows.",
        ),
        Measure(
            "reply_tokens",
            "length of a reply",
            "tokens",
            worse="neither",
            of_step=True,
            family="reward",
            about="Tokens of a reply, on average.",
        ),
        Measure(
            "kl",
            "KL to the start",
            "nats a token",
            of_step=True,
            family="reward",
            about="How far the model has gone from the one that the training began from (estimator k3).",
        ),
        Measure(
            "clip_fraction",
            unit="of the tokens",
            of_step=True,
            family="reward",
            about="Tokens whose ratio lies beyond the clip and teaches nothing: only inner steps have any.",
        ),
        Measure(
            "policy_loss",
            worse="neither",
            of_step=True,
            family="reward",
            about="What is made smaller: minus ratio times advantage, and the weighed KL. It need not fall.",
        ),
        # Of image tokenizers, whose losses are not nats.
        Measure("pixel_loss", family="loss", about="How far apart the pixels of original and reconstruction are."),
        Measure("perceptual_loss", family="loss", about="How far apart they are in what the eye sees, such as edges."),
        Measure("quantizer_loss", family="loss", about="How far latents lie from the codes that stand for them."),
        Measure(
            "critic_loss",
            worse="neither",
            family="critic",
            about="How badly the critic tells reconstructions from pictures.",
        ),
        Measure(
            "fooling_loss",
            worse="neither",
            family="critic",
            about="How surely the critic sees that reconstructions are none.",
        ),
        Measure(
            "critic_weight", worse="neither", family="critic", about="How strongly the tokenizer follows the critic."
        ),
        Measure(
            "psnr", "PSNR", "dB", worse="lower", family="codebook", about="How close the pixels are to the original's."
        ),
        Measure(
            "usage",
            "codebook usage",
            "of the codes",
            worse="lower",
            family="codebook",
            about="How many of the codes the last hundred batches used.",
        ),
        Measure(
            "perplexity",
            "codebook perplexity",
            "codes",
            worse="lower",
            family="codebook",
            about="As how many codes, used evenly, the codes are worth.",
        ),
        Measure("dead_codes", unit="codes", family="codebook", about="Codes the last hundred batches did not use."),
        # Of text tokenizers.
        Measure("pieces", worse="neither", family="pieces", about="Pieces in the vocabulary."),
        Measure(
            "letters_per_piece",
            worse="lower",
            family="pieces",
            about="Letters of text to a piece: the more, the shorter the sequences.",
        ),
    )
}
"""The lab's measures by name, without their parts of the data."""


@lru_cache(maxsize=4096)
def measure_of(name: str) -> Measure:
    """The measure of that name: the lab's, of the part of the data that the name begins with, or one read like it."""
    base, parts = name, list[str]()
    while prefix := next((each for each in DATA_PARTS if base.startswith(f"{each}_") and base != f"{each}_"), ""):
        parts.append(prefix)
        base = base.removeprefix(f"{prefix}_")
    words = base.split("_")
    endings = ("_".join(words[at:]) for at in range(len(words)))
    like = next((MEASURES[each] for each in endings if each in MEASURES), Measure(base))
    plain_words = like.words if like.name == base else base.replace("_", " ")
    full_words = "held-out " * ("held_out" in parts) + plain_words
    full_words += "".join(f", {each} tokens" for each in parts if each != "held_out")
    return replace(
        like,
        name=name,
        words=full_words,
        base=base,
        part=" ".join(each.replace("_", " ") for each in parts),
        thresholds=like.thresholds if name == like.name else {},
        of_step=like.of_step and like.name == base,
        about=like.about if like.name == base else "",
    )


def measures_of(names: Iterable[str]) -> dict[str, Measure]:
    """The measures of a run that recorded these, by name. Losses of an image tokenizer's run are in no unit."""
    measures = {name: measure_of(name) for name in names}
    if "pixel_loss" in measures:
        sums = {name: replace(each, unit="", about=SUM) for name, each in measures.items() if each.base == "loss"}
        measures |= sums
    return measures


def default_thresholds() -> dict[str, dict[str, float]]:
    """By measure and level, the values beyond which the default rules sound."""
    return {each.name: dict(each.thresholds) for each in MEASURES.values() if each.thresholds}


def threshold_lines(thresholds: Mapping[str, float]) -> list[tuple[float, str]]:
    """(value, level) of the lines that a chart needs: where levels share a value, the first of them is named."""
    lines: dict[float, str] = {}
    for level, value in thresholds.items():
        lines.setdefault(value, level)
    return list(lines.items())
