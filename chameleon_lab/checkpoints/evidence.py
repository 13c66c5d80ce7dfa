"""What a folder has of each layout. Evidence is weighed, so that a stray file never decides.

A layout needs two things of a folder: a config that describes a model, and weights. A folder that has both of exactly
one layout is of that layout, whatever else lies there. Names decide nothing where the content can be asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lab.checkpoints.tensors import visible_files
from chameleon_lab.files import read_table


@dataclass(frozen=True)
class Claim:
    """What a folder has of one layout: `config` and `weights` in words, "" for what it lacks.

    `places`: where the weights lie, then where else their tokenizers may. `inside`: whether that is the folder itself,
    not one that it leads to. `fault`: why what lies there cannot be this layout after all.
    """

    config: str = ""
    weights: str = ""
    places: tuple[Path, ...] = ()
    inside: bool = True
    fault: ValueError | None = None

    def __bool__(self) -> bool:
        return bool(self.config or self.weights)

    @property
    def whole(self) -> bool:
        return bool(self.config and self.weights)

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """How good the evidence is, best last."""
        return self.whole, self.fault is None, self.inside

    def in_words(self, weights: str) -> str:
        """What there is and what is lacking; `weights` are what this layout's would be called."""
        there = " and ".join(filter(None, (self.config, self.weights))) or "nothing"
        lacking = "no config" if not self.config else f"no weights ({weights})" if not self.weights else ""
        place = "" if self.inside or not self.places else f" in {self.places[0]}"
        return f"{there}{place}" + (f", but {lacking}" if lacking and self else "")


def home(place: Path | str) -> Path:
    """A path as a person writes it, `~` being home. Raises FileNotFoundError for an empty one, which is no folder."""
    if place == "":
        raise FileNotFoundError("The path is empty: give a folder, or the name of a shipped model such as 'tiny'.")
    place = Path(place)
    try:
        return place.expanduser()
    except RuntimeError as error:  # a ~name of nobody, or a process that has no home
        raise FileNotFoundError(f"{place} begins with the home of a user who is not there.") from error


def snapshot(folder: Path) -> Path:
    """The folder of files behind a root of Hugging Face's cache (models--org--name, or its snapshots/); any other as it
    is. Raises ValueError where several snapshots lie there and none is the main one."""
    root = folder.parent if folder.name == "snapshots" else folder
    if root.name.startswith("models--") and (root / "blobs").is_dir() and not (root / "snapshots").is_dir():
        raise FileNotFoundError(f"{folder} is a root of Hugging Face's cache without a snapshot: download it again.")
    if not (root / "snapshots").is_dir() or (root / "config.json").exists():
        return folder
    snapshots = sorted(place for place in (root / "snapshots").iterdir() if place.is_dir())
    main = root / "refs" / "main"
    chosen = [place for place in snapshots if main.is_file() and place.name == main.read_text(errors="replace").strip()]
    if len(chosen or snapshots) == 1:
        return (chosen or snapshots)[0]
    if not snapshots:
        raise FileNotFoundError(f"{folder} is a root of Hugging Face's cache without a snapshot: download it again.")
    raise ValueError(
        f"{folder} is a root of Hugging Face's cache with {len(snapshots)} snapshots, and refs/main names none of "
        f"them. Give the one you mean, such as {snapshots[-1]}."
    )


def plain_config(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`; empty where there is none that can be read."""
    try:
        return read_table(folder / "config.json")
    except (OSError, ValueError):
        return {}


PACKERS = {
    "bitsandbytes": "bitsandbytes",
    "bnb": "bitsandbytes",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "fp8": "float8",
    "fbgemm_fp8": "float8",
    "compressed-tensors": "compressed-tensors",
}


def packed_kind(plain: dict[str, Any]) -> str:
    """By what program's scheme the weights of a `config.json` are packed; "" where they are plain."""
    about = plain.get("quantization_config")
    if isinstance(about, dict) and about:
        method = str(about.get("quant_method") or ("bnb" if any("bnb" in key for key in about) else "another program"))
        return PACKERS.get(method.lower(), method)
    mlx = plain.get("quantization")
    return "MLX" if isinstance(mlx, dict) and {"bits", "group_size"} & mlx.keys() else ""


PACKED_NAMES = {
    ".g_idx": "GPTQ",
    ".qweight": "AWQ",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".biases": "MLX",
    ".weight_scale": "float8 or compressed-tensors",
    ".weight_scale_inv": "float8",
    ".weight_packed": "compressed-tensors",
}
"""How names of tensors end that only one program's packed weights have, the surer ones first."""


def packed_kind_of(names: Iterable[str]) -> str:
    """By what program's scheme tensors of these names are packed; "" where they are plain. Older programs leave the
    config as it was, and say so in a file of their own or nowhere."""
    endings = {"." + name.rpartition(".")[2] for name in names}
    return next((kind for ending, kind in PACKED_NAMES.items() if ending in endings), "")


def unpack_advice(folder: Path, kind: str) -> str:
    """The error for weights that another program packed."""
    return (
        f"{folder} holds weights packed by {kind}, which the lab does not read: get the model's folder of plain "
        "weights (float32, bfloat16 or float16), and have them packed as they are read: "
        "Chameleon.load(folder, weights='int8')."
    )


def foreign_kind(folder: Path) -> str:
    """What a folder without a whole model holds instead, as a sentence; "" where nothing tells."""
    files = {file.name for file in visible_files(folder)}
    if folder.is_file():
        files = {folder.name}
    ending = {Path(name).suffix for name in files}
    if any(name.startswith("ggml") for name in files):
        return "It holds a file of the time before GGUF: get the same model as GGUF or safetensors."
    if "weights.npz" in files:
        return "It holds MLX's weights.npz: get the same model as safetensors."
    adapters = {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"} & files
    if adapters:
        return (
            f"It holds an adapter ({min(adapters)}), which is a change to a model and no model: merge it into its base "
            "with PEFT's merge_and_unload, and save that."
        )
    if {".h5", ".msgpack"} & ending:
        return "It holds weights of TensorFlow or Flax: get the same model as safetensors."
    if parts := [
        file.name
        for place in (folder, *subfolders(folder))
        for file in visible_files(place)
        if file.suffix == ".distcp"
    ]:
        return (
            f"It holds the parts of a distributed checkpoint ({parts[0]}): join them first, with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER pytorch_model.bin`."
        )
    if cut := [name for name in sorted(files) if Path(name).suffix in UNFINISHED]:
        return f"It holds {cut[0]}, a download that did not end: get it again."
    if lost := [place.name for place in _entries(folder) if place.is_symlink() and not place.exists()]:
        return f"Its {lost[0]} is a link to a file that is not there: copy the folder with what its links lead to."
    if ".onnx" in ending:
        return "It holds an ONNX file: get the same model as safetensors."
    if any(re.search(r"mp_rank_\d+|zero_pp_rank", name) for name in files) or (folder / "zero_to_fp32.py").is_file():
        return "It holds DeepSpeed's parts of a training: join them first, with its zero_to_fp32.py."
    return ""


UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2")
"""How programs call what they have not downloaded to its end."""


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def unused_adapter(folder: Path) -> str:
    """The name of an adapter that lies beside a whole model and is not applied; "" for none."""
    names = {file.name for file in visible_files(folder)}
    adapter = {"adapter_model.safetensors", "adapter_model.bin"} & names
    return min(adapter) if adapter else ""


def subfolders(folder: Path, most: int = 100) -> Iterator[Path]:
    """The folders in a folder, hidden ones left out."""
    for place, each in enumerate(each for each in _entries(folder) if each.is_dir() and not each.name.startswith(".")):
        if place >= most:
            return
        yield each
