"""Settings: what is not given stays, what is saved is read, and what cannot be is refused."""

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
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


NO_NUMBERS = ("x", "", True, [1], {}, float("nan"), float("inf"), 1j, b"3", Document(), type, object())


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", SETTING_NAMES)
def test_what_is_no_number_is_refused_by_the_settings_name(name, value):
    for make in (lambda: Settings(**{name: value}), lambda: Settings().changed(**{name: value})):
        with pytest.raises((ValueError, TypeError), match=rf"^{name} (must be a finite number, not|is a number, or)"):
            make()


def test_other_kinds_of_numbers_become_plain_ones_and_can_be_saved():
    given: dict[str, Any] = {name: np.float32(0.5) for name in SETTING_NAMES} | {"repetition": 10**30}
    given |= {name: np.int64(3) for name in ("max_tokens", "window", "top_k", "image_top_k", "drafts")}
    plain = Settings(**given).to_plain()
    assert json.loads(json.dumps(plain)) == plain and {type(value) for value in plain.values()} == {int, float}
    assert Settings.from_plain(plain) == Settings(**given) and plain["top_k"] == 3 and plain["guidance"] == 0.5


@pytest.mark.parametrize("name", ["max_tokens", "window", "top_k", "image_top_k", "drafts"])
def test_half_a_token_is_refused(name):
    for value in (2.5, -1):
        setting: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=f"{name.removeprefix('image_')} must be a whole number"):
            Settings(**setting)


@pytest.mark.parametrize("part", [None, "x", [1], float("nan"), float("inf"), True], ids=repr)
def test_guidance_of_parts_that_are_none_is_refused_when_it_is_made(part):
    for make in (
        *(lambda: TwoWay(part), lambda: ThreeWay(text=part), lambda: ThreeWay(image=part), lambda: TwoWay(1.0, part)),
        *(lambda: ThreeWay(without=part), lambda: Negative(part), lambda: Linear(part, 1.0), lambda: Linear(1.0, part)),
        *(lambda: Between(part), lambda: Between(1.0, part), lambda: Between(1.0, 0.0, part)),
    ):
        with pytest.raises(ValueError, match=r"must be a finite number|is no view of the tokens|prompt is a Document"):
            make()
    with pytest.raises(ValueError, match="Linear is a class, where a schedule is wanted"):
        TwoWay(Linear)  # pyright: ignore[reportArgumentType]


DAMAGED = ({"x": 1}, [], "x", None, {"temperature": None}, {"max_tokens": "3"}, {"guidance": [1]})
DAMAGED += tuple(
    {"guidance": guidance}
    for guidance in (
        *({"is": "TwoWay", "x": 1}, {"is": "TwoWay", "scale": "x"}, {"is": "TwoWay", "without": None}, {"is": []}),
        *({"document": 3}, {"is": "without_words", "x": 3}, {"is": "Linear"}, {"is": "Negative", "document": {}}),
    )
)


@pytest.mark.parametrize("plain", DAMAGED, ids=repr)
def test_damaged_settings_are_a_clear_error(plain):
    with pytest.raises(ValueError, match=r"[Ss]aved settings|must be a finite number|is no view of the tokens"):
        Settings.from_plain(plain)


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
