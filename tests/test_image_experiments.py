"""Trainings of image tokenizers: from whatever pictures, by whatever quantizer, taken up again where they stopped."""

import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from chameleon_lab.chameleon import load_image_tokenizer
from chameleon_lab.commands.main import main
from chameleon_lab.plain import plain_values
from chameleon_lab.tokenizers.image import QUANTIZERS, ImageTokenizer
from chameleon_lab.tokenizers.losses import Adversary, PatchCritic, ReconstructionObjective
from chameleon_lab.tokenizers.quantizers import VectorQuantizer
from chameleon_lab.training import modules
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.image_experiments import (
    IMAGE_EXPERIMENTS,
    PHOTOGRAPHS,
    REFERENCE,
    TINY_PICTURES,
    ImageExperiment,
    folder_of_pictures,
)
from chameleon_lab.training.modules import Budget, CodebookWatch, ImageTokenizerModule


@pytest.fixture
def small(image_config) -> ImageExperiment:
    """Three steps on two scenes of 16 pixels."""
    return replace(TINY_PICTURES, tokenizer=image_config, budget=Budget(steps=3), batch=2, crop=16)


@pytest.fixture
def folder(tmp_path):
    """Two pictures and a broken file."""
    (tmp_path / "mine").mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
        PIL.Image.fromarray(noise).save(tmp_path / "mine" / f"{seed}.png")
    (tmp_path / "mine" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "mine"


@pytest.mark.parametrize("quantizer", ["vector", "moving_average", "cosine", "sim", "vector_rotation"])
def test_an_experiment_leaves_a_tokenizer_that_loads(small, tmp_path, picture, quantizer):
    experiment = replace(small, tokenizer=replace(small.tokenizer, quantizer=quantizer))
    trained = experiment.run(tmp_path).result()
    read = load_image_tokenizer(tmp_path / "tokenizer")
    assert read.config == experiment.tokenizer
    assert np.array_equal(read.encode(picture), trained.encode(picture))
    assert read.decode(read.encode(picture)).tobytes() == trained.decode(trained.encode(picture)).tobytes()
    assert len(RunFolder(tmp_path).history.records) == 3


def test_what_is_finished_is_not_trained_again(small, tmp_path, monkeypatch):
    first = small.run(tmp_path).result()
    monkeypatch.setattr(ImageExperiment, "prepare", lambda *given: pytest.fail("trained again"))
    again = small.run(tmp_path).result()
    (tmp_path / "config.json").write_text('{"name": "tiny", "budget": {"steps": 3, "minutes": null}}')  # as of before
    assert small.run(tmp_path).result().config == first.config
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_what_no_run_wrote_is_never_given_back_as_what_was_trained(small, tmp_path):
    """A person's own tokenizer or model may lie where a run would write its: it stays, and is not called trained."""
    small.run(tmp_path / "theirs").result()
    (tmp_path / "theirs" / "tokenizer").rename(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"is there already, and no run in .* wrote it: it is somebody's"):
        small.run(tmp_path).result()
    assert (tmp_path / "tokenizer" / "config.json").is_file() and not (tmp_path / "checkpoints").exists()


def test_another_experiment_s_tokenizer_is_refused_and_a_larger_budget_trains_on(small, tmp_path):
    first = small.run(tmp_path).result()
    with pytest.raises(ValueError, match=r"holds a run of another experiment: batch \(2, now 3\) differ"):
        replace(small, batch=3).run(tmp_path).wait()
    longer = replace(small, budget=Budget(steps=5)).run(tmp_path)
    assert len(longer.wait().records) == 5
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), longer.result().parameters(), strict=True))


@pytest.mark.parametrize("gone", ["config.json", "checkpoints"])
def test_what_is_finished_is_given_back_only_where_it_is_known_to_be_what_is_asked_for(small, tmp_path, gone):
    small.run(tmp_path / "run").result()
    steps = small.budget.steps
    (shutil.rmtree if gone == "checkpoints" else Path.unlink)(tmp_path / "run" / gone)
    larger = replace(small, budget=Budget(steps=steps + 2))
    if gone == "config.json":
        run = larger.run(tmp_path / "run")
        run.result()
        assert len(run.history.records) == steps + 2
        return
    config = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="what a run of another budget made, and no checkpoint from which"):
        larger.run(tmp_path / "run").result()
    assert (tmp_path / "run" / "config.json").read_bytes() == config
    small.run(tmp_path / "run").result()


def test_a_folder_of_pictures_is_learned_from_and_bad_files_are_told(small, folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        replace(small, source=folder_of_pictures(folder), budget=Budget(steps=6)).run(tmp_path / "run").wait()
    told = [record.message for record in caplog.records if "broken.jpg" in record.message]
    assert len(told) == 1 and told[0].startswith("Skipped: ")


def test_a_run_over_pictures_goes_on_from_anywhere_and_says_when_they_are_others(
    small, folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(folder.parent)
    mine = replace(small, source=folder_of_pictures(folder.name))
    mine.run(tmp_path / "run").wait()
    (tmp_path / "elsewhere" / folder.name).mkdir(parents=True)  # another folder, by that name
    monkeypatch.chdir(tmp_path / "elsewhere")
    longer = replace(mine, budget=Budget(steps=4))
    with caplog.at_level(logging.WARNING):
        longer.run(tmp_path / "run").wait()
        assert "others than when this run began" not in caplog.text
        PIL.Image.new("RGB", (40, 40)).save(folder / "late.png")
        replace(mine, budget=Budget(steps=5)).run(tmp_path / "run").wait()
    (folder / "late.png").unlink()
    assert "The pictures are others than when this run began" in caplog.text


class Halves(VectorQuantizer):
    """As someone writes it in a notebook."""


def test_a_quantizer_of_ones_own_comes_back_by_its_class(small, tmp_path, picture):
    experiment = replace(small, tokenizer=replace(small.tokenizer, quantizer=Halves))
    assert isinstance(experiment.run(tmp_path).result().quantize, Halves)
    with pytest.raises(ValueError, match=r"No quantizer is called 'Halves'; .*pass it: quantizers=\[Halves\]"):
        load_image_tokenizer(tmp_path / "tokenizer")
    read = load_image_tokenizer(tmp_path / "tokenizer", quantizers=[Halves])
    assert isinstance(read.quantize, Halves) and read.encode(picture).shape == (4, 4)


def test_a_quantizer_without_a_name_is_refused_before_it_is_trained(small, tmp_path):
    nameless = replace(small, tokenizer=replace(small.tokenizer, quantizer=lambda *sizes: VectorQuantizer(*sizes)))
    with pytest.raises(ValueError, match="has no name to be saved under: make it a function or a class"):
        replace(nameless, source=lambda experiment: pytest.fail("trained")).run(tmp_path).wait()


def test_the_step_where_the_critic_begins_is_marked_in_the_history(small, tmp_path):
    objective = ReconstructionObjective("edges", adversary=Adversary(start_step=2, width=4, layers=1))
    history = replace(small, objective=objective).run(tmp_path).wait()
    assert history.series("critic_loss")[0] == [2]
    assert len(history.series("usage")[0]) == 3


def test_usage_remembers_codes_for_its_span_and_no_longer():
    watch = CodebookWatch(4, span=3)
    first = watch(torch.tensor([[[0, 1]]]))
    assert (first["usage"], first["dead_codes"]) == (0.5, 2)
    for _ in range(2):
        values = watch(torch.tensor([[[2, 2]]]))
    assert (values["usage"], values["dead_codes"]) == (0.75, 1)
    assert watch(torch.tensor([[[2, 2]]]))["usage"] == 0.25
    even = CodebookWatch(8)
    for _ in range(50):
        values = even(torch.arange(8).view(1, 2, 4))
    assert values["perplexity"].item() == pytest.approx(8, rel=1e-4)


def test_experiments_are_plain_values_for_their_card(small):
    for experiment in (*IMAGE_EXPERIMENTS.values(), TINY_PICTURES, replace(small, source=folder_of_pictures("mine"))):
        plain = plain_values(replace(experiment, tokenizer=replace(experiment.tokenizer, quantizer=Halves)))
        assert json.loads(json.dumps(plain))["name"] == experiment.name
    assert REFERENCE.recipe.betas == (0.5, 0.9) and REFERENCE.objective.perceptual == "lpips"
    assert PHOTOGRAPHS.tokenizer.grid == (32, 32)


def test_the_command_trains_on_a_folder_and_reconstructs_with_what_it_trained(
    small, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(IMAGE_EXPERIMENTS, "photographs", small)
    run, out = tmp_path / "run", tmp_path / "out.png"
    assert main(["train", "photographs", "--pictures", str(folder), "--folder", str(run)]) == 0
    tokenizer, shown = str(run / "tokenizer"), str(folder / "0.png")
    fit = ["--policy", "fit to grid", "--out", str(out)]
    assert main(["reconstruct", shown, "--model", tokenizer, *fit]) == 0
    with PIL.Image.open(out) as seen:
        assert seen.width > seen.height
    assert "codes, PSNR" in capsys.readouterr().out
    assert main(["train", "photographs", "--pictures", str(tmp_path / "no"), "--folder", str(tmp_path / "b")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main(["train", "tiny", "--pictures", str(folder)]) == 2
    assert "--pictures is for image tokenizers" in capsys.readouterr().err
    assert main(["generate", "hi", "--model", tokenizer]) == 2
    assert "holds an image tokenizer alone" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_every_quantizer_fits_into_an_image_tokenizer(small, name, tmp_path):
    tokenizer = replace(small.tokenizer, quantizer=name, codes=16, code_width=4)  # 4 signs, 4 levels of 2, or 4 numbers
    assert replace(small, tokenizer=tokenizer, budget=Budget(steps=1)).run(tmp_path).result().codebook.shape == (16, 4)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"crop": 30}, "fills no grid: its side must be a multiple of 8"),
        ({"crop": 0}, "must be a whole number from 1 on"),
        ({"crop": 8, "objective": ReconstructionObjective()}, "The critic judges pictures of 24 pixels a side or more"),
        (
            {"crop": 8, "objective": ReconstructionObjective("edges", scales=4, adversary=None)},
            "Edges at 4 scales need 16",
        ),
        ({"batch": 0}, "must be a whole number from 1 on"),
    ],
    ids=range(5),
)
def test_crops_that_nothing_can_learn_from_are_refused_where_the_experiment_is_made(parts, why):
    with pytest.raises(ValueError, match=why):
        replace(TINY_PICTURES, **parts)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_critic_judges_the_least_side_and_no_smaller_one(layers):
    critic, least = PatchCritic(8, layers), PatchCritic.least_side(layers)
    assert critic(torch.zeros(2, 3, least, least)).numel() > 0
    with pytest.raises(RuntimeError):
        critic(torch.zeros(2, 3, least - 1, least - 1))


def test_the_time_that_a_batch_is_waited_for_counts(tmp_path):
    """The budget is of the person's minutes: here each batch takes its time."""

    class Slow:
        def __call__(self, step: int) -> torch.Tensor:
            time.sleep(0.1)
            return torch.zeros(2, 3, 64, 64)

    experiment = replace(TINY_PICTURES, source=lambda experiment: Slow(), budget=Budget(steps=3), batch=2)
    history = experiment.run(tmp_path).wait()
    assert [record.seconds >= 0.1 * (record.step + 1) for record in history.records] == [True] * 3


def test_a_starving_loader_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(modules, "STARVING_SECONDS", 0.0)
    for wait, said in ((5.0, True), (0.0, False)):
        caplog.clear()
        module = ImageTokenizerModule(ImageTokenizer(TINY_PICTURES.tokenizer), TINY_PICTURES.recipe, Budget(steps=1))
        module._waits = [(time.perf_counter() - 6.0, wait)]
        module._say_starving()
        assert ("The loader starves" in caplog.text) is said


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_short_training_has_a_codebook_where_its_warm_up_is_a_share_of_the_budget(small, tmp_path, share):
    """150 steps of warm-up never end in 6: without a share the book is still the one that was drawn at random."""
    short = replace(small, budget=Budget(steps=6), warm_up_share=share)
    short = replace(short, tokenizer=replace(short.tokenizer, quantizer="moving_average"))
    before = short.prepare(tmp_path).module.tokenizer.quantize.embedding.weight.half().float()
    run = short.run(tmp_path)
    after = run.result().quantize.embedding.weight
    assert torch.equal(before, after) == (share is None)
    values = [record.values["quantizer_loss"] for record in run.history.records]
    assert [value > 0 for value in values] == [share is not None and step >= 3 for step in range(6)]


def test_an_image_tokenizer_begins_from_another_one(small, tmp_path):
    first = small.run(tmp_path / "first").result()
    second = replace(small, begins_from=str(tmp_path / "first" / "tokenizer"))
    begun = second.prepare(tmp_path / "second").module.tokenizer
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), begun.parameters(), strict=True))


def test_a_critic_that_never_begins_is_spoken_of(small, tmp_path, caplog):
    late = ReconstructionObjective("edges", adversary=Adversary(start_step=9, width=4, layers=1))
    replace(small, objective=late).run(tmp_path / "late").result()
    assert "The critic never began: it was to at step 9, and the training had 3" in caplog.text
    caplog.clear()
    shared = replace(late, adversary=Adversary(start_share=0.5, width=4, layers=1))
    run = replace(small, objective=shared).run(tmp_path / "shared")
    run.result()
    assert ["critic_loss" in record.values for record in run.history.records] == [False, False, True]
    assert "never began" not in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_every_quantizer_trains_on_a_gpu(small, name, precision, tmp_path, picture):
    tokenizer = replace(small.tokenizer, quantizer=name, codes=16, code_width=4)
    run = replace(small, tokenizer=tokenizer, budget=Budget(steps=25), precision=precision).run(tmp_path)
    assert all(np.isfinite(record.values["loss"]) for record in run.wait().records)
    assert run.result().encode(picture).shape == (4, 4)


def test_a_training_takes_over_another_s_weights_and_makes_a_book_of_another_size_anew(small, tmp_path):
    small.run(tmp_path / "first").wait()
    earlier = load_image_tokenizer(tmp_path / "first" / "tokenizer").state_dict()
    for codes in (small.tokenizer.codes, 2 * small.tokenizer.codes):
        config = replace(small.tokenizer, codes=codes)
        later = replace(small, tokenizer=config, begins_from=str(tmp_path / "first" / "tokenizer"))
        tensors = later.prepare(tmp_path).module.tokenizer.state_dict()
        same = {name for name in tensors if tensors[name].shape == earlier[name].shape}
        taken_over = {name for name in same if torch.equal(tensors[name], earlier[name])}
        assert {name for name in tensors if not name.startswith("quantize.")} <= taken_over
        assert (len(taken_over) == len(tensors)) is (codes == small.tokenizer.codes)
