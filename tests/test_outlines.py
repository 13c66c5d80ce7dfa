"""An outline has the shapes of a module, and drawing its weights is left out."""

from dataclasses import replace

import torch
from torch import nn

from chameleon_lab.outlines import outline
from chameleon_lab.transformer import ModelConfig, Transformer


def test_an_outline_has_the_module_s_shapes_and_draws_no_numbers(model_config: ModelConfig):
    config = replace(model_config, vocabulary=7)
    before = torch.get_rng_state()
    with outline():
        shapes = Transformer(config).state_dict()
        other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Embedding(5, 2), nn.Linear(2, 2))
    assert torch.equal(torch.get_rng_state(), before)
    whole = Transformer(config).state_dict()
    assert {name: (each.shape, each.dtype) for name, each in shapes.items()} == {
        name: (each.shape, each.dtype) for name, each in whole.items()
    }
    assert all(each.is_meta for each in (*shapes.values(), *other.parameters()))


def test_what_lies_elsewhere_is_filled_within_an_outline_too():
    with outline():
        layer = nn.Linear(2, 2, device="cpu")
        twos = nn.init.constant_(torch.empty(3, device="cpu"), 2.0)
    assert twos.tolist() == [2.0, 2.0, 2.0]
    torch.manual_seed(1)
    with outline():
        drawn = nn.Linear(2, 2, device="cpu")
    torch.manual_seed(1)
    assert torch.equal(drawn.weight, nn.Linear(2, 2).weight) and not layer.weight.is_meta
