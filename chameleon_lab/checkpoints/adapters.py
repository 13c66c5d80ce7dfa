"""LoRA adapters (arXiv 2106.09685) by way of `peft`, the extra `adapters`: small changes to a model's matrices.

A folder holds `adapter_config.json`, which names the base, and `adapter_model.safetensors`, as `peft` writes them.
Nothing else is read: `adapter_model.bin` is a pickle.
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from chameleon_lab.checkpoints.tensors import visible_files
from chameleon_lab.files import parse_json, read_table, require_numbers, require_regular
from chameleon_lab.parts import require_count
from chameleon_lab.quantization import Int8Linear, QuantizedLinear, quantize
from chameleon_lab.storage import whole_folder
from chameleon_lab.transformer import Transformer

log = logging.getLogger(__name__)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_SHAPE, BASE_FIELDS = "chameleon_lab.base", ("layers", "width", "vocabulary")
"""What the weights' file says of the model that it changes, where other programs read nothing; `sketch` besides."""
PREFIX = "base_model.model."
"""What `peft` puts before the names of a model's parts."""


@dataclass(frozen=True)
class LoRA:
    """What is added to each matrix of `targets` in all blocks: alpha / rank times a product of two of rank `rank`.

    `dropout` is of what goes into them. A model that has one starts as it was without. `base`: whether the model below
    it stays as it is or is kept in 8 bits, a quarter of the memory ("int8"; QLoRA, arXiv 2305.14314, has 4).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")
    base: Literal["float", "int8"] = field(default="float", metadata={"later": True})

    def __post_init__(self) -> None:
        """Raises ValueError for a rank below 1, a dropout that is none, and for no targets."""
        require_count(self.rank, "the rank of an adapter", 1)
        if not 0 <= self.dropout < 1 or not self.alpha > 0:
            raise ValueError(f"{self}: alpha lies above 0, and dropout from 0 to below 1.")
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(f"{self}: targets are names of matrices in a block, ('attention.qkv',).")
        if self.base not in ("float", "int8"):
            raise ValueError(f"{self}: the base of an adapter is 'float' or 'int8'.")

    def plain(self) -> dict[str, Any]:
        """The arguments of `peft.LoraConfig`."""
        settings = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        return settings | {"target_modules": list(self.targets)}


def add_adapter(model: Transformer, lora: LoRA) -> None:
    """Gives a model an adapter, in place; from then on only that is trained. Raises ValueError without `peft`, where no
    matrix has such a name, and where `base` is "int8", for a model that cannot be quantised."""
    _peft()
    if lora.base == "int8":
        for layer in quantize(model, 8).modules():
            if isinstance(layer, Int8Linear):
                layer.passes_gradients = True
                layer.in_first_order()  # one way of multiplying from the first step on, so that resuming is exact
    _inject(model, lora.plain(), str(lora))


def has_adapter(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


def base_names(model: nn.Module) -> dict[str, str]:
    """Names in a model's state dict without its adapter to those with it."""
    return {name.replace(".base_layer.", "."): name for name in model.state_dict() if ".lora_" not in name}


@torch.no_grad()
def merge_adapter(model: Transformer) -> Transformer:
    """Adds an adapter to its matrices, in place, and takes it away; the model, all of it to be trained again.

    Raises ValueError for a base in 8 bits, which the sum would not fit.
    """
    if any(isinstance(module.get_base_layer(), QuantizedLinear) for module in _layers(model).values()):
        raise ValueError(
            "An adapter on a base in 8 bits cannot be merged into that: write_adapter(model, folder, lora), and "
            "apply_adapter(lab.model, folder) to the base as it was."
        )
    for module in _layers(model).values():
        module.merge(safe_merge=True)
    _remove(model)
    return model


def write_adapter(model: Transformer, folder: Path | str, lora: LoRA, base: str = "") -> None:
    """Writes a model's adapter into a folder, a model's too: all or nothing. `base`: folder or name of what it changes.

    Raises ValueError for a model without one.
    """
    if not has_adapter(model):
        raise ValueError("The model has no adapter to be written: add_adapter(model, LoRA()) gives it one.")
    shape = {field: getattr(model.config, field) for field in BASE_FIELDS}
    words = json.dumps(shape | {"sketch": base_sketch(model)})
    state = _adapter_state(_peft().get_peft_model_state_dict(model))
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config = lora.plain() | {"peft_type": "LORA", "base_model_name_or_path": base or None, "bias": "none"}
    with whole_folder(Path(folder), stays=lambda entry: entry.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)) as whole:
        (whole / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        safetensors.torch.save_file(tensors, whole / ADAPTER_WEIGHTS, {"format": "pt", BASE_SHAPE: words})


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    names = {file.name for file in visible_files(folder)}
    return {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= names and not {"config.json", "params.json"} & names


@dataclass(frozen=True)
class StoredAdapter:
    """What an adapter's folder says of it, and how many numbers it has; `base` is "" where that is not said."""

    folder: Path
    base: str
    rank: int
    alpha: float
    matrices: tuple[str, ...]
    parameters: int

    def __str__(self) -> str:
        return (
            f"{self.folder}: rank {self.rank}, alpha {self.alpha:g}, {self.parameters:,} parameters beside "
            f"{len(self.matrices)} matrices of {self.base or 'a model that it does not name'}"
        )


def stored_adapters(folder: Path | str) -> list[StoredAdapter]:
    """The adapters in a folder, such as a run's, and in those in it, by path; of their weights the head is read.

    Raises ValueError for a damaged one, FileNotFoundError for no folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder, so that no adapters are there.")
    places = sorted(file.parent for file in Path(folder).rglob(ADAPTER_CONFIG))
    under_way = [any(part.startswith(".") for part in place.relative_to(folder).parts) for place in places]
    return [_stored(place) for place, hidden in zip(places, under_way, strict=True) if not hidden]


def _stored(folder: Path) -> StoredAdapter:
    config = read_table(folder / ADAPTER_CONFIG)
    require_numbers(config, folder / ADAPTER_CONFIG, r=(int, 1, 2**20), lora_alpha=(float, -1e6, 1e6))
    try:
        with safetensors.safe_open(require_regular(folder / ADAPTER_WEIGHTS), "pt") as file:
            names = file.keys()
            shapes = {name.removeprefix(PREFIX): file.get_slice(name).get_shape() for name in names}
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is damaged or missing: {error}.") from error
    matrices = sorted({name.partition(".lora_")[0] for name in shapes})
    base = config.get("base_model_name_or_path")
    return StoredAdapter(
        folder,
        base if isinstance(base, str) else "",
        config.get("r", 8),
        config.get("lora_alpha", 8),
        tuple(matrices),
        sum(map(math.prod, shapes.values())),
    )


def base_of(folder: Path) -> str:
    """Folder or name of the model that an adapter changes. Raises ValueError where its config does not say."""
    base = read_table(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{folder} holds an adapter, a change to a model, and does not say of which: load that model and call "
            "apply_adapter(lab.model, folder) of chameleon_lab.checkpoints.adapters."
        )
    return base


def apply_adapter(model: Transformer, folder: Path | str) -> Transformer:
    """Merges the adapter of a folder into a model, in place. Raises ValueError for one of another model or kind, for a
    damaged one, and without `peft`; the model is then as it was."""
    peft, folder = _peft(), Path(folder)
    config = read_table(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else str(config.get("peft_type"))[:40]
        raise ValueError(f"{folder} holds an adapter of the kind {kind!r}: the lab applies LoRA's alone.")
    try:
        tensors = safetensors.torch.load_file(require_regular(folder / ADAPTER_WEIGHTS))
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is damaged or missing: {error}.") from error
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    shape = _check_base(model, folder)
    settings = _settings_of(config, tensors, model, folder)
    try:
        _inject(model, settings, str(folder))
        own = _adapter_state(peft.get_peft_model_state_dict(model))
        if apart := sorted({*own} ^ {*tensors}) or [name for name in own if own[name].shape != tensors[name].shape]:
            raise ValueError(
                f"{folder} holds an adapter of another model: {len(apart)} of its matrices do not fit, {apart[0]} "
                "among them. Its adapter_config.json names the base."
            )
        peft.set_peft_model_state_dict(model, tensors)
        for path, module in _layers(model).items():
            if isinstance(module.get_base_layer(), QuantizedLinear):
                raise ValueError(
                    f"{folder} holds an adapter, which is merged into plain weights, and {path} of this model is "
                    "packed: load the model without `weights`."
                )
            if not (module.get_delta_weight("default") + module.get_base_layer().weight).isfinite().all():
                raise ValueError(f"{folder} holds an adapter that makes weights of {path} no numbers.")
        _compare_base(model, shape.get("sketch"), folder)
    except BaseException:
        _remove(model)
        raise
    return merge_adapter(model)


def _check_base(model: Transformer, folder: Path) -> dict[str, Any]:
    """What the adapter's file says of its base. Raises ValueError for a model of other layers or of a larger
    vocabulary: its matrices alone may fit, and mean nothing. A vocabulary that grew since is as good."""
    with safetensors.safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        words = (file.metadata() or {}).get(BASE_SHAPE, "{}")
    shape = parse_json(words, f"{folder / ADAPTER_WEIGHTS}, {BASE_SHAPE},")
    if not isinstance(shape, dict):
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is damaged: {BASE_SHAPE} is no object.")
    pairs = {field: (shape.get(field), getattr(model.config, field)) for field in BASE_FIELDS if field in shape}
    require_numbers(shape, folder / ADAPTER_WEIGHTS, **dict.fromkeys(pairs, (int, 1, 2**31)))
    apart = [
        f"{field} {there} there, {here} here"
        for field, (there, here) in pairs.items()
        if (there > here if field == "vocabulary" else there != here)
    ]
    if apart:
        raise ValueError(f"{folder} holds an adapter of another model: {'; '.join(apart)}.")
    return shape


SKETCHED = 2**14
"""Numbers of a matrix, its first, that its sketch is of."""
FAR_APART = 0.1
"""From which distance two sketches are of two models. Of the tiny model bfloat16 moves one by 0.003, 8 bits by
0.018, and 120 steps with a reward by 0.014; of 1,000 pairs of sketches by chance the nearest are 0.83 apart."""


@torch.no_grad()
def base_sketch(model: Transformer) -> list[float]:
    """Eight numbers of the matrices below a model's adapter, which tell them from others of their shape and hardly
    change with how they are stored: sums with signs, in units of what they would be by chance, to four places."""
    rows = [_first_numbers(module.get_base_layer()) for _, module in sorted(_layers(model).items())]
    weights_N = torch.cat(rows).cpu().double().nan_to_num()
    places_N = torch.arange(len(weights_N)) * 2654435761 % 2**32  # Knuth's hash: the bits of a place are signs
    sums = [weights_N @ (1.0 - 2.0 * (places_N >> bit & 1)).double() for bit in range(16, 24)]
    return [round(float(each / weights_N.norm().clamp_min(1e-30)), 4) for each in sums]


def _first_numbers(layer: Any) -> Tensor:
    packed = isinstance(layer, QuantizedLinear)
    weight_OI = layer.unpacked(torch.float32) if packed else layer.weight
    return weight_OI.flatten()[:SKETCHED].float()


def _compare_base(model: Transformer, sketch: Any, folder: Path) -> None:
    """Warns where the adapter's base had other weights, as far as its file says so. No error: a base that was trained
    on since, or had another adapter merged, is another one, and may be what is wanted."""
    if not (isinstance(sketch, list) and len(sketch) == 8 and all(isinstance(each, int | float) for each in sketch)):
        return
    apart = max(abs(one - other) for one, other in zip(sketch, base_sketch(model), strict=True))
    if not apart <= FAR_APART:
        log.warning(
            "%s holds an adapter of other weights of this shape, as it seems, and may mean nothing here. Its base was "
            "%s: load that model, unless this one is what became of it.",
            folder,
            read_table(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "not named",
        )


_PLAIN_KEY = re.compile(r"\^?[\w.]{1,200}\$?")
"""What a pattern of `alpha_pattern` may be: `peft` takes it for a regular expression, which may take for ever."""


def _settings_of(
    config: dict[str, Any], tensors: dict[str, Tensor], model: Transformer, folder: Path
) -> dict[str, Any]:
    """The arguments of `peft.LoraConfig`: what is changed, and at which rank, is what the tensors are.

    Raises ValueError, naming the file, for numbers that are none, and before anything is built.
    """
    ranks = {
        name.removesuffix(".lora_A.weight"): tensor.shape[0]
        for name, tensor in tensors.items()
        if name.endswith(".lora_A.weight") and tensor.ndim == 2
    }
    if strange := [name for name, tensor in tensors.items() if tensor.dtype not in FLOATS or not _finite(tensor)]:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is damaged: {strange[0][:200]} holds what is no number.")
    parts = dict(model.named_modules())
    if not ranks or (apart := sorted(ranks.keys() - parts.keys())):
        some = f", {apart[0][:200]} among them" if ranks else ""
        raise ValueError(
            f"{folder} holds an adapter of another model: {len(apart) if ranks else 'all'} of its matrices do not "
            f"fit{some}. Its adapter_config.json names the base."
        )
    place = folder / ADAPTER_CONFIG
    require_numbers(config, place, r=(int, 1, 2**20), lora_alpha=(float, -1e6, 1e6))
    alphas, pattern = config.get("alpha_pattern") or {}, config.get("rank_pattern") or {}
    if not isinstance(alphas, dict) or not isinstance(pattern, dict) or len(alphas) > len(parts):
        raise ValueError(f"{place} is damaged: alpha_pattern and rank_pattern are no objects of names and numbers.")
    for key, alpha in alphas.items():
        require_numbers({"alpha_pattern": alpha}, place, alpha_pattern=(float, -1e6, 1e6))
        if not _PLAIN_KEY.fullmatch(key):
            raise ValueError(f"{place} has the pattern {key[:60]!r} in alpha_pattern, and the lab reads names alone.")
    if not isinstance(config.get("use_rslora", False), bool):
        raise ValueError(f"{place} is damaged: use_rslora must be true or false.")
    rank = config.get("r", 8)
    if apart := [name for name, own in ranks.items() if own != rank and not pattern]:
        raise ValueError(
            f"{folder} holds an adapter whose files contradict one another: {apart[0]} has the rank {ranks[apart[0]]}, "
            f"and {ADAPTER_CONFIG} says {rank}. Get or save it anew."
        )
    return {
        "r": rank,
        "lora_alpha": config.get("lora_alpha", 8),
        "target_modules": list(ranks),
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": alphas,
        "use_rslora": config.get("use_rslora", False),
    }


FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What the numbers of an adapter may be."""


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _peft() -> Any:
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Adapters are peft's, which is not installed: pip install 'chameleon-lab[adapters]'."
        ) from None
    return peft


def _inject(model: Transformer, settings: dict[str, Any], source: str) -> None:
    peft = _peft()
    if has_adapter(model):
        raise ValueError("The model has an adapter already: merge_adapter(model) first.")
    try:
        config = peft.LoraConfig(**settings)
        # Of a layer, peft's own LoRA asks for a product and two sizes: packed weights have both.
        config._register_custom_module({Int8Linear: peft.tuners.lora.Linear})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)  # said of any other's layer
            peft.inject_adapter_in_model(config, model)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        _remove(model)
        raise ValueError(
            f"{source} does not suit this model: it changes {str(settings.get('target_modules'))[:200]} "
            f"({str(error).splitlines()[0][:200]}). The lab's matrices are {', '.join(LoRA().targets)}."
        ) from error


def _remove(model: Transformer) -> None:
    """Takes an adapter away without merging it."""
    for path, module in _layers(model).items():
        owner, _, slot = path.rpartition(".")
        setattr(model.get_submodule(owner), slot, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(True)


def _layers(model: Transformer) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer  # pyright: ignore[reportMissingImports]

    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def _adapter_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if ".lora_" in name}
