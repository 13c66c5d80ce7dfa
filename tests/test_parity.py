"""Ours against theirs: `transformers`' port, and the released block written down from its description."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import names
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.inspection import Inspection
from chameleon_lab.taps import record
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

CODES = 12
SHAPES = {  # width, layers, heads, kv_heads, ffn_width, swin, pieces
    "multi-head": (32, 2, 4, 4, 48, False, 40),
    "grouped, re-ordered": (64, 3, 8, 2, 40, True, 33),
    "odd": (36, 2, 6, 3, 50, False, 37),
    "one head, re-ordered": (8, 2, 1, 1, 20, True, 34),
}
IMAGE = {
    "embed_dim": 4,
    "num_embeddings": CODES,
    "latent_channels": 4,
    "resolution": 16,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
}


def vocabulary_map(vocabulary: Vocabulary) -> dict[str, int]:
    table = {vocabulary.spelling(token): token for token in range(vocabulary.first_text)}
    return table | {f"piece {piece}": vocabulary.token_of_piece(piece) for piece in range(vocabulary.pieces)}


def port(shape: str, **changes: object) -> Any:
    """A random Chameleon of transformers."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    width, layers, heads, kv_heads, ffn_width, swin, pieces = SHAPES[shape]
    permutation = tuple(int(place) for place in np.random.default_rng(1).permutation(CODES))
    vocabulary = replace(Vocabulary.layout(CODES, pieces), permutation=permutation)
    config = ChameleonConfig(
        vocab_size=vocabulary.size,
        hidden_size=width,
        intermediate_size=ffn_width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=160,
        swin_norm=swin,
        vq_config=IMAGE,
        vocabulary_map=vocabulary_map(vocabulary),
        **changes,  # pyright: ignore[reportArgumentType]
    )
    torch.manual_seed(2)
    model = ChameleonForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
        else:
            nn.init.normal_(parameter, std=0.3 if "vqmodel" in name else 0.15)
    return model


def make_lab(shape: str, groups: int = 1, sentinels: int = 8) -> Chameleon:
    """A random model of ours around an image tokenizer of the family's architecture."""
    width, layers, heads, kv_heads, ffn_width, swin, _ = SHAPES[shape]
    torch.manual_seed(4)
    image = ImageTokenizer(
        ImageTokenizerConfig(side=16, codes=CODES, code_width=4, widths=(32, 64), latent_width=4, blocks=1)
    ).eval()
    vocabulary = Vocabulary.layout(CODES, ByteTokenizer.size, sentinels)
    config = ModelConfig(vocabulary.size, width, layers, heads, kv_heads, width // heads, ffn_width, 160)
    model = Transformer(names.with_fixes(config, groups, swin)).eval()
    for parameter in [*model.parameters(), *image.parameters()]:
        nn.init.normal_(parameter, std=0.2)
    return Chameleon(model, MixedModalTokenizer(ByteTokenizer(), image, vocabulary))


def not_masked(vocabulary: Vocabulary) -> Tensor:
    """The logits that the port does not overwrite: all but the image tokens'."""
    kept = torch.ones(vocabulary.size, dtype=torch.bool)
    kept[vocabulary.first_image : vocabulary.first_image + vocabulary.codes] = False
    return kept


def assert_same_logits(lab: Chameleon, theirs, tokens_BT: Tensor) -> None:
    with torch.no_grad():
        ours, port = lab.model(tokens_BT), theirs(tokens_BT).logits
    kept = not_masked(lab.vocabulary)
    assert torch.allclose(ours[..., kept], port[..., kept], atol=1e-4)
    assert ours[..., kept].std() > 0.05  # not a comparison of nothing with nothing


def tokens_for(lab: Chameleon, rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(0, lab.vocabulary.size, (rows, length), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("shape", SHAPES)
def test_their_model_here_gives_their_logits_and_hidden_states(shape, tmp_path):
    theirs = port(shape)
    theirs.save_pretrained(tmp_path)
    lab = Chameleon.load(tmp_path)
    tokens_BT = tokens_for(lab)
    assert_same_logits(lab, theirs, tokens_BT)
    with torch.no_grad(), record(lab.model, "embedding", "blocks.*") as seen:
        final = lab.model.trunk(tokens_BT)
        wanted = theirs.model(tokens_BT, output_hidden_states=True)
    assert torch.allclose(final, wanted.last_hidden_state, atol=1e-4)
    ours = [seen["embedding"], *(seen[f"blocks.{layer}"] for layer in range(len(lab.model.blocks) - 1))]
    for layer, (mine, yours) in enumerate(zip(ours, wanted.hidden_states[:-1], strict=True)):
        assert torch.allclose(mine, yours, atol=1e-4), layer


@pytest.mark.parametrize("shape", SHAPES)
def test_what_inspection_says_of_their_model_is_what_they_say(shape, tmp_path):
    """Rows of attention, the stream after each block, and the lens at each, as `output_attentions` and
    `output_hidden_states` have them."""
    theirs = port(shape, attn_implementation="eager")
    theirs.save_pretrained(tmp_path)
    lab = Chameleon.load(tmp_path)
    tokens_T = tokens_for(lab, 1, 24)[0].numpy()
    look = Inspection(lab.model, lab.tokenizer, tokens_T)
    with torch.no_grad():
        wanted = theirs.model(torch.as_tensor(tokens_T)[None], output_attentions=True, output_hidden_states=True)
        for layer, rows_1HTT in enumerate(wanted.attentions):
            for position in (0, 7, 23):
                ours_HS = look.heads(layer, position)
                np.testing.assert_allclose(ours_HS, rows_1HTT[0, :, position, : position + 1], atol=1e-5)
        for layer, stream_1TD in enumerate(wanted.hidden_states[1:-1]):
            np.testing.assert_allclose(look.stream(layer), stream_1TD[0], atol=1e-4)
            lens_TV = theirs.lm_head(theirs.model.norm(stream_1TD[0]))
            np.testing.assert_allclose(look.lens(layer), lens_TV, atol=1e-3)


NORMS = [("multi-head", 1), ("multi-head", 4), ("grouped, re-ordered", 2), ("odd", 6)]


@pytest.mark.parametrize(("shape", "groups"), NORMS)
def test_our_model_there_gives_our_logits(shape, groups, tmp_path):
    from transformers import ChameleonForConditionalGeneration

    lab = make_lab(shape, groups)
    lab.save(tmp_path / "there", format="huggingface")
    loaded: Any = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "there", output_loading_info=True)
    theirs, info = loaded
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(key.startswith("model.vqmodel.decoder.") for key in info["unexpected_keys"])
    assert (theirs.generation_config.bos_token_id, theirs.generation_config.eos_token_id) == (
        0,
        [2, lab.vocabulary.end_turn],
    )
    assert_same_logits(lab, theirs, tokens_for(lab))


def greedy(lab: Chameleon, prompt: list[int], count: int) -> list[int]:
    """Greedy text by the book: the whole prefix again for each token, and no image token ever."""
    tokens, kept = list(prompt), not_masked(lab.vocabulary)
    for _ in range(count):
        with torch.no_grad():
            logits_V = lab.model(torch.tensor([tokens]))[0, -1]
        tokens.append(int(logits_V.masked_fill(~kept, -torch.inf).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("shape", ["multi-head", "grouped, re-ordered"])
def test_greedy_text_is_theirs_for_sixty_four_tokens(shape, tmp_path):
    theirs = port(shape)
    theirs.save_pretrained(tmp_path)
    lab = Chameleon.load(tmp_path)
    prompt = [0, 40, 41, 42]
    written = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=1
    )[0, len(prompt) :]
    ours = greedy(lab, prompt, 64)
    assert ours == written.tolist()
    assert len(set(ours)) > 1


def test_codes_and_ids_are_theirs_for_the_same_pixels(tmp_path):
    theirs = port("multi-head")
    theirs.save_pretrained(tmp_path)
    lab = Chameleon.load(tmp_path)
    pixels_BCHW = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        wanted_BN = theirs.get_image_tokens(pixels_BCHW)
        codes_BHW = lab.tokenizer.image.encode_pixels(pixels_BCHW)
    assert np.array_equal(lab.vocabulary.tokens_of_codes(codes_BHW.numpy()).reshape(4, -1), wanted_BN.numpy())
    assert len(codes_BHW.unique()) > 3


def test_trap_11_a_code_is_no_token_and_the_table_tells_which_is_whose(tmp_path):
    theirs = port("multi-head")
    theirs.save_pretrained(tmp_path)
    vocabulary = Chameleon.load(tmp_path).vocabulary
    mapping = theirs.model.vocabulary_mapping
    assert vocabulary.permutation and list(vocabulary.permutation) != sorted(vocabulary.permutation)
    for code in range(CODES):
        token = int(vocabulary.tokens_of_codes(np.array(code)))
        assert token == mapping.img2bpe[code]
        assert vocabulary.codes_of_tokens(np.array(token)) == code
    with pytest.raises(ValueError, match=r"Image tokens lie in 4\.\.15; got 0\.\.0"):
        vocabulary.codes_of_tokens(np.array(0))  # a code where a token belongs


def test_trap_06_masked_image_logits_are_theirs_not_ours(tmp_path):
    """The port overwrites the logits of image tokens in every forward pass; here they are what the head says."""
    theirs = port("multi-head")
    theirs.save_pretrained(tmp_path)
    lab = Chameleon.load(tmp_path)
    tokens_BT, image = tokens_for(lab), ~not_masked(lab.vocabulary)
    with torch.no_grad():
        ours, port_logits = lab.model(tokens_BT), theirs(tokens_BT).logits
        hidden = theirs.model(tokens_BT).last_hidden_state
    assert (port_logits[..., image] == torch.finfo(torch.float32).min).all()
    assert torch.allclose(ours[..., image], theirs.lm_head(hidden)[..., image], atol=1e-4)


def test_a_model_trained_here_says_there_what_it_says_here(tmp_path):
    from transformers import ChameleonForConditionalGeneration

    lab = make_lab("grouped, re-ordered", groups=2)
    before = lab.model.head.weight.clone()
    document = Document.of("one two three one two three", EndTurn())
    tokens_BT = torch.from_numpy(lab.encode(document))[None].repeat(4, 1)
    optimizer = torch.optim.AdamW(lab.model.parameters(), 1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(lab.model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and not torch.equal(before, lab.model.head.weight)
    lab.save(tmp_path / "there", format="huggingface")
    theirs: Any = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "there")
    assert_same_logits(lab, theirs, tokens_for(lab))
    written = theirs.generate(tokens_BT[:1, :5], max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=1)
    assert written[0, 5:].tolist() == greedy(lab, tokens_BT[0, :5].tolist(), 64)


def test_their_tokenizer_and_processor_read_what_is_written(tmp_path, picture):
    from transformers import AutoProcessor, AutoTokenizer, ChameleonForConditionalGeneration

    lab = make_lab("multi-head")
    first = lab.vocabulary.end_turn + 2  # one reserved token is free for pictures to come
    roomy = replace(lab.vocabulary, first_text=first, size=first + 256)
    model = Transformer(replace(lab.model.config, vocabulary=roomy.size))
    lab = Chameleon(model.eval(), MixedModalTokenizer(ByteTokenizer(), lab.tokenizer.image, roomy))
    folder = tmp_path / "there"
    lab.save(folder, format="huggingface")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = 'naïve </b> <= "日本語"  and  IMGIMG'
    wanted = lab.encode(Document.of(text)).tolist()
    assert tokenizer(text).input_ids == wanted
    assert tokenizer.decode(wanted[1:]) == text
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(text="see <image>", images=picture, return_tensors="pt")
    ours = lab.encode(Document.of("see ", Image(picture), EndTurn())).tolist()
    ids = inputs["input_ids"][0].tolist()
    assert len(ids) == len(ours) and ids.count(lab.vocabulary.end_turn + 1) == 64
    theirs: Any = ChameleonForConditionalGeneration.from_pretrained(folder)
    placed = inputs["input_ids"].clone()
    placed[placed == lab.vocabulary.end_turn + 1] = theirs.get_image_tokens(inputs["pixel_values"]).long().flatten()
    with torch.no_grad():
        logits, ours_BTV = theirs(**inputs).logits, lab.model(placed)
    kept = not_masked(lab.vocabulary)
    assert torch.allclose(logits[..., kept], ours_BTV[..., kept], atol=1e-4)


# Meta's block, from its description: fused or not, a shard at a time


def meta_shards(count: int, *, fused: bool, swin: bool) -> tuple[dict[str, object], list[dict[str, Tensor]]]:
    """Random files in Meta's layout: params and the tensors of each shard."""
    dim, layers, heads, kv_heads, size, hidden = 32, 2, 8, 4, 280, 128  # 85 to the next multiple of 64
    width = dim // heads
    torch.manual_seed(6)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape) * 0.3

    whole = {"norm.weight": normal(dim) + 1}
    for layer in range(layers):
        whole |= {f"layers.{layer}.{name}.weight": normal(dim) + 1 for name in ("attention_norm", "ffn_norm")}
    shards = []
    for _ in range(count):
        rows, keys, inner = heads * width // count, kv_heads * width // count, hidden // count
        shard = {"tok_embeddings.weight": normal(size, dim // count), "output.weight": normal(size // count, dim)}
        for layer in range(layers):
            stem = f"layers.{layer}."
            wq, wk, wv, w1, w3 = (normal(out, dim) for out in (rows, keys, keys, inner, inner))
            shard |= {
                f"{stem}attention.wo.weight": normal(dim, rows),
                f"{stem}feed_forward.w2.weight": normal(dim, inner),
            }
            for letter in "qk":
                shard[f"{stem}attention.{letter}_normalization.weight"] = normal(width) + 1
                shard[f"{stem}attention.{letter}_normalization.bias"] = normal(width)
            if fused:
                shard[f"{stem}attention.wqkv.weight"] = torch.cat([wq, wk, wv])
                shard[f"{stem}feed_forward.w13.weight"] = torch.cat([w1, w3])
            else:
                named = zip(("wq", "wk", "wv"), (wq, wk, wv), strict=True)
                shard |= {f"{stem}attention.{name}.weight": tensor for name, tensor in named}
                shard |= {f"{stem}feed_forward.w1.weight": w1, f"{stem}feed_forward.w3.weight": w3}
        shards.append(whole | shard | {"rope.freqs": torch.ones(width // 2)})
    params = {"dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv_heads, "vocab_size": size}
    rest = {"multiple_of": 64, "norm_eps": 1e-5, "rope_theta": 10000.0, "qk_normalization": True, "swin_norm": swin}
    return {"model": params | rest, "seed": 3}, shards


def meta_forward(params: dict[str, object], shards: list[dict[str, Tensor]], tokens_T: Tensor) -> Tensor:
    """The released model, each shard's share of it in turn: embedding by columns, heads and hidden units by rows."""
    about: dict[str, object] = params["model"]  # pyright: ignore[reportAssignmentType]
    length, width = len(tokens_T), about["dim"] // about["n_heads"]  # pyright: ignore[reportOperatorIssue]
    angles = torch.outer(torch.arange(length).float(), 10000.0 ** (-torch.arange(0, width, 2).float() / width))
    turns_T1K = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotated(x_THK: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x_THK.view(*x_THK.shape[:2], -1, 2)) * turns_T1K).flatten(2)

    def attention(x_TD: Tensor, shard: dict[str, Tensor], stem: str) -> Tensor:
        fused = f"{stem}wqkv.weight"
        rows = shard[f"{stem}wo.weight"].shape[1]
        if fused in shard:
            keys = (shard[fused].shape[0] - rows) // 2
            wq, wk, wv = shard[fused].split([rows, keys, keys])
        else:
            wq, wk, wv = (shard[f"{stem}{name}.weight"] for name in ("wq", "wk", "wv"))
        q, k, v = ((x_TD @ w.T).view(length, -1, width) for w in (wq, wk, wv))
        norms = [f"{stem}{letter}_normalization." for letter in "qk"]
        q, k = (
            rotated(F.layer_norm(x, (width,), shard[f"{norm}weight"], shard[f"{norm}bias"]))
            for x, norm in zip((q, k), norms, strict=True)
        )
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = torch.einsum("thk,shk->hts", q, k) / width**0.5
        seen = torch.ones(length, length).tril().bool()
        mixed = torch.einsum("hts,shk->thk", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
        return mixed.flatten(1) @ shard[f"{stem}wo.weight"].T

    def feed_forward(x_TD: Tensor, shard: dict[str, Tensor], stem: str) -> Tensor:
        fused = f"{stem}w13.weight"
        w1, w3 = shard[fused].chunk(2) if fused in shard else (shard[f"{stem}w1.weight"], shard[f"{stem}w3.weight"])
        return (F.silu(x_TD @ w1.T) * (x_TD @ w3.T)) @ shard[f"{stem}w2.weight"].T

    def norm(x_TD: Tensor, name: str) -> Tensor:
        return x_TD * (x_TD.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * shards[0][name]

    x_TD = torch.cat([shard["tok_embeddings.weight"][tokens_T] for shard in shards], -1)
    for layer in range(2):
        for branch, name, leaf in (
            (attention, "attention_norm", "attention."),
            (feed_forward, "ffn_norm", "feed_forward."),
        ):
            own = f"layers.{layer}.{name}.weight"
            before = x_TD if about["swin_norm"] else norm(x_TD, own)
            out = sum(branch(before, shard, f"layers.{layer}.{leaf}") for shard in shards)
            assert isinstance(out, Tensor)
            x_TD = x_TD + (norm(out, own) if about["swin_norm"] else out)
    return torch.cat([norm(x_TD, "norm.weight") @ shard["output.weight"].T for shard in shards], -1)


@pytest.fixture
def text_json(tmp_path):
    """A folder with a text tokenizer of 280 tokens, as Meta's files have one."""
    made = make_lab("multi-head", sentinels=5)
    assert made.vocabulary.size == 280
    made.save(tmp_path / "280", format="meta")
    return tmp_path / "280" / "tokenizer"


@pytest.mark.parametrize("swin", [False, True])
@pytest.mark.parametrize(("count", "fused"), [(1, True), (1, False), (4, True), (2, False)])
def test_metas_block_written_from_its_description_gives_the_same_logits(count, fused, swin, tmp_path, text_json):
    params, shards = meta_shards(count, fused=fused, swin=swin)
    (tmp_path / "params.json").write_text(json.dumps(params))
    (tmp_path / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": count}))
    for place, shard in enumerate(shards):
        torch.save(shard, tmp_path / ("consolidated.pth" if count == 1 else f"consolidated.{place:02d}.pth"))
    lab = Chameleon.load(tmp_path, tokenizer=text_json)
    assert names.norm_groups(lab.model.config) == count
    assert names.has_swin_norms(lab.model.config) == swin
    tokens_T = tokens_for(lab, 1)[0]
    with torch.no_grad():
        ours = lab.model(tokens_T[None])[0]
    assert torch.allclose(ours, meta_forward(params, shards, tokens_T), atol=1e-4)
    assert ours.std() > 0.5


def test_trap_02_three_shapes_of_norms_are_one_model(tmp_path):
    """The same weights in the dialects that hold one norm, one a shard and one a head: written down by hand."""
    theirs = port("grouped, re-ordered", model_parallel_size=2)
    per_shard = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    for name, tensor in theirs.state_dict().items():
        if "q_norm" in name or "k_norm" in name:
            per_shard[name] = tensor[:: len(tensor) // 2].clone()
            tensor.copy_(per_shard[name].repeat_interleave(len(tensor) // 2, 0))
    theirs.save_pretrained(tmp_path / "huggingface")
    write_like(theirs, per_shard, tmp_path / "lumina")
    labs = {name: Chameleon.load(tmp_path / name) for name in ("huggingface", "lumina")}
    assert all(names.norm_groups(lab.model.config) == 2 for lab in labs.values())
    for lab in labs.values():
        assert_same_logits(lab, theirs, tokens_for(lab))

    one = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            heads = {"q_proj": 8, "k_proj": 2}.get(name.split(".")[-2])
            if "q_norm" in name or "k_norm" in name:
                tensor.copy_(tensor[:1].expand_as(tensor))
                one[name] = tensor[0].view(2, -1).t().flatten().clone()  # halves to pairs
            elif heads:
                one[name] = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).clone()
    write_like(theirs, one, tmp_path / "anole", architectures=["ChameleonForCausalLM"])
    lab = Chameleon.load(tmp_path / "anole")
    assert names.norm_groups(lab.model.config) == 1
    assert_same_logits(lab, theirs, tokens_for(lab))


def write_like(theirs, tensors: dict[str, Tensor], folder, **changes: object) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**json.loads(theirs.config.to_json_string()), **changes}))
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
