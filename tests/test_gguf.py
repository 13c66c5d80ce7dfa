"""GGUF, llama.cpp's file: what is written comes back, is what llama.cpp runs, and damaged ones are one error each.

What llama.cpp itself says of a file is compared where llama-cpp-python is installed.
"""

from __future__ import annotations

import json
import logging
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import TEXTS
from test_formats import make_lab

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.gguf import MASKED, padding_of
from chameleon_lab.checkpoints.gguf_file import read_gguf
from chameleon_lab.documents import Document, EndTurn, Text
from chameleon_lab.stability import NormReordering, OutputSoftCap, QueryKeyNorm
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer, JsonTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

gguf = pytest.importorskip("gguf", reason="the extra gguf")

STEPS = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127, "q4_0": 1 / 8}
"""How far a number may be from what it was, as a share of the largest in its block of 32 (or, above, of itself)."""


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny", device="cpu")


def saved(lab: Chameleon, folder: Path, **options: Any) -> Path:
    lab.save(folder, format="gguf", **options)
    return folder / "model.gguf"


def other_lab(text: Any = None, vocabulary: Vocabulary | None = None, **config: Any) -> Chameleon:
    """A model of random weights whose norms of queries and keys differ from group to group."""
    text = text or ByteTokenizer()
    vocabulary = vocabulary or Vocabulary.layout(16, text.size)
    sizes: dict[str, Any] = {
        "width": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_width": 16,
        "ffn_width": 96,
        "context": 256,
    }
    fixes = config.pop("fixes", (QueryKeyNorm(groups=2),))
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocabulary=vocabulary.size, fixes=fixes, **(sizes | config)))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return Chameleon(model.eval(), MixedModalTokenizer(text, None, vocabulary, grid=(4, 4)))


LABS = {
    "7B's": {},
    "34B's": {"fixes": (QueryKeyNorm(groups=2), NormReordering())},
    "tied": {"tied": True, "rope_theta": 12_345.0, "norm_eps": 1e-6},
}


@pytest.mark.parametrize("kind", LABS)
def test_what_is_written_comes_back_bit_for_bit(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("chameleon_lab.checkpoints.gguf.check_runs", lambda opened: None)  # the 34B's is read, too
    lab = other_lab(**LABS[kind])
    lab.card["licence"] = "Apache-2.0"
    path = saved(lab, tmp_path / "out")
    for place in (path, path.parent):
        back = Chameleon.load(place, device="cpu")
        assert back.model.config == lab.model.config
        ours, theirs = lab.model.state_dict(), back.model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert back.tokenizer.vocabulary == lab.tokenizer.vocabulary
        assert (back.card, back.settings, back.tokenizer.grid) == (lab.card, lab.settings, lab.tokenizer.grid)


@pytest.mark.parametrize("weights", STEPS)
def test_packed_numbers_are_within_a_step(weights, tmp_path, tiny):
    back = Chameleon.load(saved(tiny, tmp_path / "out", weights=weights), device="cpu")
    for name, ours in tiny.model.state_dict().items():
        theirs = back.model.state_dict()[name]
        if "norm" in name:
            assert torch.equal(ours, theirs)
            continue
        largest = ours.abs() if weights.endswith("f16") else ours.reshape(-1, 32).abs().amax(1, keepdim=True)
        apart = (theirs - ours).reshape(largest.shape[0], -1).abs()
        assert (apart <= largest * STEPS[weights] + 1e-7).all(), name


def test_a_bfloat16_model_is_written_as_it_is(tmp_path):
    lab = other_lab()
    lab.model.bfloat16()
    path = saved(lab, tmp_path / "out")
    kinds = {name: tensor.dtype for name, tensor in read_gguf(path).tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == torch.bfloat16 and kinds["blk.0.attn_q_norm.weight"] == torch.float32
    back = Chameleon.load(path, device="cpu", dtype=torch.bfloat16)
    ours, theirs = lab.model.state_dict(), back.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_words_come_along_and_what_is_lacking_is_said(tmp_path, tiny, caplog):
    with caplog.at_level(logging.WARNING):
        path = saved(tiny, tmp_path / "out", weights="q8_0")
    assert "words alone" in caplog.text
    back = Chameleon.load(path, device="cpu", weights="int8")
    document = Document.of("what is this? ▁ 日本 <s>", EndTurn())
    assert list(back.encode(document)) == list(tiny.encode(document))
    assert not back.tokenizer.can_draw and back.tokenizer.missing[0].startswith("no image tokenizer")
    with pytest.raises(ValueError, match="image"):
        back.generate(document, modality="picture")
    whole = Chameleon.load(path, device="cpu", tokenizer=Path(__file__).parents[1] / "data" / "tiny")
    assert whole.tokenizer.can_draw


def test_a_file_is_written_as_one_and_never_over_another(tmp_path):
    lab = other_lab()
    lab.save(tmp_path / "mine.gguf", format="gguf")
    before = (tmp_path / "mine.gguf").read_bytes()
    with pytest.raises(ValueError, match=r"mine\.gguf is there already"):
        lab.save(tmp_path / "mine.gguf", format="gguf", weights="q8_0")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.gguf"] and (
        tmp_path / "mine.gguf"
    ).read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.quants, "quantize", lambda *_: 1 / 0)
    for place in (tmp_path / "folder", tmp_path / "mine.gguf"):
        with pytest.raises(ZeroDivisionError):
            other_lab().save(place, format="gguf")
    assert not [place for place in tmp_path.rglob("*") if place.name != "folder"]


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a cap of the logits": ({"fixes": (QueryKeyNorm(), OutputSoftCap(30.0))}, {}, "cannot express OutputSoftCap"),
    "norms after branches": (LABS["34B's"], {}, "computes another model where norms follow the branches"),
    "no norms": ({"fixes": ()}, {}, "the lack of a QueryKeyNorm"),
    "odd rows": ({"ffn_width": 90}, {"weights": "q8_0"}, r"ffn_down.* has rows of 90 numbers, and Q8_0 packs 32"),
    "many codes": ({"vocabulary": Vocabulary.layout(8193, 256)}, {}, r"8,192 image tokens .* this model has 8,193"),
    "5 bits": ({}, {"weights": "q5_0"}, "weights of 'q5_0' are packed in no file.*f32, f16, bf16, q8_0, q4_0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_llama_cpp_would_take_for_another_model_is_refused(kind, tmp_path):
    config, options, why = REFUSED[kind]
    with pytest.raises(ValueError, match=why):
        other_lab(**config).save(tmp_path / "out", format="gguf", **options)
    assert not (tmp_path / "out" / "model.gguf").exists()


def test_weights_are_packed_in_gguf_alone(tmp_path):
    with pytest.raises(ValueError, match="'q8_0' are packed in no file of format 'meta'"):
        make_lab().save(tmp_path / "out", format="meta", weights="q8_0")


def test_a_shell_converts_to_a_file_and_back(tmp_path):
    from chameleon_lab.commands.main import main

    there, back = tmp_path / "tiny.gguf", tmp_path / "back"
    assert main(["convert", "tiny", str(there), "--format", "gguf", "--weights", "q8_0"]) == 0
    assert 4e6 < there.stat().st_size < 5e6  # of 17 in float32
    assert main(["convert", str(there), str(back), "--format", "meta", "--without-pictures"]) == 0
    assert formats.detect(back).name == "meta"


def test_without_the_package_one_line_says_what_to_install(tmp_path, small, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(small)
    monkeypatch.setitem(sys.modules, "gguf", None)
    for deed in (lambda: Chameleon.load(tmp_path / "x.gguf"), lambda: other_lab().save(tmp_path / "y", format="gguf")):
        with pytest.raises(ValueError, match=r"pip install 'chameleon-lab\[gguf\]'\.$"):
            deed()


# A file that another program wrote


def family_text() -> JsonTokenizer:
    """A small text tokenizer as the release's, whose cuts are those of llama.cpp's `chameleon`."""
    from test_text_json import family_json

    from chameleon_lab.checkpoints.gguf_words import FAMILY_CUTS

    return JsonTokenizer(json.dumps(json.loads(family_json()) | {"pre_tokenizer": FAMILY_CUTS}))


def community_file(path: Path, lab: Chameleon, kind: str = "F32", **values: Any) -> Path:
    """The file that llama.cpp's converter makes of a model with all 8,192 codes: the lab's own key is not in it."""
    lab.save(path.with_name("own"), format="gguf")
    own = read_gguf(path.with_name("own") / "model.gguf")
    writer = gguf.GGUFWriter(path, "chameleon")
    for key, value in (own.values | values).items():
        if key in ("general.architecture", "chameleon_lab"):
            continue
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kinds.get(type(value), writer.add_array)(key, value.tolist() if isinstance(value, np.ndarray) else value)
    for name, tensor in own.tensors.items():
        numbers, packed = tensor.read().numpy(), gguf.GGMLQuantizationType[kind]
        if kind != "F32" and "norm" not in name:
            writer.add_tensor(name, gguf.quants.quantize(numbers, packed), raw_dtype=packed)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def published() -> Chameleon:
    """A small model with the release's codes and its kind of text tokenizer."""
    text, codes = family_text(), 8192
    first = text.vocabulary.first_text - text.vocabulary.codes + codes
    blocks = {
        name: getattr(text.vocabulary, name) - text.vocabulary.codes + codes for name in ("end_image", "begin_image")
    }
    vocabulary = replace(
        text.vocabulary,
        **blocks,
        codes=codes,
        first_sentinel=text.vocabulary.first_sentinel - text.vocabulary.codes + codes,
        end_turn=text.vocabulary.end_turn - text.vocabulary.codes + codes,
        first_text=first,
        size=first + text.size,
        permutation=(),
    )
    return other_lab(text, vocabulary)


@pytest.mark.parametrize("kind", ["F32", "Q5_0"])
def test_a_file_of_another_program_loads_for_words(kind, tmp_path, published):
    path = community_file(tmp_path / "chameleon-7b-q.gguf", published, kind)
    back = Chameleon.load(path, device="cpu")
    assert padding_of(published.vocabulary) == 0 and back.vocabulary == published.vocabulary
    document = Document.of("if (a <= b) { return 12; }  // it's 'so'", EndTurn())
    assert list(back.encode(document)) == list(published.encode(document))
    assert back.tokenizer.missing == ("no image tokenizer: pictures can neither be read nor written",)
    assert back.card["licence"].startswith("Chameleon Research") and back.card["origin"]["layout"] == "gguf"
    ours = published.model.state_dict()["embedding.weight"]
    apart = (back.model.state_dict()["embedding.weight"] - ours).abs().max()
    assert apart == 0 if kind == "F32" else 0 < apart <= ours.abs().max() / 16
    with pytest.raises(ValueError, match=r"licence|image"):
        back.generate(document, modality="picture")


def test_another_programs_text_tokenizer_is_asked_for(tmp_path, published, caplog):
    path = community_file(tmp_path / "x.gguf", published, **{"tokenizer.ggml.pre": "llama-bpe"})
    back = Chameleon.load(path, device="cpu")
    assert "'llama-bpe'" in caplog.text and not back.tokenizer.can_spell


# Damage


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "llama"}, "of architecture 'llama', and the lab reads 'chameleon'"),
    "split": ({"split.count": 3}, "one of 3 parts of a model"),
    "typed": ({"chameleon.embedding_length": "wide"}, "chameleon.embedding_length must be a whole number, not 'wide'"),
    "missing": ({"chameleon.block_count": None}, "chameleon.block_count must be a whole number, not nothing"),
    "layers": ({"chameleon.block_count": 4_000_000}, "contradicts|layers"),
    "width": ({"chameleon.embedding_length": 2**31}, r"contradicts its header: token_embd\.weight \(\d+, 64\)"),
    "heads": ({"chameleon.attention.head_count": 0}, "0 heads"),
    "context": ({"chameleon.context_length": 0}, "context"),
    "rotary": ({"chameleon.rope.scaling.type": "yarn"}, "scales rotary positions"),
    "alignment": ({"general.alignment": 0}, "general.alignment is '0'"),
}


def rewritten(path: Path, changes: dict[str, Any]) -> None:
    """A small GGUF file of the lab's with other values in its header, numbers as u32 and texts as texts."""
    data, place = path.read_bytes(), 24
    tensors, entries = struct.unpack_from("<QQ", data, 8)
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def end_of(place: int, kind: int) -> int:
        if kind in sizes:
            return place + sizes[kind]
        if kind == 8:
            return place + 8 + struct.unpack_from("<Q", data, place)[0]
        inner, count = struct.unpack_from("<IQ", data, place)
        place += 12
        if inner in sizes:
            return place + count * sizes[inner]
        for _ in range(count):
            place = end_of(place, inner)
        return place

    kept: list[bytes] = []
    for _ in range(entries):
        start, place = place, end_of(place, 8)
        key = data[start + 8 : place].decode()
        place = end_of(place + 4, struct.unpack_from("<I", data, place)[0])
        if key not in changes:
            kept.append(data[start:place])
    for key, value in changes.items():
        name = struct.pack("<Q", len(key)) + key.encode()
        if isinstance(value, str):
            kept.append(name + struct.pack("<IQ", 8, len(value)) + value.encode())
        elif value is not None:
            kept.append(name + struct.pack("<II", 4, value))
    start = place
    for _ in range(tensors):
        place = end_of(place, 8)
        place += 4 + 8 * struct.unpack_from("<I", data, place)[0] + 12
    header = data[:16] + struct.pack("<Q", len(kept)) + b"".join(kept) + data[start:place]
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data[-(-place // 32) * 32 :])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    return saved(other_lab(), tmp_path_factory.mktemp("small") / "out").read_bytes()


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_header_that_cannot_be_is_one_error_that_names_the_file(kind, tmp_path, small):
    changes, why = DAMAGED[kind]
    path = tmp_path / "small.gguf"
    path.write_bytes(small)
    rewritten(path, {})
    Chameleon.load(path, device="cpu")  # what is changed is what is wrong
    rewritten(path, changes)
    with pytest.raises(ValueError, match=why) as caught:
        Chameleon.load(path, device="cpu")
    assert "small.gguf" in str(caught.value) and "\n" not in str(caught.value)


BYTES: dict[str, tuple[int, bytes, str]] = {
    "no such file": (0, b"GGML", "does not begin as a GGUF file"),
    "newer": (4, struct.pack("<I", 4), "of version 4, and the lab reads versions 2 and 3"),
    "swapped": (4, struct.pack(">I", 3), "of big-endian machines"),
    "entries": (16, struct.pack("<Q", 2**60), "tells of"),
    "tensors": (8, struct.pack("<Q", 2**60), "tells of"),
    "a name": (24, struct.pack("<Q", 2**62), "tells of"),
}


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_that_cannot_be_are_one_error_that_names_the_file(kind, tmp_path, small):
    place, wrong, why = BYTES[kind]
    path = tmp_path / "small.gguf"
    path.write_bytes(small[:place] + wrong + small[place + len(wrong) :])
    with pytest.raises(ValueError, match=why) as caught:
        Chameleon.load(path, device="cpu")
    assert "small.gguf" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_file_that_is_cut_is_one_error(share, tmp_path, small):
    path = tmp_path / "cut.gguf"
    path.write_bytes(small[: int(share * len(small))])
    with pytest.raises(ValueError, match=r"cut\.gguf"):
        Chameleon.load(path, device="cpu")


def test_of_several_files_one_has_to_be_named(tmp_path, small):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(small)
    with pytest.raises(ValueError, match=r"several GGUF files, a\.gguf, b\.gguf: give the one"):
        Chameleon.load(tmp_path, device="cpu")
    assert Chameleon.load(tmp_path / "b.gguf", device="cpu").tokenizer.can_spell


def test_weights_of_another_layout_come_before_a_file_beside_them(tmp_path, small):
    make_lab().save(tmp_path / "there", format="huggingface", pictures=False)
    (tmp_path / "there" / "x.gguf").write_bytes(small)
    assert formats.detect(tmp_path / "there").name == "huggingface"
    assert formats.detect(tmp_path / "there", layout="gguf").name == "gguf"


# What llama.cpp says of it

TOLERANCES = {"f32": 1e-3, "bf16": 0.1, "q8_0": 0.5, "q4_0": 0.5}
"""How far llama.cpp's logits may be from the lab's on the same file; the tiny model's are up to 52. In bfloat16 and
fewer bits it rounds what it multiplies the weights by as well, to bfloat16 or to 8 bits; the lab does not."""


def run(path: Path, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """llama.cpp's logits for each token. Its plain kernels compute them: a container may forbid those for AMX."""
    import llama_cpp  # pyright: ignore[reportMissingImports]

    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", lambda: params)
    model = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1)
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)])
    model.close()
    return logits


def moved(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The lab's tokens as the file numbers them."""
    return tokens + padding_of(vocabulary) * (tokens >= Vocabulary.first_image + vocabulary.codes)


@pytest.mark.parametrize(
    ("kind", "weights"), [("7B's", "f32"), ("tied", "f32"), *(("tiny", each) for each in TOLERANCES)]
)
def test_llama_cpp_computes_the_same_logits(kind, weights, tmp_path, tiny, monkeypatch):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python")
    lab = tiny if kind == "tiny" else other_lab(**LABS[kind])
    path = saved(lab, tmp_path / "out", weights=weights)
    back = Chameleon.load(path, device="cpu")
    tokens = lab.encode(Document.of("what is left of the red circle?", EndTurn(), "a blue square", EndTurn()))
    with torch.no_grad():
        ours = back.model(torch.from_numpy(tokens)[None])[0].numpy()
    places = moved(np.arange(lab.vocabulary.size), lab.vocabulary)
    theirs = run(path, moved(tokens, lab.vocabulary).tolist(), monkeypatch)[:, places]
    words = np.arange(lab.vocabulary.size) >= Vocabulary.first_image + lab.vocabulary.codes
    assert np.abs(ours - theirs)[:, words].max() < TOLERANCES[weights]
    if weights == "f32":
        assert (ours[:, words].argmax(1) == theirs[:, words].argmax(1)).all()
    images = theirs[0, Vocabulary.first_image : Vocabulary.first_image + lab.vocabulary.codes]
    assert (images < -1e30).all(), "llama.cpp writes image tokens by now: say so in docs/weights.md"


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K"])
def test_what_llama_cpp_packs_as_people_publish_it_loads(kind, tmp_path, monkeypatch):
    """The package takes these packings apart and has no way to make them: llama.cpp itself makes the file."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python")
    lab = other_lab(width=256, heads=4, head_width=64, ffn_width=512)
    whole, packed = saved(lab, tmp_path / "out", weights="f32"), tmp_path / "packed.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    assert llama_cpp.llama_model_quantize(bytes(whole), bytes(packed), options) == 0
    kinds = {each.tensor_type.name for each in gguf.GGUFReader(packed).tensors}
    assert kinds == {"F32", "Q6_K"} | ({"Q4_K"} if kind == "Q4_K_M" else set())
    tokens = lab.encode(Document.of("what is left of the red circle?", EndTurn()))
    with torch.no_grad():
        ours = Chameleon.load(packed, device="cpu").model(torch.from_numpy(tokens)[None])[0].numpy()
    words = np.arange(Vocabulary.first_image + lab.vocabulary.codes, lab.vocabulary.size)
    theirs = run(packed, moved(tokens, lab.vocabulary).tolist(), monkeypatch)[:, moved(words, lab.vocabulary)]
    assert np.abs(ours[:, words] - theirs).max() < TOLERANCES["q4_0"] and theirs.std() > 1


def test_llama_cpp_still_computes_another_34b(tmp_path, monkeypatch):
    """Its feed-forward part is fed with the attention's branch alone: once it is not, `check_runs` need not refuse."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python")
    lab = other_lab(**LABS["34B's"])
    monkeypatch.setattr("chameleon_lab.checkpoints.gguf.check_runs", lambda opened: None)
    path = saved(lab, tmp_path / "out")
    tokens = lab.encode(Document.of("what is left?", EndTurn()))
    words = np.arange(Vocabulary.first_image + lab.vocabulary.codes, lab.vocabulary.size)
    theirs = run(path, moved(tokens, lab.vocabulary).tolist(), monkeypatch)[:, moved(words, lab.vocabulary)]
    branches: dict[torch.nn.Module, torch.Tensor] = {}
    with torch.no_grad():
        ours = lab.model(torch.from_numpy(tokens)[None])[0].numpy()[:, words]
        for block in lab.model.blocks:
            post_norm, feed_forward = block.get_submodule("attention_post_norm"), block.get_submodule("feed_forward")
            post_norm.register_forward_hook(lambda _, inputs, output, block=block: branches.update({block: output}))
            feed_forward.register_forward_pre_hook(lambda _, inputs, block=block: (branches[block],))
        as_theirs = lab.model(torch.from_numpy(tokens)[None])[0].numpy()[:, words]
    assert np.abs(as_theirs - theirs).max() < 1e-3 < 1 < np.abs(ours - theirs).max()


CORPUS = (
    *(text for text in TEXTS if "\u2581" not in text),  # which llama.cpp takes for a space, and the lab does not
    "draw a red circle",
    "  two spaces, and\n\na new line\t tab ",
    "naïve café, Ünïcödé; 日本語 и кириллица 🙂 👩‍🚀",
    "if (a <= b && b >= c) { std::cout << v[0] << '\\n'; }  // 12345 67.8",
    "it's she'll they've I'm you'd we're",
    "</div><s></s><unk> <sentinel:0> IMGIMGAZ <racm3:break><0x41>",
    "!?.,;:()[]{}«»„“—–…",
    "x" * 70 + " " * 9 + "\n" * 5,
    "",
    " ",
)


def theirs_of(path: Path, texts: tuple[str, ...]) -> list[list[int]]:
    import llama_cpp  # pyright: ignore[reportMissingImports]

    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    tokens = [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]
    model.close()
    return tokens


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes", "family"])
def test_llama_cpp_tokenizes_texts_the_same(kind, tmp_path, tiny, published):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python")
    lab = {"sentencepiece": tiny, "bytes": other_lab(), "family": published}[kind]
    path = saved(lab, tmp_path / "out")
    first = moved(np.array([lab.vocabulary.first_text]), lab.vocabulary)[0]
    ours = [[first + piece for piece in lab.tokenizer.text.encode(text)] for text in CORPUS]
    assert theirs_of(path, CORPUS) == ours


def test_a_conversation_is_the_same_tokens_by_the_template(tmp_path, tiny):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python")
    path = saved(tiny, tmp_path / "out")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    template = model.metadata["tokenizer.chat_template"]
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # pyright: ignore[reportMissingImports]

    chat = Jinja2ChatFormatter(template, eos_token="</s>", bos_token="<s>")
    turns = [{"role": "user", "content": "draw a red circle"}, {"role": "assistant", "content": "here it is"}]
    prompt = chat(messages=turns).prompt
    document = Document.of("draw a red circle", EndTurn(), Text("here it is"), EndTurn())
    theirs = model.tokenize(prompt.encode(), add_bos=False, special=True)
    model.close()
    assert theirs == moved(tiny.encode(document), tiny.vocabulary).tolist()


def test_masked_tokens_are_those_of_the_release():
    assert padding_of(Vocabulary.layout(MASKED, 4)) == 0 and padding_of(Vocabulary.layout(512, 4)) == 7680
