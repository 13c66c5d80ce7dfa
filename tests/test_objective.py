"""The objective: cross-entropy where something is learned, split by modality, with penalties, a chunk at a time."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from support import CONFIG, SHAPES, their_weights

from chameleon_lab.corpora.packing import Batch, TokenizedDocument, collate, pack, tokenize
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.monitors.gradients import only
from chameleon_lab.objective import Objective
from chameleon_lab.stability import ZLoss
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality


@pytest.fixture
def documents(mixed, picture) -> list[TokenizedDocument]:
    asked = Document.of("what?", EndTurn()).learning(False) + Document.of("a circle", EndTurn())
    drawn = Document.of("draw", EndTurn()).learning(False) + Document.of(picture, EndTurn())
    return tokenize([asked, drawn], mixed)


@pytest.fixture
def batch(documents, mixed) -> Batch:
    return collate(documents, mixed.vocabulary)


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


@pytest.mark.parametrize("seed", range(3))
def test_a_batchs_weights_multiply_the_shares_of_its_targets(lab, batch, seed):
    weights_BT = torch.rand(batch.targets_BT.shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    losses_BT, _ = by_hand(lab, batch)
    own = weights_BT[batch.learned_BT]
    expected = (own * losses_BT[batch.learned_BT]).sum() / own.sum()
    weighted = Objective()(lab.model, replace(batch, weights_BT=weights_BT))
    assert torch.allclose(weighted["loss_with_penalties"], expected, atol=1e-5)
    assert torch.equal(weighted["loss"], Objective()(lab.model, batch)["loss"])  # what is recorded stays comparable
    alike = Objective()(lab.model, replace(batch, weights_BT=torch.full_like(weights_BT, 3.0)))
    assert torch.allclose(alike["loss_with_penalties"], Objective()(lab.model, batch)["loss_with_penalties"])


@pytest.mark.parametrize("kind", Modality)
def test_what_is_left_of_a_batch_for_one_modality_keeps_its_weights(batch, kind):
    weights_BT = torch.arange(float(batch.targets_BT.numel())).view(batch.targets_BT.shape)
    left = only(replace(batch, weights_BT=weights_BT), kind)
    chosen_BT = batch.learned_BT & (batch.modality_BT == kind)
    assert left.weights_BT is not None and left.weights_BT.shape == left.learned_BT.shape
    assert torch.equal(left.weights_BT[left.learned_BT], weights_BT[chosen_BT])


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


@pytest.mark.parametrize("packed", [False, True], ids=["a document a row", "packed"])
def test_trap_07_the_z_loss_counts_where_the_token_after_is_learned(lab, mixed, documents, packed):
    (batch,) = pack(documents, 80, mixed.vocabulary) if packed else [collate(documents, mixed.vocabulary)]
    measures = Objective(penalties=(ZLoss(0.1),))(lab.model, batch)
    found = measures["loss_with_penalties"] - measures["loss"]
    squares: dict[str, list[torch.Tensor]] = {"shifted": [], "unshifted": []}
    for tokens, learn in documents:
        squares_T = lab.model(torch.from_numpy(tokens)[None])[0].logsumexp(-1).square()
        squares["shifted"].append(squares_T[:-1][learn[1:]])
        squares["unshifted"].append(squares_T[learn])
    wanted, wrong = (0.1 * torch.cat(parts).mean() for parts in squares.values())
    assert torch.allclose(found, wanted, rtol=1e-4) and not torch.allclose(found, wrong, rtol=1e-3)


@pytest.mark.parametrize("filler", [5, -100])
def test_targets_that_are_not_learned_change_nothing(lab, batch, filler):
    other = replace(batch, targets_BT=batch.targets_BT.where(batch.learned_BT, filler))
    one, two = Objective()(lab.model, batch), Objective()(lab.model, other)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", ["inputs_BT", "targets_BT"])
def test_trap_08_minus_100_is_no_id_to_read_nor_a_target_that_is_learned_for_nothing(lab, batch, name):
    ids_BT = getattr(batch, name).clone()
    ids_BT[tuple(batch.learned_BT.nonzero()[-1])] = -100
    with pytest.raises(ValueError, match=r"ids begin at 0, and this batch has -100\. Pad with"):
        Objective()(lab.model, replace(batch, **{name: ids_BT}))


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


# Chunks


@dataclass(frozen=True)
class TopLogit:
    """A penalty as a user would write one."""

    def penalty(self, logits_XV: torch.Tensor) -> torch.Tensor:
        return 0.01 * logits_XV.amax(-1).square()


PENALTIES = (ZLoss(0.1), TopLogit())
CHUNKED = Objective(text_weight=2.0, image_weight=0.5, penalties=PENALTIES, logits_at_once=1)
"""Chunks of 256 positions, the fewest there are."""


def random_batch(rows: int = 2, length: int = 350, vocabulary: int = 50, learned: float = 0.9) -> Batch:
    tokens_BT = torch.randint(vocabulary, (rows, length + 1))
    learned_BT = torch.rand(rows, length) < learned
    inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
    return Batch(inputs_BT, targets_BT, learned_BT, torch.randint(3, (rows, length)), rows * length)


def at_once(model: Transformer, batch: Batch) -> torch.Tensor:
    """`CHUNKED` without chunks."""
    losses_BT = F.cross_entropy(model(batch.inputs_BT).transpose(1, 2), batch.targets_BT, reduction="none")
    for term in PENALTIES:
        losses_BT = losses_BT + term.penalty(model(batch.inputs_BT))
    weights_BT = torch.tensor([2.0, 0.5, 1.0])[batch.modality_BT.long()] * batch.learned_BT
    return (losses_BT * weights_BT).sum() / weights_BT.sum()


def gradients(model: Transformer) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        assert parameter.grad is not None
        yield parameter.grad
        parameter.grad = None


@pytest.mark.parametrize("config", SHAPES.values(), ids=list(SHAPES))
def test_chunks_have_the_loss_and_the_gradients_of_the_whole(config):
    model, batch = Transformer(replace(config, context=400)), random_batch()
    wanted = at_once(model, batch)
    wanted.backward()
    whole = list(gradients(model))
    found = CHUNKED(model, batch)["loss_with_penalties"]
    found.backward()
    assert torch.allclose(found, wanted, atol=1e-6)
    for one, other in zip(gradients(model), whole, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm() + 1e-7


def test_only_one_chunk_of_logits_is_ever_held():
    model, batch = Transformer(CONFIG), random_batch()
    lengths, seen = [], []

    def look(module: torch.nn.Module, inputs: object, logits_XV: torch.Tensor) -> None:
        assert all(earlier() is None for earlier in seen)
        lengths.append(len(logits_XV))
        seen.append(weakref.ref(logits_XV))

    model.head.register_forward_hook(look)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            CHUNKED(model, batch)
        total = int(batch.learned_BT.sum())
        assert lengths == [256, 256, total - 512]
        lengths.clear()


def test_a_whole_that_fits_is_one_chunk():
    model, lengths = Transformer(CONFIG), []
    model.head.register_forward_hook(lambda module, inputs, logits_XV: lengths.append(len(logits_XV)))
    Objective(logits_at_once=50 * 700)(model, random_batch(learned=1.0))
    Objective(logits_at_once=50 * 400)(model, random_batch(learned=1.0))
    assert lengths == [700, 400, 300]


def test_measuring_without_gradients_gives_the_same_measures():
    model, batch = Transformer(CONFIG), random_batch()
    measures = CHUNKED(model, batch)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            bare = CHUNKED(model, batch)
        assert bare.keys() == measures.keys() and not any(value.requires_grad for value in bare.values())
        assert all(torch.allclose(bare[name], measures[name], atol=1e-6) for name in bare)


def test_only_what_is_descended_has_a_gradient():
    measures = CHUNKED(Transformer(CONFIG), random_batch())
    assert [name for name, value in measures.items() if value.requires_grad] == ["loss_with_penalties"]


def test_gradients_scale_and_come_anew_with_each_backward():
    model, batch = Transformer(CONFIG), random_batch()
    loss = CHUNKED(model, batch)["loss_with_penalties"]
    parameters = list(model.parameters())
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, parameters)
    assert all(torch.allclose(3 * one, other, atol=1e-6) for one, other in zip(once, thrice, strict=True))


def test_a_second_derivative_is_refused_rather_than_wrong():
    model = Transformer(CONFIG)
    loss = CHUNKED(model, random_batch())["loss_with_penalties"]
    with pytest.raises(ValueError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, [model.head.weight], create_graph=True)


def test_a_frozen_head_and_a_frozen_model_get_no_gradient():
    model, batch = Transformer(CONFIG), random_batch()
    model.head.weight.requires_grad_(False)
    CHUNKED(model, batch)["loss_with_penalties"].backward()
    assert model.head.weight.grad is None and model.embedding.weight.grad is not None
    assert not CHUNKED(model.requires_grad_(False), batch)["loss_with_penalties"].requires_grad


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_under_bfloat16_autocast_losses_and_gradients_stay_close(tied):
    model, batch = Transformer(replace(CONFIG, tied=tied)), random_batch()
    CHUNKED(model, batch)["loss_with_penalties"].backward()
    exact = list(gradients(model))
    with torch.autocast("cpu", torch.bfloat16):
        loss = CHUNKED(model, batch)["loss_with_penalties"]
    loss.backward()
    assert loss.dtype == torch.float32 and torch.allclose(loss, at_once(model, batch), rtol=1e-2)
    for one, other in zip(gradients(model), exact, strict=True):
        assert one.dtype == torch.float32 and F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


def test_trap_09_in_float16_the_loss_is_that_of_float32_and_beyond_its_range_no_number_rather_than_nought():
    model, batch = Transformer(CONFIG), random_batch()
    objective = replace(CHUNKED, penalties=(ZLoss(1e-5),))
    exact = objective(model, batch)
    model.half()
    for name, value in objective(model, batch).items():
        assert value.dtype == torch.float32 and torch.allclose(value, exact[name], rtol=1e-2)
    model.get_parameter("blocks.0.feed_forward.down.weight").data.fill_(6e4)
    beyond = objective(model, batch)
    assert all(value.isnan() for value in beyond.values())
    (gradient_VD,) = torch.autograd.grad(beyond["loss_with_penalties"], model.head.weight)
    assert gradient_VD.isnan().any()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_each_gradient_arrives_once_and_in_backward_where_processes_share_it(tied):
    model, arrived = Transformer(replace(CONFIG, tied=tied)), []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    loss = CHUNKED(model, random_batch())["loss_with_penalties"]
    assert not arrived
    loss.backward()
    assert sorted(arrived) == sorted(name for name, _ in model.named_parameters())


def test_a_gradient_that_two_parameters_share_is_summed_for_each():
    model = Transformer(CONFIG)
    model.cap = TwoBiases()
    batch = random_batch()
    wanted = torch.autograd.grad(at_once(model, batch), list(model.parameters()))
    found = torch.autograd.grad(CHUNKED(model, batch)["loss_with_penalties"], list(model.parameters()))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))


class TwoBiases(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (torch.nn.Parameter(torch.randn(50)) for _ in range(2))

    def forward(self, logits_XV: torch.Tensor) -> torch.Tensor:
        return logits_XV + (self.one + self.other)


def test_documents_of_a_packed_row_have_the_losses_that_they_have_alone():
    model = Transformer(replace(CONFIG, context=700))
    rows = [random_batch(1, length, learned=1.0) for length in (150, 290)]
    inputs_BT, targets_BT, learned_BT, modality_BT = (
        torch.cat([getattr(row, name) for row in rows], dim=1)
        for name in ("inputs_BT", "targets_BT", "learned_BT", "modality_BT")
    )
    documents_BT = torch.tensor([[0] * 150 + [1] * 290])
    packed = Objective()(model, Batch(inputs_BT, targets_BT, learned_BT, modality_BT, 440, documents_BT))
    alone = [Objective()(model, row)["loss"] for row in rows]
    assert torch.allclose(packed["loss"], (150 * alone[0] + 290 * alone[1]) / 440, atol=1e-5)


# Parity


def test_loss_and_gradients_equal_those_of_chameleon_in_transformers():
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    ours = Transformer(replace(CONFIG, context=400))
    config = ChameleonConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=400,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 3},
        vocabulary_map={"<image>": 49},  # no image tokens: it would take their logits away, and cannot learn them
    )
    theirs = ChameleonForConditionalGeneration(config)
    theirs.load_state_dict(their_weights(ours), strict=False)
    batch = random_batch(learned=1.0)
    wanted = theirs(input_ids=batch.inputs_BT, labels=batch.targets_BT, shift_labels=batch.targets_BT).loss
    found = replace(CHUNKED, text_weight=1.0, image_weight=1.0, penalties=())(ours, batch)["loss_with_penalties"]
    found.backward()
    assert torch.allclose(found, wanted, atol=1e-4)
    arranged = Transformer(ours.config)  # our gradients, to be renamed and reordered as weights are
    arranged.load_state_dict(dict(zip(dict(ours.named_parameters()), gradients(ours), strict=True)))
    theirs.model.vqmodel.requires_grad_(False)
    learned = {name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    theirs_by_name = dict(zip(learned, torch.autograd.grad(wanted, list(learned.values())), strict=True))
    for name, gradient in their_weights(arranged).items():
        per_head = "q_norm" in name or "k_norm" in name  # theirs has a copy of our one vector for each head
        one, other = (gradient[0], theirs_by_name[name].sum(0)) if per_head else (gradient, theirs_by_name[name])
        assert (one - other).norm() < 1e-3 * other.norm(), name
