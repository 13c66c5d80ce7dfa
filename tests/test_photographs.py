"""Photographs: a corpus split by photograph, and tokenizers trained on one side and measured on the other."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.chameleon import find, load_image_tokenizer
from chameleon_lab.corpora import photograph_corpus, sources
from chameleon_lab.corpora.photograph_corpus import DEBIAN, HELD_OUT, LONGEST, NPM, Credit, build_photographs
from chameleon_lab.corpora.sources import HELD_OUT_PHOTOGRAPHS
from chameleon_lab.evaluation import photographs
from chameleon_lab.evaluation.distances import METRICS, MeanScore
from chameleon_lab.evaluation.photographs import DISTANCE, scores_of, sum_up, train_one
from chameleon_lab.pictures import open_picture
from chameleon_lab.plain import plain_values
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.photographs import LOSSES, PHOTOGRAPH_TOKENIZERS, VARIANTS, Variant, experiment_of


def save_noise(path: Path, seed: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    PIL.Image.fromarray(coarse).resize(size).save(path)


@pytest.fixture
def debian(monkeypatch, tmp_path):
    """`apt-get` and `dpkg-deb` that give what each package of the corpus is to hold, without a network."""
    archive = b"an archive"
    package = replace(DEBIAN[0], sha256=hashlib.sha256(archive).hexdigest())
    plasma = replace(DEBIAN[3], sha256=package.sha256)

    def run(command, cwd=tmp_path, **options):
        if command[0] == "apt-get":
            name, _, version = command[2].partition("=")
            (cwd / f"{name}_{version}_all.deb").write_bytes(archive)
        else:
            root = Path(command[3])
            if root.name == package.name:
                for name in ("seeding_by_X.jpg", "Bridge_by_Y.jpg", "unknown.jpg"):
                    save_noise(root / package.folder / name, len(name), (1300, 900))
            else:
                for number, size in enumerate([(40, 30), (400, 300)]):
                    save_noise(root / plasma.folder / "Kite/contents/images" / f"{size[0]}.png", number, size)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(photograph_corpus.subprocess, "run", run)
    monkeypatch.setattr(photograph_corpus, "DEBIAN", (package, plasma))
    monkeypatch.setattr(photograph_corpus, "NPM", ())
    return package


def test_a_corpus_has_each_photograph_once_with_its_credit_on_one_side(debian, tmp_path):
    folder = build_photographs(tmp_path / "corpus", lambda words: None)
    rows = [json.loads(line) for line in (folder / "photographs.jsonl").read_text().splitlines()]
    assert {row["file"] for row in rows} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")
    }  # fmt: skip
    by_name = {Path(row["file"]).stem: row for row in rows}
    assert {name for name in by_name if not name.startswith("samples-")} == {
        "lomiri-seeding_by_X", "lomiri-Bridge_by_Y", "plasma-Kite",
    }  # fmt: skip
    assert all(row["licence"] and row["credit"] for row in rows)
    assert by_name["lomiri-seeding_by_X"]["licence"] == "CC0-1.0"
    for name, row in by_name.items():
        held_out = any(fnmatch(name, pattern) for pattern in HELD_OUT)
        assert row["held_out"] is held_out and row["file"].startswith("held_out/" if held_out else "trained/")
        assert max(open_picture(folder / row["file"]).size) <= LONGEST
    assert open_picture(folder / by_name["plasma-Kite"]["file"]).size == (400, 300), "the largest of its sizes"
    assert {f"samples-{name}" for name in HELD_OUT_PHOTOGRAPHS} <= {
        name for name, row in by_name.items() if row["held_out"]
    }  # fmt: skip


def test_a_package_that_is_not_the_pinned_one_is_refused_and_leaves_no_folder(debian, tmp_path, monkeypatch):
    monkeypatch.setattr(photograph_corpus, "DEBIAN", (replace(debian, sha256="0" * 64),))
    with pytest.raises(ValueError, match="was pinned"):
        build_photographs(tmp_path / "corpus", lambda words: None)
    failed = subprocess.CompletedProcess([], 100, "", "E: Version '1' was not found")
    monkeypatch.setattr(photograph_corpus.subprocess, "run", lambda *given, **options: failed)
    with pytest.raises(ValueError, match=r"apt-get download .* failed: E: Version"):
        build_photographs(tmp_path / "corpus", lambda words: None)
    assert not (tmp_path / "corpus").exists()


def test_packages_are_pinned_and_every_credit_names_licence_and_author():
    for package in DEBIAN:
        assert len(package.sha256) == 64 and package.version and package.every >= 1
        assert all(isinstance(each, Credit) and each.licence and each.credit for each in package.credits)
    assert len(NPM) == 8 and all(len(each.integrity) == 88 for each in NPM)
    assert all(each.licence == "CC0-1.0" and "Getty" in each.credit for each in NPM)


def test_variants_are_three_seeds_of_both_losses_and_each_rate_is_at_most_a_bit_a_pixel(tmp_path):
    counts = Counter((each.factor, each.perceptual) for each in VARIANTS)
    assert counts == {(factor, loss): 1 if factor == 4 else 3 for factor in (4, 8, 16) for loss in LOSSES}
    assert len({each.name for each in VARIANTS}) == len(VARIANTS)
    for factor, config in PHOTOGRAPH_TOKENIZERS.items():
        assert config.factor == factor and config.side == 256
        assert np.log2(config.codes) / factor**2 <= 1
        experiment = experiment_of(Variant(factor, "edges", 1), tmp_path, Budget(steps=1))
        assert json.loads(json.dumps(plain_values(experiment)))["seed"] == 1


@pytest.fixture
def toy(tmp_path, monkeypatch, image_config):
    """A corpus of three photographs, tokenizers of 16 pixels, and a distance that needs no weights."""
    for number in range(3):
        save_noise(tmp_path / "corpus" / ("held_out" if number else "trained") / f"{number}.jpg", number, (60, 40))
    shapes = {4: replace(image_config, quantizer="finite_scalar", codes=64, code_width=3)}
    monkeypatch.setattr(photographs, "PHOTOGRAPH_TOKENIZERS", shapes)
    monkeypatch.setitem(
        METRICS, DISTANCE, lambda: MeanScore(DISTANCE, "mean", lambda one, other: (one - one).sum((1, 2, 3)).double())
    )
    return tmp_path / "corpus"


def test_a_variant_is_trained_measured_and_summed_up(toy, tmp_path):
    out = tmp_path / "out"
    for seed in (0, 1):
        variant = Variant(4, "edges", seed)
        experiment = replace(experiment_of(variant, toy, Budget(steps=2)), batch=2, crop=16)
        scores = train_one(variant, experiment, toy, out)
        assert scores["steps"] == 2 and scores["pictures"] == 2 and 0 < scores["PSNR"] < 60
    read = load_image_tokenizer(out / "f4-edges-0" / "tokenizer")
    again = scores_of(read, list(photographs.held_out_photographs(toy).values()))
    assert again.items() <= json.loads((out / "f4-edges-0" / "scores.json").read_text()).items()
    rows = sum_up(toy, out)
    assert sum_up(toy, out) == rows, "a second time"
    results = out / "results"
    table = json.loads((results / "scores.json").read_text())
    assert [each["seed"] for each in rows] == [0, 1] and table["scores"] == rows
    assert table["means"][0]["seeds"] == 2 and table["means"][0]["PSNR"][0] == pytest.approx(
        np.mean([each["PSNR"] for each in rows]), abs=1e-3
    )
    (best,) = table["best"]
    assert (
        best == max(rows, key=lambda each: (each["PSNR"], each["SSIM"]))["variant"]
        or rows[0]["SSIM"] != rows[1]["SSIM"]
    )
    assert {path.name for path in results.iterdir()} == {
        "scores.json",
        "sheet.jpg",
        f"{best}.safetensors",
        f"{best}.json",
    }


def test_the_driver_runs_each_variant_in_a_process_and_says_why_one_failed(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(photographs, "MODULE", "no_such_module")
    with pytest.raises(ValueError, match="No variant has ended"):
        photographs.train_all(tmp_path, tmp_path / "out", 0.2, [Variant(8, "edges", 0)])
    assert "f8-edges-0 ended with 1" in caplog.text and "No module named no_such_module" in caplog.text
    assert sys.executable


@pytest.mark.parametrize(
    ("name", "factor", "psnr"), [("photographs-4", 4, 25), ("photographs", 8, 22.5), ("photographs-16", 16, 19.5)]
)
def test_a_shipped_tokenizer_rebuilds_what_it_never_saw_and_its_card_says_how_well(name, factor, psnr):
    tokenizer, folder = load_image_tokenizer(name), find(name)
    assert tokenizer.config.factor == factor and tokenizer.config.side == 256
    assert (folder / "image_tokenizer.safetensors").stat().st_size <= 4_000_000
    card = json.loads((folder / "config.json").read_text())["card"]
    assert card["scores"]["PSNR"] > psnr and card["scores"]["bits a pixel"] <= 1
    samples = sources.photographs()
    trips = [tokenizer.reconstruct(open_picture(samples[each])) for each in HELD_OUT_PHOTOGRAPHS]
    assert min(trip.psnr for trip in trips) > psnr - 3 and np.mean([trip.psnr for trip in trips]) > psnr
