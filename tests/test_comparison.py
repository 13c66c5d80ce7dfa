"""A comparison of quantizers: every contender has as many codes, and is measured alike."""

from dataclasses import replace

import pytest

from chameleon_lab.evaluation import comparison
from chameleon_lab.evaluation.comparison import CONTENDERS, Contender, compare_quantizers, read_outcomes, unseen_scenes
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.quantizers import VectorQuantizer
from chameleon_lab.training.image_experiments import TINY_PICTURES

BASE = replace(TINY_PICTURES, tokenizer=replace(TINY_PICTURES.tokenizer, widths=(8, 16), latent_width=8), batch=2)


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_every_contender_has_nine_bits_a_code(name):
    contender = CONTENDERS[name]
    config = replace(TINY_PICTURES.tokenizer, quantizer=contender.quantizer, code_width=contender.width)
    assert ImageTokenizer(config).quantize.size == 512


def test_outcomes_come_one_at_a_time_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "unseen_scenes", lambda count=20: unseen_scenes(min(count, 20)))
    names = ["VQ", "FSQ"]
    outcomes = []
    for outcome in compare_quantizers(tmp_path, base=BASE, steps=1, seeds=[0, 1], names=names):
        outcomes.append(outcome)
        assert read_outcomes(tmp_path / "outcomes.jsonl") == outcomes
    assert [(outcome.name, outcome.seed) for outcome in outcomes] == [(n, s) for s in (0, 1) for n in names]
    vq, fsq = outcomes[0].values["PSNR"], outcomes[1].values["PSNR"]
    assert vq.card == fsq.card and vq != fsq
    assert vq - fsq == pytest.approx(vq.value - fsq.value)
    again = list(compare_quantizers(tmp_path, base=BASE, steps=1, seeds=[0, 1], names=names))
    assert again == outcomes


class Mine(VectorQuantizer):
    """A quantizer of one's own."""


def test_a_quantizer_of_one_s_own_is_compared_by_seeds_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "unseen_scenes", lambda count=5: unseen_scenes(min(count, 5)))
    own = {"Mine": Contender(Mine)}
    (outcome,) = compare_quantizers(tmp_path, base=BASE, steps=1, seeds=[11], names=(), own=own)
    assert (outcome.name, outcome.seed) == ("Mine", 11) and read_outcomes(tmp_path / "outcomes.jsonl") == [outcome]
    (folder,) = {each.parent.name for each in tmp_path.glob("*/config.json")}
    assert folder.startswith("Mine-") and folder.endswith("-11")


def test_the_scenes_it_is_measured_on_are_always_the_same():
    first, again = ([picture.tobytes() for picture in unseen_scenes(5)] for _ in range(2))
    assert first == again and len(set(first)) == 5


def test_an_unknown_contender_is_named(tmp_path):
    with pytest.raises(ValueError, match="No contender is called magic; there are VQ, "):
        next(compare_quantizers(tmp_path, names=["magic"]))
