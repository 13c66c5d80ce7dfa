"""Samplers: each keeps what it says, a row is its own, and the penalty spares what it must."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}]
    + [{"top_k": -1}, {"top_k": 1.5}, {"min_p": -0.1}, {"min_p": 1.1}, {"repetition": 0}],
)
def test_impossible_samplers_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        Sampler(**settings)
