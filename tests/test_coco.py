"""FID of pictures drawn for captions: the closed form, the protocol on its card, and all that may be missing."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import scipy.linalg
import torch
from support import failed
from torch import Tensor, nn

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, Image
from chameleon_lab.evaluation import coco
from chameleon_lab.evaluation.coco import CaptionedFile, ZeroShot, coco_captions, draw_captions, fid, zero_shot
from chameleon_lab.retrieval.bank import Bank
from chameleon_lab.retrieval.encoders import TwoTower, TwoTowerConfig
from chameleon_lab.retrieval.retriever import Retriever
from chameleon_lab.tokenizers.networks import FeatureNetwork


class ColourMoments(nn.Module):
    """Features that one can compute by hand: the means and deviations of the three colours."""

    def forward(self, bytes_BCHW: Tensor) -> Tensor:
        pixels = bytes_BCHW.double()
        return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], 1)


NETWORK = FeatureNetwork("moments of colours", ColourMoments(), "cpu")
WORDS = ("a cat", "two dogs", "a red  bus\n", "a kite", "snow", "a plate", "a man", "trees")


def picture(rng: np.random.Generator, size: tuple[int, int] = (20, 24)) -> PIL.Image.Image:
    base = rng.integers(0, 200, 3)
    return PIL.Image.fromarray((base + rng.integers(0, 55, (*size, 3))).astype(np.uint8))


@pytest.fixture
def data(tmp_path) -> Path:
    """COCO's folder as its archives have it, of eight pictures with two captions each."""
    folder, rng = tmp_path / "coco", np.random.default_rng(0)
    (folder / "val2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(len(WORDS))]
    for name in names:
        picture(rng).save(folder / "val2014" / name)
    images = [{"id": 7 * number, "file_name": name} for number, name in enumerate(names)]
    annotations = [
        {"image_id": 7 * number, "id": 2 * number + more, "caption": f"{words}{' again' * more}"}
        for number, words in enumerate(WORDS)
        for more in (0, 1)
    ]
    plain = {"info": {}, "images": images, "annotations": annotations, "licenses": []}
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(plain))
    return folder


def test_captions_are_one_a_picture_and_a_function_of_the_seed(data):
    pairs = coco_captions(data, 6, seed=1)
    assert pairs == coco_captions(data, 6, seed=1) != coco_captions(data, 6, seed=2)
    assert len({each.picture for each in pairs}) == 6 and all(each.picture.is_file() for each in pairs)
    whole = [each.caption.removesuffix(" again") for each in coco_captions(data, 8)]
    assert whole == [" ".join(words.split()) for words in WORDS]  # each stays with its own picture


def test_fid_is_the_frechet_distance_of_two_gaussians(data, lab, tmp_path):
    """By scipy's square root of a matrix, on features of pictures prepared as the model's are."""
    pairs, rng = coco_captions(data, 8), np.random.default_rng(5)
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for file in files:
        picture(rng, (16, 16)).save(file)
    value = fid(lab, pairs, files, NETWORK, drawing="by hand", batch=3)
    policy = lab.tokenizer.image.preparations["centre crop"]
    features = [
        np.array([moments(each) for each in pictures])
        for pictures in (
            [policy.picture(PIL.Image.open(each.picture).convert("RGB")) for each in pairs],
            [PIL.Image.open(file) for file in files],
        )
    ]
    (one, other), (first, second) = ([each.mean(0) for each in features], [np.cov(each.T) for each in features])
    root: Any = scipy.linalg.sqrtm(first @ second)
    assert value.value == pytest.approx(((one - other) ** 2).sum() + np.trace(first + second - 2 * root.real), rel=1e-4)
    assert (value.card.metric, value.card.n, value.card.network) == ("FID", 8, "moments of colours")
    assert value.card.crop == "centre crop 16" and "by hand" in value.card.definition and not value.higher_is_better
    with pytest.raises(ValueError, match=r"as many pictures as captions, two or more: not 7 and 8"):
        fid(lab, pairs, files[:7], NETWORK, drawing="")


def moments(each: PIL.Image.Image) -> np.ndarray:
    pixels = np.asarray(each).reshape(-1, 3).astype(float)
    return np.concatenate([pixels.mean(0), pixels.std(0, ddof=1)])


@pytest.fixture
def retriever(lab) -> Retriever:
    torch.manual_seed(0)
    encoder, rng = TwoTower(TwoTowerConfig(16, 64, 32, (4, 8))).eval(), np.random.default_rng(1)
    documents = [Document.of(words, Image(picture(rng))) for words in ("a cat", "a dog", "a bus")]
    return Retriever(lab, Bank.of(documents, encoder, lab.tokenizer), encoder)


def brightness(document: Document) -> float:
    return float(np.asarray(document.pictures[-1]).mean())


def test_the_ablation_draws_ranks_measures_and_goes_on_where_it_stopped(data, lab, retriever, tmp_path):
    pairs, protocol = coco_captions(data, 3), ZeroShot(tries=2, seed=4, at_once=2)
    arguments = lab, pairs, tmp_path / "out", (0, 1, 2), retriever, brightness, NETWORK, protocol
    values = dict(zero_shot(*arguments))
    assert [*values] == [0, 1, 2] and len({each.value for each in values.values()}) == 3
    assert "1 documents retrieved, the best of 2 by" in values[1].card.definition
    with pytest.raises(ValueError, match="definition: "):  # cards that say how they were drawn do not compare by chance
        values[0].compare(values[1])
    files = sorted((tmp_path / "out" / "documents-1").glob("*.png"))
    stamps = [file.stat().st_mtime_ns for file in files]
    before = files[1].read_bytes()
    files[1].unlink()
    again = dict(zero_shot(*arguments))
    assert again == values and files[1].read_bytes() == before  # by its number's seed, whatever is drawn beside it
    assert [file.stat().st_mtime_ns for file in files][::2] == stamps[::2]
    alone = draw_captions(lab, pairs, tmp_path / "one", protocol=ZeroShot(tries=1, seed=4))
    best = sorted((tmp_path / "out" / "documents-0").glob("*.png"))
    pairs_of_means = [
        [np.asarray(PIL.Image.open(file)).mean() for file in each] for each in zip(best, alone, strict=True)
    ]
    assert all(one >= other for one, other in pairs_of_means)


def test_a_folder_of_pictures_that_were_drawn_otherwise_is_refused(data, lab, tmp_path):
    pairs = coco_captions(data, 2)
    draw_captions(lab, pairs, tmp_path / "out", protocol=ZeroShot(tries=1))
    with pytest.raises(ValueError, match=r"drawn with another seed, template: take another folder"):
        draw_captions(lab, pairs, tmp_path / "out", protocol=ZeroShot(tries=1, seed=1, template="draw {caption}"))
    other = Chameleon(lab.model, lab.tokenizer, lab.settings.changed(temperature=0.5))
    with pytest.raises(ValueError, match=r"drawn with another settings"):
        draw_captions(other, pairs, tmp_path / "out", protocol=ZeroShot(tries=1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: (data / "annotations" / "captions_val2014.json").unlink(), r"holds no annotations.*val2014.zip"),
        (lambda data: (data / "annotations" / "captions_val2014.json").write_text("{}"), r"captions_val2014.json"),
        (lambda data: (data / "annotations" / "captions_val2014.json").write_text("["), r"is not JSON"),
        (
            lambda data: next((data / "val2014").glob("*07.jpg")).unlink(),
            r"lacks 1 of 8 pictures, COCO_val2014_0+7",
        ),
    ],
    ids=["missing", "empty", "cut", "a picture"],
)
def test_data_that_is_not_there_says_where_it_is_published(damage, message, data):
    damage(data)
    with pytest.raises(ValueError, match=message) as error:
        coco_captions(data, 8)
    assert "cocodataset.org" in str(error.value)


def test_what_is_missing_is_said_before_anything_is_drawn(data, lab, tmp_path, capsys, monkeypatch):
    pairs = coco_captions(data, 2)
    with pytest.raises(ValueError, match=r"9 captions of as many pictures were asked for, and .* has 8"):
        coco_captions(data, 9)
    with pytest.raises(ValueError, match=r"2 document\(s\) are to stand before each caption, and there is no bank"):
        dict(zero_shot(lab, pairs, tmp_path / "out", (0, 2), None, None, NETWORK, ZeroShot(tries=1)))
    with pytest.raises(ValueError, match=r"Of 8 pictures the best is to be taken, and nothing ranks them"):
        dict(zero_shot(lab, pairs, tmp_path / "out", (0,), None, None, NETWORK))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"template 'draw' has no \{caption\}"):
        ZeroShot(template="draw")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    arguments = ("coco", "--data", data, "--out", tmp_path / "out", "-n", 4)
    line = failed(capsys, *arguments)
    assert "Inception" in line and "torch-fidelity" in line and "put it into that folder" in line
    assert "holds no annotations" in failed(capsys, "coco", "--data", tmp_path, "--out", tmp_path / "out")
    monkeypatch.setattr("chameleon_lab.commands.coco.inception", lambda: NETWORK)
    assert "--encoder, a folder of CLIP" in failed(capsys, *arguments)
    assert "need --bank" in failed(capsys, *arguments, "--encoder", "data/retrieval/encoder")


def test_the_command_measures_writes_and_names_the_papers_figure(data, lab, tmp_path, caplog, monkeypatch):
    from chameleon_lab.commands.main import main

    lab.save(tmp_path / "model")
    monkeypatch.setattr("chameleon_lab.commands.coco.inception", lambda: NETWORK)
    arguments = ["coco", "--model", tmp_path / "model", "--data", data, "--out", tmp_path / "out", "-n", 3]
    with caplog.at_level(logging.INFO):
        assert main([*map(str, arguments), "--tries", "1", "--documents", "0", "--pairs"]) == 0
    assert "FID" in caplog.text and f"{coco.PAPER_FID[0]}" in caplog.text
    (plain,) = json.loads((tmp_path / "out" / "fid.json").read_text())
    assert plain["documents"] == 0 and plain["card"]["metric"] == "FID" and plain["card"]["n"] == 3
    assert isinstance(CaptionedFile(Path("a"), "b"), tuple)
