"""Toys and helpers that tests share: real objects of the library, random and small. Fixtures are in conftest.py."""

import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chameleon_lab.corpora.packing import Batch
from chameleon_lab.generation.engine import Settings
from chameleon_lab.stability import NormReordering, QueryKeyNorm
from chameleon_lab.tokenizers.image import ImageTokenizerConfig
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
"""The browser of the browser tests, where there is one."""

MODEL = ModelConfig(
    vocabulary=0,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=8,
    ffn_width=48,
    context=160,
    fixes=(QueryKeyNorm(),),
)
IMAGE = ImageTokenizerConfig(
    side=16, codes=12, code_width=4, widths=(8, 16), latent_width=4, blocks=1, patch=2, groups=4, middle=False
)

TEXTS = (
    "a red circle left of a blue square",
    '<html><div class="x">5 &lt; 6</div></html>',
    "template <typename T> std::vector<T> v{1, 2, 3};  // two  spaces\n\treturn v;\r\n",
    "naïve Grüße, 日本語, עברית, ᚠᛇᚻ, 👩‍👩‍👧 and e\u0301",
    " \n  leading, trailing and     runs of space \t ",
    "<s></s><unk><0x0A><racm3:break>IMGIMGAZ<eoss>",
    "▁ sentencepiece's own space ▁▁ and the stand-in \ue000▁",
    "\0 control \x07 characters \x7f \u200b\ufeff \ufffd",
)


class LetterTokenizer:
    """Four letters: a text tokenizer so small that a random model draws pictures often."""

    size = 4

    def encode(self, text: str) -> list[int]:
        return ["abcd".index(letter) for letter in text]

    def decode(self, pieces: Sequence[int]) -> str:
        return "".join("abcd"[piece] for piece in pieces)


WORDS = Vocabulary.layout(12, LetterTokenizer.size)
"""The vocabulary of the fixture `lettered`, whose images have `CODES` codes."""

CODES = 16
WARM = Settings(temperature=1.0, image_temperature=1.0, top_p=1.0)

CONFIG = ModelConfig(
    vocabulary=50,
    width=32,
    layers=2,
    heads=4,
    kv_heads=4,
    head_width=8,
    ffn_width=48,
    context=24,
    fixes=(QueryKeyNorm(),),
)
"""Without an image tokenizer: a model of 50 tokens."""

SHAPES = {
    "multi-head": CONFIG,
    "grouped": replace(CONFIG, kv_heads=2),
    "one key head": replace(CONFIG, kv_heads=1),
    "bare": replace(CONFIG, fixes=()),
    "re-ordered": replace(CONFIG, fixes=(QueryKeyNorm(), NormReordering())),
    "tied, wide heads": replace(CONFIG, tied=True, head_width=16),
}

RECORDS: dict[str, list[Any]] = {
    "jsonl": [
        {"image": "a.png", "caption": "c"},
        {"text": "t"},
        {"file_name": "a.png", "text": "t"},
        {"images": ["a.png"], "text": "see <image>"},
    ],
    "obelics": [{"images": ["a.png", None], "texts": [None, "x"]}],
    "mmc4": [{"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 0}]}],
}
"""Good entries for each reader of records, beside a picture "a.png"; tests and the fuzz damage them."""


class Trap:
    """A pickle of this ends the process of whoever reads it."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle was read')",))


IN_PLACES = ("missing", "empty", "a pipe", "a folder", "a socket", "a device")
"""What may lie in the place of a file: see `in_place_of`."""


def in_place_of(path: Path, state: str) -> None:
    """Has one of `IN_PLACES` in the place of a file. A pipe waits for ever, and /dev/zero does not end."""
    path.unlink(missing_ok=True)
    match state:
        case "empty":
            path.touch()
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a socket":
            here = os.getcwd()
            os.chdir(path.parent)  # the path of a socket has at most a hundred letters
            try:
                with socket.socket(socket.AF_UNIX) as end:
                    end.bind(path.name)
            finally:
                os.chdir(here)
        case "a device":
            path.symlink_to("/dev/zero")


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error that a user of the command line can mend."""
    from chameleon_lab.commands.main import main  # which takes Lightning with it

    assert main([*map(str, arguments)]) == 2
    screen = capsys.readouterr()
    assert screen.err.startswith("chameleon-lab: ") and screen.err.count("\n") == 1 and not screen.out
    return screen.err


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same tensors."""
    names = ("inputs_BT", "targets_BT", "learned_BT", "modality_BT", "documents_BT")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def half_split(rows_XD: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of adjacent rotary pairs in the order that `transformers` rotates: first halves, then second halves."""
    return rows_XD.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def their_weights(ours: Transformer) -> dict[str, torch.Tensor]:
    """Our weights under the names and in the order of `transformers`."""
    config, mine = ours.config, ours.state_dict()
    placement = "post" if any(isinstance(fix, NormReordering) for fix in config.fixes) else "pre"
    theirs = {
        "model.embed_tokens.weight": mine["embedding.weight"],
        "model.norm.weight": mine["norm.weight"],
        "lm_head.weight": mine["head.weight"],
    }
    counts = (config.heads, config.kv_heads, config.kv_heads)
    for layer in range(config.layers):
        block, there = f"blocks.{layer}", f"model.layers.{layer}"
        q, k, v = mine[f"{block}.attention.qkv.weight"].split([count * config.head_width for count in counts])
        gate, up = mine[f"{block}.feed_forward.gate_up.weight"].chunk(2)
        theirs |= {
            f"{there}.self_attn.q_proj.weight": half_split(q, config.heads),
            f"{there}.self_attn.k_proj.weight": half_split(k, config.kv_heads),
            f"{there}.self_attn.v_proj.weight": v,
            f"{there}.self_attn.o_proj.weight": mine[f"{block}.attention.out.weight"],
            f"{there}.mlp.gate_proj.weight": gate,
            f"{there}.mlp.up_proj.weight": up,
            f"{there}.mlp.down_proj.weight": mine[f"{block}.feed_forward.down.weight"],
            f"{there}.input_layernorm.weight": mine[f"{block}.attention_{placement}_norm.weight"],
            f"{there}.post_attention_layernorm.weight": mine[f"{block}.ffn_{placement}_norm.weight"],
        }
        for name, norm, count in (("q", "query", config.heads), ("k", "key", config.kv_heads)):
            for kind in ("weight", "bias"):
                shared = half_split(mine[f"{block}.attention.{norm}_norm.{kind}"], 1)
                theirs[f"{there}.self_attn.{name}_norm.{kind}"] = shared.expand(count, -1)
    return theirs
