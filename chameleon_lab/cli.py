"""`chameleon-lab`: the few commands a shell needs."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    from chameleon_lab.signals import SIGNALS, end_at_once

    for each in SIGNALS:
        if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(each, end_at_once)

# NOTE a footgun: batches differ in length, and oneDNN keeps the kernels of every length it has met, 14 MB a step in
# bfloat16. Its two caches are bounded when torch is loaded, so this stands before the imports.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")

import argparse
import logging
import math
import operator
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import torch

from chameleon_lab.chameleon import Chameleon, find, load_image_tokenizer
from chameleon_lab.checkpoints import formats, native
from chameleon_lab.checkpoints.evidence import home
from chameleon_lab.checkpoints.tensors import check_room, size_in_words
from chameleon_lab.corpora import shards
from chameleon_lab.corpora.mixture import scene_pairs
from chameleon_lab.corpora.readers import READERS, PictureFolder, Reader, half_picture_first
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.evaluation import stability
from chameleon_lab.evaluation.card import markdown
from chameleon_lab.evaluation.comparison import compare_quantizers
from chameleon_lab.evaluation.scenes import PROMPT_KINDS, evaluate
from chameleon_lab.generation.grammar import MODALITY_SWITCHES
from chameleon_lab.generation.settings import SETTING_NAMES, Changes, Settings
from chameleon_lab.history import StepRecord
from chameleon_lab.optimization import Recipe
from chameleon_lab.pictures import open_picture
from chameleon_lab.planner import GUIDANCE, PRECISIONS, WEIGHTS, plan, verdicts
from chameleon_lab.published import PUBLISHED
from chameleon_lab.quantization import BITS
from chameleon_lab.records import ImagePiece, TextPiece
from chameleon_lab.signals import Termination, answering, end_in_order
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES
from chameleon_lab.tokenizers.preparation import preparations
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.experiments import EXPERIMENTS
from chameleon_lab.training.image_experiments import IMAGE_EXPERIMENTS, ImageExperiment, folder_of_pictures
from chameleon_lab.training.pipeline import MODELS, Pipeline
from chameleon_lab.training.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; errors a user can mend are one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="chameleon-lab", description="A workbench for token-based mixed-modal models, from the shell."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _train_options(commands.add_parser("train", help="train a model from scratch", description=_train.__doc__))
    _generate_options(commands.add_parser("generate", help="answer a prompt", description=_generate.__doc__))
    _reconstruct_options(
        commands.add_parser(
            "reconstruct", help="send a picture through the image tokenizer", description=_reconstruct.__doc__
        )
    )
    _evaluate_options(
        commands.add_parser("evaluate", help="score a model on held-out scenes", description=_evaluate.__doc__)
    )
    _tokenize_options(
        commands.add_parser("tokenize", help="write a corpus into shards", description=_tokenize_corpus.__doc__)
    )
    _stability_options(
        commands.add_parser("stability", help="train and judge the stability presets", description=_stability.__doc__)
    )
    _compare_options(commands.add_parser("compare", help="train and compare quantizers", description=_compare.__doc__))
    _convert_options(
        commands.add_parser("convert", help="write a model in another format", description=_convert.__doc__)
    )
    _plan_options(commands.add_parser("plan", help="tell what memory a model takes", description=_plan.__doc__))
    options = parser.parse_args(arguments)
    answers = options.command in ("generate", "reconstruct", "plan")  # on stdout, which is then for nothing else
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr if answers else sys.stdout)
    demands: dict[int, Any] = {signal.SIGUSR1: _save_on_demand} if hasattr(signal, "SIGUSR1") else {}
    try:
        with answering(end_in_order, demands):
            options.run(options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"chameleon-lab: {error}\n")
        return 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Termination) else signal.SIGINT
        cause = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        sys.stderr.write(f"chameleon-lab: stopped{cause}{_prospect(options)}\n")
        return 128 + number
    return 0


def _save_on_demand(_number: int, _frame: object) -> None:
    """SIGUSR1, with which schedulers warn that time is short: the run under way writes a checkpoint and goes on."""
    for run in _awaited:
        run.save()


def _prospect(options: argparse.Namespace) -> str:
    """What the same command will do after it was stopped: nothing is said that the folder does not hold."""
    if options.command not in ("train", "stability", "compare"):
        return "."
    folder = _train_folder(options) if options.command == "train" else options.folder
    there = [path for path in (folder, *folder.glob("**/checkpoints")) if (path / "last.ckpt").is_file()]
    if not there:
        return "; no checkpoint was written yet, and the same command begins anew."
    newest = max(there, key=lambda path: (path / "last.ckpt").stat().st_mtime)
    return f"; the same command goes on from the last checkpoint, {newest / 'last.ckpt'}"


_awaited: list[Run] = []
"""The runs whose end the command awaits."""


log = logging.getLogger(__name__)

WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_train)
    names = sorted({*MODELS, *IMAGE_EXPERIMENTS, *EXPERIMENTS})
    parser.add_argument("experiment", choices=names, metavar="experiment", help=f"one of {', '.join(names)}")
    parser.add_argument("--minutes", type=float, help="train this long in all instead of the experiment's own budget")
    parser.add_argument("--folder", type=Path, help="where to keep the run and the model (default: runs/NAME)")
    parser.add_argument("--pictures", type=Path, help="train an image tokenizer on the pictures of this folder")
    parser.add_argument("--threads", type=int, help="CPU threads of each process (default: torch's own choice)")
    parser.add_argument("--processes", type=int, default=1, help="processes that share a transformer's training")


def _train(options: argparse.Namespace) -> None:
    """Trains a model (BPE, image tokenizer, transformer), a transformer or an image tokenizer; called again, goes on.

    Meanwhile its folder can be watched, and the run steered, from a notebook: RunPanel(FOLDER).
    """
    if options.minutes is not None and options.minutes <= 0:
        raise ValueError(f"--minutes must be more than 0, not {options.minutes}.")
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads must be 1 or more, not {options.threads}.")
    if options.processes < 1:
        raise ValueError(f"--processes must be 1 or more, not {options.processes}.")
    name, minutes = options.experiment, options.minutes
    if options.pictures is not None and name not in IMAGE_EXPERIMENTS:
        raise ValueError(f"--pictures is for image tokenizers ({', '.join(IMAGE_EXPERIMENTS)}).")
    if options.processes > 1 and name in IMAGE_EXPERIMENTS:
        raise ValueError("--processes is for transformers: an image tokenizer is trained by one.")
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = _train_folder(options)
    if name in MODELS:
        model = MODELS[name] if minutes is None else MODELS[name].lasting(minutes)
        for stage, run in Pipeline(model, folder, options.processes).stages():
            _await(stage, run)
        model_folder = folder / "model"
        log.info("The model is in %s. Try: chameleon-lab generate --model %s 'draw a red circle'", *[model_folder] * 2)
        return
    experiment = (IMAGE_EXPERIMENTS | EXPERIMENTS)[name]
    if minutes is not None:
        experiment = replace(experiment, budget=Budget(minutes=minutes))
    if isinstance(experiment, ImageExperiment):
        if options.pictures is not None:
            experiment = replace(experiment, source=folder_of_pictures(options.pictures))
        _await("image tokenizer", experiment.run(folder))
        tokenizer = folder / "tokenizer"
        log.info(
            "The image tokenizer is in %s. Try: chameleon-lab reconstruct --model %s PICTURE", tokenizer, tokenizer
        )
        return
    if experiment.data is None:
        raise ValueError(
            f"{name} has no data of its own. Write some with `chameleon-lab tokenize`, and give it that in Python: "
            f"replace(EXPERIMENTS[{name!r}], data=Corpora(...)).run(FOLDER)."
        )
    _await("transformer", Run(experiment, folder, processes=options.processes).start())
    log.info("The run is in %s, its weights in %s.", folder, folder / "checkpoints" / "last.ckpt")


def _train_folder(options: argparse.Namespace) -> Path:
    name, minutes = options.experiment, options.minutes
    return options.folder or Path("runs") / (name if minutes is None else f"{name}-{minutes:g}min")


def _await(stage: str, run: Run, every: float = 10.0) -> None:
    """Until the run is over, a line every ten seconds: how far, how long yet, how well; then its forks.

    Raises ValueError where somebody stopped it through its folder.
    """
    last = -math.inf

    def report(record: StepRecord) -> None:
        nonlocal last
        now, progress = time.monotonic(), run.state.progress
        if now - last < every and progress < 1:
            return
        last = now
        left = record.seconds * (1 / max(progress, 1e-9) - 1)
        measures = [f"{key} {value:.3g}" for key, value in record.values.items() if key not in ("rate", "tokens")]
        values = "  ".join(measures)
        log.info("%-15s %5.1f %%  step %d  %.0f s left  %s", stage, 100 * progress, record.step + 1, left, values)

    _awaited.append(run)
    try:
        run.wait(report=report)
    except KeyboardInterrupt:
        if run.state.status == "failed":  # the last checkpoint could not be written, say
            sys.stderr.write(f"chameleon-lab: {run.state.error}\n")
        raise
    finally:
        _awaited.remove(run)
    for fork in run.forks:
        _await(f"{stage}, {fork.name}", fork, every)
    run.result()


def _generate_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_generate)
    parser.add_argument("prompt", help="what to say; it ends the user's turn")
    parser.add_argument("--model", default="tiny", help="a model folder, or a shipped model's name (default: tiny)")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], help="a picture to show before the prompt; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for drawn pictures (default: here)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer (default: 0)")
    parser.add_argument("--modality", choices=tuple(MODALITY_SWITCHES), help="what the answer holds (default: free)")
    _settings_options(parser)
    _folder_options(parser)
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--weights", choices=tuple(BITS), help="pack the weights in 8 or 4 bits when they are read")
    parser.add_argument("--licence", help="of the weights, where it is not what their layout suggests")
    parser.add_argument(
        "--acknowledge-licence", action="store_true", help="let weights draw that Meta's licence does not allow to"
    )


def _folder_options(parser: argparse.ArgumentParser, dtype: bool = True) -> None:
    """What `Chameleon.load` is told of a folder that does not say it itself."""
    parser.add_argument("--layout", choices=tuple(formats.BY_NAME), help="what the folder is, where it cannot be told")
    parser.add_argument("--tokenizer", type=Path, help="folder or file of a tokenizer that the model's folder lacks")
    if dtype:
        parser.add_argument("--dtype", choices=WEIGHT_DTYPES, help="to compute in (default: float32)")


def _load_model(options: argparse.Namespace, **more: Any) -> Chameleon:
    dtype = options.dtype and WEIGHT_DTYPES[options.dtype]
    return Chameleon.load(options.model, layout=options.layout, tokenizer=options.tokenizer, dtype=dtype, **more)


def _settings_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `Settings`: what is not given stays as the model has it."""
    group = parser.add_argument_group(
        "settings", "instead of the model's own; temperature, top-p, top-k and min-p are for text and images"
    )
    for name, hint in get_type_hints(Settings, include_extras=True).items():
        kind, about = get_args(hint)
        number = int if int in (kind, *get_args(kind)) else float
        group.add_argument(f"--{name.replace('_', '-')}", type=number, metavar="N", help=about)


def _settings_of(options: argparse.Namespace) -> Changes:
    changes = {name: getattr(options, name) for name in SETTING_NAMES if getattr(options, name) is not None}
    return cast(Changes, changes)


def _generate(options: argparse.Namespace) -> None:
    """Answers a prompt: words go to stdout as they come, pictures to numbered PNG files."""
    if options.out.is_file():
        raise ValueError(f"--out is a folder for pictures, and {options.out} is a file.")
    lab = _load_model(
        options,
        device=options.device,
        weights=options.weights,
        licence=options.licence,
        acknowledge_licence=options.acknowledge_licence,
    )
    document = Document.of(*map(open_picture, options.image), options.prompt, EndTurn())
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = 0
    for piece in lab.stream(document, seed=options.seed, modality=options.modality, **_settings_of(options)):
        if isinstance(piece, TextPiece):
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        elif isinstance(piece, ImagePiece) and piece.complete:
            pictures += 1
            path = options.out / f"picture-{options.seed}-{pictures}.png"
            piece.picture.save(path)
            sys.stdout.write(f"[{path}]")
    sys.stdout.write("\n")


def _reconstruct_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_reconstruct)
    parser.add_argument("picture", type=Path, help="an image file")
    parser.add_argument(
        "--model",
        default="tiny",
        help="a folder of a model or an image tokenizer, or a shipped model's name (default: tiny)",
    )
    parser.add_argument(
        "--policy", choices=tuple(preparations(8, 8)), default="centre crop", help="how the picture is made to fit"
    )
    parser.add_argument("--out", type=Path, help="where to write the reconstruction (default: NAME-reconstructed.png)")
    parser.add_argument("--overwrite", action="store_true", help="write it even where a file is there already")


def _reconstruct(options: argparse.Namespace) -> None:
    """Sends a picture through the image tokenizer; prints its codes and the error, and writes what came back."""
    out = options.out or options.picture.with_name(f"{options.picture.stem}-reconstructed.png")
    if out.exists() and options.picture.exists() and out.samefile(options.picture):
        raise ValueError(f"{out} is the picture itself, which is never overwritten: name another file with --out.")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file with --out.")
    picture = open_picture(options.picture)
    if out.exists() and not options.overwrite:
        raise ValueError(f"{out} is there already: name another file with --out, or pass --overwrite.")
    tokenizer = load_image_tokenizer(options.model)
    trip = tokenizer.reconstruct(picture, tokenizer.preparations[options.policy])
    trip.picture.save(out)
    for row in trip.codes:
        sys.stdout.write(" ".join(f"{code:4d}" for code in row) + "\n")
    sys.stdout.write(f"{trip.codes.size} codes, PSNR {trip.psnr:.1f} dB, written to {out}\n")


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_evaluate)
    parser.add_argument("--model", default="tiny", help="a model folder, or a shipped model's name (default: tiny)")
    _folder_options(parser)
    parser.add_argument("-n", type=int, default=200, help="prompts of each kind (default: 200)")
    parser.add_argument("--seed", type=int, default=2026, help="decides prompts and sampling (default: 2026)")
    parser.add_argument(
        "--kind", choices=tuple(PROMPT_KINDS), action="append", help="only this kind; repeatable (default: all)"
    )
    _settings_options(parser)
    parser.add_argument("--write", action="store_true", help="write the scores and a README.md into the model folder")


def _evaluate(options: argparse.Namespace) -> None:
    """Scores a model on held-out scenes: words by exact match, pictures by a checker that reads their pixels."""
    if options.n < 1:
        raise ValueError(f"-n must be 1 or more, not {options.n}.")
    changes = _settings_of(options)
    if options.write and (options.kind or changes):
        raise ValueError(
            "--write takes a whole evaluation with the model's own settings: leave out --kind and the others."
        )
    lab = _load_model(options)
    lab.settings = lab.settings.changed(**changes)
    scores: dict[str, dict[str, float]] = {}
    for measure, score in evaluate(lab, options.kind or tuple(PROMPT_KINDS), options.n, options.seed):
        log.info("%-48s %s", measure, score)
        scores[measure] = {"share": round(score.share, 4), "n": score.n}
    if options.write:
        card = lab.card | {"scores": scores, "scores_seed": options.seed}
        native.write_card(options.model, card)
        write_file(Path(options.model) / "README.md", markdown(card))


def _tokenize_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_tokenize_corpus)
    parser.add_argument("kind", choices=("scenes", *READERS), help="what the documents are read as")
    parser.add_argument("path", type=Path, nargs="?", help="the file or folder to read; scenes are drawn instead")
    parser.add_argument("--out", type=Path, required=True, help="where to write: a new or empty folder")
    parser.add_argument("--model", default="tiny", help="whose tokenizers: a model folder or name (default: tiny)")
    _folder_options(parser)
    parser.add_argument("--pictures", type=Path, help="folder of the documents' pictures (default: beside the file)")
    parser.add_argument("--as-written", action="store_true", help="leave pairs caption first instead of turning half")
    parser.add_argument("--seed", type=int, default=0, help="decides which pairs come picture first (default: 0)")
    parser.add_argument("-n", type=int, default=8192, help="scenes to draw (default: 8192)")
    parser.add_argument("--held-out", type=int, default=0, help="scenes of arrangements held out, besides (default: 0)")


def _tokenize_corpus(options: argparse.Namespace) -> None:
    """Tokenizes documents once, into shards that training maps into memory; half of the pairs come picture first.

    Scenes are written into OUT/train and OUT/held_out, anything else into OUT.
    """
    if min(options.seed, options.held_out, options.n - 1) < 0:
        raise ValueError(
            f"-n must be 1 or more, --held-out and --seed 0 or more, not {options.n}, {options.held_out} and "
            f"{options.seed}."
        )
    if (options.kind == "scenes") != (options.path is None):
        raise ValueError("Scenes take no path." if options.path else f"Give a path to read {options.kind} from.")
    if options.path and not options.path.exists():
        raise ValueError(f"There is nothing at {options.path}.")
    if options.kind != "scenes" and options.held_out:
        raise ValueError("--held-out is for scenes, which know what is held out; keep files of your own aside.")
    tokenizer = _load_model(options).tokenizer

    def counted(documents: Reader) -> Reader:
        last = time.monotonic()
        for number, document in enumerate(documents):
            if time.monotonic() - last > 10:
                last = time.monotonic()
                log.info("%s documents read", f"{number:,}")
            yield document

    def write(folder: Path, documents: Reader, **about: object) -> None:
        if not options.as_written:
            documents = half_picture_first(documents, options.seed)
        about |= {"source": options.kind, "model": str(options.model), "seed": options.seed}
        corpus = shards.write_shards(folder, counted(documents), tokenizer, about=about)
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in corpus.card["kinds"].items())
        counts = f"{len(corpus):,} documents ({kinds}), {corpus.tokens:,} tokens, {corpus.card['skipped']:,} skipped"
        log.info("%s: %s.", folder, counts)
        reasons = Counter(re.sub(r"\S*/\S*|\d[\d,.]*", "…", entry.reason)[:100] for entry in corpus.skipped)
        for reason, count in reasons.most_common(8):
            log.info("  skipped %s: %s", f"{count:,}", reason)

    if options.kind != "scenes":
        beside = options.path if options.path.is_dir() else options.path.parent
        read = READERS[options.kind](options.path, PictureFolder(options.pictures or beside))
        write(options.out, read, path=str(options.path))
        return
    for name, count in (("train", options.n), ("held_out", options.held_out)):
        if count:
            side = "held_out" if name == "held_out" else "trainable"
            write(options.out / name, scene_pairs(count, options.seed, side), side=side)


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_convert)
    parser.add_argument("source", help="a model folder in any format, or a shipped model's name")
    parser.add_argument("target", type=Path, help="where to write: a new or empty folder")
    parser.add_argument("--format", choices=formats.FORMATS, required=True, help="what to write")
    _folder_options(parser, dtype=False)
    parser.add_argument("--dtype", choices=WEIGHT_DTYPES, help="of the transformer's weights (default: as they are)")
    parser.add_argument("--shards", type=int, help="files of Meta's format (default: as many as the norms ask for)")
    parser.add_argument("--without-pictures", action="store_true", help="leave the image tokenizer out")


def _convert(options: argparse.Namespace) -> None:
    """Writes a model in another format, tensor by tensor: it may be larger than memory."""
    target = home(options.target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{target} is there already: convert into a new or empty folder.")
    source = find(options.source)
    opened = formats.open_folder(source, options.layout, options.tokenizer)
    tensors, dtype = opened.tensors.values(), options.dtype and WEIGHT_DTYPES[options.dtype]
    numbers = [math.prod(tensor.shape) for tensor in tensors]
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
    total = size_in_words(sum(tensor.nbytes for tensor in tensors))
    log.info("%s is %s: %s parameters, %s, %s.", source, opened.layout, f"{sum(numbers):,}", dtypes, total)
    sizes = ((dtype or tensor.dtype).itemsize for tensor in tensors)
    check_room(target, sum(map(operator.mul, numbers, sizes)))
    started, pictures = time.monotonic(), not options.without_pictures
    formats.write_opened(opened, target, options.format, dtype=dtype, shards=options.shards, pictures=pictures)
    files = [file.stat().st_size for file in target.rglob("*") if file.is_file()]
    seconds = time.monotonic() - started
    log.info(
        "%s is %s: %d files, %s, in %.0f s.", target, options.format, len(files), size_in_words(sum(files)), seconds
    )


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_compare)
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each quantizer (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path("runs/quantizers"), help="where to keep runs and outcomes")


def _compare(options: argparse.Namespace) -> None:
    """Trains small image tokenizers that differ in their quantizer alone, and measures each; goes on where it ended."""
    if min(options.steps, options.seeds) < 1:
        raise ValueError(f"--steps and --seeds must be 1 or more, not {options.steps} and {options.seeds}.")
    for outcome in compare_quantizers(options.folder, steps=options.steps, seeds=range(options.seeds)):
        figures = ", ".join(value.summary for value in outcome.values.values())
        log.info("%-22s seed %d: %s", outcome.name, outcome.seed, figures)
    log.info("The outcomes are in %s.", options.folder / "outcomes.jsonl")


def _stability_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_stability)
    parser.add_argument("preset", nargs="*", help=f"which of {', '.join(stability.NAMES)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, seeds 0, 1, ... (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path("runs/stability"), help="where to keep runs and outcomes")


def _stability(options: argparse.Namespace) -> None:
    """Trains the stability presets over seeds, each run kept, and tells how they end and how early alarms sound."""
    if options.seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, not {options.seeds}.")
    ended: list[stability.PresetOutcome] = []
    for outcome in stability.outcomes(options.folder, options.preset or stability.NAMES, range(options.seeds)):
        ended.append(outcome)
        log.info(
            "%-24s %-16s seed %d: held-out loss %.3f, largest attention logit %.4g",
            *(outcome.setting, outcome.variation, outcome.seed),
            *(outcome.held_out_loss, outcome.max_attention_logit),
        )
        write_file(options.folder / "outcomes.jsonl", "".join(each.to_json() + "\n" for each in ended))
    write_file(options.folder / "outcomes.md", stability.preset_tables(ended))
    log.info("The outcomes are in %s.", options.folder / "outcomes.md")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_plan)
    parser.add_argument("model", help=f"{', '.join(PUBLISHED)}, a model folder, or a shipped model's name")
    _folder_options(parser, dtype=False)
    parser.add_argument("--device-memory", type=float, metavar="GB", help="say whether it fits so much, and what would")
    parser.add_argument("--weights", choices=tuple(WEIGHTS), help="(default: bfloat16, and float32 for training)")
    parser.add_argument("--rows", type=int, default=1, help="documents at once (default: 1)")
    parser.add_argument("--context", type=int, help="tokens of each (default: the model's context)")
    parser.add_argument("--guidance", choices=tuple(GUIDANCE), default="none", help="of pictures (default: none)")
    parser.add_argument("--training", action="store_true", help="plan a training step instead of use")
    parser.add_argument("--inspection", action="store_true", help="plan a look at one document (Chameleon.inspect)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of a training")
    parser.add_argument("--muon", action="store_true", help="train the blocks' matrices with Muon")


def _plan(options: argparse.Namespace) -> None:
    """Tells the memory that a model takes, for use or for training, without building it."""
    if options.context is not None and options.context < 1:
        raise ValueError(f"--context must be 1 or more, not {options.context}.")
    if (published := options.model.lower()) in PUBLISHED:
        config, image = PUBLISHED[published], CHAMELEON_IMAGES
    else:
        opened = formats.open_folder(find(options.model), options.layout, options.tokenizer)
        config, image = opened.config, opened.tokenizer.image.config if opened.tokenizer.can_read else None
    recipe = Recipe(muon_rate=0.02 if options.muon else 0.0)
    answer = plan(
        config,
        options.device_memory,
        weights=options.weights,
        rows=options.rows,
        context=options.context,
        guidance=options.guidance,
        training=recipe if options.training else None,
        precision=options.precision,
        image_tokenizer=image,
        inspection=options.inspection,
    )
    sys.stdout.write(f"{answer}\n")
    if options.device_memory is None:
        sys.stdout.write(f"{verdicts(answer)}\n")


if __name__ == "__main__":
    raise SystemExit(main())
