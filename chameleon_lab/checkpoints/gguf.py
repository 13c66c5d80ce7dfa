"""GGUF: the file of llama.cpp, and of the programs built on it, as their architecture `chameleon`. Words only.

- rows of q and k stand in adjacent pairs, as ours, and each head has its norms: nothing is turned
- llama.cpp never writes the tokens 4..8195, whatever a model has there: a smaller block of image codes is followed by
  unused tokens up to 8195, and all tokens behind it are moved
- the file has no place for an image tokenizer, and llama.cpp none for pictures
- norms stay in float32, which its kernels want; in 4 bits the head has 8, as the head decides what is written
- what the lab wrote has all that `chameleon_lab.json` has, and the text tokenizer, under the one key `chameleon_lab`
"""

from __future__ import annotations

import json
import logging
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chameleon_lab.checkpoints import names, native
from chameleon_lab.checkpoints.companion import Companion, companion_of, plain_companion
from chameleon_lab.checkpoints.evidence import Claim
from chameleon_lab.checkpoints.gguf_file import GGUF_MAGIC, GgufFile, gguf_package, read_gguf
from chameleon_lab.checkpoints.gguf_words import header_of_words, saved_words, text_of_own_key, words_of_header
from chameleon_lab.checkpoints.opened import Opened, ReadOptions
from chameleon_lab.checkpoints.tensors import LazyTensor, Tensors, all_or_nothing, check_room, visible_files
from chameleon_lab.checkpoints.text_files import read_text
from chameleon_lab.files import intact, parse_json
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.text import TextTokenizer
from chameleon_lab.transformer import ModelConfig
from chameleon_lab.vocabulary import Vocabulary

log = logging.getLogger(__name__)

ARCHITECTURE, OWN_KEY, OWN_FILE = "chameleon", "chameleon_lab", "model.gguf"
MASKED = 8192
"""Image codes whose tokens, from the fourth on, llama.cpp never writes."""

GGUF_WEIGHTS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""How matrices are written, by the name that `lab.save(weights=...)` takes."""

PACKED_TOGETHER, MOST_LAYERS = 32, 512
FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0",
}


@dataclass(frozen=True)
class Gguf:
    """llama.cpp's files as a `Format`: see `formats.Format`. `weights`: how matrices are written, by default in the
    dtype that they have."""

    name: str = "gguf"
    weights: str | None = None

    def claim(self, folder: Path) -> Claim:
        """A file, or a folder's only one, which comes after any other layout's weights that lie there."""
        if folder.is_file():
            with folder.open("rb") as file:
                files = [folder] if folder.suffix == ".gguf" or file.read(4) == GGUF_MAGIC else []
        else:
            files = [file for file in visible_files(folder) if file.suffix == ".gguf"]
        if not files:
            return Claim()
        fault = None
        if len(files) > 1:
            fault = ValueError(
                f"{folder} holds several GGUF files, {', '.join(file.name for file in files[:4])}: give the one you "
                f"mean, Chameleon.load({str(files[0])!r})."
            )
        file = files[0]
        return Claim(f"the header of {file.name}", file.name, (file, file.parent), folder.is_file(), fault)

    def open(self, place: Path, tokenizers: tuple[Path, ...], options: ReadOptions) -> Opened:
        file = read_gguf(place)
        with intact(place):
            architecture = file.text("general.architecture")
            if architecture != ARCHITECTURE:
                raise ValueError(
                    f"{place} holds a model of architecture {architecture[:40]!r}, and the lab reads {ARCHITECTURE!r}, "
                    "which is this family's."
                )
            if (parts := file.count("split.count", 1)) > 1:
                raise ValueError(
                    f"{place} is one of {parts} parts of a model: join them with llama.cpp's llama-gguf-split --merge."
                )
            own, companion = {}, Companion()
            if OWN_KEY in file.values:
                own = parse_json(file.text(OWN_KEY), place)
                companion = companion_of(own)
            config, tensors = _header_config(file), names.rename(file.tensors, "llama", "ours")
            text, vocabulary = _file_words(file, config.vocabulary, own, companion, options)
            padding = config.vocabulary - vocabulary.size if own else 0
            if own and padding != padding_of(vocabulary):
                raise ValueError(f"it has {config.vocabulary:,} tokens, and its vocabulary {vocabulary.size:,}")
            config, tensors = _without_unused(config, tensors, vocabulary, padding)
            if not own:
                config, tensors = names.without_padding(config, tensors, vocabulary.size)
            groups = names.fewest_groups(tensors, config, companion.groups or 1)
            config = names.with_fixes(config, groups, file.values.get(f"{ARCHITECTURE}.swin_norm") is True)
            fused = names.fuse(tensors, config)
            return companion.opened(config, fused, (text, vocabulary), (place, self.name), options)

    def image_tokenizer(self, folder: Path, options: ReadOptions) -> ImageTokenizer | None:
        return None

    def write(self, opened: Opened, folder: Path, shards: int | None) -> None:
        """Into `model.gguf` of a new or empty folder, or, where the name ends in `.gguf`, as a new file of it."""
        names.check_expressible(opened.config, self.name)
        check_runs(opened)
        log.warning(
            "llama.cpp reads and writes words alone: the file has no image tokenizer, and no picture's token is ever "
            "written there. For pictures keep the model in another format, or load the file with tokenizer=FOLDER."
        )
        if folder.suffix != ".gguf":
            native.write_whole(
                folder, lambda whole: self._write(opened, whole / OWN_FILE), replaces=lambda folder: False
            )
            return
        if folder.exists():
            raise ValueError(f"{folder} is there already: give a new file, or take it away first.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with all_or_nothing([folder]) as (partial,):
            self._write(opened, partial)

    def _write(self, opened: Opened, path: Path) -> None:
        package, config, vocabulary = gguf_package(), opened.config, opened.tokenizer.vocabulary
        padding = padding_of(vocabulary)
        tensors = _with_unused(names.parts_of(opened.tensors, config), vocabulary, padding)
        if config.tied:
            del tensors["head.weight"]
        for name, tensor in tensors.items():
            if ".query_norm." in name or ".key_norm." in name:
                heads = config.heads if ".query_norm." in name else config.kv_heads
                tensors[name] = names.regroup(tensor, heads, heads, name)
        tensors = names.rename(tensors, "ours", "llama")
        kinds = {
            name: package.GGMLQuantizationType[self._kind(name, tensor, config.tied)]
            for name, tensor in tensors.items()
        }
        blocks = {name: package.GGML_QUANT_SIZES[kind] for name, kind in kinds.items()}
        sizes = {name: prod(tensors[name].shape) // block * size for name, (block, size) in blocks.items()}
        check_room(path.parent, sum(sizes.values()))
        most = GGUF_WEIGHTS[self.weights] if self.weights else kinds["blk.0.attn_q.weight"].name
        header = _header(opened, padding, package.LlamaFileType[FILE_TYPES[most]], package.GGML_QUANT_VERSION)
        with closing(package.GGUFWriter(None, ARCHITECTURE)) as writer:
            for key, value in header.items():
                _add(writer, key, value)
            for name, tensor in tensors.items():
                writer.add_tensor_info(name, tensor.shape, np.float32, sizes[name], kinds[name])
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors.items():
                numbers = tensor.read().detach().float().cpu().contiguous().numpy()
                writer.write_tensor_data(package.quants.quantize(numbers, kinds[name]))

    def _kind(self, name: str, tensor: LazyTensor, tied: bool) -> str:
        """How a tensor is written. Raises ValueError where its rows cannot be packed so."""
        if "_norm." in name:
            return "F32"
        plain = {torch.float16: "F16", torch.bfloat16: "BF16"}.get(tensor.dtype, "F32")
        kind = GGUF_WEIGHTS[self.weights] if self.weights else plain
        if kind.startswith("Q") and tensor.shape[-1] % PACKED_TOGETHER:
            raise ValueError(
                f"{name} has rows of {tensor.shape[-1]} numbers, and {kind} packs {PACKED_TOGETHER} of a row together: "
                "save with weights='f16' or 'bf16'."
            )
        return "Q8_0" if kind == "Q4_0" and name == ("token_embd.weight" if tied else "output.weight") else kind


def padding_of(vocabulary: Vocabulary) -> int:
    """How many unused tokens follow the image codes in a file, so that llama.cpp masks those and nothing else."""
    return max(0, MASKED - vocabulary.codes)


def check_runs(opened: Opened) -> None:
    """Raises ValueError for a model that llama.cpp would take for another, or not run."""
    config, codes = opened.config, opened.tokenizer.vocabulary.codes
    if names.has_swin_norms(config):  # seen at llama-cpp-python 0.3.36: tests/test_gguf.py looks whether it still is so
        raise ValueError(
            "llama.cpp computes another model where norms follow the branches (NormReordering, as the 34B's): it feeds "
            "the feed-forward part with the attention's branch alone, and not with its sum with the stream. Save it in "
            "another format."
        )
    if codes > MASKED:
        raise ValueError(
            f"llama.cpp keeps {MASKED:,} image tokens from being written as words, and this model has {codes:,}: it "
            "would write those beyond. Save it in another format."
        )
    if config.layers > MOST_LAYERS:
        raise ValueError(f"llama.cpp runs at most {MOST_LAYERS} layers, and this model has {config.layers}.")


# Between a file and ours


def _header_config(file: GgufFile) -> ModelConfig:
    """The config that a header tells, its norms apart, once its sizes are those of the tensors."""
    key = f"{ARCHITECTURE}.".__add__
    heads, width, ffn = (
        file.count(key(name)) for name in ("attention.head_count", "embedding_length", "feed_forward_length")
    )
    embedding, gate = file.tensors.get("token_embd.weight"), file.tensors.get("blk.0.ffn_gate.weight")
    if embedding is None or gate is None:
        raise ValueError(
            f"{file.path} lacks token_embd.weight or blk.0.ffn_gate.weight: it is no whole model. Get it anew."
        )
    scaling = file.values.get(key("rope.scaling.type"), "none")
    if scaling != "none":
        raise ValueError(f"{file.path} scales rotary positions ({str(scaling)[:20]!r}), which no Chameleon does.")
    if len(embedding.shape) != 2 or embedding.shape[1] != width or gate.shape != (ffn, width):
        raise ValueError(
            f"{file.path} contradicts its header: token_embd.weight {embedding.shape} and blk.0.ffn_gate.weight "
            f"{gate.shape} of a model of width {width:,} and ffn_width {ffn:,}."
        )
    if not 1 <= heads <= width:
        raise ValueError(f"{file.path} is damaged: a model of width {width:,} has {heads:,} heads. Get it anew.")
    return ModelConfig(
        vocabulary=embedding.shape[0],
        width=width,
        layers=file.count(key("block_count")),
        heads=heads,
        kv_heads=file.count(key("attention.head_count_kv"), heads),
        head_width=width // heads,
        ffn_width=ffn,
        context=file.count(key("context_length")),
        rope_theta=file.number(key("rope.freq_base"), 10_000.0),
        norm_eps=file.number(key("attention.layer_norm_rms_epsilon")),
        tied="output.weight" not in file.tensors,
    )


def _file_words(
    file: GgufFile, rows: int, own: dict[str, Any], companion: Companion, options: ReadOptions
) -> tuple[TextTokenizer | None, Vocabulary]:
    """The text tokenizer and the vocabulary: of the folder that the user named, of the lab's own key, of the header."""
    places = [] if options.tokenizer is None else [options.tokenizer]
    if companion.vocabulary is not None:
        text, vocabulary = text_of_own_key(own.get("text_tokenizer"), companion.text), companion.vocabulary
        rows = vocabulary.size
        table = None
    else:
        tokens = file.texts("tokenizer.ggml.tokens")
        if tokens and len(tokens) != rows:
            raise ValueError(f"{file.path} is damaged: it names {len(tokens):,} of {rows:,} tokens. Get it anew.")
        table = {name: token for token, name in enumerate(tokens)} or None
        text = None if table is None or places else words_of_header(file.values, table)
    chosen, vocabulary = read_text(places, rows, companion, file.path, table, options.tokenizer)
    return chosen or text, vocabulary


def _with_unused(parts: Tensors, vocabulary: Vocabulary, padding: int) -> dict[str, LazyTensor]:
    """The parts with rows of zeros behind those of the image codes."""
    end, grown = Vocabulary.first_image + vocabulary.codes, dict(parts)
    for name in ("embedding.weight", "head.weight"):
        tensor = parts.get(name)
        if tensor is not None and padding:
            rows, width = tensor.shape
            grown[name] = names.map_tensor(
                tensor,
                lambda x: torch.cat([x[:end], x.new_zeros(padding, x.shape[1]), x[end:]]),
                (rows + padding, width),
            )
    return grown


def _without_unused(
    config: ModelConfig, parts: Tensors, vocabulary: Vocabulary, padding: int
) -> tuple[ModelConfig, dict[str, LazyTensor]]:
    """The way back from `_with_unused`, and the config of so many tokens."""
    end, shrunk = Vocabulary.first_image + vocabulary.codes, dict(parts)
    for name in ("embedding.weight", "head.weight"):
        tensor = parts.get(name)
        if tensor is not None and padding:
            shape = (tensor.shape[0] - padding, *tensor.shape[1:])
            shrunk[name] = names.map_tensor(tensor, lambda x: torch.cat([x[:end], x[end + padding :]]), shape)
    return replace(config, vocabulary=config.vocabulary - padding), shrunk


# A header


def _header(opened: Opened, padding: int, file_type: int, quantization: int) -> dict[str, Any]:
    """What a header says by key, in the order in which it is written."""
    config, tokenizer, key = opened.config, opened.tokenizer, f"{ARCHITECTURE}.".__add__
    text = tokenizer.text if tokenizer.can_spell else None
    own = plain_companion(opened) | {"text_tokenizer": saved_words(text)}
    licence = opened.card.get("licence")
    return {
        "general.name": opened.folder.resolve().name or "Chameleon",
        **({"general.license": str(licence)} if licence else {}),
        "general.file_type": int(file_type),
        "general.quantization_version": quantization,
        key("context_length"): config.context,
        key("embedding_length"): config.width,
        key("block_count"): config.layers,
        key("feed_forward_length"): config.ffn_width,
        key("attention.head_count"): config.heads,
        key("attention.head_count_kv"): config.kv_heads,
        key("attention.layer_norm_rms_epsilon"): config.norm_eps,
        key("rope.dimension_count"): config.head_width,
        key("rope.freq_base"): config.rope_theta,
        key("swin_norm"): names.has_swin_norms(config),
        key("vocab_size"): config.vocabulary + padding,
        **{f"tokenizer.{name}": value for name, value in header_of_words(text, tokenizer.vocabulary, padding).items()},
        OWN_KEY: json.dumps(own, ensure_ascii=False),
    }


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list() if value:  # it writes no empty ones
            writer.add_array(key, value)
