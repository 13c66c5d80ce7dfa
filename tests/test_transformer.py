"""The transformer: causal, the same with and without a cache, and equal to Chameleon in `transformers`."""

from dataclasses import replace

import pytest
import torch
from support import CONFIG, SHAPES, their_weights

from chameleon_lab.attention import rotate, rotations
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.stability import NormReordering, QueryKeyNorm
from chameleon_lab.transformer import Packed, Transformer


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def model(request) -> Transformer:
    return Transformer(request.param).eval()


def tokens(rows: int, length: int, vocabulary: int = 50) -> torch.Tensor:
    return torch.randint(0, vocabulary, (rows, length))


# Causality


def test_no_gradient_flows_back_from_a_position_to_a_later_one(model):
    embedded = []
    handle = model.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits_BTV = model(tokens(2, 12))
    handle.remove()
    for place in range(12):
        (gradient_BTD,) = torch.autograd.grad(logits_BTV[:, place].square().sum(), embedded[0], retain_graph=True)
        reach_BT = gradient_BTD.abs().sum(-1) > 0
        assert reach_BT[:, : place + 1].all() and not reach_BT[:, place + 1 :].any()


def test_rows_of_a_batch_do_not_see_one_another(model):
    embedded = []
    model.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    (gradient_BTD,) = torch.autograd.grad(model(tokens(3, 5))[1].square().sum(), embedded[0])
    assert (gradient_BTD.abs().sum((1, 2)) > 0).tolist() == [False, True, False]


def test_changing_a_token_changes_its_position_and_later_ones_only(model):
    one_BT = tokens(2, 12)
    other_BT = one_BT.clone()
    other_BT[:, 7] = (one_BT[:, 7] + 1) % 50
    apart_BT = (model(one_BT) - model(other_BT)).abs().amax(-1)
    assert (apart_BT[:, :7] == 0).all() and (apart_BT[:, 7:] > 1e-6).all()


def test_long_sequences_take_another_kernel_to_the_same_logits():
    model = Transformer(replace(CONFIG, context=600)).eval()
    long_BT = tokens(1, 530)
    with torch.no_grad():
        assert torch.allclose(model(long_BT)[:, :500], model(long_BT[:, :500]), atol=1e-4)


# Positions


def test_attention_sees_relative_positions_only():
    q_BTHK, k_BTHK = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)

    def product(q_place: int, k_place: int) -> torch.Tensor:
        turns = [
            rotations(torch.tensor([[place]]), CONFIG.head_width, CONFIG.rope_theta) for place in (q_place, k_place)
        ]
        return (rotate(q_BTHK, turns[0]) * rotate(k_BTHK, turns[1])).sum(-1)

    assert torch.allclose(product(3, 1), product(19, 17), atol=1e-5)
    assert not torch.allclose(product(3, 1), product(3, 2), atol=1e-2)
    assert torch.allclose(product(0, 0), (q_BTHK * k_BTHK).sum(-1), atol=1e-5)


def test_order_matters(model):
    one_BT = torch.tensor([[1, 2, 3, 4]])
    assert not torch.allclose(model(one_BT)[:, -1], model(one_BT[:, [1, 0, 2, 3]])[:, -1], atol=1e-3)


def test_grouped_keys_equal_repeated_keys():
    grouped, full = Transformer(replace(CONFIG, kv_heads=2)), Transformer(CONFIG)
    weights = grouped.state_dict()
    for layer in range(2):
        name = f"blocks.{layer}.attention.qkv.weight"
        q, k, v = weights[name].unflatten(0, (-1, 8)).split((4, 2, 2))
        weights[name] = torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]).flatten(0, 1)
    full.load_state_dict(weights)
    sample_BT = tokens(2, 9)
    assert torch.allclose(grouped(sample_BT), full(sample_BT), atol=1e-5)


# The cache


def feed(decoder: Decoder, news: list[torch.Tensor], start: int = 0) -> list[torch.Tensor]:
    """Logits of each row's new tokens, given right-padded."""
    width = max(len(new) for new in news)
    padded_BT = torch.stack([torch.cat([new, torch.full((width - len(new),), 7)]) for new in news])
    logits_BTV = decoder.logits(decoder.feed(padded_BT, [len(new) for new in news], start))
    return [logits_TV[: len(new)] for logits_TV, new in zip(logits_BTV, news, strict=True)]


@torch.no_grad()
def test_cached_equals_uncached_for_rows_of_any_lengths_in_chunks_of_any_widths(model):
    rng = torch.Generator().manual_seed(5)
    rows = [tokens(1, length)[0] for length in (24, 1, 13, 20)]
    whole = [model(row[None])[0] for row in rows]
    decoder = Decoder(model, len(rows))
    fed = [0] * len(rows)
    while any(done < len(row) for done, row in zip(fed, rows, strict=True)):
        widths = [int(torch.randint(0, 6, (), generator=rng)) for _ in rows]
        if not any(row[done : done + width].numel() for row, done, width in zip(rows, fed, widths, strict=True)):
            continue
        news = [row[done : done + width] for row, done, width in zip(rows, fed, widths, strict=True)]
        for index, logits_TV in enumerate(feed(decoder, news)):
            wanted_TV = whole[index][fed[index] : fed[index] + len(news[index])]
            assert torch.allclose(logits_TV, wanted_TV, atol=1e-5)
        fed = [done + len(new) for done, new in zip(fed, news, strict=True)]
        assert decoder.cache.lengths.tolist() == fed


@torch.no_grad()
def test_some_rows_of_a_cache_are_the_same_memory(model):
    rows = [tokens(1, 10)[0] for _ in range(4)]
    whole = [model(row[None])[0] for row in rows]
    decoder = Decoder(model, 4, room=10)
    feed(decoder, [row[:6] for row in rows[:2]])
    feed(decoder, [rows[2][:3], rows[3][:8]], start=2)
    assert decoder.cache.lengths.tolist() == [6, 6, 3, 8]
    ends = feed(decoder, [row[length:] for row, length in zip(rows, (6, 6, 3, 8), strict=True)])
    for logits_TV, wanted_TV, length in zip(ends, whole, (6, 6, 3, 8), strict=True):
        assert torch.allclose(logits_TV, wanted_TV[length:], atol=1e-5)


@torch.no_grad()
def test_padding_may_stick_out_of_a_cache_but_tokens_may_not(model):
    rows = [tokens(1, 8)[0] for _ in range(2)]
    decoder = Decoder(model, 2, room=8)
    feed(decoder, [rows[0][:7], rows[1][:2]])
    logits = feed(decoder, [rows[0][7:], rows[1][2:]])  # the first row's padding would reach position 13
    for row, logits_TV in zip(rows, logits, strict=True):
        assert torch.allclose(logits_TV[-1], model(row[None])[0, -1], atol=1e-5)
    with pytest.raises(ValueError, match="9 positions do not fit a cache of 8"):
        feed(decoder, [rows[0][:1], rows[1][:0]])
    with pytest.raises(ValueError, match="9 positions do not fit a cache of 8"):
        Decoder(model, 1, room=8).feed(tokens(1, 9), [9])


# Parameters


def test_the_parameters_are_those_of_the_shape():
    model = Transformer(replace(CONFIG, kv_heads=2))
    block = 32 * (4 + 2 + 2) * 8 + 4 * 8 * 32 + 32 * 2 * 48 + 48 * 32 + 2 * 32 + 4 * 8
    assert sum(parameter.numel() for parameter in model.parameters()) == 2 * 50 * 32 + 32 + 2 * block
    assert not any("bias" in name and "norm" not in name for name, _ in model.named_parameters())


def test_a_tied_model_has_one_matrix_for_both_ends():
    model = Transformer(replace(CONFIG, tied=True))
    assert model.head.weight is model.embedding.weight
    assert model.to(torch.bfloat16).head.weight is model.embedding.weight


def test_logits_are_float32_whatever_the_weights(model):
    sample_BT = tokens(2, 9)
    whole_BTV = model(sample_BT)
    half_BTV = model.to(torch.bfloat16)(sample_BT)
    assert whole_BTV.dtype == half_BTV.dtype == torch.float32
    assert torch.allclose(whole_BTV, half_BTV, atol=0.3)
    assert whole_BTV.std() > 0.5


@pytest.mark.parametrize(
    ("change", "why"), [({"kv_heads": 3}, "cannot share 3 key heads"), ({"head_width": 7}, "must be even, not 7")]
)
def test_an_impossible_config_is_refused(change, why):
    with pytest.raises(ValueError, match=why):
        replace(CONFIG, **change)


# Parity


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["multi-head", "grouped"])
@pytest.mark.parametrize("reordered", [False, True], ids=["pre-norm", "re-ordered"])
def test_logits_equal_those_of_chameleon_in_transformers(kv_heads, reordered):
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    fixes = (QueryKeyNorm(), NormReordering()) if reordered else (QueryKeyNorm(),)
    ours = Transformer(replace(CONFIG, kv_heads=kv_heads, fixes=fixes)).eval()
    for name, parameter in ours.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.0 if "bias" in name else 1.0, std=0.3)
    image_tokens = {"IMGIMGAZ": 4, "IMGIMGBZ": 5, "IMGIMGCZ": 6}
    config = ChameleonConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=24,
        swin_norm=reordered,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 3},
        vocabulary_map={**image_tokens, "<image>": 49},
    )
    theirs = ChameleonForConditionalGeneration(config).eval()
    told = theirs.load_state_dict(their_weights(ours), strict=False)
    assert not told.unexpected_keys and all(name.startswith("model.vqmodel.") for name in told.missing_keys)
    sample_BT = tokens(3, 24)
    with torch.no_grad():
        ours_BTV, theirs_BTV = ours(sample_BT), theirs(input_ids=sample_BT).logits.clone()
    masked_V = torch.zeros(50, dtype=torch.bool)
    masked_V[list(image_tokens.values())] = True
    assert (theirs_BTV[..., masked_V] == torch.finfo(torch.float32).min).all()
    assert torch.allclose(ours_BTV[..., ~masked_V], theirs_BTV[..., ~masked_V], atol=1e-4)
    assert theirs_BTV[..., ~masked_V].std() > 0.5


def test_packed_documents_do_not_see_each_other(model):
    first, second = torch.randint(50, (1, 7)), torch.randint(50, (1, 5))
    documents_BT = torch.tensor([[3] * 7 + [4] * 5])
    with torch.inference_mode():
        packed = model(torch.cat([first, second], 1), Packed(documents_BT))
        torch.testing.assert_close(packed[:, :7], model(first))
        torch.testing.assert_close(packed[:, 7:], model(second))
