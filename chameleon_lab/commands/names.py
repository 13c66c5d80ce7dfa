"""The names that options take, written out: the tables they stand for need torch, and `--help` should not wait for it.

`tests/test_commands.py` compares each with its table.
"""

from __future__ import annotations

from collections.abc import Callable

MODEL_NAMES = ("tiny",)
IMAGE_EXPERIMENT_NAMES = ("photographs", "reference")
EXPERIMENT_NAMES = (
    *("tiny", "small", "instructions"),
    *("chameleon-7b", "chameleon-34b", "cm3leon-350m", "cm3leon-760m", "cm3leon-7b"),
    *("stress_ramp", "side_by_side", "silent_growth"),
)
ALIGNMENT_NAMES = ("alignment",)
READER_NAMES = ("captions", "jsonl", "obelics", "mmc4", "text", "code", "parquet", "webdataset", "datasets")
PUBLISHED_NAMES = ("7b", "34b", "cm3leon-350m", "cm3leon-760m", "cm3leon-7b")
BIT_NAMES = ("int8", "int4")
SIZE_NAMES = ("tiny", "small", "base")
DTYPE_NAMES = ("float32", "bfloat16", "float16")
LAYOUT_NAMES = ("native", "meta", "huggingface", "lumina", "anole", "lumina-one-grid", "huggingface-4.43", "gguf")
FORMAT_NAMES = ("native", "meta", "huggingface", "lumina", "anole", "gguf")
GGUF_WEIGHT_NAMES = ("f32", "f16", "bf16", "q8_0", "q4_0")
PROMPT_KIND_NAMES = (
    *("captions", "questions", "routing", "one thing", "two things", "two things, short", "edits", "novel pair"),
)
PRESET_NAMES = ("stress_ramp", "side_by_side", "silent_growth", "sane", "sensitivity", "scale", "competition")
PRECISION_NAMES = ("32-true", "bf16-mixed")
PLANNED_WEIGHTS = ("float32", "bfloat16", "int8", "int4")
GUIDANCE_NAMES = ("none", "two-way", "three-way")
MODALITY_NAMES = ("free", "words", "picture", "interleaved")
POLICY_NAMES = ("centre crop", "border padding", "fit to grid", "Hugging Face's crop")


def number_or_guidance(words: str) -> float | str:
    """A number, or what `generation.settings.parse_guidance` is to read once torch is there."""
    try:
        return float(words)
    except ValueError:
        return words


SETTING_OPTIONS: dict[str, tuple[Callable[[str], object], str]] = {
    "temperature": (float, "0 takes the likeliest token"),
    "image_temperature": (float, "the temperature of images alone"),
    "top_p": (float, "keep the likeliest tokens that sum to this share"),
    "guidance": (number_or_guidance, "how strongly pictures follow the words; 1 is not at all guided"),
    "max_tokens": (int, "most tokens of the reply; otherwise the model's context is the limit"),
    "window": (int, "tokens of a conversation that the model is given; older turns are left out"),
    "top_k": (int, "keep so many of the likeliest tokens; 0 keeps all"),
    "min_p": (float, "keep tokens at least this share as likely as the likeliest"),
    "repetition": (float, "penalty on words already in the reply; 1 is none, and image tokens are spared"),
    "image_top_p": (float, "top-p of images alone"),
    "image_top_k": (int, "top-k of images alone"),
    "image_min_p": (float, "min-p of images alone"),
    "text_guidance": (number_or_guidance, "how strongly words follow what is asked and shown; 1 is unguided"),
    "drafts": (int, "codes of a picture that are drafted, and checked in one pass with the next; 0 is none"),
}
"""Each setting's kind of number and the words beside it in `generation.settings.Settings`."""
