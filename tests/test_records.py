"""Records: what is written is what is read, and numbers compare only with numbers that were measured alike."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from chameleon_lab.records import CodebookUsage, ImagePiece, Measurements, MetricCard, MetricValue

CARD = MetricCard(
    metric="PSNR",
    definition="mean over pictures",
    reference="scenes val",
    reference_hash="0123456789abcdef",
    crop="centre crop 64",
    resize="LANCZOS",
    n=200,
    dtype="float32",
)
OTHER = MetricCard(
    metric="rFID",
    definition="between sets",
    reference="scenes train",
    reference_hash="fedcba9876543210",
    crop="border padding 64",
    resize="BICUBIC",
    n=5000,
    dtype="bfloat16",
    network="Inception",
    network_hash="aaaa0000bbbb1111",
    seed=1,
)


def test_a_picture_is_complete_with_its_last_row(picture):
    assert not ImagePiece(picture, np.zeros((3, 4), int), 4).complete
    assert ImagePiece(picture, np.zeros((4, 4), int), 4).complete


def _db(value: float, card: MetricCard = CARD) -> MetricValue:
    return MetricValue(value, "dB", True, card)


def test_values_of_one_protocol_compare_as_numbers():
    low, high = _db(30.0), _db(31.5)
    assert low < high and high > low and low <= low and high >= low
    assert not high < low
    assert high - low == high.compare(low) == 1.5
    assert sorted([high, low]) == [low, high]


def test_better_follows_the_direction_of_the_metric():
    assert _db(31.5).better_than(_db(30.0)) and not _db(30.0).better_than(_db(31.5))
    low, high = (MetricValue(value, "", False, CARD) for value in (2.0, 4.0))
    assert low.better_than(high) and not high.better_than(low)
    assert not low.better_than(low)


def test_two_lossless_values_do_not_differ():
    assert _db(math.inf) - _db(math.inf) == 0
    assert _db(math.inf) - _db(30) == math.inf


@pytest.mark.parametrize("name", [each.name for each in fields(MetricCard)])
def test_a_difference_in_any_field_is_refused_with_its_name_and_both_values_unless_overlooked(name):
    here, there = _db(30.0), _db(31.0, replace(CARD, **{name: getattr(OTHER, name)}))
    for attempt in (lambda: here < there, lambda: here <= there, lambda: here - there, lambda: here.better_than(there)):
        with pytest.raises(ValueError, match=f"- {name}: {getattr(CARD, name)} and {getattr(OTHER, name)} \\("):
            attempt()
    assert here.compare(there, despite=[name]) == -1
    assert there.better_than(here, despite=[name])


def test_the_refusal_lists_every_field_that_differs_and_no_other():
    there = _db(31.0, replace(CARD, n=5000, crop="border padding 64", seed=3))
    with pytest.raises(ValueError, match="despite=\\('crop', 'n', 'seed'\\)") as refusal:
        _db(30.0).compare(there)
    fields = [line.split(":")[0] for line in str(refusal.value).splitlines() if line.startswith("- ")]
    assert fields == ["- crop", "- n", "- seed"]
    with pytest.raises(ValueError, match="- n: 200 and 5000") as refusal:
        _db(30.0).compare(there, despite=("crop", "seed"))
    assert "- crop" not in str(refusal.value)


def test_only_fields_of_the_card_can_be_overlooked():
    with pytest.raises(ValueError, match=r"no field 'size'; its fields are metric, definition"):
        _db(30.0).compare(_db(31.0), despite=("n", "size"))


def test_units_and_directions_are_never_overlooked():
    everything = [each.name for each in fields(MetricCard)]
    for other in (MetricValue(1.0, "", True, OTHER), MetricValue(1.0, "dB", False, OTHER)):
        with pytest.raises(ValueError, match="no values of one kind"):
            _db(30.0).compare(other, despite=everything)


@pytest.mark.parametrize("value", [31.203, 1 / 3, math.inf, -math.inf, 12])
@pytest.mark.parametrize("card", [CARD, OTHER])
def test_a_value_survives_strict_json(value, card):
    text = _db(value, card).to_json()
    assert "Infinity" not in text and json.loads(text)
    read = MetricValue.from_json(text)
    assert read == _db(value, card) and type(read.value) is type(value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"value": 1}', '{"value": "many", "card": {}}'])
def test_what_is_no_value_is_refused(text):
    with pytest.raises(ValueError, match="no metric value"):
        MetricValue.from_json(text)


def test_not_a_number_is_no_value():
    with pytest.raises(ValueError, match="PSNR came out as not a number"):
        _db(math.nan)


def test_a_value_prints_with_its_protocol():
    assert str(_db(31.2)) == "PSNR 31.20 dB (n = 200, centre crop 64, LANCZOS, scenes val 01234567, float32)"
    assert str(MetricValue(4.284, "", False, OTHER)) == (
        "rFID 4.284 (n = 5000, border padding 64, BICUBIC, scenes train fedcba98, bfloat16, Inception aaaa0000, seed 1)"
    )
    assert [_db(value).summary for value in (12, 8192, 12345.6, math.inf, 0.00012345)] == [
        "PSNR 12 dB",
        "PSNR 8,192 dB",
        "PSNR 12,345.60 dB",
        "PSNR inf dB",
        "PSNR 0.0001234 dB",
    ]


def test_measurements_give_values_by_name_and_name_what_they_have():
    measurements = Measurements({"PSNR": _db(30.0), "SSIM": _db(0.9)}, {}, CodebookUsage.of([], 4))
    assert measurements["SSIM"].value == 0.9
    assert str(measurements).count("\n") == 1
    with pytest.raises(KeyError, match="No value of 'FID'; measured were PSNR, SSIM"):
        measurements["FID"]


def test_an_even_stream_uses_all_codes_and_a_constant_one_uses_one():
    even = CodebookUsage.of([np.arange(64).reshape(8, 8)] * 3, 64)
    assert (even.tokens, even.usage, len(even.dead)) == (192, 1.0, 0)
    assert even.perplexity == pytest.approx(64)
    constant = CodebookUsage.of([np.full((8, 8), 5)] * 3, 64)
    assert (constant.usage, constant.perplexity) == (1 / 64, 1.0)
    assert list(constant.dead) == [code for code in range(64) if code != 5]
    nothing = CodebookUsage.of([], 64)
    assert (nothing.usage, nothing.perplexity, nothing.curve, len(nothing.dead)) == (0.0, 0.0, (), 64)


def test_perplexity_is_that_of_the_shares():
    usage = CodebookUsage.of([np.array([0, 0, 1, 2])], 8)
    assert usage.perplexity == pytest.approx(2**1.5)  # half a bit from code 0, two quarters of two bits


def test_the_curve_counts_codes_so_far_and_rises():
    usage = CodebookUsage.of([np.array([0, 1]), np.array([1, 1, 1]), np.array([3])], 4)
    assert usage.curve == ((2, 2), (5, 2), (6, 3))


@pytest.mark.parametrize("code", [-1, 4])
def test_a_code_outside_the_codebook_is_refused(code):
    with pytest.raises(ValueError, match=r"Codes must lie in 0\.\.3"):
        CodebookUsage.of([np.array([0, code])], 4)


@pytest.mark.parametrize("tokens", [1, 50, 400])
def test_uniform_usage_is_what_even_draws_show(tokens):
    rng = np.random.default_rng(0)
    usages = [CodebookUsage.of([rng.integers(0, 128, tokens)], 128) for _ in range(300)]
    error = float(np.std([each.usage for each in usages])) / math.sqrt(len(usages))
    assert np.mean([each.usage for each in usages]) == pytest.approx(usages[0].uniform_usage(), abs=4 * error + 1e-12)
    assert usages[0].uniform_usage(1) == pytest.approx(1 / 128)
