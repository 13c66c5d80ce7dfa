"""What inspection says of a model is what the model does: rows, lenses, knock-outs, attributions written out."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch

from chameleon_lab import inspection
from chameleon_lab.attention import SOFTMAX, UNCAPPED
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.generation.engine import Engine
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.generation.guidance import ThreeWay
from chameleon_lab.generation.settings import Settings
from chameleon_lab.inspection import Inspection, add, put
from chameleon_lab.quantization import quantize
from chameleon_lab.stability import (
    AttentionSink,
    AttentionSoftCap,
    LayerScale,
    NormReordering,
    OutputSoftCap,
    QueryKeyNorm,
    Sandwich,
    SigmaReparam,
    Softpick,
)
from chameleon_lab.taps import change, record
from chameleon_lab.transformer import CAUSAL, ModelConfig, Transformer
from chameleon_lab.vocabulary import Modality

KINDS = {
    "plain": {},
    "multi-head": {"kv_heads": 4},
    "query/key norm": {"fixes": (QueryKeyNorm(),)},
    "caps": {"fixes": (AttentionSoftCap(5.0), OutputSoftCap(3.0))},
    "re-ordered": {"fixes": (NormReordering(), QueryKeyNorm())},
    "sandwich": {"fixes": (Sandwich(), LayerScale(0.5))},
    "sigma": {"fixes": (SigmaReparam(),)},
    "softpick": {"fixes": (Softpick(),)},
    "sink": {"fixes": (AttentionSink(),)},
    "int8": {},
}


@pytest.fixture(params=KINDS, ids=str)
def kind(request) -> str:
    return request.param


@pytest.fixture
def tokens(mixed) -> np.ndarray:
    """begin, words, an image of 4 x 4, words."""
    vocabulary, rng = mixed.vocabulary, np.random.default_rng(5)
    words = [vocabulary.token_of_piece(int(piece)) for piece in rng.integers(0, 256, 9)]
    codes = vocabulary.tokens_of_codes(rng.integers(0, 12, 16))
    return np.array(
        [0, *words[:5], vocabulary.begin_image, *codes, vocabulary.end_image, vocabulary.end_turn, *words[5:]]
    )


@pytest.fixture
def model(mixed, kind) -> Transformer:
    torch.manual_seed(4)
    config = ModelConfig(mixed.vocabulary.size, 32, 3, 4, 2, 8, 48, 160)
    model = Transformer(dataclasses.replace(config, **KINDS[kind])).eval()
    return quantize(model, 8) if kind == "int8" else model


@pytest.fixture
def look(model, mixed, tokens) -> Inspection:
    return Inspection(model, mixed, tokens)


def plain_logits(model, tokens, hidden_TT=None, layer=None, head=None):
    """logits_TV of a forward pass whose attention is written out, with edges hidden."""

    class Plain:
        def turns(self, tokens_BT, config):
            return CAUSAL.turns(tokens_BT, config)

        def attend(self, at, q, k, v, cap=UNCAPPED, softmax=SOFTMAX):
            shared = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
            scores = cap(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1).expand(scores.shape).clone()
            if hidden_TT is not None and layer in (None, at):
                mask[:, slice(None) if head is None else head] |= hidden_TT
            return softmax(scores.masked_fill(mask, -torch.inf)) @ v

    with torch.inference_mode():
        return model(torch.as_tensor(tokens)[None], Plain())[0]


def test_probabilities_ranks_and_entropies_are_those_of_the_logits(model, look, tokens):
    logs_TV = plain_logits(model, tokens).double().log_softmax(-1)
    own = logs_TV[:-1].gather(-1, torch.as_tensor(tokens[1:, None]))
    assert np.isnan(look.log_probabilities[0]) and look.ranks[0] == -1
    np.testing.assert_allclose(look.log_probabilities[1:], own[:, 0], atol=1e-3 if look.quantized else 1e-4)
    np.testing.assert_allclose(
        look.entropies[1:], torch.special.entr(logs_TV[:-1].exp()).sum(-1), atol=1e-3 if look.quantized else 1e-4
    )
    for position in (1, 8, len(tokens) - 1):
        (first, share), *rest = look.alternatives(position, 4)
        assert len(rest) == 3 and share >= rest[0][1]
        np.testing.assert_allclose(share, logs_TV[position - 1].exp().max(), atol=1e-5)
        assert first == int(logs_TV[position - 1].argmax())
    best = [position for position in range(1, len(tokens)) if look.alternatives(position, 1)[0][0] == tokens[position]]
    assert best == np.flatnonzero(look.ranks == 0).tolist()


def test_all_rollouts_are_each_one(look):
    rows_TT = look.rollouts()
    for position in (0, 7, len(look) - 1):
        np.testing.assert_allclose(rows_TT[position, : position + 1], look.rollout(position), atol=1e-6)
    assert not np.triu(rows_TT, 1).any()


@pytest.mark.parametrize("cached", [True, False])
def test_what_drew_on_a_token_is_its_column_of_all_rollouts(look, cached, monkeypatch):
    monkeypatch.setattr(inspection, "MEAN_BYTES", inspection.MEAN_BYTES if cached else 0)
    rows = [look.rollout(position) for position in range(len(look))]
    for position in (0, 4, len(look) - 1):
        column = [row[position] for row in rows[position:]]
        np.testing.assert_allclose(look.rollout_readers(position), column, atol=1e-6)
    assert bool(look._means) == cached


def test_images_and_codes_have_their_look(look, mixed, tokens):
    codes = mixed.vocabulary.codes_of_tokens(tokens[look.modalities == Modality.IMAGE]).reshape(4, 4)
    np.testing.assert_array_equal(look.image(), mixed.image.decode(codes))
    begin, decode = list(tokens).index(mixed.vocabulary.begin_image), mixed.image.decode
    codes[2, 3] = 5
    token = int(mixed.vocabulary.tokens_of_codes(np.array(5)))
    picture = decode(codes)
    width, height = picture.width // 4, picture.height // 4
    box = (3 * width, 2 * height, 4 * width, 3 * height)
    np.testing.assert_array_equal(look.swatch(token, begin + 12), picture.crop(box))
    np.testing.assert_array_equal(look.swatch(token, 2), decode(np.full((2, 2), 5)))
    assert look.swatch(tokens[1], 2) is None and look.depth == (3, 4)
    with pytest.raises(ValueError, match="no image 1"):
        look.image(1)


def test_attention_rows_are_those_of_an_explicit_softmax(model, look, tokens):
    with record(model, "blocks.*.attention.query_tap", "blocks.*.attention.key_tap") as taps, torch.inference_mode():
        model(torch.as_tensor(tokens)[None])
    for layer in range(3):
        attention = model.blocks[layer].attention
        q_THK, k_TGK = (taps[f"blocks.{layer}.attention.{which}_tap"][0].double() for which in ("query", "key"))
        for head, position in ((0, 0), (1, 5), (3, len(tokens) - 1)):
            keys = k_TGK[: position + 1, head // (attention.heads // attention.kv_heads)]
            scores = attention.cap((keys @ q_THK[position, head]) / 8**0.5).float()
            row = attention.softmax(scores.expand(1, 4, 1, -1))[0, head, 0].detach()
            np.testing.assert_allclose(look.attention(layer, head, position), row, atol=1e-5)
            assert look.readers(layer, head, position)[0] == pytest.approx(row[-1].item(), abs=1e-5)
    whole = [look.attention(1, 2, position) for position in range(len(tokens))]
    np.testing.assert_allclose(look.readers(1, 2, 4), [row[4] for row in whole[4:]], atol=1e-6)


def test_shares_sum_over_words_patches_and_sinks(look, tokens, mixed):
    shares, row = look.shares(2, 1, 20), look.attention(2, 1, 20)
    assert sum(dataclasses.astuple(shares)) == pytest.approx(row.sum(), abs=1e-5)
    assert shares.sinks == pytest.approx(row[0] + row[6], abs=1e-6)
    assert shares.words == pytest.approx(row[1:6].sum(), abs=1e-6)
    assert shares.patches == pytest.approx(row[7:21].sum(), abs=1e-6)


def test_the_last_layers_lens_is_the_output_and_others_read_the_stream(model, look, tokens, mixed):
    with torch.inference_mode():
        np.testing.assert_allclose(look.lens(2), model(torch.as_tensor(tokens)[None])[0], atol=1e-5)
    with record(model, "blocks.0") as taps, torch.inference_mode():
        model(torch.as_tensor(tokens)[None])
        expected = model.logits(model.norm(taps["blocks.0"]))[0]
    np.testing.assert_allclose(look.lens(0), expected, atol=1e-5)
    first, count = mixed.vocabulary.first_image, mixed.vocabulary.codes
    best = look.lens(1)[6:22, first : first + count].argmax(-1)
    assert np.array_equal(look.codes(1).ravel(), mixed.vocabulary.codes_of_tokens(best + first))
    assert look.picture(1).size == (16, 16)


def test_a_knock_out_is_a_fresh_forward_pass_with_the_token_masked(model, look, tokens):
    of = 20
    for position in (0, 3, 6, 12, of - 1):
        hidden = torch.zeros(of, of, dtype=torch.bool)
        hidden[:, position] = True
        hidden[position, position] = False
        log = plain_logits(model, tokens[:of], hidden)[-1].double().log_softmax(-1)[tokens[of]].item()
        assert look.without(position, of=of) == pytest.approx(
            log - look.log_probabilities[of], abs=1e-3 if look.quantized else 1e-4
        )
    assert look.effects(of).shape == (of,)
    assert look.effects(of, [3, 12])[1] == pytest.approx(look.without(12, of=of), abs=1e-5)
    assert look.without(of + 2, of=of) == pytest.approx(0, abs=1e-5)


def test_a_cut_edge_is_a_fresh_forward_pass_with_that_edge_masked(model, look, tokens):
    hidden = torch.zeros(20, 20, dtype=torch.bool)
    hidden[19, 4] = True
    log = plain_logits(model, tokens[:20], hidden, layer=1, head=2)[-1].double().log_softmax(-1)[tokens[20]].item()
    assert look.cut(1, 2, 4, 19, of=20) == pytest.approx(
        log - look.log_probabilities[20], abs=1e-3 if look.quantized else 1e-4
    )


def test_a_joint_knock_out_is_a_fresh_forward_pass_with_all_those_tokens_masked(model, look, tokens):
    for out in ([3], [4, 12, 5], [0, 20]):
        hidden = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
        hidden[:, out] = True
        hidden.fill_diagonal_(False)
        logs_TV = plain_logits(model, tokens, hidden).double().log_softmax(-1)
        want = logs_TV[np.arange(len(tokens) - 1), tokens[1:]].numpy() - look.log_probabilities[1:]
        want[: min(out)] = 0
        tolerance = 1e-3 if look.quantized else 1e-4
        changes = look.knock_out(out)
        assert np.isnan(changes[0])
        np.testing.assert_allclose(changes[1:], want, atol=tolerance)
        (token, share), *_ = look.alternatives(22, 3, without=out)
        assert share == pytest.approx(logs_TV[21].exp().max().item(), abs=tolerance)
        assert share == pytest.approx(logs_TV[21, token].exp().item(), abs=tolerance)
    assert look.knock_out([7])[25] == pytest.approx(look.without(7, of=25), abs=tolerance)


def test_contributions_sum_to_the_logit(model, look, tokens):
    logits_TV = plain_logits(model, tokens)
    for position, token in ((1, None), (9, None), (25, 3)):
        parts = look.contributions(position, token)
        logit = logits_TV[position - 1, tokens[position] if token is None else token].item()
        assert sum(part.logit for part in parts) == pytest.approx(logit, abs=1e-3)
        assert len(parts) == 1 + 3 * (4 + 1)


def test_rollout_sums_to_one_and_relevance_follows_gradients(look, kind):
    assert look.rollout(20).shape == (21,)
    assert look.rollout(20).sum() == pytest.approx(1, abs=1e-4) or kind in ("softpick", "sink")
    if kind == "int8":
        with pytest.raises(ValueError, match="no gradients"):
            look.relevance(20)
    else:
        relevance = look.relevance(20)
        assert relevance.shape == (20,) and np.isfinite(relevance).all() and (relevance >= 0).all()


@pytest.mark.parametrize("kind", ["plain"])
def test_the_gradient_of_a_weight_is_that_of_autograd(model, look, tokens):
    """Through one layer, relevance is the positive part of weight times gradient, written out with autograd."""
    alone = Transformer(dataclasses.replace(model.config, layers=1)).eval()
    look = Inspection(alone, look.tokenizer, tokens)
    weights: list[torch.Tensor] = []

    class Kept:
        def turns(self, tokens_BT, config):
            return CAUSAL.turns(tokens_BT, config)

        def attend(self, at, q, k, v, cap=UNCAPPED, softmax=SOFTMAX):
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weights.append(
                scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
            )
            return weights[-1] @ v

    logits_TV = alone(torch.as_tensor(tokens[:20])[None], Kept())[0]
    (slope,) = torch.autograd.grad(logits_TV[-1].log_softmax(-1)[tokens[20]], weights)
    expected = (weights[0] * slope).clamp_min(0)[0, :, -1].mean(0).detach()
    expected[-1] += 1
    np.testing.assert_allclose(look.relevance(20), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "query/key norm"])
def test_a_packed_row_is_seen_as_its_documents(model, mixed, tokens):
    short = np.concatenate([tokens, tokens[:15]])
    documents = np.repeat([0, 1], [len(tokens), 15])
    look, alone = Inspection(model, mixed, short, documents_T=documents), Inspection(model, mixed, tokens[:15])
    start = len(tokens)
    np.testing.assert_allclose(look.log_probabilities[start + 1 :], alone.log_probabilities[1:], atol=1e-4)
    row = look.attention(1, 0, start + 9)
    assert row[:start].max() == 0
    np.testing.assert_allclose(row[start:], alone.attention(1, 0, 9), atol=1e-5)
    assert look.without(start + 4, of=start + 9) == pytest.approx(alone.without(4, of=9), abs=1e-4)
    assert look.without(4, of=start + 9) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["plain"])
def test_readings_name_every_word_and_cell(look, tokens, mixed):
    readings = look.readings
    assert [each.position for each in readings] == list(range(len(tokens)))
    cells = [(each.image, each.row, each.column) for each in readings if each.modality == Modality.IMAGE]
    assert cells == [(0, *divmod(at, 4)) for at in range(16)]
    assert (
        readings[6].words == "begin_image"
        and readings[7].words == f"code {mixed.vocabulary.codes_of_tokens(tokens[7:8])[0]}"
    )
    assert readings[0].log_probability is None and readings[1].rank == look.ranks[1]


@pytest.mark.parametrize("kind", ["plain"])
def test_steering_and_patching_change_what_follows(model, mixed, tokens, look):
    direction = np.random.default_rng(0).normal(size=32).astype(np.float32)
    steered = Inspection(model, mixed, tokens, changes={"blocks.0": add(direction, slice(4, 5))})
    np.testing.assert_array_equal(steered.log_probabilities[1:5], look.log_probabilities[1:5])
    assert np.abs(steered.log_probabilities[5:] - look.log_probabilities[5:]).max() > 1e-4
    other = Inspection(model, mixed, np.concatenate([tokens[:4], tokens[5:]]))
    streams = {f"blocks.{layer}": put(look.stream(layer), {at: at for at in range(len(tokens) - 1)}) for layer in (2,)}
    patched = Inspection(model, mixed, other.tokens, changes=streams)
    np.testing.assert_allclose(patched.lens(2), look.lens(2)[:-1], atol=1e-5)
    with change(model, {"blocks.*.attention.out": torch.zeros_like}), torch.inference_mode():
        alone = model(torch.as_tensor(tokens[3:4])[None])
        assert torch.allclose(model(torch.as_tensor(tokens)[None])[:, 3], alone[:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["plain"])
@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda look: look.alternatives(0), "nothing comes before"),
        (lambda look: look.attention(3, 0, 1), "layer lies in 0..2"),
        (lambda look: look.attention(0, 4, 1), "head lies in 0..3"),
        (lambda look: look.attention(0, 0, 99), "position lies in"),
        (lambda look: look.lens(-1), "layer lies in"),
        (lambda look: look.picture(0, 1), "There is no image 1"),
        (lambda look: look.cut(0, 0, 5, 3, of=9), "An edge goes from an earlier"),
    ],
)
def test_what_is_not_there_is_said(look, ask, words):
    with pytest.raises(ValueError, match=words):
        ask(look)


@pytest.mark.parametrize("guidance", [2.5, ThreeWay(3.0, 1.5)], ids=["two-way", "three-way"])
def test_guidance_is_what_the_engine_drew_from(make_lab, mixed, guidance):
    """The first code of a reply with temperature 0 is the likeliest with guidance, cell by cell."""
    lab = make_lab(mixed)
    session = lab.begin(
        Document.of("a b", EndTurn()),
        temperature=0.0,
        guidance=guidance,
        grammar=Grammar(mixed.vocabulary, mixed.grid[0] * mixed.grid[1], text=False, min_images=1),
    )
    list(session.stream())
    look = lab.inspect(session)
    cells = [each for each in look.readings if each.image is not None]
    assert len(cells) >= 16
    for cell in cells[:16]:
        token, with_it, without_it = look.guided(cell.position, 1)[0]
        assert token == cell.token and 0 <= without_it <= 1 and 0 < with_it <= 1


def test_a_document_is_inspected_as_it_is_scored(lab):
    document = Document.of("a red circle", EndTurn())
    look = lab.inspect(document)
    assert np.array_equal(look.tokens, lab.encode(document))
    np.testing.assert_allclose(look.log_probabilities[1:], lab.score(document).logs_T, atol=1e-5)


@pytest.fixture
def talk(make_lab, mixed) -> Inspection:
    """begin, a user's turn of words and a picture, the reply drawn to it, and a second turn of the user's."""
    lab = make_lab(mixed)
    prompt = Document.of("a b", Image(PIL.Image.new("RGB", (16, 16), "red")), "c", EndTurn())
    settings = Settings(temperature=1.0, guidance=2.0, max_tokens=30)
    reply = lab.begin(prompt, settings=settings, seed=3)
    list(reply.stream())
    end = [] if reply.tokens[-1] == mixed.vocabulary.end_turn else [mixed.vocabulary.end_turn]
    tokens = np.array([*reply.tokens, *end, *lab.encode(Document.of("d e", EndTurn()))[1:]])
    return Inspection(lab.model, lab.tokenizer, tokens, guide=settings.guide, settings=settings)


def test_a_branch_keeps_what_was_before_and_is_what_the_engine_would_write(talk, mixed):
    """In any turn, at any token: `branch` is the engine's own reply to the prompt, with the prefix in front of it."""
    vocabulary, rng = mixed.vocabulary, np.random.default_rng(0)
    ends = np.flatnonzero(talk.tokens == vocabulary.end_turn)
    engine = Engine(talk.model, talk.tokenizer)
    for position in range(int(ends[0]) + 2, min(int(ends[0]) + 12, len(talk) - 1)):
        seed = int(rng.integers(99))
        branch = talk.branch(position, seed=seed)
        assert np.array_equal(branch.tokens[:position], talk.tokens[:position])
        start = int(ends[ends < position][-1]) + 1
        if (ends < position).sum() % 2:
            steps = engine.tokens([talk.tokens[:start]], talk.settings, [seed], prefix=talk.tokens[start:position])
            want = [token for _, token, _ in steps if token is not None]
            assert branch.tokens[position:].tolist()[: len(want)] == want and len(branch) - position - len(want) <= 1
        assert branch.settings == talk.settings and branch.guide == talk.guide


def test_a_token_forced_in_a_users_turn_leaves_the_rest_of_the_turn(talk, mixed):
    vocabulary = mixed.vocabulary
    stop = int(np.flatnonzero(talk.tokens == vocabulary.end_turn)[0])
    words = [at for at in range(1, stop) if talk.modalities[at] == Modality.TEXT]
    token = vocabulary.token_of_piece(90)
    want = talk.tokens[: stop + 1].copy()
    want[words[1]] = token
    branch = talk.branch(words[1], token, seed=5)
    assert np.array_equal(branch.tokens[: stop + 1], want)
    assert np.array_equal(branch.tokens, talk.branch(words[1], token, seed=5).tokens), "the same seed, the same reply"
    cell = int(np.flatnonzero(talk.modalities == Modality.IMAGE)[2])
    code = int(vocabulary.tokens_of_codes(np.array(7)))
    assert talk.branch(cell, code).tokens[cell] == code
    assert np.array_equal(talk.branch(words[0]).tokens[: stop + 1], talk.tokens[: stop + 1])
    less = talk.branch(words[2], without=words[1:3]).tokens
    assert np.array_equal(less[: stop - 1], np.delete(talk.tokens[: stop + 1], words[1:3]))
    short = talk.branch(words[1], vocabulary.end_turn).tokens
    assert np.array_equal(short[: words[1] + 1], [*talk.tokens[: words[1]], vocabulary.end_turn])


def test_a_branch_in_a_picture_goes_on_with_that_picture(make_lab, mixed):
    lab, vocabulary = make_lab(mixed), mixed.vocabulary
    rows, columns = mixed.grid
    codes = vocabulary.tokens_of_codes(np.arange(rows * columns) % 12)
    tokens = [0, vocabulary.token_of_piece(70), vocabulary.end_turn, vocabulary.begin_image, *codes]
    look = Inspection(lab.model, mixed, [*tokens, vocabulary.end_image, vocabulary.end_turn])
    for position in (4, 9, len(tokens) - 1):
        forced = int(vocabulary.tokens_of_codes(np.array(11)))
        branch = look.branch(position, forced, seed=1)
        assert branch.tokens[: position + 1].tolist() == [*tokens[:position], forced]
        assert (branch.modalities[4 : 4 + len(codes)] == Modality.IMAGE).all()
        assert branch.tokens[4 + len(codes)] == vocabulary.end_image
    with pytest.raises(ValueError, match="lies within a picture"):
        look.branch(9, vocabulary.end_turn)
    with pytest.raises(ValueError, match="cannot begin with this prefix"):
        look.branch(9, vocabulary.token_of_piece(70))
    with pytest.raises(ValueError, match="Only words can be left out"):
        look.branch(9, without=[5])
    ended = look.branch(len(tokens) + 1, vocabulary.end_document)
    assert ended.tokens.tolist() == [*tokens, vocabulary.end_image, vocabulary.end_document]


def test_a_branch_counts_its_tokens_and_stops_when_its_caller_does(talk):
    counts: list[int] = []

    def each(count: int) -> None:
        counts.append(count)
        if count == 3:
            raise KeyboardInterrupt

    position = int(np.flatnonzero(talk.tokens == talk.tokenizer.vocabulary.end_turn)[0]) + 1
    with pytest.raises(KeyboardInterrupt):
        talk.branch(position, each=each)
    assert counts == [1, 2, 3]
    steered = Inspection(talk.model, talk.tokenizer, talk.tokens, changes={"blocks.0": lambda x_BTD: x_BTD})
    with pytest.raises(ValueError, match="without `changes`"):
        steered.branch(4)
    with pytest.raises(TypeError, match="No setting is called heat"):
        talk.branch(4, heat=1)  # type: ignore[call-arg]


def test_the_labs_settings_and_its_licence_hold_for_branches(lab):
    look = lab.inspect(Document.of("a red circle", EndTurn()), guidance=3.0)
    assert look.settings == lab.settings.changed(guidance=3.0) and look.guide == look.settings.guide
    silent = Chameleon(lab.model, lab.tokenizer, card={"licence": "Chameleon Research License"})
    assert look.images and not silent.inspect(Document.of("a", EndTurn())).images
