"""A training begins from weights, trains what is not frozen, and leaves the rest as it was to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import support
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.plain import plain_values
from chameleon_lab.stability import Dropout, OutputSoftCap, QueryKeyNorm
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Scenes
from chameleon_lab.training.experiments import TINY, Experiment
from chameleon_lab.training.fine_tuning import fine_tune
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.rewards import REWARDED
from chameleon_lab.transformer import Transformer

MODEL = replace(support.MODEL, context=500)


@pytest.fixture(scope="module")
def base(mixed) -> Chameleon:
    torch.manual_seed(11)
    return Chameleon(Transformer(replace(MODEL, vocabulary=mixed.vocabulary.size)), mixed)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("base") / "model"
    base.save(place)
    return place


@pytest.fixture
def toy(mixed) -> Experiment:
    recipe = Recipe(rate=1e-2, warm_up=0, weight_decay=0.5, schedule=Constant(), muon_rate=0.02)
    data = Scenes(mixed, tokens=236, held_out=4)
    return Experiment("toy", MODEL, Budget(steps=3), data, recipe, monitors=(), checkpoints=0)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained(experiment: Experiment, folder: Path) -> dict[str, torch.Tensor]:
    return weights(experiment.run(folder).result(120))


# Where it begins


def test_a_training_begins_from_a_folder_a_path_a_model_or_a_lab_and_the_same_comes_of_each(
    base, folder, toy, tmp_path
):
    sources = {"path": folder, "folder": str(folder), "model": base.model, "lab": base}
    before, ends = weights(base.model), {}
    for name, source in sources.items():
        experiment = replace(toy, begins_from=source)
        module = experiment.build(experiment.open())
        assert all(torch.equal(tensor, before[key]) for key, tensor in module.model.state_dict().items())
        ends[name] = trained(experiment, tmp_path / name)
    scratch = trained(toy, tmp_path / "scratch")
    for key in scratch:
        assert all(torch.equal(end[key], ends["path"][key]) for end in ends.values())
        assert not torch.equal(scratch[key], ends["path"][key])
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.model.state_dict().items())  # the object's stay


def test_the_tiny_model_is_trained_on_by_its_name():
    experiment = replace(TINY, begins_from="tiny", budget=Budget(steps=1), data=Scenes("tiny", tokens=236))
    module = experiment.build(experiment.open())
    shipped = Chameleon.load("tiny", device="cpu").model.state_dict()
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in module.model.state_dict().items())
    assert replace(TINY, begins_from="tiny").fingerprint != TINY.fingerprint == replace(TINY).fingerprint


def test_what_no_training_begins_from_is_refused_where_it_is_named(toy):
    with pytest.raises(ValueError, match="a Chameleon, or a Transformer, and not from what is of type Experiment"):
        replace(toy, begins_from=toy)
    for source in (3, None, Transformer(replace(support.MODEL, vocabulary=64))):
        with pytest.raises(ValueError, match=f"name or a Chameleon, and not .* type {type(source).__name__}"):
            replace(REWARDED, begins_from=source)


def test_a_run_that_goes_on_does_not_begin_again_and_neither_does_a_fork(folder, toy, tmp_path, monkeypatch):
    experiment = replace(toy, begins_from=str(folder), checkpoints=1)
    once = replace(experiment, budget=Budget(steps=6)).run(tmp_path / "whole")
    whole = weights(once.result(120))
    run = experiment.run(tmp_path / "parts")
    run.result(120)
    begins: list[object] = []
    monkeypatch.setattr("chameleon_lab.training.experiments.begin", lambda *arguments: begins.append(arguments))
    resumed = trained(replace(experiment, budget=Budget(steps=6)), tmp_path / "parts")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    fork = run.fork(Dropout(0.1), folder=tmp_path / "fork")
    fork.wait(120)
    assert not begins
    replace(experiment, name="another").run(tmp_path / "anew").wait(120)
    assert len(begins) == 1


def test_dropout_and_context_may_be_others_and_other_fixes_are_logged(base, toy, caplog):
    for fixes, logs in (((Dropout(0.05),), 0), ((OutputSoftCap(30.0),), 1)):
        model = replace(MODEL, context=700, fixes=(QueryKeyNorm(), *fixes))
        experiment = replace(toy, model=model, begins_from=base)
        module = experiment.build(experiment.open())
        assert torch.equal(module.model.head.weight, base.model.head.weight) and len(caplog.records) == logs
    assert "goes on with" in caplog.text and "OutputSoftCap" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 16, "ffn_width": 24}, "another shape: width 32 there, 16 here; ffn_width 48 there, 24 here"),
        ({"layers": 3}, "layers 2 there, 3 here"),
        ({"tied": True}, "tied False there, True here"),
        ({"rope_theta": 500.0}, "rope_theta 10000.0 there, 500.0 here"),
        ({"vocabulary": 2000}, "vocabulary .* there, 2000 here"),
        ({"fixes": ()}, "fixes are .*QueryKeyNorm.* where this experiment has .*has no place here"),
    ],
)
def test_a_model_of_another_shape_is_one_clear_error(base, toy, change, words):
    experiment = replace(toy, model=replace(MODEL, **change), begins_from=base)
    with pytest.raises(ValueError, match=f"cannot begin from the Chameleon.*{words}"):
        experiment.build(experiment.open())


def test_tokenizers_that_are_not_the_datas_are_one_clear_error(base, toy, lettered, spelled):
    for tokenizer in (lettered, spelled):
        model = Transformer(replace(MODEL, vocabulary=tokenizer.vocabulary.size))
        if tokenizer is lettered:  # of as many tokens as the data's, by chance
            model = Transformer(replace(MODEL, vocabulary=base.vocabulary.size))
            tokenizer = base.tokenizer.with_parts(base.tokenizer.text, lettered_image(base))
        other = Chameleon(model, tokenizer)
        experiment = replace(toy, begins_from=other)
        with pytest.raises(ValueError, match=r"image tokenizers differ|vocabulary .* there"):
            experiment.build(experiment.open())


def lettered_image(base: Chameleon):
    """An image tokenizer of the same shape and other weights."""
    from chameleon_lab.tokenizers.image import ImageTokenizer

    torch.manual_seed(99)
    return ImageTokenizer(base.tokenizer.image.config)


def test_no_weights_are_one_clear_error_before_anything_is_written(toy, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="where no weights are"):
            replace(toy, begins_from=str(place)).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_fingerprint_knows_the_weights(base, toy, tmp_path):
    base.save(tmp_path / "model")
    first = replace(toy, begins_from=str(tmp_path / "model"))
    print_before, run = first.fingerprint, first.run(tmp_path / "run")
    run.wait(120)
    assert first.fingerprint == print_before == replace(first).fingerprint
    changed = Chameleon(Transformer(base.model.config), base.tokenizer)
    assert replace(toy, begins_from=changed).fingerprint != replace(toy, begins_from=base).fingerprint
    changed.save(tmp_path / "model")
    assert first.fingerprint != print_before
    with pytest.raises(ValueError, match=r"another experiment: begins_from.weights"):
        replace(first, budget=Budget(steps=6)).run(tmp_path / "run").wait(120)
    plain = plain_values(first)["begins_from"]
    assert plain["source"] == str(tmp_path / "model") and len(plain["weights"]) == 8


# What stands still


@pytest.mark.parametrize("patterns", ["blocks.[0-0].*", ("embedding.*", "*.attention.*"), "blocks.*"])
def test_frozen_parameters_stand_still_and_the_others_move(base, toy, patterns, tmp_path):
    experiment = replace(toy, begins_from=base, frozen=patterns, monitors=MONITORS)
    before, after = weights(base.model), trained(experiment, tmp_path)
    prefixes = {"blocks.[0-0].*": ("blocks.0.",), "blocks.*": ("blocks.",)}.get(str(patterns), ("embedding.",))
    for name in before:
        frozen = name.startswith(prefixes) or (isinstance(patterns, tuple) and ".attention." in name)
        assert torch.equal(before[name], after[name]) == frozen, name


def test_a_pattern_that_freezes_nothing_or_all_is_one_clear_error(base, toy):
    for patterns, words in (("block.*", "No parameter's name matches .*'block.\\*'"), (("*",), "nothing is left")):
        experiment = replace(toy, begins_from=base, frozen=patterns)
        with pytest.raises(ValueError, match=words):
            experiment.build(experiment.open())


@pytest.mark.parametrize(
    ("rows", "tied", "update_clipping"),
    [("words", False, False), ("codes", True, True), ("array", False, True)],
)
def test_frozen_rows_stand_still_to_the_bit_over_twenty_steps(mixed, toy, rows, tied, update_clipping, tmp_path):
    vocabulary = mixed.vocabulary
    codes = np.zeros(vocabulary.size, bool)
    codes[vocabulary.first_image : vocabulary.first_image + vocabulary.codes] = True
    some = np.array([200, 7, 7, vocabulary.end_turn])
    frozen = {"codes": codes, "words": ~codes, "array": np.isin(np.arange(vocabulary.size), some)}[rows]
    torch.manual_seed(5)
    base = Transformer(replace(MODEL, vocabulary=vocabulary.size, tied=tied))
    experiment = replace(
        toy,
        model=replace(MODEL, tied=tied),
        begins_from=base,
        frozen_rows=some if rows == "array" else rows,
        recipe=replace(toy.recipe, update_clipping=update_clipping),
        budget=Budget(steps=20),
    )
    before, after = weights(base), trained(experiment, tmp_path)
    for table in ("embedding.weight", "head.weight"):
        moved = (before[table] != after[table]).any(1).numpy()
        assert not moved[frozen].any() and moved[~frozen].all()
    assert not torch.equal(before["blocks.0.attention.qkv.weight"], after["blocks.0.attention.qkv.weight"])


def test_frozen_rows_do_not_count_in_the_clipped_gradient(base, toy):
    module = replace(toy, begins_from=base, frozen_rows="words").build(toy.open())
    module.objective(module.model, toy.open().batches(0))["loss_with_penalties"].backward()
    module.frozen_rows.clear_gradients()
    head = module.model.head.weight.grad
    codes = slice(4, 4 + base.vocabulary.codes)
    assert head is not None and head[codes].any() and not head[: codes.start].any() and not head[codes.stop :].any()


def test_anoles_way_trains_the_rows_of_codes_alone(base, toy, tmp_path):
    experiment = replace(toy, begins_from=base, frozen=("embedding.*", "blocks.*", "norm.*"), frozen_rows="words")
    before, after = weights(base.model), trained(experiment, tmp_path)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    rows = (before["head.weight"] != after["head.weight"]).any(1).nonzero()[:, 0].tolist()
    assert moved == ["head.weight"] and rows == list(range(4, 4 + base.vocabulary.codes))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("pictures", "'words', 'codes' or an array of tokens, not 'pictures'"),
        ([0.5], "not an array of float64"),
        ([[1, 2]], "2 dimensions"),
        ([-1], "reach from -1"),
        ([10**6], "to 1000000"),
    ],
)
def test_rows_that_are_none_are_one_clear_error(base, toy, rows, words):
    with pytest.raises(ValueError, match=words):
        experiment = replace(toy, begins_from=base, frozen_rows=rows)
        experiment.build(experiment.open())


def test_an_experiment_without_any_of_it_is_what_it_was(toy):
    assert plain_values(toy, brief=True).keys().isdisjoint({"begins_from", "frozen", "frozen_rows"})
    assert replace(toy, frozen_rows=[3, 1, 1]) == replace(toy, frozen_rows=np.array([1, 3])) != toy


# Before and after


def test_fine_tuning_says_what_the_model_did_before_and_does_after(base, toy, mixed, tmp_path):
    experiment = replace(toy, begins_from=base, budget=Budget(steps=12))
    watched = experiment.run(tmp_path / "run")  # by a panel, which must not see it stopped
    done = fine_tune(
        experiment, tmp_path / "run", earlier=Scenes(mixed, tokens=236, held_out=3, weights={"asking": 1.0})
    )
    assert watched.state.status == "finished"
    run = RunFolder(tmp_path / "run").history
    assert done.after["new"]["loss"] == pytest.approx(run.records[-1].values["held_out_loss"], rel=1e-5)
    assert done.after["new"]["loss"] < done.before["new"]["loss"] - 0.1
    assert str(done).count("→") == 1 + sum(map(len, done.before.values())) and done.before.keys() == {"new", "earlier"}
    again = fine_tune(experiment, tmp_path / "run")  # the run is over, and both figures are the same
    assert again.before["new"] == done.before["new"] and again.after["new"] == pytest.approx(done.after["new"])


def test_fine_tuning_of_nothing_or_without_held_out_documents_is_refused(base, toy, mixed):
    with pytest.raises(ValueError, match="begins from nothing"):
        fine_tune(toy)
    experiment = replace(toy, begins_from=base)
    for changed, earlier in ((replace(experiment, data=Scenes(mixed)), None), (experiment, Scenes(mixed))):
        with pytest.raises(ValueError, match="nothing held out"):
            fine_tune(changed, earlier=earlier)
