"""One table of names for every format, and what is done to the tensors between them.

Facts (formats as found in public code; the family's own weights were not at hand):

- Ours fuse q, k, v and gate, up; pairs of a head that rotate together are adjacent, as in Meta's. Between ours and
  theirs stand *parts*: our names, with each of those matrices by itself (`parts_of`, `fuse`)
- Meta's come in shards, one a GPU. Each matrix is cut along one dimension; norms of the residual stream are in every
  shard; norms of queries and keys each shard has its own, and they stay apart (`shard`, `merge`)
- Hugging Face's rotate the first half of a head with its second, so rows of q and k change places, and with them the
  weights and biases of their norms (`to_halves`, `to_pairs`)
- A norm of queries or keys is one vector, or one for each of some equal groups of heads: for each head in Hugging
  Face's layout, for each shard in Lumina-mGPT's (`regroup`)
- Norms that follow a branch (34B) bear the names of those that precede it: only the config tells them apart

All of it works on lazy tensors: a matrix is read when it is written or filled in, and no other is in memory then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chameleon_lab.checkpoints.tensors import LazyTensor, Tensors, lazy, tensors_of
from chameleon_lab.stability import Dropout, NormReordering, QueryKeyNorm
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.transformer import ModelConfig

ALL, OWN = "in every shard", "its own in each shard"


@dataclass(frozen=True)
class NameRow:
    """A tensor's name among our parts, in Meta's files, Hugging Face's and llama.cpp's, and how Meta's shards hold it.

    `{}` is the layer. `cut` is the dimension along which shards cut it, or `ALL`, or `OWN`.
    """

    ours: str
    meta: str
    theirs: str
    llama: str
    cut: int | str


TABLE = (
    NameRow("embedding.weight", "tok_embeddings.weight", "model.embed_tokens.weight", "token_embd.weight", 1),
    *(
        NameRow(f"blocks.{{}}.{ours}", f"layers.{{}}.{meta}", f"model.layers.{{}}.{theirs}", f"blk.{{}}.{llama}", cut)
        for ours, meta, theirs, llama, cut in (
            ("attention_norm.weight", "attention_norm.weight", "input_layernorm.weight", "attn_norm.weight", ALL),
            ("attention.query.weight", "attention.wq.weight", "self_attn.q_proj.weight", "attn_q.weight", 0),
            ("attention.key.weight", "attention.wk.weight", "self_attn.k_proj.weight", "attn_k.weight", 0),
            ("attention.value.weight", "attention.wv.weight", "self_attn.v_proj.weight", "attn_v.weight", 0),
            *(
                (
                    f"attention.{ours}_norm.{leaf}",
                    f"attention.{q}_normalization.{leaf}",
                    f"self_attn.{q}_norm.{leaf}",
                    f"attn_{q}_norm.{leaf}",
                    OWN,
                )
                for ours, q in (("query", "q"), ("key", "k"))
                for leaf in ("weight", "bias")
            ),
            ("attention.out.weight", "attention.wo.weight", "self_attn.o_proj.weight", "attn_output.weight", 1),
            ("ffn_norm.weight", "ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight", ALL),
            ("feed_forward.gate.weight", "feed_forward.w1.weight", "mlp.gate_proj.weight", "ffn_gate.weight", 0),
            ("feed_forward.up.weight", "feed_forward.w3.weight", "mlp.up_proj.weight", "ffn_up.weight", 0),
            ("feed_forward.down.weight", "feed_forward.w2.weight", "mlp.down_proj.weight", "ffn_down.weight", 1),
        )
    ),
    NameRow("norm.weight", "norm.weight", "model.norm.weight", "output_norm.weight", ALL),
    NameRow("head.weight", "output.weight", "lm_head.weight", "output.weight", 0),
)

CUTS = {row.ours: row.cut for row in TABLE}
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def rename(tensors: Tensors, of: str, to: str) -> dict[str, LazyTensor]:
    """The tensors under other names: `of` and `to` are columns of the table. Names that are in none stay."""
    column = {getattr(row, of): getattr(row, to) for row in TABLE}

    def rename(name: str) -> str:
        layer = _LAYER.search(name)
        pattern = name if layer is None else name[: layer.start()] + "{}" + name[layer.end() :]
        return name if pattern not in column else column[pattern].format(layer[0] if layer else "")

    return {rename(name): tensor for name, tensor in tensors.items()}


_WRAPPED = re.compile(r"(?<![^.])(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
_AROUND = (re.compile(r"module\."), re.compile(r"base_model\.model\."), re.compile(r"model\."))
_INSIDE = re.compile(r"model\.(model|module|lm_head|tok_embeddings|base_model|encoder)\.")
"""What `model.` stands before where it is a LightningModule's attribute."""


def without_wrappers(tensors: Tensors) -> dict[str, LazyTensor]:
    """The tensors under the names that they have without what programs wrap around a module.

    torch.compile, FSDP and recomputation put a word before some names, DistributedDataParallel, PEFT and a
    LightningModule before all of them. Raises ValueError where two then have one name.
    """
    plain = {name: _WRAPPED.sub("", name) for name in tensors}
    while prefix := next((each for each in _AROUND if plain and all(map(each.match, plain.values()))), None):
        if prefix.pattern == r"model\." and not any(map(_INSIDE.match, plain.values())):
            break  # a name of the port's own
        plain = {name: prefix.sub("", inner, count=1) for name, inner in plain.items()}
    if len(set(plain.values())) < len(plain):
        twice = next(inner for inner in plain.values() if list(plain.values()).count(inner) > 1)
        raise ValueError(f"{twice} is there twice, once behind a wrapper of torch's: files of two models are mixed.")
    return {plain[name]: tensor for name, tensor in tensors.items()}


PADDED = 1024
"""The most rows that a vocabulary is padded to a multiple of."""


def is_padding(size: int, names: int) -> bool:
    """Whether `size` rows are a vocabulary of so many names padded to a multiple of a power of two, 8 or more."""
    return names <= size and size % 8 == 0 and size - names < min(size & -size, PADDED)


def without_padding(config: ModelConfig, parts: Tensors, size: int) -> tuple[ModelConfig, dict[str, LazyTensor]]:
    """A config of `size` tokens, and the parts with as many rows of embedding and head: those beyond have no name."""
    rows = {name: tensor for name, tensor in parts.items() if name in ("embedding.weight", "head.weight")}
    fitting = {
        name: split_tensor(tensor, [size, tensor.shape[0] - size], 0)[0]
        for name, tensor in rows.items()
        if tensor.shape[0] > size and is_padding(tensor.shape[0], size)
    }
    return replace(config, vocabulary=size), {**parts, **fitting}


def _cut(part: str) -> int | str:
    return CUTS.get(_LAYER.sub("{}", part), ALL)


# Between ours and their parts


def parts_of(tensors: Tensors, config: ModelConfig) -> dict[str, LazyTensor]:
    """Our state dict with each of the fused matrices by itself, norms under one name wherever they stand, and a tied
    head once more."""
    parts: dict[str, LazyTensor] = {}
    keys = config.kv_heads * config.head_width
    pieces = {
        "attention.qkv.weight": (("query", "key", "value"), (config.heads * config.head_width, keys, keys)),
        "feed_forward.gate_up.weight": (("gate", "up"), (config.ffn_width, config.ffn_width)),
    }
    for name, tensor in tensors.items():
        for fused_name, (leaves, rows) in pieces.items():
            if name.endswith(fused_name):
                owner = name.rsplit(".", 2)[0]
                parts |= zip((f"{owner}.{leaf}.weight" for leaf in leaves), split_tensor(tensor, rows, 0), strict=True)
                break
        else:
            parts[re.sub(r"_(pre|post)_norm\.", "_norm.", name)] = tensor
    if config.tied:
        parts["head.weight"] = parts["embedding.weight"]
    return parts


def fuse(parts: Tensors, config: ModelConfig) -> dict[str, LazyTensor]:
    """Our state dict from parts: the way back. Norms take the slots and the groups that the config's fixes say."""
    tensors: dict[str, LazyTensor] = {}
    place = "post" if has_swin_norms(config) else "pre"
    groups = norm_groups(config) or 1
    for name, tensor in parts.items():
        owner, _, leaf = name.removesuffix(".weight").rpartition(".")
        if leaf in ("query", "gate"):
            others = ("key", "value") if leaf == "query" else ("up",)
            missing = [f"{owner}.{other}.weight" for other in others if f"{owner}.{other}.weight" not in parts]
            if not missing:
                fused_name = "qkv" if leaf == "query" else "gate_up"
                tensors[f"{owner}.{fused_name}.weight"] = join_tensors(
                    [tensor, *(parts[f"{owner}.{other}.weight"] for other in others)], 0
                )
        elif leaf in ("key", "value", "up"):
            continue
        elif _cut(name) == OWN:
            heads = config.heads if ".query_norm." in name else config.kv_heads
            own = min(groups, heads)
            grouped = regroup(tensor, own, heads, name)
            tensors[name] = grouped if own > 1 else map_tensor(grouped, lambda x_GK: x_GK[0], grouped.shape[1:])
        elif not (config.tied and name == "head.weight"):
            tensors[re.sub(r"(attention|ffn)_norm\.", rf"\1_{place}_norm.", name)] = tensor
    return tensors


# Between whole and shards


def shard(parts: Tensors, config: ModelConfig, count: int) -> list[dict[str, LazyTensor]]:
    """The parts of each of `count` shards. Raises ValueError where they cannot be cut so, or share a norm unalike."""
    check_shards(config, count)
    shards: list[dict[str, LazyTensor]] = [{} for _ in range(count)]
    for name, tensor in parts.items():
        cut = _cut(name)
        if cut == OWN:
            heads = config.heads if ".query_norm." in name else config.kv_heads
            grouped = regroup(tensor, count, heads, name)
            pieces = [map_tensor(grouped, lambda x, n=n: x[n], grouped.shape[1:]) for n in range(count)]
        elif isinstance(cut, int):
            pieces = split_tensor(tensor, [tensor.shape[cut] // count] * count, cut)
        else:
            pieces = [tensor] * count
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece
    return shards


def merge(shards: Sequence[Tensors]) -> dict[str, LazyTensor]:
    """The parts of all shards as one: matrices joined, norms of queries and keys in as many groups as shards.

    What is in every shard is taken from the first. Raises ValueError where shards hold different names.
    """
    names = [set(shard) for shard in shards]
    for number, other in enumerate(names):
        if other != names[0]:
            raise ValueError(
                f"The shards do not belong together: {min(other ^ names[0])} is in one of shard 0 and shard {number} "
                "only. Get all shards of one model."
            )
    parts: dict[str, LazyTensor] = {}
    for name, tensor in shards[0].items():
        cut, pieces = _cut(name), [shard[name] for shard in shards]
        if cut == OWN:
            rows = [map_tensor(piece, lambda x_K: x_K[None], (1, *piece.shape)) for piece in pieces]
            parts[name] = join_tensors(rows, 0)
        else:
            parts[name] = join_tensors(pieces, cut) if isinstance(cut, int) else tensor
    return parts


def check_shards(config: ModelConfig, count: int) -> None:
    """Raises ValueError for a number of shards into which a model cannot be cut."""
    sizes = {
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "width": config.width,
        "ffn_width": config.ffn_width,
        "vocabulary": config.vocabulary,
    }
    uneven = [f"{name} {size}" for name, size in sizes.items() if count < 1 or size % count]
    if uneven:
        raise ValueError(f"The model cannot be cut into {count} shards: {', '.join(uneven)} cannot be shared evenly.")


# Rotary order


def to_halves(parts: Tensors, head_width: int) -> dict[str, LazyTensor]:
    """Rows of q and k, and their norms, from adjacent pairs to the two halves of a head."""
    return _turn_rows(parts, lambda x: x.unflatten(0, (-1, head_width // 2, 2)).transpose(1, 2))


def to_pairs(parts: Tensors, head_width: int) -> dict[str, LazyTensor]:
    """The way back from `to_halves`."""
    return _turn_rows(parts, lambda x: x.unflatten(0, (-1, 2, head_width // 2)).transpose(1, 2))


def _turn_rows(parts: Tensors, turn: Callable[[Tensor], Tensor]) -> dict[str, LazyTensor]:
    """Only what is rotated: the rows of q and k, head after head, and the vectors of their norms, one after another."""

    def rows(x: Tensor) -> Tensor:
        return turn(x).reshape(x.shape)

    def vectors(x: Tensor) -> Tensor:
        return turn(x.reshape(-1)).reshape(x.shape)

    turned = dict(parts)
    for name, tensor in parts.items():
        if _cut(name) == OWN:
            turned[name] = map_tensor(tensor, vectors)
        elif name.endswith((".query.weight", ".key.weight")):
            turned[name] = map_tensor(tensor, rows)
    return turned


# Norms of queries and keys


def regroup(vectors: LazyTensor, count: int, heads: int, name: str) -> LazyTensor:
    """One norm's vectors, a single one or one for each group of heads, as one for each of `count` groups.

    Raises ValueError where different vectors would have to become one: no single one computes the same.
    """
    groups = 1 if len(vectors.shape) == 1 else vectors.shape[0]
    width = vectors.shape[-1]
    if heads % groups or heads % count:
        raise ValueError(
            f"{name} holds {groups} vectors for {heads} heads: {count} equal groups of them cannot be made."
        )
    if count % groups == 0:
        return map_tensor(
            vectors, lambda x: x.reshape(groups, width).repeat_interleave(count // groups, 0), (count, width)
        )
    each = vectors.read().reshape(groups, width).repeat_interleave(heads // groups, 0).view(count, -1, width)
    if not torch.equal(_bits(each), _bits(each[:, :1].expand_as(each))):
        raise ValueError(
            f"{name} holds {groups} different vectors, one for each group of heads, and the format has room for "
            f"{count}: their mean would be another model. Write a format that keeps them apart ('native', "
            "'huggingface', or 'meta' and 'lumina' in as many shards)."
        )
    return lazy(each[:, 0].contiguous())


def fewest_groups(parts: Tensors, config: ModelConfig, likely: int = 1) -> int:
    """The number of groups of heads that share their norms, `likely` if that is one, otherwise the fewest possible."""
    norms = [(name, tensor.read()) for name, tensor in parts.items() if _cut(name) == OWN]
    possible = [
        count
        for count in range(1, config.heads + 1)
        if config.heads % count == 0 and (count >= config.kv_heads or config.kv_heads % count == 0)
    ]

    def alike(count: int) -> bool:
        for name, vectors in norms:
            heads = config.heads if ".query_norm." in name else config.kv_heads
            rows = vectors.reshape(-1, vectors.shape[-1])
            if heads % len(rows):
                raise ValueError(f"{name} holds {len(rows)} vectors for {heads} heads: they do not share them evenly.")
            each = rows.repeat_interleave(heads // len(rows), 0).view(min(count, heads), -1, rows.shape[1])
            if not torch.equal(_bits(each), _bits(each[:, :1].expand_as(each))):
                return False
        return True

    candidates = [*([likely] if likely in possible else []), *possible]
    return next(count for count in candidates if alike(count))


def _bits(tensor: Tensor) -> Tensor:
    """What can be compared bit by bit: 0 is not -0, and NaN is itself."""
    return tensor.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


# What a config says


def norm_groups(config: ModelConfig) -> int | None:
    """Groups of heads that have a query/key norm of their own; None where there is no such norm."""
    return next((fix.groups for fix in config.fixes if isinstance(fix, QueryKeyNorm)), None)


def has_swin_norms(config: ModelConfig) -> bool:
    """Whether norms follow the branches (34B) instead of preceding them (7B)."""
    return any(isinstance(fix, NormReordering) for fix in config.fixes)


def with_fixes(config: ModelConfig, groups: int | None, swin: bool) -> ModelConfig:
    """The config with what the family's formats can say: a query/key norm in groups, and norms after branches."""
    norm = () if groups is None else (QueryKeyNorm(groups=groups),)
    return replace(config, fixes=(*norm, *((NormReordering(),) if swin else ())))


def check_expressible(config: ModelConfig, format: str) -> None:
    """Raises ValueError naming what of a model a foreign format has no word for."""
    expressible = (QueryKeyNorm, NormReordering, Dropout)
    strange = [repr(fix) for fix in config.fixes if not isinstance(fix, expressible)]
    norm_eps = [fix.eps for fix in config.fixes if isinstance(fix, QueryKeyNorm) and fix.eps != 1e-5]
    if norm_eps:
        strange.append(f"QueryKeyNorm(eps={norm_eps[0]}) instead of 1e-05")
    if config.heads * config.head_width != config.width:
        strange.append(f"{config.heads} heads of width {config.head_width} in a model of width {config.width}")
    if format != "meta" and norm_groups(config) is None:
        strange.append("the lack of a QueryKeyNorm")
    if strange:
        raise ValueError(
            f"The format {format!r} cannot express {' or '.join(strange)}: what it would load as is another model. "
            "Save it as 'native'."
        )


def check_image(config: ImageTokenizerConfig, format: str) -> None:
    """Raises ValueError naming what of an image tokenizer the family's formats have no word for."""
    plain = replace(config, groups=32, patch=1, middle=True, quantizer="vector", attention=())
    strange = [
        f"{name}={getattr(config, name)!r}"
        for name in ("groups", "patch", "middle", "quantizer", "attention")
        if getattr(config, name) != getattr(plain, name)
        and not (name == "quantizer" and config.quantizer in ("vector_legacy", "vector_rotation", "moving_average"))
    ]
    if strange:
        raise ValueError(
            f"The format {format!r} cannot express an image tokenizer with {', '.join(strange)}. Save it as 'native', "
            f"or take the transformer alone: lab.save(folder, format={format!r}, pictures=False)."
        )


# Lazy tensors made of others


def map_tensor(
    tensor: LazyTensor, change: Callable[[Tensor], Tensor], shape: Iterable[int] | None = None
) -> LazyTensor:
    """What `change` makes of a tensor, when it is read."""
    return LazyTensor(tensor.shape if shape is None else tuple(shape), tensor.dtype, lambda: change(tensor.read()))


def split_tensor(tensor: LazyTensor, sizes: Sequence[int], dim: int) -> list[LazyTensor]:
    """Consecutive pieces of a tensor along a dimension. Raises ValueError where they are not all of it."""
    if sum(sizes) != tensor.shape[dim]:
        raise ValueError(
            f"A tensor of {tensor.shape} is not {' + '.join(map(str, sizes))} along dimension {dim}: the config "
            "contradicts the weights."
        )
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        map_tensor(
            tensor,
            lambda x, start=start, size=size: x.narrow(dim, start, size),
            (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]),
        )
        for start, size in zip(starts, sizes, strict=True)
    ]


def join_tensors(tensors: Sequence[LazyTensor], dim: int) -> LazyTensor:
    """Tensors one after another along a dimension. Raises ValueError where they do not fit each other."""
    first = tensors[0]
    for other in tensors:
        same = len(other.shape) == len(first.shape) and other.dtype == first.dtype
        if not same or any(
            a != b for place, (a, b) in enumerate(zip(first.shape, other.shape, strict=True)) if place != dim
        ):
            raise ValueError(
                f"Tensors of {first.shape} {first.dtype} and {other.shape} {other.dtype} do not make one: the files "
                "are of different models."
            )
    if len(tensors) == 1:
        return first
    shape = list(first.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return LazyTensor(tuple(shape), first.dtype, lambda: torch.cat([tensor.read() for tensor in tensors], dim))


# The image tokenizer


def image_to_theirs(tensors: Tensors, prefix: str = "") -> dict[str, LazyTensor]:
    """Our image tokenizer's tensors under Meta's names; Hugging Face's are the same behind a prefix."""
    return {
        prefix + name.replace(".resample.", ".downsample." if name.startswith("encoder.") else ".upsample."): tensor
        for name, tensor in tensors.items()
    }


_IMAGE_TENSOR = re.compile(r"(?:(?:model\.)?vqmodel\.)?((?:encoder|decoder|quantize|quant_conv|post_quant_conv)\..+)")


def image_to_ours(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The image tokenizer's tensors among others, under our names: what only its training needed is left out."""
    matches = {name: _IMAGE_TENSOR.fullmatch(name) for name in tensors}
    return {
        match[1].replace(".downsample.", ".resample.").replace(".upsample.", ".resample."): tensors[name]
        for name, match in matches.items()
        if match
    }


def image_weights(image: ImageTokenizer) -> dict[str, LazyTensor]:
    """What an image tokenizer computes with: its state without what only its training kept."""
    return {
        name: tensor
        for name, tensor in tensors_of(image).items()
        if not name.startswith("quantize.") or name == "quantize.embedding.weight"
    }
