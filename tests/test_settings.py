"""Settings: what is not given stays, what is saved is read, and what cannot be is refused."""

import json
from dataclasses import dataclass, fields, replace

import pytest

from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation.guidance import Between, Linear, Negative, ThreeWay, TwoWay, image_alone, masked_words
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.generation.settings import SETTING_NAMES, Changes, Settings


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -0.1}, {"image_temperature": -1}, {"top_p": 0}, {"image_top_p": 2}, {"top_k": -1}]
    + [{"image_top_k": -1}, {"min_p": 2}, {"image_min_p": -1}, {"repetition": 0}, {"guidance": -1}, {"max_tokens": 0}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must"):
        Settings(**settings)


def test_images_are_sampled_as_text_unless_told_otherwise():
    base = Settings(1.0, 0.5, 0.9, top_k=7, min_p=0.1, repetition=1.3)
    assert base.text_sampler == Sampler(1.0, 0.9, 7, 0.1, 1.3)
    assert base.image_sampler == Sampler(0.5, 0.9, 7, 0.1)  # no penalty: image tokens are spared
    own = replace(base, image_top_p=1.0, image_top_k=0, image_min_p=0.0)
    assert own.image_sampler == Sampler(0.5) and own.text_sampler == base.text_sampler


def test_changed_settings_keep_what_is_not_given():
    base = Settings(0.1, 0.2, 0.3, 4.0, 5)
    assert base.changed() == base
    assert base.changed(temperature=0.0) == replace(base, temperature=0.0, image_temperature=0.0)
    assert base.changed(top_p=0.9, guidance=0.0, max_tokens=7) == Settings(0.1, 0.2, 0.9, 0.0, 7)
    assert replace(base, image_top_p=0.5).changed(top_p=0.9).image_sampler.top_p == 0.9
    assert base.changed(guidance=ThreeWay()).guide == ThreeWay()


def test_what_is_set_for_both_modalities_gives_way_to_what_is_given_for_images():
    base = Settings(image_top_p=0.5, image_top_k=9, image_min_p=0.2)
    both = base.changed(temperature=2.0, top_p=0.9, top_k=3, min_p=0.1)
    assert both.image_sampler == Sampler(2.0, 0.9, 3, 0.1) == replace(both.text_sampler, repetition=1.0)
    apart = base.changed(temperature=2.0, image_temperature=1.0, top_k=3, image_top_k=4)
    assert apart.text_sampler == Sampler(2.0, base.top_p, 3) and apart.image_sampler == Sampler(1.0, 0.5, 4, 0.2)


def test_changes_are_the_fields_and_any_other_name_is_refused_with_them():
    assert tuple(Changes.__annotations__) == SETTING_NAMES == tuple(each.name for each in fields(Settings))
    with pytest.raises(
        TypeError, match="No setting is called topk, p; there are temperature, image_temperature, top_p"
    ):
        Settings().changed(topk=3, p=0.5)  # pyright: ignore[reportCallIssue]


def test_a_number_of_one_is_no_guidance_and_any_other_is_two_way():
    assert Settings().guide is None and Settings(guidance=1).guide is None
    assert Settings(guidance=2.5).guide == TwoWay(2.5) and Settings(guidance=0.0).guide == TwoWay(0.0)


@pytest.mark.parametrize(
    "guidance",
    [
        1.5,
        TwoWay(2.0, masked_words),
        TwoWay(Between(4.0, 0.1), image_alone),
        ThreeWay(),
        ThreeWay(Linear(3.0, 1.0), 2.0),
    ]
    + [TwoWay(3.0, Negative(Document.of("blurry", EndTurn()), images=False))],
)
def test_settings_survive_json(guidance):
    settings = Settings(0.5, guidance=guidance, top_k=3, image_top_k=0, max_tokens=9)
    assert Settings.from_plain(json.loads(json.dumps(settings.to_plain()))) == settings


def test_settings_saved_before_there_were_these_fields_are_read():
    old = {"temperature": 0.0, "image_temperature": 0.7, "top_p": 0.95, "guidance": 1.5, "max_tokens": None}
    assert Settings.from_plain({**old, "window": 200}) == Settings(0.0, 0.7, 0.95, 1.5, window=200)


@dataclass(frozen=True)
class Own(TwoWay):
    """A guidance of a user's own."""


@pytest.mark.parametrize("guidance", [Own(2.0), TwoWay(2.0, lambda tokens, tokenizer: tokens)])
def test_what_nobody_could_read_back_is_not_saved(guidance):
    with pytest.raises(ValueError, match="not the lab's own, so no saved settings can name it: pass it to stream"):
        Settings(guidance=guidance).to_plain()


@pytest.mark.parametrize("plain", [{"is": "os.system"}, {"is": None}, {"scale": 3}])
def test_saved_settings_name_only_what_the_lab_knows(plain):
    with pytest.raises(ValueError, match="which this lab does not know; it knows TwoWay"):
        Settings.from_plain({"guidance": plain})
