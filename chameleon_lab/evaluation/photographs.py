"""Tokenizers of photographs at three rates and by two losses, trained side by side on one GPU and compared.

`python -m chameleon_lab.evaluation.photographs all CORPUS OUT` trains every variant of `VARIANTS` in a process of its
own, all at once, and measures each on the photographs held out; `one` trains a single variant; `sum` makes OUT's table,
contact sheet and winners of what is finished. The corpus is `chameleon_lab.corpora.photograph_corpus`'s.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import PIL.Image
import PIL.ImageDraw
import torch

from chameleon_lab.checkpoints.native import read_native_images
from chameleon_lab.corpora.sources import picture_files
from chameleon_lab.evaluation.metrics import measure
from chameleon_lab.pictures import open_picture
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file, write_picture
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.image_experiments import ImageExperiment
from chameleon_lab.training.photographs import (
    BATCH,
    CROP,
    LOSSES,
    PHOTOGRAPH_TOKENIZERS,
    VARIANTS,
    Variant,
    experiment_of,
)

log = logging.getLogger(__name__)


def held_out_photographs(corpus: Path | str) -> dict[str, PIL.Image.Image]:
    return {Path(name).stem: open_picture(path) for name, path in picture_files(Path(corpus) / "held_out").items()}


def scores_of(tokenizer: ImageTokenizer, pictures: Sequence[PIL.Image.Image]) -> dict[str, Any]:
    """What a tokenizer loses of photographs, at its own crop, and its rate. The tokenizer's device is used."""
    metrics = ("PSNR", "SSIM", "EfficientNet-Lite0 distance")
    measured = measure(tokenizer, pictures, reference="held-out photographs", metrics=metrics)
    rows, columns = tokenizer.grid
    usage = measured["codebook usage"]
    return {
        **{name: round(measured[name].value, 4) for name in metrics},
        "usage": round(usage.value, 4),
        "bits a pixel": round(rows * columns * math.log2(tokenizer.codes) / tokenizer.config.side**2, 4),
        "pictures": len(pictures),
    }


def train_one(variant: Variant, experiment: ImageExperiment, corpus: Path, out: Path) -> dict[str, Any]:
    """Trains a variant by its experiment in `out/NAME` and measures it; its scores are written there and returned."""
    torch.set_float32_matmul_precision("high")
    folder = out / variant.name
    run = experiment.run(folder)
    tokenizer = run.result()
    if torch.cuda.is_available():
        tokenizer = tokenizer.cuda()
    pictures = held_out_photographs(corpus)
    card = json.loads((folder / "tokenizer" / "config.json").read_text())["card"]
    scores = {
        "variant": variant.name,
        "factor": variant.factor,
        "perceptual": variant.perceptual,
        "seed": variant.seed,
        **scores_of(tokenizer, list(pictures.values())),
        "steps": card["steps"],
        "minutes": card["minutes"],
        "megabytes": round((folder / "tokenizer" / "image_tokenizer.safetensors").stat().st_size / 1e6, 2),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else card["machine"],
    }
    write_file(folder / "scores.json", json.dumps(scores, indent=1))
    return scores


def train_all(
    corpus: Path, out: Path, minutes: float, variants: Sequence[Variant] = VARIANTS, extra: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Trains all variants at once, each in a process of its own, and sums up those that ended within `minutes`.

    Of the minutes, `UNTRAINED_MINUTES` are left for imports, pictures, and the measuring at the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * minutes
    training = max(minutes - UNTRAINED_MINUTES, minutes / 3)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    children = dict[str, subprocess.Popen[bytes]]()
    for variant in variants:
        named = [f"--{name}={getattr(variant, name)}" for name in ("factor", "perceptual", "seed")]
        command = [sys.executable, "-m", MODULE, "one", str(corpus), str(out)]
        with (out / f"{variant.name}.log").open("wb") as file:
            children[variant.name] = subprocess.Popen(
                [*command, *named, f"--minutes={training}", *extra], stdout=file, stderr=file, env=environment
            )
    for name, child in children.items():
        try:
            child.wait(max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        if child.returncode:
            log.warning("%s ended with %d:\n%s", name, child.returncode, (out / f"{name}.log").read_text()[-1500:])
    return sum_up(corpus, out)


MODULE = "chameleon_lab.evaluation.photographs"
UNTRAINED_MINUTES = 2.2


def sum_up(corpus: Path, out: Path) -> list[dict[str, Any]]:
    """Writes `scores.json`, `sheet.jpg` and the best weights of each factor to `out/results`; returns the scores.

    The best of a factor is the one with the least sum of ranks by PSNR, SSIM and EfficientNet-Lite0 distance.
    """
    scores = [json.loads(path.read_text()) for path in sorted(out.glob("f*-*/scores.json"))]
    if not scores:
        raise ValueError(f"No variant has ended in {out}: its *.log say why.")
    results = out / "results"
    results.mkdir(exist_ok=True)
    best = [_best([each for each in scores if each["factor"] == factor]) for factor in _values(scores, "factor")]
    table = {"best": [each["variant"] for each in best], "means": list(_mean_rows(scores)), "scores": scores}
    write_file(results / "scores.json", json.dumps(table, indent=1))
    for each in best:
        for name in ("image_tokenizer.safetensors", "config.json"):
            content = (out / each["variant"] / "tokenizer" / name).read_bytes()
            write_file(results / f"{each['variant']}.{name.rpartition('.')[2]}", content)
    first = {(each["factor"], each["perceptual"]): each for each in sorted(scores, key=lambda each: -each["seed"])}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizers = {
        each["variant"]: read_native_images(out / each["variant"] / "tokenizer").float().to(device)
        for _, each in sorted(first.items())
    }
    write_picture(results / "sheet.jpg", sheet_of_trips(held_out_photographs(corpus), tokenizers), "JPEG", quality=92)
    return scores


def _values(scores: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return sorted({each[name] for each in scores})


def _best(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def ranks(each: dict[str, Any]) -> int:
        better = [sum(other[name] > each[name] for other in scores) for name in ("PSNR", "SSIM")]
        return sum(better) + sum(other[DISTANCE] < each[DISTANCE] for other in scores)

    return min(scores, key=ranks)


DISTANCE = "EfficientNet-Lite0 distance"


def _mean_rows(scores: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each factor and loss: mean and sample standard deviation over the seeds."""
    for factor in _values(scores, "factor"):
        for perceptual in _values(scores, "perceptual"):
            same = [each for each in scores if (each["factor"], each["perceptual"]) == (factor, perceptual)]
            row: dict[str, Any] = {"factor": factor, "perceptual": perceptual, "seeds": len(same)}
            for name in ("PSNR", "SSIM", DISTANCE, "usage") if same else ():
                values = [each[name] for each in same]
                row[name] = [round(mean(values), 4), round(stdev(values), 4) if len(values) > 1 else None]
            if same:
                yield row


def sheet_of_trips(
    pictures: dict[str, PIL.Image.Image], tokenizers: dict[str, ImageTokenizer], most: int = 10
) -> PIL.Image.Image:
    """Photographs in the first row, below it what each tokenizer makes of them, with its PSNR."""
    side, band = 256, 14
    chosen = dict(list(pictures.items())[:: max(1, len(pictures) // most)][:most])
    sheet = PIL.Image.new("RGB", (side * len(chosen), (side + band) * (1 + len(tokenizers))), "white")
    drawing = PIL.ImageDraw.Draw(sheet)
    for column, (name, picture) in enumerate(chosen.items()):
        for row, (label, tokenizer) in enumerate([("", None), *tokenizers.items()]):
            place = (side * column, (side + band) * row)
            if tokenizer is None:
                image, words = next(iter(tokenizers.values())).prepare(picture), name
            else:
                trip = tokenizer.reconstruct(picture)
                image, words = trip.picture, f"{label}: {trip.psnr:.1f} dB, SSIM {trip.ssim:.2f}"
            sheet.paste(image, (place[0], place[1] + band))
            drawing.text((place[0] + 2, place[1] + 1), words, fill="black")
    return sheet


def train_from_options(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("what", choices=("one", "all", "sum"))
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=int, choices=tuple(PHOTOGRAPH_TOKENIZERS), default=8)
    parser.add_argument("--perceptual", choices=LOSSES, default="efficientnet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=BATCH, help="crops a step")
    parser.add_argument("--crop", type=int, default=CROP, help="pixels along a crop's side")
    parser.add_argument(
        "--begins-from", help="folder or name of a tokenizer whose weights are trained on, of one variant"
    )
    parser.add_argument("--steps", type=int, help="of one variant, instead of minutes")
    parser.add_argument("--minutes", type=float, default=8.0, help="of one variant's training, or of all in all")
    parser.add_argument("--only", nargs="*", default=[each.name for each in VARIANTS], help="which of all, by name")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.what == "one":
        budget = Budget(steps=options.steps) if options.steps else Budget(minutes=options.minutes)
        variant = Variant(options.factor, options.perceptual, options.seed)
        experiment = replace(
            experiment_of(variant, options.corpus, budget),
            batch=options.batch,
            crop=options.crop,
            begins_from=options.begins_from,
        )
        print(json.dumps(train_one(variant, experiment, options.corpus, options.out)))
        return
    if options.what == "all":
        extra = [f"--{name}={value}" for name in ("batch", "crop", "steps") if (value := getattr(options, name))]
        variants = [each for each in VARIANTS if each.name in options.only]
        scores = train_all(options.corpus, options.out, options.minutes, variants, extra)
    else:
        scores = sum_up(options.corpus, options.out)
    for each in sorted(scores, key=lambda each: (each["factor"], each["perceptual"], each["seed"])):
        print(json.dumps(each))


if __name__ == "__main__":
    raise SystemExit(exit_code(train_from_options))
