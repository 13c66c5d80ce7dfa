"""Chameleon: the one object, and a clear word for every wrong use."""

import copy
import inspect
from dataclasses import fields, replace

import numpy as np
import PIL.Image
import pytest
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.generation.guidance import Negative, ThreeWay, without_words
from chameleon_lab.generation.settings import SETTING_NAMES, Settings
from chameleon_lab.records import ImagePiece, ReplyProgress, StopPiece, TextPiece
from chameleon_lab.transformer import Transformer
from chameleon_widgets.chat.arguments import StreamArguments

PROMPT = Document.of("draw a red circle", EndTurn())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_loaded_model_generates_what_the_saved_one_does(make_lab, mixed, tmp_path, dtype):
    lab = make_lab(copy.deepcopy(mixed))
    lab.model.to(dtype)
    lab.tokenizer.image.to(dtype)
    lab.save(tmp_path / "model")
    again = Chameleon.load(tmp_path / "model", device="cpu", dtype=dtype)
    for seed in range(3):
        assert again.generate(PROMPT, seed=seed) == lab.generate(PROMPT, seed=seed)


def test_streaming_equals_generating_with_the_same_words_for_both(lab):
    settings = {"temperature": 1.5, "top_p": 0.9, "guidance": 2.0, "max_tokens": 60}
    *pieces, stop = lab.stream(PROMPT, seed=7, **settings)
    assert isinstance(stop, StopPiece)
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    reply = lab.generate(PROMPT, seed=7, **settings)
    assert text == "".join(part.text for part in reply if isinstance(part, Text)) and len(text) > 10


def test_settings_are_the_defaults_and_arguments_win(lab):
    lab.settings = Settings(temperature=0.0, image_temperature=0.0, max_tokens=9)
    assert lab.generate(PROMPT, seed=1) == lab.generate(PROMPT, seed=2)
    assert lab.generate(PROMPT, seed=1) != lab.generate(PROMPT, seed=1, temperature=5.0)
    short, long = lab.generate(PROMPT, seed=1).text, lab.generate(PROMPT, seed=1, max_tokens=30).text
    assert long.startswith(short.rstrip("\ufffd")) and len(long) > len(short) > 0


EACH = {"temperature": 2.0, "image_temperature": 0.3, "top_p": 0.4, "guidance": 2.0, "max_tokens": 7, "window": 200} | {
    "top_k": 2, "min_p": 0.5, "repetition": 3.0, "image_top_p": 0.4, "image_top_k": 2, "image_min_p": 0.5,
    "text_guidance": 2.0, "drafts": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_every_setting_can_be_passed_everywhere_by_name_or_as_one_value(lab, name):
    settings = replace(Settings(temperature=1.0, max_tokens=25), **{name: EACH[name]})
    expected = list(lab.engine.stream(PROMPT, settings, 3))
    by_name = {each.name: getattr(settings, each.name) for each in fields(Settings)}
    for given in (by_name, {"settings": settings}, {"settings": Settings(), **by_name}):
        assert list(lab.stream(PROMPT, seed=3, **given)) == expected
        assert list(lab.begin(PROMPT, seed=3, **given).stream()) == expected
        assert lab.generate(PROMPT, seed=3, **given) == lab.engine.generate([PROMPT], settings, [3])[0]
    assert tuple(EACH) == SETTING_NAMES


def test_what_takes_settings_shows_them_and_refuses_other_names(lab):
    for use in (lab.stream, lab.generate, lab.begin):
        shown = [name for name in inspect.signature(use).parameters if name != "progress"]
        assert shown == ["document", "seed", "settings", "grammar", "modality", "prefix", *SETTING_NAMES]
        with pytest.raises(TypeError, match="No setting is called topk; there are temperature"):
            use(PROMPT, topk=3)


@pytest.mark.parametrize("settings", [Settings(), Settings(0.0, 0.4, 0.9, 2.0, 9, image_top_k=3), Settings(min_p=0.1)])
def test_the_signature_of_a_labs_methods_tells_the_values_that_are_used(lab, settings):
    lab.settings = settings
    for use in (lab.stream, lab.generate, lab.begin):
        values = {name: each.default for name, each in inspect.signature(use).parameters.items()}
        own = {name: values[name] for name in SETTING_NAMES}
        assert own == {each.name: getattr(settings, each.name) for each in fields(Settings)}
        assert lab.settings.changed(**own) == settings  # spelled out, they are the same settings
    assert inspect.signature(Chameleon.stream).parameters["temperature"].default is None
    assert lab.stream.__doc__ == Chameleon.stream.__doc__


@pytest.mark.parametrize("modality", ["words", "picture", "interleaved"])
def test_a_modality_holds_a_reply_to_words_or_pictures(lab, modality):
    for seed in range(3):
        reply = lab.generate(PROMPT, seed=seed, modality=modality, max_tokens=60)
        kinds = {type(segment) for segment in reply if not isinstance(segment, EndTurn)}
        assert {"words": kinds <= {Text}, "picture": kinds == {Image}, "interleaved": Image in kinds}[modality]
        if modality == "picture":
            assert len(reply.pictures) == 1
    assert lab.generate(PROMPT, seed=1, modality="free") == lab.generate(PROMPT, seed=1)
    with pytest.raises(ValueError, match="one of free, words, picture, interleaved"):
        lab.stream(PROMPT, modality="pictures")
    with pytest.raises(ValueError, match="beside a grammar"):
        lab.stream(PROMPT, modality=modality, grammar=lab.engine.default_grammar())


def test_progress_tells_each_token_of_a_reply_and_the_room_left(lab):
    steps: list[ReplyProgress] = []
    session = lab.begin(PROMPT, seed=2, modality="interleaved", max_tokens=70)
    prompt = len(session.tokens)
    pieces = list(lab.stream(PROMPT, seed=2, modality="interleaved", max_tokens=70, progress=steps.append))
    assert len(list(session.stream())) == len(pieces)
    assert [each.token for each in steps] == session.tokens[prompt:].tolist()
    assert [each.room for each in steps] == [69 - place for place in range(len(steps))]
    assert {each.room - each.context for each in steps} == {prompt + 70 - lab.model.config.context}
    drawn = [each.image for each in steps if each.image is not None]
    codes = lab.tokenizer.image_tokens - 2
    assert drawn[: codes + 1] == [(count, codes) for count in range(codes + 1)]
    rest = list(lab.stream(PROMPT, seed=5, prefix=[each.token for each in steps[:9]], progress=steps.append))
    assert rest and steps[70].room == lab.model.config.context - prompt - 10


def test_a_chat_cell_offers_the_settings_of_a_form_with_the_labs_values_and_refuses_other_names(lab):
    lab.settings = Settings(0.0, 0.7, 0.95, 1.5)
    arguments = StreamArguments(lab.stream, {"top_p": 0.5, "image_top_k": 7})
    names = ("temperature", "image_temperature", "top_p", "guidance", "seed", "modality")
    assert arguments.settings == dict.fromkeys(names) | {"top_p": 0.5}
    own = {name: limits["own"] for name, limits in arguments.ranges.items()}
    assert own == {"temperature": 0.0, "image_temperature": 0.7, "top_p": 0.95, "guidance": 1.5}
    keywords = arguments.keywords({"temperature": 0.3}, 11)
    assert keywords.pop("seed") == 11 and keywords["image_top_k"] == 7  # passed on as it is
    assert lab.settings.changed(**keywords) == Settings(0.3, 0.7, 0.95, 1.5, image_top_k=7)
    with pytest.raises(ValueError, match="does not take topk; it takes seed, settings, grammar, modality"):
        StreamArguments(lab.stream, {"topk": 7})


def test_another_model_or_tokenizer_changes_what_is_said_as_well_as_what_is_saved(lab, mixed, tmp_path):
    other = copy.deepcopy(lab.model)
    with torch.no_grad():
        other.head.weight.mul_(-1)
    fresh = Chameleon(other, mixed)
    expected = fresh.generate(PROMPT, seed=1)
    assert lab.generate(PROMPT, seed=1) != expected
    lab.model = other
    assert lab.generate(PROMPT, seed=1) == expected
    assert (
        list(lab.stream(PROMPT, seed=1))
        == list(lab.begin(PROMPT, seed=1).stream())
        == list(fresh.stream(PROMPT, seed=1))
    )
    assert np.array_equal(lab.score(PROMPT).logs_T, fresh.score(PROMPT).logs_T)
    lab.save(tmp_path / "model")
    assert Chameleon.load(tmp_path / "model", device="cpu").generate(PROMPT, seed=1) == expected
    lab.model = Transformer(replace(other.config, vocabulary=other.config.vocabulary + 1))
    with pytest.raises(ValueError, match="do not belong together"):
        lab.generate(PROMPT)


def test_a_grammar_chooses_the_modality(lab):
    images = Grammar(lab.vocabulary, 16, text=False)
    replies = [lab.generate(PROMPT, seed=seed, grammar=images, temperature=1.0) for seed in range(8)]
    parts = [part for reply in replies for part in reply]
    assert parts and all(isinstance(part, Image) for part in parts)
    pieces = [piece for seed in range(8) for piece in lab.stream(PROMPT, seed=seed, grammar=images, temperature=1.0)]
    assert sum(isinstance(piece, ImagePiece) and piece.complete for piece in pieces) == len(parts)


def test_a_reply_can_be_answered(lab):
    reply = lab.generate(PROMPT, seed=3, max_tokens=20)
    document = PROMPT + reply + Document.of(EndTurn(), "and now?", EndTurn())
    assert isinstance(lab.generate(document, seed=1, max_tokens=20), Document)
    assert lab.decode(lab.encode(document)).turns[2] == ("user", Document.of("and now?"))


@pytest.mark.parametrize(
    "document", [Document(), Document.of(EndTurn()), Document.of(" \n", EndTurn()), Document.of("")]
)
def test_an_empty_prompt_is_refused_at_once(lab, document):
    for use in (lab.stream, lab.generate):
        with pytest.raises(ValueError, match="The prompt is empty: write some text or add a picture"):
            use(document)


def test_a_picture_alone_is_a_prompt(lab, picture):
    assert isinstance(lab.generate(Document.of(picture), max_tokens=3), Document)


def test_a_bare_string_is_refused_with_the_way_to_write_it(lab):
    uses = (lab.stream, lab.generate, lab.begin, lab.score, lab.encode, lambda given: lab.score(PROMPT, given=given))
    for use in uses:
        with pytest.raises(TypeError, match=r"is a Document, not a str: Document.of\('hello', EndTurn\(\)\)"):
            use("draw a red circle")


@pytest.mark.parametrize("guidance", ["3", (3.0, 1.2), ThreeWay, Negative(Document.of("blurry")), without_words])
def test_what_does_not_guide_is_refused_with_what_does(lab, guidance):
    for use in (lab.stream, lab.generate, lab.begin):
        with pytest.raises(TypeError, match=r"guidance is a number, or an object such as ThreeWay\(\)"):
            use(PROMPT, guidance=guidance)


def test_a_prompt_too_long_is_refused(lab):
    long = Document.of("a" * 159, EndTurn())
    for use in (lambda: lab.generate(long), lambda: list(lab.stream(long))):
        with pytest.raises(ValueError, match=r"has 161 tokens and the model's context holds 160: shorten"):
            use()


def test_a_broken_picture_in_a_prompt_is_refused(lab, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with PIL.Image.open(tmp_path / "cut.png") as broken, pytest.raises(ValueError, match="The picture cannot be read"):
        lab.generate(Document.of("what is this?", broken))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "tpu:0", "vulkan"])
def test_an_unknown_device_is_refused(lab, tmp_path, device):
    lab.save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"There is no device '{device}' on this machine; use (cuda and )?cpu"):
        Chameleon.load(tmp_path / "model", device=device)


def test_a_device_may_be_given_in_any_form(lab, tmp_path):
    lab.save(tmp_path / "model")
    for device in ("cpu", torch.device("cpu")):
        assert Chameleon.load(str(tmp_path / "model"), device=device).model.head.weight.device.type == "cpu"


@pytest.mark.parametrize("tokens", [[0.5], [[0, 1]], [10**6], [-1], ["a"], [True]])
def test_tokens_of_the_wrong_kind_are_refused(lab, tokens):
    with pytest.raises(ValueError, match="must"):
        lab.decode(tokens)


def test_tokens_of_any_integer_kind_are_read(lab):
    tokens = lab.encode(PROMPT)
    for given in (tokens.tolist(), tokens.astype(np.int32), torch.from_numpy(tokens), tuple(tokens)):
        assert lab.decode(given) == PROMPT


def test_a_long_conversation_keeps_its_latest_turns(lab):
    talk = Document()
    for number in range(6):
        talk += Document.of(f"question {number}", EndTurn(), f"answer {number}", EndTurn())
    last = Document.of("and now?", EndTurn())
    assert lab.recent(talk + last) == talk + last
    lab.settings = Settings(window=60)
    kept = lab.recent(talk + last)
    assert len(lab.encode(kept)) <= 61  # and begin_document
    assert kept.segments == (talk + last).segments[-len(kept) :]
    assert kept.turns[0] == ("user", Document.of("question 4"))
    lab.settings = Settings(window=3)
    assert lab.recent(talk + last) == last
    assert lab.generate(talk + last, seed=1) == lab.generate(last, seed=1)
