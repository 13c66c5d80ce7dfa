"""What evaluation programs ask is answered as a plain forward pass would, and cut as the harness cuts it."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from support import LetterTokenizer

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Text
from chameleon_lab.evaluation.prompting import (
    IMAGE_MARK,
    TURN_MARK,
    PromptContext,
    Prompting,
    messages_text,
    reply_wishes,
)
from chameleon_lab.generation.settings import Settings

PICTURE = PIL.Image.new("RGB", (20, 12), (200, 40, 10))


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny")


@pytest.fixture
def prompting(make_lab, lettered) -> Prompting:
    return Prompting(make_lab(lettered), batch=3)


@torch.no_grad()
def plain(lab: Chameleon, before: np.ndarray, after: np.ndarray) -> tuple[float, bool]:
    """Log-probability of the last tokens of one row, cut from the left, by one forward pass."""
    row = np.concatenate([before, after])[-(lab.model.config.context + 1) :]
    logs_TV = lab.model(torch.from_numpy(row[None, :-1]))[0].log_softmax(-1)[-len(after) :]
    targets_T = torch.from_numpy(after)
    total = logs_TV.gather(-1, targets_T[:, None]).double().sum()
    return float(total), bool((logs_TV.argmax(-1) == targets_T).all())


CONTEXTS = {
    "words": PromptContext("abcd"),
    "nothing": PromptContext(""),
    "a picture": PromptContext("", [PICTURE]),
    "a picture among words": PromptContext(f"ab{IMAGE_MARK}cd", [PICTURE]),
    "pictures first": PromptContext("ab", [PICTURE, PICTURE.rotate(90, expand=True)]),
    "turns": PromptContext(f"ab{TURN_MARK}{IMAGE_MARK}{TURN_MARK}", [PICTURE]),
    "long": PromptContext("abcd" * 60),
    "a picture that there is no room for": PromptContext(f"{IMAGE_MARK}{'abcd' * 36}", [PICTURE]),
}


def test_a_likelihood_is_that_of_a_plain_forward_pass(prompting):
    lab = prompting.lab
    requests = [(context, continuation) for context in CONTEXTS.values() for continuation in ("d", "cabb")]
    answers = prompting.likelihoods(requests)
    for (context, continuation), answer in zip(requests, answers, strict=True):
        before = lab.encode(context.document())
        after = np.array([lab.vocabulary.token_of_piece(each) for each in LetterTokenizer().encode(continuation)])
        if context is CONTEXTS["a picture that there is no room for"]:  # its first token does not fit, so none stays
            before = before[1 + lab.tokenizer.image_tokens :]
        total, greedy = plain(lab, before, after)
        assert answer.log == pytest.approx(total, abs=1e-4) and answer.greedy == greedy
        assert answer.tokens == len(after)
    left = {name: answers[2 * place].left_out for place, name in enumerate(CONTEXTS)}
    assert left.pop("long") == 1 + 240 + 1 - 161
    assert left.pop("a picture that there is no room for") == 1 + lab.tokenizer.image_tokens
    assert not any(left.values())


def test_spaces_at_a_contexts_end_belong_to_the_continuation(tiny):
    prompting = Prompting(tiny)
    one, other = prompting.likelihoods([(PromptContext("a red "), "circle"), (PromptContext("a red"), " circle")])
    assert one == other
    before, whole = (tiny.encode(Document.of(text)) for text in ("a red", "a red circle"))
    assert one.log == pytest.approx(plain(tiny, before, whole[len(before) :])[0], abs=1e-4)


def test_a_picture_tells_the_shipped_model_which_words_are_likely(tiny):
    from chameleon_lab.corpora.scenes import COLOURS, arrange

    scene = arrange([("star", "blue", "large")], "single", "tan")
    context = PromptContext(f"{IMAGE_MARK}describe the picture", [scene.picture()])
    answers = Prompting(tiny, turns=True).likelihoods([(context, f"a large {name} star") for name in COLOURS])
    assert max(zip(answers, COLOURS, strict=True))[1] == "blue"
    assert max(answers).greedy and sum(each.greedy for each in answers) == 1
    spaced = Prompting(tiny, turns=True).likelihoods([(context, f" a large {name} star") for name in COLOURS])
    assert spaced == answers  # as harnesses ask, and parts words from words alone
    said = Prompting(tiny, turns=True).replies([context, context], until=[" star"], max_tokens=40)
    assert said == ["a large blue"] * 2


@pytest.mark.parametrize("length", [0, 1, 5, 160, 161, 320, 321, 400])
def test_rolling_scores_each_token_once_with_as_much_context_as_there_is(prompting, length):
    lab, context = prompting.lab, prompting.room
    text = "".join("abcd"[number] for number in np.random.default_rng(length).integers(0, 4, length))
    tokens = lab.encode(Document.of(Text(text)))
    total, at = 0.0, 1
    while at < len(tokens):  # the harness's windows: the first from the begin on, each other with a full context
        end = min(at + context, len(tokens))
        total += plain(lab, tokens[max(0, end - context - 1) : at], tokens[at:end])[0]
        at = end
    assert prompting.rolling([text, "ab"])[0] == pytest.approx(total, abs=1e-3)


def test_rolling_windows_are_the_harnesss():
    windows = pytest.importorskip("lm_eval.utils").get_rolling_token_windows
    assert [len(each[1]) for each in windows(list(range(10)), -1, 4, 1)] == [4, 4, 2]


def test_a_batch_changes_nothing(prompting):
    contexts = list(CONTEXTS.values())
    alone = Prompting(prompting.lab, batch=1)
    requests = [(context, "ab") for context in contexts]
    one, many = alone.likelihoods(requests), prompting.likelihoods(requests)
    assert [each.log for each in one] == pytest.approx([each.log for each in many], abs=1e-4)
    assert alone.replies(contexts, max_tokens=6) == prompting.replies(contexts, max_tokens=6)


def test_a_reply_ends_before_what_it_is_to_stop_at(prompting):
    whole = prompting.replies([PromptContext("ab")], max_tokens=20, settings=Settings(temperature=1.0), seed=3)[0]
    if len(whole) > 2:
        stop = whole[2]
        cut = prompting.replies(
            [PromptContext("ab")], until=[stop, "never"], max_tokens=20, settings=Settings(temperature=1.0), seed=3
        )
        assert cut == [whole.split(stop)[0]]


def test_messages_become_turns():
    text = messages_text(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
        + [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "draw"}]
    )
    assert PromptContext(text).document() == Document.of(
        "Be brief.\nhi", EndTurn(), "hello", EndTurn(), "draw", EndTurn()
    )
    parts = [{"type": "text", "text": "what is "}, {"type": "image"}, {"type": "text", "text": "?"}]
    assert messages_text([{"role": "user", "content": parts}], reply_next=False) == "what is <image>?"


@pytest.mark.parametrize(
    ("keywords", "temperature", "rest"),
    [
        ({}, 0.0, ([], 256)),
        ({"until": "\n", "max_gen_toks": 9, "do_sample": False, "temperature": 0.7}, 0.0, (["\n"], 9)),
        ({"until": ["a", "b"], "temperature": 0.7, "top_p": 0.9}, 0.7, (["a", "b"], 256)),
        ({"until": None, "max_gen_toks": None, "max_new_tokens": "7"}, 0.0, ([], 7)),
        ({"do_sample": True, "max_new_tokens": 4, "num_beams": 1, "top_p": None}, 1.0, ([], 4)),
    ],
)
def test_a_harnesss_keywords_become_settings(keywords, temperature, rest):
    wishes = reply_wishes(keywords, Settings(temperature=0.3, repetition=1.2))
    assert wishes["settings"].temperature == temperature and wishes["settings"].repetition == 1.0
    assert (wishes["until"], wishes["max_tokens"]) == rest


@pytest.mark.parametrize(
    ("call", "words"),
    {
        "marks": (lambda asker: asker.likelihoods([(PromptContext("<image><image>", [PICTURE]), "a")]), "2 marks"),
        "long": (lambda asker: asker.likelihoods([(PromptContext("a"), "abcd" * 41)]), "164 tokens .* holds 160"),
        "beams": (lambda _: reply_wishes({"num_beams": 4}, Settings()), "no beams"),
        "unknown": (lambda _: reply_wishes({"magic": 4}, Settings()), "what magic should do"),
        "batch": (lambda asker: Prompting(asker.lab, batch=0), "requests at once"),
        "no length": (lambda _: reply_wishes({"max_gen_toks": 0}, Settings()), "from 1 on, not 0"),
        "half a token": (lambda _: reply_wishes({"max_new_tokens": 1.5}, Settings()), "from 1 on, not 1.5"),
        "a length that is none": (lambda _: reply_wishes({"max_tokens": True}, Settings()), "from 1 on, not True"),
        "a stop that is none": (lambda _: reply_wishes({"until": [3]}, Settings()), "a list of texts, not"),
        "stops by name": (lambda _: reply_wishes({"until": {"a": 1}}, Settings()), "a list of texts, not"),
        "no message": (lambda _: messages_text([{}]), "parts of type text and image, not 'None'"),
        "a sound": (lambda _: messages_text([{"role": "user", "content": [{"type": "audio"}]}]), "text and image, not"),
        "nobody": (lambda _: messages_text([{"content": "hi"}]), "the None's"),
        "roles": (lambda _: messages_text([{"role": "assistant", "content": "hi"}]), "the assistant's"),
    }.values(),
)
def test_what_cannot_be_answered_is_one_clear_error(call, words, prompting):
    with pytest.raises(ValueError, match=words):
        call(prompting)
