"""The objective: cross-entropy where something is learned, split by modality, with penalties."""

import pytest
import torch
import torch.nn.functional as F

from chameleon_lab.corpora.packing import Batch, collate, tokenize
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.objective import Objective
from chameleon_lab.stability import ZLoss
from chameleon_lab.vocabulary import Modality


@pytest.fixture
def batch(mixed, picture) -> Batch:
    asked = Document.of("what?", EndTurn()).learning(False) + Document.of("a circle", EndTurn())
    drawn = Document.of("draw", EndTurn()).learning(False) + Document.of(picture, EndTurn())
    return collate(tokenize([asked, drawn], mixed), mixed.vocabulary)


def by_hand(lab, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses_BT and logits_BTV, without any of our selection."""
    logits_BTV = lab.model(batch.inputs_BT)
    return F.cross_entropy(logits_BTV.transpose(1, 2), batch.targets_BT, reduction="none"), logits_BTV


def test_the_loss_is_the_mean_cross_entropy_of_learned_targets(lab, batch):
    measures = Objective()(lab.model, batch)
    losses_BT, _ = by_hand(lab, batch)
    learned_BT = batch.learned_BT
    assert torch.allclose(measures["loss"], losses_BT[learned_BT].mean(), atol=1e-5)
    assert torch.allclose(measures["loss_with_penalties"], measures["loss"])
    for kind in Modality:
        chosen_BT = learned_BT & (batch.modality_BT == kind)
        assert chosen_BT.any()
        assert torch.allclose(measures[f"{kind.name.lower()}_loss"], losses_BT[chosen_BT].mean(), atol=1e-5)


def test_weights_multiply_the_losses_of_their_modality(lab, batch):
    measures = Objective(text_weight=2.0, image_weight=0.5, special_weight=3.0)(lab.model, batch)
    losses_BT, _ = by_hand(lab, batch)
    weights_BT = torch.tensor([2.0, 0.5, 3.0])[batch.modality_BT.long()] * batch.learned_BT
    assert torch.allclose(measures["loss_with_penalties"], (losses_BT * weights_BT).sum() / weights_BT.sum(), atol=1e-5)
    assert torch.allclose(measures["loss"], losses_BT[batch.learned_BT].mean(), atol=1e-5)


def test_z_loss_pulls_where_its_own_gradient_says(lab, batch):
    losses_BT, logits_BTV = by_hand(lab, batch)
    wanted = losses_BT[batch.learned_BT].mean() + 0.1 * logits_BTV[batch.learned_BT].logsumexp(-1).square().mean()
    gradients = torch.autograd.grad(wanted, list(lab.model.parameters()))
    measures = Objective(penalties=(ZLoss(0.1),))(lab.model, batch)
    found = torch.autograd.grad(measures["loss_with_penalties"], list(lab.model.parameters()))
    assert torch.allclose(measures["loss_with_penalties"], wanted, atol=1e-5)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, gradients, strict=True))
    assert torch.allclose(measures["loss"], losses_BT[batch.learned_BT].mean(), atol=1e-5)


def test_targets_that_are_not_learned_change_nothing(lab, batch):
    targets_BT = batch.targets_BT.clone()
    targets_BT[~batch.learned_BT] = 5
    other = Batch(batch.inputs_BT, targets_BT, batch.learned_BT, batch.modality_BT, batch.real_tokens)
    one, two = Objective()(lab.model, batch), Objective()(lab.model, other)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_padding_of_a_row_changes_nothing(lab, mixed):
    short = tokenize([Document.of("a b")], mixed)
    long = tokenize([Document.of("what is there in this long text?").learning(False)], mixed)
    alone = Objective()(lab.model, collate(short, mixed.vocabulary))
    padded = Objective()(lab.model, collate(short + long, mixed.vocabulary))
    assert torch.allclose(alone["loss"], padded["loss"], atol=1e-5)


def test_a_modality_without_targets_is_left_out(lab, mixed):
    batch = collate(tokenize([Document.of("words")], mixed), mixed.vocabulary)
    assert set(Objective()(lab.model, batch)) == {"loss_with_penalties", "loss", "text_loss", "special_loss"}


def test_a_batch_of_which_all_weights_are_nought_gives_no_gradient_rather_than_nan(lab, mixed):
    batch = collate(tokenize([Document.of("words")], mixed), mixed.vocabulary)
    loss = Objective(text_weight=0.0, special_weight=0.0)(lab.model, batch)["loss_with_penalties"]
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, list(lab.model.parameters())))


def test_a_batch_with_nothing_to_learn_is_refused(lab, mixed):
    batch = collate(tokenize([Document.of("words").learning(False)], mixed), mixed.vocabulary)
    with pytest.raises(ValueError, match="Nothing in this batch is to be learned"):
        Objective()(lab.model, batch)
