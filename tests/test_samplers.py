"""Samplers: each keeps what it says, a row is its own, and the penalty spares what it must."""

from itertools import product

import numpy as np
import pytest
import torch

from chameleon_lab.crossovers import SORTED_PARTS, SORTED_SIZE
from chameleon_lab.generation import samplers
from chameleon_lab.generation.samplers import Sampler

SHARES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


def picks(sampler: Sampler, logits_V: torch.Tensor, count: int = 400, said_V: torch.Tensor | None = None) -> np.ndarray:
    """How often each token is taken over evenly spaced draws."""
    said_RV = None if said_V is None else said_V.expand(count, -1)
    tokens_R = sampler.pick(logits_V.expand(count, -1), np.linspace(0, 1, count, endpoint=False).tolist(), said_RV)
    return np.bincount(tokens_R.numpy(), minlength=len(logits_V))


def test_no_temperature_takes_the_likeliest():
    logits_RV = torch.randn(50, 9)
    assert torch.equal(Sampler(0.0).pick(logits_RV, [0.99] * 50), logits_RV.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_are_distributed_as_the_softmax_says(temperature):
    logits_V = torch.tensor([2.0, -1.0, 0.5, -torch.inf, 0.0, 1.0])
    draws = np.random.default_rng(0).random(4000).tolist()
    found = np.bincount(Sampler(temperature).pick(logits_V.expand(4000, -1), draws).numpy(), minlength=6)
    wanted = 4000 * torch.softmax(logits_V / temperature, -1).numpy()
    assert found[3] == 0
    chosen = wanted > 0
    assert ((found - wanted)[chosen] ** 2 / wanted[chosen]).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.69}, {1, 3}),
        ({"top_p": 0.71}, {1, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"min_p": 1.0}, {1}),
        ({"min_p": 0.74}, {1, 3}),
        ({"min_p": 0.24}, {0, 1, 3, 4}),
        ({"top_k": 2, "top_p": 0.58}, {1, 3}),  # of the 0.7 that top-k leaves, 0.4 is only 0.571
        ({"top_k": 2, "top_p": 0.56}, {1}),
        ({"top_k": 4, "min_p": 0.3}, {1, 3, 4}),
        ({"top_p": 0.5, "min_p": 0.9}, {1}),
    ],
)
def test_what_is_kept_is_drawn_in_its_old_proportions(settings, kept):
    found = picks(Sampler(**settings), SHARES.log()) / 400
    assert set(np.flatnonzero(found)) == kept
    for token in kept:
        assert found[token] == pytest.approx(float(SHARES[token] / SHARES[sorted(kept)].sum()), abs=0.01)


def test_temperature_comes_before_what_is_kept():
    assert np.count_nonzero(picks(Sampler(temperature=0.25, min_p=0.3), SHARES.log())) == 2  # 0.4 ** 4 and 0.3 ** 4
    assert np.count_nonzero(picks(Sampler(temperature=4.0, min_p=0.3), SHARES.log())) == 5


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("kept", [{}, {"top_p": 0.95}, {"top_k": 7}, {"min_p": 1e-9}])
def test_a_hidden_token_is_never_taken(temperature, kept):
    logits_RV = 30 * torch.randn(150, 9)
    hidden_RV = torch.arange(9) % 3 != torch.arange(150)[:, None] % 3
    draws = [0.0, 0.5, 1 - 2**-53] * 50
    tokens_R = Sampler(temperature, **kept).pick(logits_RV.masked_fill(hidden_RV, -torch.inf), draws)
    assert torch.equal(tokens_R % 3, torch.arange(150) % 3)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}, {"repetition": 1.5}])
def test_a_row_is_the_same_alone_and_in_any_batch(settings):
    logits_RV, said_RV = 3 * torch.randn(8, 300), torch.rand(8, 300) < 0.3
    draws = np.random.default_rng(0).random(8).tolist()
    sampler = Sampler(0.8, **settings)
    together = sampler.pick(logits_RV, draws, said_RV).tolist()
    alone = [sampler.pick(logits_RV[i : i + 1], draws[i : i + 1], said_RV[i : i + 1]).item() for i in range(8)]
    assert alone == together


def test_the_penalty_makes_what_was_said_less_likely_and_touches_nothing_else():
    logits_V, said_V = torch.tensor([1.0, -1.0, 0.5, 0.0]), torch.tensor([True, True, False, False])
    wanted = torch.softmax(torch.tensor([1 / 1.5, -1.5, 0.5, 0.0]), -1)
    found = picks(Sampler(repetition=1.5), logits_V, 1000, said_V) / 1000
    assert found == pytest.approx(wanted.numpy(), abs=0.002)
    assert picks(Sampler(repetition=1.5), logits_V).tolist() == picks(Sampler(), logits_V).tolist()
    greedy = Sampler(0.0, repetition=3.0)
    assert greedy.pick(logits_V[None], [0.0], said_V[None]).item() == 2


def by_sorting_all(sampler: Sampler, logits_V: torch.Tensor, draw: float) -> int:
    """The token of a row, as `Sampler` says it, with the whole row sorted and every sum written out."""
    shares_V = torch.softmax((logits_V - logits_V.max()) / sampler.temperature, -1).numpy()
    order_N = np.argsort(-shares_V, kind="stable")[: sampler.top_k or None]
    totals_N = np.cumsum(shares_V[order_N], dtype=np.float64).astype(np.float32)
    by_top_p = np.flatnonzero(totals_N >= np.float32(sampler.top_p) * totals_N[-1])[0] + 1
    by_min_p = np.count_nonzero(shares_V[order_N] >= np.float32(sampler.min_p) * shares_V[order_N[0]])
    totals_N = totals_N[: min(by_top_p, by_min_p)]
    above = np.flatnonzero(totals_N > np.float32(draw) * totals_N[-1])
    return int(order_N[above[0] if len(above) else len(totals_N) - 1])


def some_hidden(logits_RV: torch.Tensor, share: float) -> torch.Tensor:
    hidden_RV = torch.rand_like(logits_RV) < share
    hidden_RV[:, 0] = False
    return logits_RV.masked_fill(hidden_RV, -torch.inf)


LOGITS = {
    "peaked": lambda rows, size: 6 * torch.randn(rows, size),
    "of each kind": lambda rows, size: torch.randn(rows, size) * torch.linspace(0.1, 9, rows)[:, None],
    "flat": lambda rows, size: 0.1 * torch.randn(rows, size),
    "equal": lambda rows, size: torch.zeros(rows, size),
    "with many ties": lambda rows, size: (3 * torch.randn(rows, size)).round(),
    "of half precision": lambda rows, size: (4 * torch.randn(rows, size)).bfloat16().float(),
    "half hidden": lambda rows, size: some_hidden((2 * torch.randn(rows, size)).round(decimals=1), 0.5),
    "nearly all hidden": lambda rows, size: some_hidden(torch.randn(rows, size).round(), 0.999),
    "one candidate": lambda rows, size: some_hidden(torch.randn(rows, size), 1.0),
}


EVERY_KIND = list(product(LOGITS, [2, 300, SORTED_SIZE]))


@pytest.mark.parametrize(
    ("kind", "size"), [*EVERY_KIND, *product(["with many ties", "half hidden"], [1, SORTED_SIZE - 1, 9001])]
)
def test_what_is_picked_is_what_sorting_all_would_pick(kind, size):
    logits_RV, numbers = LOGITS[kind](8, size), np.random.default_rng(size)
    draws = [0.0, *numbers.random(6).tolist(), 1 - 2**-53]
    for top_p, min_p, top_k in product([1e-9, 0.4, 0.95, 1 - 1e-7, 1.0], [0.0, 1e-4, 0.3, 1.0], [0, 1, 70]):
        sampler = Sampler(0.9, top_p, top_k, min_p)
        wanted = [by_sorting_all(sampler, *each) for each in zip(logits_RV, draws, strict=True)]
        assert sampler.pick(logits_RV, draws).tolist() == wanted, sampler
        assert [sampler.pick(logits_RV[i : i + 1], [draws[i]]).item() for i in (0, 7)] == [wanted[0], wanted[7]]


@pytest.mark.parametrize("part", SORTED_PARTS)
def test_what_is_kept_may_end_just_where_a_part_does(part):
    logits_V = torch.randn(SORTED_SIZE).mul(3).round(decimals=2)
    totals_V = logits_V.softmax(-1).sort(descending=True).values.cumsum(-1).double() / logits_V.softmax(-1).sum()
    for count in range(SORTED_SIZE // part - 2, SORTED_SIZE // part + 3):
        for nudge in (-1e-7, 0.0, 1e-7):
            edge = float(totals_V[count - 1]) + nudge
            for sampler, draw in ((Sampler(top_p=edge), 1 - 2**-53), (Sampler(top_p=edge), 0.5), (Sampler(), edge)):
                assert sampler.pick(logits_V[None], [draw]).item() == by_sorting_all(sampler, logits_V, draw)


def test_a_total_is_that_of_the_sorted_shares_or_left_open(monkeypatch):
    shares_RV = torch.softmax(torch.randn(400, 5000) * torch.linspace(0.1, 9, 400)[:, None], -1)
    sorted_R1 = shares_RV.sort(dim=-1, descending=True).values.cumsum(-1)[:, -1:]
    totals = [samplers._total(shares_RV[row : row + 1]) for row in range(400)]
    known = [row for row in range(400) if totals[row] is not None]
    assert len(known) > 390 and all(totals[row] == sorted_R1[row] for row in known)
    assert samplers._total(torch.tensor([[1.0, 2**-24, 0.0]])) is None  # halfway between two numbers
    assert samplers._total(torch.tensor([[1.0, 2**-25, 0.0]])) == 1
    logits_RV, draws = LOGITS["of each kind"](8, SORTED_SIZE), np.linspace(0, 0.99, 8).tolist()
    for sampler in (Sampler(), Sampler(top_p=0.9), Sampler(min_p=0.01)):
        before = sampler.pick(logits_RV, draws)
        with monkeypatch.context() as patch:
            patch.setattr(samplers, "_total", lambda shares_RV: None)
            assert torch.equal(sampler.pick(logits_RV, draws), before)


@pytest.mark.parametrize(
    ("scale", "settings", "parts"),
    [
        (9.0, {"top_p": 0.95}, (256,)),
        (9.0, {}, (256,)),
        (9.0, {"min_p": 0.1}, (256,)),
        (3.0, {"min_p": 1e-3}, (256, 16)),
    ]
    + [(3.0, {"top_p": 0.9}, (256, 16)), (0.1, {"top_p": 0.95}, (256, 16, 1)), (0.1, {"top_k": 128}, (128,))],
)
def test_no_more_is_sorted_than_has_to_be(scale, settings, parts, monkeypatch):
    size, counts = 2**14, []

    def first(keys_RV: torch.Tensor, count: int, really=samplers._likeliest) -> torch.Tensor:
        counts.append(count)
        return really(keys_RV, count)

    monkeypatch.setattr(samplers, "_likeliest", first)
    torch.manual_seed(0)
    Sampler(**settings).pick(scale * torch.randn(3, size), [0.1, 0.5, 0.6])
    assert counts == [size // part for part in parts]


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}, {"repetition": 1.5}])
def test_elsewhere_than_on_a_processor_nothing_is_asked_of_the_device(settings):
    logits_RV = torch.empty(3, 2 * SORTED_SIZE, device="meta")  # which has no values to ask for
    assert Sampler(**settings).pick(logits_RV, [0.1, 0.5, 0.9], logits_RV > 0).shape == (3,)
    with pytest.raises(RuntimeError, match="meta"):
        bool(logits_RV.sum() > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 100, 5000])
def test_a_gpu_puts_tokens_in_the_same_order(count):
    keys_RV = samplers._sort_keys(torch.softmax(LOGITS["with many ties"](3, 5000), -1))
    assert torch.equal(samplers._likeliest(keys_RV.cuda(), count).cpu(), samplers._likeliest(keys_RV, count))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}, {"repetition": 1.5}]
)
@pytest.mark.parametrize("size", [300, 2 * SORTED_SIZE])
def test_a_gpu_picks_what_a_cpu_picks(settings, size):
    logits_RV, draws, written_RV = (
        torch.randn(64, size),
        np.random.default_rng(0).random(64).tolist(),
        torch.rand(64, size) < 0.2,
    )
    here_R = Sampler(**settings).pick(logits_RV, draws, written_RV)
    there_R = Sampler(**settings).pick(logits_RV.cuda(), draws, written_RV.cuda()).cpu()
    assert (here_R == there_R).sum() >= 62  # a draw at a token's very edge may fall to either side


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}]
    + [{"top_k": -1}, {"top_k": 1.5}, {"min_p": -0.1}, {"min_p": 1.1}, {"repetition": 0}],
)
def test_impossible_samplers_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        Sampler(**settings)


@pytest.mark.parametrize("size", [5, 5000])
@pytest.mark.parametrize("settings", [{}, {"min_p": 0.1, "top_p": 0.5}, {"top_k": 3}, {"temperature": 0.0}])
def test_logits_that_are_no_numbers_give_some_token(size: int, settings: dict[str, float]):
    logits_RV = torch.randn(2, size)
    logits_RV[0, 3] = torch.nan
    picked = Sampler(**settings).pick(logits_RV, [0.99, 0.4])  # pyright: ignore[reportArgumentType]
    assert ((picked >= 0) & (picked < size)).all()
    assert picked[1] == Sampler(**settings).pick(logits_RV[1:], [0.4])[0]  # pyright: ignore[reportArgumentType]
