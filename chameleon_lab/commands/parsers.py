"""The options of every command: what `--help` says, and what a command line must be. Nothing here needs torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from chameleon_lab.commands import names

TRAINABLE_NAMES = {*names.IMAGE_EXPERIMENT_NAMES, *names.EXPERIMENT_NAMES, *names.ALIGNMENT_NAMES}


def command_parser() -> argparse.ArgumentParser:
    """The parser of whole command lines; `command` of what it parses is one of `COMMAND_TABLE`."""
    parser = argparse.ArgumentParser(
        prog="chameleon-lab", description="A workbench for token-based mixed-modal models, from the shell."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (add_options, summary, description) in COMMAND_TABLE.items():
        add_options(commands.add_parser(name, help=summary, description=description))
    return parser


def _experiment(name: str) -> str:
    """An experiment's name. Those of this process's own are looked up, which takes seconds."""
    usual = {*names.MODEL_NAMES, *TRAINABLE_NAMES}
    if name not in usual and name not in import_module("chameleon_lab.commands.train").experiment_names():
        raise argparse.ArgumentTypeError(f"no experiment is called {name!r}; there are {', '.join(sorted(usual))}")
    return name


def train_folder(options: argparse.Namespace) -> Path:
    """Where `train` keeps its run and model."""
    if options.data and options.experiment is None:
        return options.folder or Path("runs") / (Path(options.data[0].split("=")[0]).name or "mine")
    name, minutes = options.experiment, options.minutes
    return options.folder or Path("runs") / (name if minutes is None else f"{name}-{minutes:g}min")


def _train_options(parser: argparse.ArgumentParser) -> None:
    usual = sorted({*names.MODEL_NAMES, *TRAINABLE_NAMES})
    parser.add_argument(
        "experiment",
        type=_experiment,
        nargs="?",
        metavar="experiment",
        help=f"one of {', '.join(usual)}; or give --data",
    )
    parser.add_argument("--minutes", type=float, help="train this long in all instead of the experiment's own budget")
    parser.add_argument("--folder", type=Path, help="where to keep the run and the model (default: runs/NAME)")
    parser.add_argument("--pictures", type=Path, help="train an image tokenizer on the pictures of this folder")
    parser.add_argument("--threads", type=int, help="CPU threads of each process (default: torch's own choice)")
    parser.add_argument("--processes", type=int, default=1, help="processes that share a transformer's training")
    own = parser.add_argument_group("your own data", "what is left out is derived from the data, and says why")
    own.add_argument(
        "--data",
        action="append",
        metavar="PATH[=WEIGHT]",
        help="a folder of pictures with captions, JSON Lines, text; repeatable; KIND:PATH names its reader; for "
        "`alignment`, conversations: CATEGORY:PATH",
    )
    own.add_argument("--size", choices=names.SIZE_NAMES, help="of the model (default: what the machine and time allow)")
    own.add_argument("--side", type=int, metavar="N", help="pixels along each side of a picture")
    own.add_argument("--grid", type=int, metavar="N", help="codes along each side of a picture")
    own.add_argument("--codes", type=int, metavar="N", help="size of the codebook")
    own.add_argument("--pieces", type=int, metavar="N", help="size of the text vocabulary")
    own.add_argument("--width", type=int, metavar="N", help="of the transformer")
    own.add_argument("--layers", type=int, metavar="N", help="of the transformer")
    own.add_argument("--context", type=int, metavar="N", help="tokens that the transformer sees at once")
    own.add_argument(
        "--stop", action=argparse.BooleanOptionalAction, help="end early when the held-out loss falls no more"
    )
    own.add_argument(
        "--critic", type=float, metavar="SHARE", help="of the image tokenizer's time, after which a critic joins (off)"
    )
    own.add_argument("--image-tokenizer", metavar="MODEL", help="use this image tokenizer as it is: a folder or a name")
    own.add_argument(
        "--begins-from",
        metavar="MODEL",
        help="train on from this image tokenizer, or align this model: a folder or a name",
    )
    own.add_argument("--seed", type=int, default=0, help="decides what is held out and all that is drawn (default: 0)")


def _launch_options(parser: argparse.ArgumentParser) -> None:
    usual = sorted(TRAINABLE_NAMES)
    parser.add_argument("experiment", choices=usual, metavar="experiment", help=f"one of {', '.join(usual)}")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the run is to be: on a disk that all nodes see"
    )
    parser.add_argument("--processes", type=int, help="in all (default: nodes x devices)")
    parser.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    parser.add_argument(
        "--devices", type=int, help="processes on each of them, one a GPU where there are any (default: 1)"
    )
    parser.add_argument(
        "--strategy", default="auto", help="of Lightning's: ddp, or fsdp (FSDP2) where a model needs several devices"
    )
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), help="(default: a GPU where there is one)")
    parser.add_argument("--precision", help="Lightning's name of one, such as bf16-mixed (default: the experiment's)")
    parser.add_argument("--minutes", type=float, help="train this long instead of the experiment's own budget")
    parser.add_argument("--dry-run", action="store_true", help="write the folder, and start nothing")


def _generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to say; it ends the user's turn")
    parser.add_argument("--model", default="tiny", help="a model folder, or a shipped model's name (default: tiny)")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], help="a picture to show before the prompt; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for drawn pictures (default: here)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer (default: 0)")
    parser.add_argument("--modality", choices=names.MODALITY_NAMES, help="what the answer holds (default: free)")
    _settings_options(parser)
    _folder_options(parser)
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--weights", choices=names.BIT_NAMES, help="pack the weights in 8 or 4 bits when they are read")
    parser.add_argument("--licence", help="of the weights, where it is not what their layout suggests")
    parser.add_argument(
        "--acknowledge-licence", action="store_true", help="let weights draw that Meta's licence does not allow to"
    )


def _folder_options(parser: argparse.ArgumentParser, dtype: bool = True) -> None:
    """What `Chameleon.load` is told of a folder that does not say it itself."""
    parser.add_argument("--layout", choices=names.LAYOUT_NAMES, help="what the folder is, where it cannot be told")
    parser.add_argument("--tokenizer", type=Path, help="folder or file of a tokenizer that the model's folder lacks")
    if dtype:
        parser.add_argument("--dtype", choices=names.DTYPE_NAMES, help="to compute in (default: float32)")


def _settings_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `Settings`: what is not given stays as the model has it."""
    group = parser.add_argument_group(
        "settings", "instead of the model's own; temperature, top-p, top-k and min-p are for text and images"
    )
    for name, (number, about) in names.SETTING_OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=number, metavar="N", help=about)


def _reconstruct_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, help="an image file")
    parser.add_argument(
        "--model",
        default="tiny",
        help="a folder of a model or an image tokenizer, or a shipped model's name (default: tiny)",
    )
    _folder_options(parser)
    parser.add_argument(
        "--policy", choices=names.POLICY_NAMES, default="centre crop", help="how the picture is made to fit"
    )
    parser.add_argument("--out", type=Path, help="where to write the reconstruction (default: NAME-reconstructed.png)")
    parser.add_argument("--overwrite", action="store_true", help="write it even where a file is there already")


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="a model folder, or a shipped model's name (default: tiny)")
    _folder_options(parser)
    parser.add_argument("-n", type=int, default=200, help="prompts of each kind (default: 200)")
    parser.add_argument("--seed", type=int, default=2026, help="decides prompts and sampling (default: 2026)")
    parser.add_argument(
        "--kind", choices=names.PROMPT_KIND_NAMES, action="append", help="only this kind; repeatable (default: all)"
    )
    _settings_options(parser)
    parser.add_argument("--write", action="store_true", help="write the scores and a README.md into the model folder")
    parser.add_argument("--against", metavar="MODEL", help="another model: what differs, and by how much beyond chance")
    own = parser.add_argument_group("prompts of your own", "instead of scenes; see docs/evaluation.md")
    own.add_argument("--prompts", type=Path, help="a JSON Lines file: a prompt a line, with checks of the reply")
    own.add_argument("--checks", type=Path, help="a Python file with functions that lines name; it is executed")
    own.add_argument("--out", type=Path, help="where to write values, replies and scores, as JSON Lines")
    paper = parser.add_argument_group("benchmarks of Chameleon's paper", "instead of scenes; nothing is downloaded")
    paper.add_argument("--benchmark", metavar="NAME", help="PIQA, COCO, ...; docs/evaluation.md says more")
    paper.add_argument("--data", type=Path, metavar="FOLDER", help="where the benchmark's files lie, as published")
    paper.add_argument("--limit", type=int, metavar="N", help="only the first N items (default: all)")


def _coco_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="a model folder, or a shipped model's name (default: tiny)")
    _folder_options(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of COCO's val2014/ and annotations/")
    parser.add_argument("--out", type=Path, required=True, help="where drawn pictures go; called again, it goes on")
    parser.add_argument("-n", type=int, default=30_000, help="captions, one a picture (default: 30,000)")
    parser.add_argument(
        "--documents", type=int, nargs="+", default=(0, 1, 2), help="how many are retrieved, each in turn (0 1 2)"
    )
    parser.add_argument("--bank", type=Path, help="folder of the memory bank that they are looked up in")
    parser.add_argument("--encoder", type=Path, help="folder of CLIP, or of a two-tower encoder: looks up, and ranks")
    parser.add_argument(
        "--tries", type=int, default=8, help="pictures a caption, of which the best counts (default: 8)"
    )
    parser.add_argument("--template", default="{caption}", help="words of a request (default: {caption} alone)")
    parser.add_argument(
        "--pairs", action="store_true", help="captions begin pairs, instead of being requests with an end of turn"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides captions and sampling (default: 0)")
    _settings_options(parser)


def _tokenize_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("scenes", *names.READER_NAMES), help="what the documents are read as")
    parser.add_argument("path", type=Path, nargs="?", help="the file or folder to read; scenes are drawn instead")
    parser.add_argument("--out", type=Path, required=True, help="where to write: a new or empty folder")
    parser.add_argument("--model", default="tiny", help="whose tokenizers: a model folder or name (default: tiny)")
    _folder_options(parser)
    parser.add_argument(
        "--processes", type=int, default=0, help="that tokenize beside the one that reads (default: none)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one, and no processes)")
    parser.add_argument("--pictures", type=Path, help="folder of the documents' pictures (default: beside the file)")
    parser.add_argument("--as-written", action="store_true", help="leave pairs caption first instead of turning half")
    parser.add_argument("--seed", type=int, default=0, help="decides which pairs come picture first (default: 0)")
    parser.add_argument("-n", type=int, default=8192, help="scenes to draw (default: 8192)")
    parser.add_argument("--held-out", type=int, default=0, help="scenes of arrangements held out, besides (default: 0)")


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a model folder in any format, a GGUF file, or a shipped model's name")
    parser.add_argument("target", type=Path, help="where to write: a new or empty folder, or NAME.gguf")
    parser.add_argument("--format", choices=names.FORMAT_NAMES, required=True, help="what to write")
    _folder_options(parser, dtype=False)
    parser.add_argument(
        "--dtype", choices=names.DTYPE_NAMES, help="of the transformer's weights (default: as they are)"
    )
    parser.add_argument("--shards", type=int, help="files of Meta's format (default: as many as the norms ask for)")
    parser.add_argument("--without-pictures", action="store_true", help="leave the image tokenizer out")
    parser.add_argument(
        "--weights", choices=names.GGUF_WEIGHT_NAMES, help="how matrices are packed in GGUF (default: as their dtype)"
    )


def _consolidate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("target", type=Path, help="where to write: a new or empty folder")
    parser.add_argument("--experiment", metavar="NAME", help="what was trained, by name")
    parser.add_argument(
        "--from",
        dest="own",
        type=Path,
        metavar="FILE.py",
        help="or a Python file that calls it `experiment`, such as the run's train.py; it is executed",
    )
    parser.add_argument("--format", choices=names.FORMAT_NAMES, default="native", help="to write (default: native)")
    parser.add_argument("--dtype", choices=names.DTYPE_NAMES, help="of the weights (default: as they were trained)")
    parser.add_argument("--without-pictures", action="store_true", help="leave the image tokenizer out")
    parser.add_argument("--shards", type=int, help="files of Meta's format (default: as many as the norms ask for)")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    _seed_options(parser)
    _own_options(parser, "quantizers to compare with the lab's")
    parser.add_argument("--width", type=int, default=16, help="code width of quantizers from FILE (default: 16)")
    parser.add_argument("--folder", type=Path, default=Path("runs/quantizers"), help="where to keep runs and outcomes")


def _stability_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", nargs="*", help=f"which of {', '.join(names.PRESET_NAMES)} (default: all)")
    _seed_options(parser)
    _own_options(parser, "fixes, corpora, monitors and alarm rules of your own for the presets")
    parser.add_argument("--folder", type=Path, default=Path("runs/stability"), help="where to keep runs and outcomes")


def _seed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=_seeds,
        default=(0, 1, 2),
        metavar="N or A,B,...",
        help="how many seeds, from 0 on, or which: 11,12,17; one alone with a comma: 11, (default: 3)",
    )


def _seeds(words: str) -> tuple[int, ...]:
    """Raises ArgumentTypeError for what is neither a number of seeds nor a list of them."""
    parts = [part.strip() for part in words.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"--seeds is a number, 3, or seeds with commas, 11,12,17; not {words!r}")
    seeds = tuple(int(part) for part in parts) if "," in words else tuple(range(int(words)))
    if not seeds or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"--seeds must be one seed or more, each once, not {words}")
    return seeds


def _own_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--from",
        dest="own",
        type=Path,
        metavar="FILE.py",
        help=f"a Python file with {what}; it is executed, so name one that you trust",
    )


def _plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"{', '.join(names.PUBLISHED_NAMES)}, a model folder, or a shipped model's name")
    _folder_options(parser, dtype=False)
    parser.add_argument("--device-memory", type=float, metavar="GB", help="say whether it fits so much, and what would")
    parser.add_argument(
        "--weights", choices=names.PLANNED_WEIGHTS, help="(default: bfloat16, and float32 for training)"
    )
    parser.add_argument("--rows", type=int, default=1, help="documents at once (default: 1)")
    parser.add_argument("--context", type=int, help="tokens of each (default: the model's context)")
    parser.add_argument("--guidance", choices=names.GUIDANCE_NAMES, default="none", help="of pictures (default: none)")
    parser.add_argument("--training", action="store_true", help="plan a training step instead of use")
    parser.add_argument("--inspection", action="store_true", help="plan a look at one document (Chameleon.inspect)")
    parser.add_argument(
        "--precision", choices=names.PRECISION_NAMES, default=names.PRECISION_NAMES[0], help="of a training"
    )
    parser.add_argument("--muon", action="store_true", help="train the blocks' matrices with Muon")
    many = parser.add_argument_group("many devices", "a training with FSDP2: memory a device, tokens a second, days")
    many.add_argument("--devices", type=int, metavar="N", help="plan a training over so many devices")
    many.add_argument("--recompute", action="store_true", help="blocks made again in the backward pass")
    many.add_argument("--rate", type=float, metavar="N", help="tokens a second of one device, as measured")
    many.add_argument(
        "--link", type=float, default=25.0, metavar="GB/S", help="what a device's link carries (default: 25)"
    )
    many.add_argument("--tokens", type=float, metavar="N", help="of the whole training")


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model's or a training's folder, or a shipped model's name")
    parser.add_argument("--notebook", type=Path, help="keep the notebook in this file (default: it goes in the end)")
    parser.add_argument("--no-browser", action="store_true", help="start JupyterLab and open no page")


COMMAND_TABLE: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, str]] = {
    "train": (
        _train_options,
        "train a model from scratch",
        "Trains a model (BPE, image tokenizer, transformer), a transformer or an image tokenizer; called "
        "again, goes on. Meanwhile its folder can be watched, and the run steered, from a notebook: "
        "RunPanel(FOLDER).",
    ),
    "launch": (
        _launch_options,
        "train in several processes, or on a cluster",
        "Writes a folder with train.py, a line for torchrun and an sbatch file, and trains there in processes of its "
        "own where this machine can. Meanwhile it is watched and steered from a notebook: RunPanel(FOLDER).",
    ),
    "generate": (
        _generate_options,
        "answer a prompt",
        "Answers a prompt: words go to stdout as they come, pictures to numbered PNG files.",
    ),
    "demo": (
        _demo_options,
        "chat with a model in JupyterLab",
        "Writes a notebook with the chat of a model, and opens it in JupyterLab until that is closed.",
    ),
    "reconstruct": (
        _reconstruct_options,
        "send a picture through the image tokenizer",
        "Sends a picture through the image tokenizer; prints its codes and the error, and writes what came back.",
    ),
    "evaluate": (
        _evaluate_options,
        "score a model on held-out scenes, or on prompts of your own",
        "Scores a model on held-out scenes: words by exact match, pictures by a checker that reads their pixels; or on "
        "prompts of your own with checks of the replies.",
    ),
    "coco": (
        _coco_options,
        "FID of pictures drawn for COCO's captions",
        "Draws pictures for COCO's captions, with 0, 1 and 2 documents retrieved for each, and measures FID. COCO "
        "and the weights of Inception and CLIP must lie on the disk: what is missing is named, with where it is "
        "published.",
    ),
    "tokenize": (
        _tokenize_options,
        "write a corpus into shards",
        "Tokenizes documents once, into shards that training maps into memory; half of the pairs come picture "
        "first. Scenes are written into OUT/train and OUT/held_out, anything else into OUT. Stopped and called again, "
        "it goes on.",
    ),
    "stability": (
        _stability_options,
        "train and judge the stability presets",
        "Trains the stability presets over seeds, each run kept, and tells how they end and how early alarms sound.",
    ),
    "compare": (
        _compare_options,
        "train and compare quantizers",
        "Trains small image tokenizers that differ in their quantizer alone, and measures each; goes on where "
        "it ended.",
    ),
    "convert": (
        _convert_options,
        "write a model in another format",
        "Writes a model in another format, tensor by tensor: it may be larger than memory.",
    ),
    "consolidate": (
        _consolidate_options,
        "make a model of a run's checkpoint",
        "Makes a model of a run's checkpoint, in any format, tensor by tensor. One in parts (FSDP) is put together.",
    ),
    "plan": (
        _plan_options,
        "tell what memory a model takes",
        "Tells the memory that a model takes, for use or for training, without building it.",
    ),
}
"""Each command: what adds its options, a line about it, and its description."""
