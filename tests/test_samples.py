"""Samples on a run's way: training does not notice them, they stand in the folder, and a fork has its parent's."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import support
import torch

from chameleon_lab.corpora.mixture import Mixture, SceneBatches, Stage, scene_pairs
from chameleon_lab.corpora.packing import tokenize
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.history import Answer, History, Intervention, Milestone, RecordedRun, Sample, StepRecord
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.training import samples
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.image_experiments import TINY_PICTURES, ImageExperiment
from chameleon_lab.training.loop import train
from chameleon_lab.training.modules import LanguageModule
from chameleon_lab.training.run import Run
from chameleon_lab.training.samples import Drawings, Reconstructions, first_halves
from chameleon_lab.training.text_experiments import TextExperiment
from chameleon_lab.training.trainable import Exhibit, Prepared
from chameleon_lab.transformer import Transformer

MODEL = replace(support.MODEL, context=500)


@pytest.fixture
def at_once(monkeypatch):
    """Samples are due at every step, whatever they cost."""
    monkeypatch.setattr(samples, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(samples, "COST", math.inf)
    monkeypatch.setattr(samples, "SHARE", 0.01)


def language(mixed, sampler=None, steps: int = 6) -> Prepared:
    torch.manual_seed(0)
    model = Transformer(replace(MODEL, vocabulary=mixed.vocabulary.size))
    recipe = Recipe(rate=3e-3, warm_up=2, schedule=Constant())
    module = LanguageModule(model, Objective(), recipe, Budget(steps=steps))
    return Prepared(module, SceneBatches(mixed, tokens=236, pool=2), sampler=sampler and sampler(model))


def pictures(image_config, steps: int = 4) -> ImageExperiment:
    return replace(TINY_PICTURES, name="toy", tokenizer=image_config, batch=2, budget=Budget(steps=steps))


def values(folder: Path) -> list[tuple[int, dict[str, float]]]:
    return [(each.step, each.values) for each in RunFolder(folder).history.records]


def test_training_does_not_notice_that_samples_are_taken(mixed, tmp_path, at_once):
    def greedy(model):
        requests = [(Document.of("draw a red circle", EndTurn()), True), (Document.of("hello", EndTurn()), False)]
        drawings = Drawings(model, lambda: mixed, lambda tokenizer: requests)

        def sampler():
            torch.rand(7)  # whatever a sampler does to the random numbers
            return drawings()

        return sampler

    train(language(mixed), RunFolder(tmp_path / "bare"))
    train(language(mixed, greedy), RunFolder(tmp_path / "sampled"))
    assert values(tmp_path / "bare") == values(tmp_path / "sampled")
    history = RecordedRun(tmp_path / "sampled").history
    assert [each.step for each in history.samples] == [at for at in range(6) for _ in range(2)]
    drawn, said = history.samples[-2:]
    assert drawn.name == "draw a red circle" and said.words and not said.picture
    with PIL.Image.open(tmp_path / "sampled" / drawn.picture) as picture:
        assert picture.size == (mixed.image.config.side, mixed.image.config.side)


def test_a_sampler_that_fails_ends_no_training_and_is_asked_no_more(mixed, tmp_path, at_once, caplog):
    asked = []

    def failing(model):
        def sampler():
            asked.append(model.training)
            raise RuntimeError("these weights draw nothing")

        return sampler

    prepared = language(mixed, failing)
    train(prepared, RunFolder(tmp_path))
    assert asked == [False] and prepared.module.training and len(values(tmp_path)) == 6
    assert "no further samples of this run: RuntimeError: these weights" in caplog.text


def test_samples_cost_a_share_of_the_training_and_a_run_of_a_moment_has_none(mixed, tmp_path, monkeypatch):
    calls = []
    train(language(mixed, lambda model: lambda: calls.append(1) or [Exhibit("a")]), RunFolder(tmp_path / "moment"))
    assert not calls
    monkeypatch.setattr(samples, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(samples, "COST", 0.0)
    train(language(mixed, lambda model: lambda: calls.append(1) or [Exhibit("a")]), RunFolder(tmp_path / "dear"))
    assert len(calls) == 1, "the first is taken, and then there is no time left for another"


def test_an_image_tokenizer_shows_the_same_pictures_rebuilt_and_a_fork_has_its_parents(image_config, tmp_path, at_once):
    run = pictures(image_config).run(tmp_path / "run")
    history = run.wait()
    assert {each.name for each in history.samples} == {"picture 1", "picture 2"}
    assert all(each.words.endswith(" dB") and (run.folder / each.original).is_file() for each in history.samples)
    first, last = ([each for each in history.samples if each.step == step] for step in (0, 3))
    assert [each.original for each in first] == [each.original for each in last]
    fork = run.fork(rate=1e-3)
    forked = fork.wait()
    assert forked.samples == history.samples and fork.folder != run.folder
    assert all((fork.folder / each.picture).read_bytes() == (run.folder / each.picture).read_bytes() for each in last)
    (recorded,) = RecordedRun(run.folder).forks
    assert recorded.folder == fork.folder and recorded.state.parent == run.name
    assert RecordedRun(fork.folder).forks == []


def test_reconstructions_are_what_the_tokenizer_gives_and_their_psnr(image_config):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(image_config).eval()
    batches = lambda place: torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(place)) * 2 - 1  # noqa: E731
    exhibits = Reconstructions(tokenizer, batches, count=2)()
    assert len(exhibits) == 2
    for each in exhibits:
        assert each.original is not None and each.picture is not None
        whole = tokenizer.reconstruct(each.original)
        assert np.abs(np.asarray(whole.picture, int) - np.asarray(each.picture, int)).max() <= 1
        assert float(each.words.removesuffix(" dB")) == pytest.approx(whole.psnr, abs=0.1)


def test_a_text_tokenizer_shows_how_it_cuts(tmp_path, at_once):
    history = (
        TextExperiment(
            "toy",
            320,
            lambda experiment: ["draw a large red circle on a gray background"] * 200 + list(samples.REQUESTS),
        )
        .run(tmp_path)
        .wait()
    )
    assert [each.name for each in history.samples] == list(samples.REQUESTS)
    assert all(len(each.words.split(" | ")) > 3 for each in history.samples)


def test_prompts_are_the_first_halves_of_held_out_documents(mixed):
    documents = tokenize([*scene_pairs(6, seed=3)], mixed)
    mixture = Mixture({"one": documents}, [Stage({"one": 1.0})], mixed.vocabulary, context=240, rows=2)
    prompts = first_halves(lambda: [mixture(0), mixture(1)])(mixed)
    assert len(prompts) == 4
    for prompt, by_picture in prompts:
        assert bool(prompt.text) == by_picture and len(prompt.pictures) == (not by_picture)


def test_stages_of_the_mixture_and_the_critics_beginning_are_milestones(mixed, image_config, tmp_path):
    prepared = language(mixed)
    parts = {name: tokenize([*scene_pairs(6, seed)], mixed) for seed, name in enumerate(("one", "two"))}
    stages = [Stage({"one": 1.0}), Stage({"one": 1, "two": 3}, 2), Stage({"two": 1}, 4)]
    mixture = Mixture(parts, stages, mixed.vocabulary, context=120, rows=2)
    prepared = replace(prepared, batches=mixture)
    train(prepared, RunFolder(tmp_path))
    words = "another stage of the mixture begins: "
    marks = (Milestone(2, f"{words}one 25%, two 75%"), Milestone(4, f"{words}two 100%"))
    assert RunFolder(tmp_path).history.milestones == marks

    adversary = replace(TINY_PICTURES.objective, adversary=None)
    assert pictures(image_config).objective == adversary
    watched = pictures(replace(image_config, quantizer="moving_average")).prepare(tmp_path).module
    assert [each.step for each in watched.milestones] == [150]


def test_events_of_every_kind_come_back_from_their_lines_and_damaged_ones_are_passed_over(tmp_path):
    from chameleon_lab.history import Alarm, event_line

    events = (
        Alarm(1, "WARN", "rule", "words"),
        Intervention(2, "rate", 0.1, {"a": 1}, "why"),
        Milestone(3, "the critic <begins>"),
        Sample(4, "a prompt", "samples/1.png", "words", ""),
    )
    lines = [event_line(each) for each in (*events, Answer(5, "x", "pause"))]
    damaged = [
        '{"kind": "sample", "step": 1, "name": 7}',
        '{"kind": "sample", "step": "1", "name": "a"}',
        "{",
        '{"kind": "novel", "step": 1}',
    ]
    history = History.from_jsonl([StepRecord(0, 0.0).to_json()], [*damaged, *lines])
    assert history.events == events
    assert history.until(3).events == events[:2]
    assert history.until(4).samples == () and history.until(4).milestones == (events[2],)
    assert History.from_jsonl([], lines[:2]).events == events[:2], "of a folder from before there were samples"


def test_a_run_that_was_stopped_early_has_nan_for_what_it_did_not_come_to_and_names_what_nobody_measures():
    for history in (History(), History((StepRecord(0, 0.0, {"loss": 1.0}),))):
        for name in ("max_attention_logit", "held_out_loss", "image_loss", "psnr"):
            assert math.isnan(history.last(name)) and math.isnan(history.maximum(name))
        with pytest.raises(KeyError, match="No record of 'speling'"):
            history.last("speling")


def test_a_rescue_keeps_few_checkpoints_near_by(image_config, tmp_path):
    from chameleon_lab.training.run import Rescue

    run = Run(pictures(image_config, steps=14), tmp_path / "run", rescue=Rescue(cool=0.5, back=2))
    run.start().wait()
    kept = sorted(RunFolder(tmp_path / "run").checkpoints)
    # where the run began, and of those behind it the last three: fewer where saving is slow beside a step
    assert kept[0] == 0 and 1 <= len(kept[1:]) <= 3 and all(step % 2 == 0 for step in kept)
