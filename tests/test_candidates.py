"""The best of several: any function ranks, mixtures deal the replies out, and each scorer prefers what it should."""

import math
from typing import Any

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.candidates import BestBy, CaptionScore, CheckerScore, SimilarityScore, request_and_picture
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import Scene, sample_scene
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation.guidance import Contrastive
from chameleon_lab.generation.settings import Settings

ASKED = Document.of("abcd", EndTurn())
WARM = Settings(1.0, 1.0, 1.0, max_tokens=40)
TOP_P, CONTRAST = WARM.changed(top_p=0.8), WARM.changed(guidance=Contrastive(k=3))


def test_any_function_ranks_and_the_best_comes_first(make_lab, lettered):
    lab, asked = make_lab(lettered), list[Document]()

    def longest(document: Document) -> float:
        asked.append(document)
        return len(document.text)

    ranking = lab.candidates(ASKED, 5, scorer=longest, settings=WARM, seed=3)
    assert [each.score for each in ranking] == sorted((each.score for each in ranking), reverse=True)
    assert sorted(each.seed for each in ranking) == [3, 4, 5, 6, 7]
    for each in ranking:
        assert each.reply == lab.generate(ASKED, settings=WARM, seed=each.seed)
        whole = Document((*ASKED, *each.reply))
        assert each.score == len(whole.text) and whole in asked
    assert lab.candidates(ASKED, 5, scorer=lambda document: 0, settings=WARM)[0].seed == 0  # of equal ones the first


def test_a_mixture_deals_the_replies_out(make_lab, lettered):
    lab = make_lab(lettered)
    ranking = lab.candidates(ASKED, 7, scorer=lambda document: 1, mixture=(TOP_P, CONTRAST), seed=10, min_p=0.01)
    assert [each.seed for each in ranking] == list(range(10, 17))
    own = [settings.changed(min_p=0.01) for settings in (TOP_P, CONTRAST)]
    assert [each.settings for each in ranking] == [own[place % 2] for place in range(7)]
    for each in ranking:
        assert each.reply == lab.generate(ASKED, settings=each.settings, seed=each.seed)


@pytest.mark.parametrize(
    "keywords",
    [{"count": 0}, {"count": 1.5}, {"count": 1, "mixture": (TOP_P, CONTRAST)}],
    ids=["none", "a half", "fewer than the mixture"],
)
def test_too_few_replies_are_refused(make_lab, lettered, keywords: dict[str, Any]):
    with pytest.raises(ValueError, match="number of candidates must be a whole number from"):
        make_lab(lettered).candidates(ASKED, scorer=lambda document: 1, settings=WARM, **keywords)


@pytest.mark.parametrize("score", [None, "1", True, math.nan, [1]], ids=repr)
def test_a_score_that_is_no_number_is_refused(make_lab, lettered, score):
    with pytest.raises(ValueError, match="A scorer gives a number, the larger the better, not"):
        make_lab(lettered).candidates(ASKED, 2, scorer=lambda document: score, settings=WARM)
    with pytest.raises(ValueError, match="A scorer gives a number"):
        BestBy(lambda document: score)([ASKED])


def test_the_choice_of_a_chat_takes_any_scorer():
    documents = [Document.of("draw", EndTurn(), words) for words in ("a", "abc", "ab", "xyz")]
    assert BestBy(lambda document: len(document.text))(documents) == 1
    assert BestBy(lambda document: float(np.float32(-math.inf)))(documents) == 0
    with pytest.raises(ValueError, match="no reply to choose"):
        BestBy(len)([])
    with pytest.raises(ValueError, match="CaptionScore is a class"):
        BestBy(CaptionScore)  # pyright: ignore[reportArgumentType]


def test_the_request_is_the_turn_that_the_last_picture_answers(picture):
    blank = Image(PIL.Image.new("RGB", (16, 16)))
    talk = (Text("first"), EndTurn(), blank, EndTurn(), Text("second "), Image(picture), Text("this"), EndTurn())
    drawn = Document((*talk, Text("here: "), blank, Text("done"), EndTurn()))
    assert request_and_picture(drawn) == ("second this", blank)
    assert request_and_picture(Document(talk[:3])) == ("first", blank)
    assert request_and_picture(Document.of("a caption", picture))[0] == "a caption"
    assert request_and_picture(Document.of("words", EndTurn(), "alone")) == ("", None)


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny")


SCENES = [sample_scene(np.random.default_rng(seed), 1) for seed in range(4)]


def _replies(scene: Scene) -> list[Document]:
    return [Document.of(scene.caption(), EndTurn(), each.picture()) for each in SCENES]


def test_the_checker_prefers_the_scene_that_was_asked_for():
    for place, scene in enumerate(SCENES):
        scores = [CheckerScore(scene)(document) for document in _replies(scene)]
        assert scores[place] == 1.0 == max(scores) and BestBy(CheckerScore(scene))(_replies(scene)) == place
    assert CheckerScore(SCENES[0])(ASKED) == -math.inf


def test_the_shipped_models_own_captions_prefer_the_scene_that_was_asked_for(tiny):
    scorer = CaptionScore(tiny.engine)
    assert [BestBy(scorer)(_replies(scene)) for scene in SCENES] == [0, 1, 2, 3]
    document = _replies(SCENES[0])[0]
    image = document.segments[-1]
    assert isinstance(image, Image)
    scores = tiny.score(Document((Text(SCENES[0].caption()),)), given=Document((image,)))
    assert scorer(document) == pytest.approx(scores.mean)
    asked = CaptionScore(tiny.engine, caption=lambda words: words[::-1], question="what is this?")
    assert asked(document) < scorer(document) and scorer(ASKED) == -math.inf


class Brightness:
    """An encoder of pairs in two dimensions: how bright, and how dark."""

    def encode_text(self, texts):
        return np.array([[1.0, 0.0] if text == "bright" else [0.0, 1.0] for text in texts])

    def encode_pictures(self, pictures):
        means = np.array([np.asarray(picture.convert("L")).mean() / 255 for picture in pictures])
        return 7 * np.stack([means, 1 - means], -1)


def test_an_encoder_of_pairs_ranks_by_the_cosine():
    grey = [PIL.Image.new("L", (8, 8), each) for each in (0, 120, 255)]
    for words, wanted in (("bright", 2), ("dark", 0)):
        documents = [Document.of(words, EndTurn(), each.convert("RGB")) for each in grey]
        scores = [SimilarityScore(Brightness())(document) for document in documents]
        assert max(scores) == pytest.approx(1.0) == scores[wanted] and min(scores) == pytest.approx(0.0)
    assert SimilarityScore(Brightness())(ASKED) == -math.inf
    with pytest.raises(ValueError, match="is no encoder: it lacks encode_text, encode_pictures"):
        SimilarityScore("clip")  # pyright: ignore[reportArgumentType]
