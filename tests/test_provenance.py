import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import provenance
from chameleon_lab.checkpoints.provenance import RESEARCH_LICENCE, LicenceError
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.records import ImagePiece
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

FOREIGN = ("meta", "huggingface", "lumina", "anole")
PROMPT = Document.of("hi", EndTurn())
RESTRICTED = {"origin": {"layout": "meta", "folder": "7b"}, "licence": RESEARCH_LICENCE, "hashes": {}}


class EagerToDraw(nn.Module):
    """Adds to the logit of one token so much that it comes wherever it may."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_add(-1, torch.tensor([self.token]), torch.full((*logits.shape[:-1], 1), 1e4))


def small(card: dict | None = None, acknowledge_licence: bool = False) -> Chameleon:
    torch.manual_seed(0)
    shape = ImageTokenizerConfig(side=8, codes=8, code_width=32, widths=(32, 32), latent_width=32, blocks=1)
    image = ImageTokenizer(shape)
    text = ByteTokenizer()
    vocabulary = Vocabulary.layout(codes=8, pieces=text.size)
    config = ModelConfig(vocabulary.size, 64, 2, 2, 2, 32, 64, 64, fixes=(QueryKeyNorm(),))
    lab = Chameleon(
        Transformer(config),
        MixedModalTokenizer(text, image, vocabulary),
        card=card,
        acknowledge_licence=acknowledge_licence,
    )
    lab.model.cap = EagerToDraw(vocabulary.begin_image)
    lab.settings = lab.settings.changed(max_tokens=30)
    return lab


def drawing(lab: Chameleon) -> Grammar:
    return replace(lab.engine.default_grammar(), text=False, images=True, max_images=1)


def draws(lab: Chameleon, grammar: Grammar | None = None) -> bool:
    return any(isinstance(part, Image) for part in lab.generate(PROMPT, grammar=grammar))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was said about licences: a reply without room for a picture is logged as well."""
    return [record for record in caplog.records if record.name == provenance.__name__]


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"trained": "2026-11-22"},
        {"licence": "Apache-2.0"},
        {"licence": "Apache-2.0", "origin": {"layout": "meta"}},
        {"licence": "CC-BY-NC-4.0", "origin": {"layout": "anole"}},
    ],
)
def test_weights_trained_here_or_under_another_licence_draw(card: dict, caplog: pytest.LogCaptureFixture):
    assert draws(small(card)) and draws(small(card), drawing(small()))
    assert not warnings_in(caplog)


def test_the_shipped_model_is_not_gated():
    assert not provenance.forbids_drawing(Chameleon.load("tiny", device="cpu").card)


@pytest.mark.parametrize(
    "card",
    [
        RESTRICTED,
        {"origin": {"layout": "huggingface"}},
        {"licence": "chameleon research license"},
        {"licence": "Chameleon-Research-Licence (18 June 2024)"},
    ],
)
def test_restricted_weights_answer_in_text_and_refuse_images(card: dict, caplog: pytest.LogCaptureFixture):
    lab = small(card)
    with caplog.at_level(logging.WARNING):
        assert not draws(lab) and not draws(lab)
        assert not any(isinstance(piece, ImagePiece) for piece in lab.begin(PROMPT).stream())
        assert not lab.engine.generate([PROMPT], lab.settings, [0])[0].pictures  # as evaluations ask
    assert len(warnings_in(caplog)) == 1 and "text only" in caplog.text and "Chameleon" in caplog.text
    for ask in (lab.generate, lab.stream, lab.begin):
        with pytest.raises(ValueError, match=r"acknowledge_licence=True") as refused:
            ask(PROMPT, grammar=drawing(lab))
        assert isinstance(refused.value, PermissionError)


def test_text_grammars_and_scores_of_restricted_weights_are_not_asked_about(caplog: pytest.LogCaptureFixture):
    lab = small(RESTRICTED)
    lab.generate(PROMPT, grammar=replace(drawing(lab), text=True, images=False))
    lab.score(PROMPT)
    assert not warnings_in(caplog)


def test_an_acknowledged_licence_lets_draw_and_says_so_once(caplog: pytest.LogCaptureFixture):
    lab = small(RESTRICTED, acknowledge_licence=True)
    with caplog.at_level(logging.WARNING):
        assert draws(lab, drawing(lab)) and draws(lab, drawing(lab))
        lab.generate(PROMPT)
    assert len(warnings_in(caplog)) == 1 and "acknowledge_licence=True was given" in caplog.text


@pytest.mark.parametrize("format", ("native", *FOREIGN))
def test_the_gate_survives_save_and_load_in_every_format(format: str, tmp_path: Path):
    small(RESTRICTED).save(tmp_path / "again", format=format)
    again = Chameleon.load(tmp_path / "again", device="cpu")
    assert again.card["licence"] == RESEARCH_LICENCE and again.card["origin"] == RESTRICTED["origin"]
    with pytest.raises(LicenceError):
        again.generate(PROMPT, grammar=drawing(again))
    known = Chameleon.load(tmp_path / "again", device="cpu", acknowledge_licence=True)
    assert draws(known, drawing(known))
    known.save(tmp_path / "third")
    assert provenance.forbids_drawing(
        Chameleon.load(tmp_path / "third", device="cpu").card
    )  # acknowledged for once only


@pytest.mark.parametrize("format", ("native", *FOREIGN))
def test_weights_trained_here_draw_after_save_and_load_in_every_format(format: str, tmp_path: Path):
    small().save(tmp_path / "own", format=format)
    own = Chameleon.load(tmp_path / "own", device="cpu")
    assert draws(own, drawing(own))


@pytest.mark.parametrize("format", FOREIGN)
def test_a_foreign_folder_without_a_card_is_gated_until_its_licence_is_stated(format: str, tmp_path: Path):
    folder = tmp_path / "theirs"
    small().save(folder, format=format)
    (folder / "chameleon_lab.json").unlink()
    theirs = Chameleon.load(folder, device="cpu")
    assert theirs.card["licence"] == RESEARCH_LICENCE
    assert theirs.card["origin"]["folder"] == "theirs" and theirs.card["origin"]["layout"] in FOREIGN
    weights = [name for name in theirs.card["hashes"] if name.endswith((".pth", ".safetensors"))]
    assert weights
    for name in weights:
        assert theirs.card["hashes"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    with pytest.raises(LicenceError, match=r"licence='Apache-2.0'"):
        theirs.generate(PROMPT, grammar=drawing(theirs))
    free = Chameleon.load(folder, device="cpu", licence="Apache-2.0")
    assert free.card["licence_before"] == RESEARCH_LICENCE and free.card["licence_stated_by"] == "user"
    assert not provenance.forbids_drawing(free.card)
    free.save(tmp_path / "kept")
    assert not provenance.forbids_drawing(Chameleon.load(tmp_path / "kept", device="cpu").card)


def test_large_files_are_hashed_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "LARGEST_HASHED", 10)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "text_tokenizer.json").write_bytes(b"{}")
    (tmp_path / "consolidated.pth").write_bytes(b"x" * 11)
    (tmp_path / "notes.txt").write_bytes(b"not of the model")
    card = provenance.card_of(tmp_path, "meta")
    assert card["origin"]["files"] == {"consolidated.pth": 11, "tokenizer/text_tokenizer.json": 2}
    assert card["hashes"]["consolidated.pth"] is None
    assert card["hashes"]["tokenizer/text_tokenizer.json"] == hashlib.sha256(b"{}").hexdigest()
    full = provenance.with_hashes(card, tmp_path)
    assert full["hashes"]["consolidated.pth"] == hashlib.sha256(b"x" * 11).hexdigest()
    assert json.loads(json.dumps(full)) == full
    assert provenance.changed_files(full, tmp_path) == []
    (tmp_path / "consolidated.pth").write_bytes(b"y" * 11)
    assert provenance.changed_files(full, tmp_path) == ["consolidated.pth"]
    (tmp_path / "consolidated.pth").write_bytes(b"x" * 12)
    with pytest.raises(ValueError, match=r"consolidated.pth is missing or of another size"):
        provenance.with_hashes(card, tmp_path)


def test_an_empty_licence_is_no_licence():
    with pytest.raises(ValueError, match="empty"):
        provenance.with_licence({}, "  ")
    with pytest.raises(ValueError, match=r"named by words, .*, not by True"):
        provenance.with_licence({}, True)  # pyright: ignore[reportArgumentType]
    assert provenance.with_licence({"trained": "here"}, None) == {"trained": "here"}
