"""Training: it learns, and a run that was stopped goes on as if it never had been."""

import json
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import pytest
import support
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from chameleon_lab.corpora.mixture import SceneBatches
from chameleon_lab.history import History
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.monitors.watch import Moment
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Constant, CoolDown, Recipe
from chameleon_lab.plain import plain_values
from chameleon_lab.stability import Dropout, QueryKeyNorm, ZLoss
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.losses import Adversary, ReconstructionObjective
from chameleon_lab.tokenizers.quantizers import MovingAverageQuantizer
from chameleon_lab.training.experiments import SMALL, TINY
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.image_experiments import SceneImages
from chameleon_lab.training.loop import train
from chameleon_lab.training.modules import Budget, ImageTokenizerModule, LanguageModule, PacedModule, Steps
from chameleon_lab.training.pipeline import MODELS, TINY_MODEL
from chameleon_lab.training.trainable import Prepared
from chameleon_lab.transformer import Transformer

STEPS = 8
MODEL = replace(support.MODEL, context=500, fixes=(QueryKeyNorm(), Dropout(0.2)))


def language(mixed, recipe: Recipe, budget: Budget, seed: int = 0) -> LanguageModule:
    torch.manual_seed(seed)
    model = Transformer(replace(MODEL, vocabulary=mixed.vocabulary.size))
    return LanguageModule(model, Objective(penalties=(ZLoss(1e-4),)), recipe, budget)


def pictures(image_config, recipe: Recipe, budget: Budget, seed: int = 0) -> ImageTokenizerModule:
    torch.manual_seed(seed)
    tokenizer = ImageTokenizer(replace(image_config, quantizer="moving_average"))
    tokenizer.quantize = MovingAverageQuantizer(12, 4, warm_up=2, patience=0)  # restarts dead codes with random numbers
    objective = ReconstructionObjective("edges", square=2.0, adversary=Adversary(start_step=2, width=4, layers=2))
    return ImageTokenizerModule(tokenizer, recipe, budget, objective)


@pytest.fixture(params=["language", "language with muon", "pictures"])
def stage(request, mixed, image_config) -> tuple[Callable[..., PacedModule], Callable]:
    """(how to build a module, its batches)"""
    if request.param == "pictures":
        return lambda **kw: pictures(image_config, Recipe(rate=2e-3, warm_up=2), **kw), SceneImages(0, 2)
    recipe = Recipe(rate=3e-3, warm_up=2, muon_rate=0.02 if "muon" in request.param else 0.0)
    return lambda **kw: language(mixed, recipe, **kw), SceneBatches(mixed, tokens=236, pool=3)


def trained(folder: Path, module: PacedModule, batches: Callable, report=lambda module, record: None, **options):
    """The whole history of a folder where a module was trained, or went on."""
    train(Prepared(module, batches), RunFolder(folder), report, **options)
    return RunFolder(folder).history


def values(history: History) -> list[tuple[int, dict[str, float]]]:
    return [(record.step, record.values) for record in history.records]


class Stopped(Exception):
    """What a test raises to stop a run."""


def stop_at(step: int, error: type[BaseException]):
    def report(module, record) -> None:
        if record.step == step:
            raise error

    return report


# Learning


def test_a_training_step_lowers_the_loss_on_its_batch(mixed, tmp_path):
    batch = SceneBatches(mixed, tokens=236)(0)
    module = language(mixed, Recipe(rate=1e-2, warm_up=0, schedule=Constant()), Budget(steps=1))
    module.model.eval()
    before = float(module.objective(module.model, batch)["loss"].detach())
    module.train()
    trained(tmp_path, module, lambda step: batch)
    after = float(module.objective(module.model.eval(), batch)["loss"].detach())
    assert after < before


def test_training_learns(stage, tmp_path):
    build, batches = stage
    history = trained(tmp_path, build(budget=Budget(steps=30)), batches)
    steps, losses = history.series("loss")
    assert steps == list(range(30))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_trap_09_training_in_float16_is_refused_rather_than_stand_still(mixed, tmp_path):
    module = language(mixed, Recipe(), Budget(steps=1))
    with pytest.raises(ValueError, match=r'no training in 16-true.*Take precision="bf16-mixed"'):
        trained(tmp_path, module, SceneBatches(mixed, tokens=236), precision="16-true")
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))  # which on a CPU is not had by name
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, plugins=[scaled], logger=False, callbacks=[])
    with pytest.raises(ValueError, match="no training in 16-mixed"):
        trainer.fit(module, DataLoader(Steps(), batch_size=None))


def test_trap_09_training_in_bfloat16_learns_as_in_float32(mixed, tmp_path):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        module = language(mixed, Recipe(rate=3e-3, warm_up=2), Budget(steps=STEPS))
        history = trained(tmp_path / precision, module, SceneBatches(mixed, tokens=236, pool=1), precision=precision)
        losses[precision] = history.series("loss")[1]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
    assert 0 < losses["bf16-mixed"][-1] < losses["bf16-mixed"][0] - 0.1


@dataclass(frozen=True)
class StandingRows:
    """Rows of the head that stay as they are: put back after each step."""

    start: int
    every: int = 1

    def watch(self, moment: Moment) -> Generator[None, None, dict[str, float]]:
        rows_VD = moment.model.head.weight[self.start :]
        before_VD = rows_VD.clone()
        yield
        rows_VD.copy_(before_VD)
        return {}


def test_trap_10_rows_stand_still_where_they_are_put_back_and_a_gradient_of_nought_is_not_enough(mixed, tmp_path):
    moved = {}
    for name, monitors in {"no gradient": (), "put back": (StandingRows(40),)}.items():
        module = language(mixed, Recipe(rate=1e-2, warm_up=0), Budget(steps=3))
        module.monitors, head = monitors, module.model.head.weight
        head.register_hook(lambda gradient: gradient.index_fill(0, torch.arange(40, len(gradient)), 0.0))
        before = head.detach().clone()
        trained(tmp_path / name, module, SceneBatches(mixed, tokens=236))
        moved[name] = (head != before).any(1)
    assert moved["no gradient"].all()
    assert moved["put back"][:40].all() and not moved["put back"][40:].any()


# Stopping and going on


def test_a_stopped_run_goes_on_as_if_it_had_never_been_stopped(stage, tmp_path):
    build, batches = stage
    whole = build(budget=Budget(steps=STEPS))
    wanted = trained(tmp_path / "whole", whole, batches)
    assert len(wanted.records) == STEPS
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        trained(folder, build(budget=Budget(steps=STEPS)), batches, stop_at(STEPS // 2 - 1, Stopped), save_minutes=0)
    assert len(RunFolder(folder).history.records) == STEPS // 2
    resumed = build(budget=Budget(steps=STEPS), seed=99)  # other weights, other random numbers: the checkpoint has them
    assert values(trained(folder, resumed, batches)) == values(wanted)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_run_goes_on_from_its_last_checkpoint_when_stopped_later(mixed, tmp_path):
    recipe, batches = Recipe(rate=3e-3, warm_up=2), SceneBatches(mixed, tokens=236, pool=3)
    wanted = trained(tmp_path / "whole", language(mixed, recipe, Budget(steps=STEPS)), batches)
    folder = tmp_path / "stopped"
    for step, minutes in ((2, 0), (5, 99)):
        module = language(mixed, recipe, Budget(steps=STEPS))
        with pytest.raises(Stopped):
            trained(folder, module, batches, stop_at(step, Stopped), save_minutes=minutes)
    assert [record.step for record in RunFolder(folder).history.records] == [0, 1, 2, 3, 4, 5]
    assert values(trained(folder, language(mixed, recipe, Budget(steps=STEPS)), batches)) == values(wanted)


def test_a_run_that_ended_goes_on_with_a_larger_budget_and_not_without(mixed, tmp_path):
    recipe, batches = Recipe(rate=3e-3, warm_up=2, schedule=Constant()), SceneBatches(mixed, tokens=236, pool=3)
    whole = language(mixed, recipe, Budget(steps=STEPS))
    wanted = trained(tmp_path / "whole", whole, batches)
    for seed, budget in ((0, 3), (99, 3), (99, STEPS), (99, STEPS)):
        again = language(mixed, recipe, Budget(steps=budget), seed)
        history = trained(tmp_path / "grown", again, batches)
        assert values(history) == values(wanted)[:budget]
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(mixed, image_config, tmp_path):
    batches, recipe = SceneBatches(mixed, tokens=236), Recipe(rate=1e-3)
    checkpoint = RunFolder(tmp_path).checkpoint
    trained(tmp_path, language(mixed, recipe, Budget(steps=1)), batches)
    with pytest.raises(ValueError, match="does not fit this training or is damaged"):
        trained(tmp_path, pictures(image_config, recipe, Budget(steps=1)), SceneImages(0, 2))
    whole = checkpoint.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        checkpoint.write_bytes(content)
        with pytest.raises(ValueError, match=r"no whole checkpoint: last.ckpt is damaged .*another folder"):
            trained(tmp_path, language(mixed, recipe, Budget(steps=2)), batches)
        assert checkpoint.read_bytes() == content


def test_nothing_half_written_is_left_behind(mixed, tmp_path):
    module = language(mixed, Recipe(rate=1e-3), Budget(steps=2))
    trained(tmp_path, module, SceneBatches(mixed, tokens=236), save_minutes=0)
    RunFolder(tmp_path).write("note.json", {"a": 1})
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"lock", "metrics.jsonl", "events.jsonl", "note.json", "checkpoints/last.ckpt"}
    assert json.loads((tmp_path / "note.json").read_text()) == {"a": 1}


# Pace


def test_the_report_sees_every_step_after_it_is_recorded(mixed, tmp_path):
    seen = []
    module = language(mixed, Recipe(rate=1e-3), Budget(steps=3))
    batches = SceneBatches(mixed, tokens=236)
    history = trained(tmp_path, module, batches, lambda m, record: seen.append((record, m.progress)))
    assert [record for record, _ in seen] == list(history.records)
    assert [progress for _, progress in seen] == pytest.approx([1 / 3, 2 / 3, 1])
    for record in history.records:
        assert {"loss", "special_loss", "gradient_norm", "rate", "tokens"} <= set(record.values)
    assert {"text_loss", "image_loss"} <= {name for record in history.records for name in record.values}


def test_a_budget_of_minutes_ends_when_they_are_over(mixed, tmp_path):
    module = language(mixed, Recipe(rate=1e-3), Budget(minutes=1e-9))
    assert len(trained(tmp_path, module, SceneBatches(mixed, tokens=236)).records) == 1
    assert Budget(minutes=2).progress(5, 60.0) == 0.5
    assert Budget(steps=10).progress(5, 1e9) == 0.5
    assert Budget(steps=10).progress(50, 0.0) == 1.0


@pytest.mark.parametrize(
    "budget", [{}, {"steps": 3, "minutes": 1.0}, {"steps": 0}, {"minutes": -1.0}, {"minutes": 0.0}]
)
def test_an_impossible_budget_is_refused(budget):
    with pytest.raises(ValueError, match="budget"):
        Budget(**budget)


def test_the_rate_warms_up_holds_and_cools_down():
    recipe = Recipe(rate=1.0, warm_up=4, schedule=CoolDown(0.5))
    assert [recipe.multiplier(step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert recipe.multiplier(9, 0.49) == 1.0
    assert recipe.multiplier(9, 0.75) == pytest.approx(0.51)
    assert recipe.multiplier(9, 1.0) == pytest.approx(0.02)
    assert Recipe(rate=1.0, warm_up=0, schedule=Constant()).multiplier(0, 1.0) == 1.0


def test_muon_gets_the_matrices_of_the_blocks_and_adam_the_rest(mixed):
    module = language(mixed, Recipe(rate=1e-3, muon_rate=0.02), Budget(steps=1))
    adam, muon = module.configure_optimizers()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    given = [{names[id(p)] for group in o.param_groups for p in group["params"]} for o in (adam, muon)]
    assert given[1] == {name for name in names.values() if ".blocks." in name and "norm" not in name}
    assert given[0] == set(names.values()) - given[1]
    decayed = [{names[id(p)] for p in group["params"]} for group in adam.param_groups if group["weight_decay"]]
    assert decayed == [{"model.embedding.weight", "model.head.weight"}]


def test_a_tied_matrix_is_trained_once(mixed):
    model = Transformer(replace(MODEL, vocabulary=mixed.vocabulary.size, tied=True))
    module = LanguageModule(model, Objective(), Recipe(rate=1e-3), Budget(steps=1))
    (adam,) = module.configure_optimizers()
    assert sum(p is model.head.weight for group in adam.param_groups for p in group["params"]) == 1


def test_data_order_is_arithmetic():
    steps = iter(Steps(start=5))
    assert [next(steps) for _ in range(3)] == [5, 6, 7]
    shared = [iter(Steps(2, processes=3, rank=rank)) for rank in range(3)]
    assert [[next(steps) for steps in shared] for _ in range(2)] == [[6, 7, 8], [9, 10, 11]]
    images = SceneImages(seed=1, batch=3)
    assert torch.equal(images(7), SceneImages(1, 3)(7)) and not torch.equal(images(7), images(8))
    assert images(7).shape == (3, 3, 64, 64) and images(7).abs().max() <= 1


# Experiments


def test_a_model_in_minutes_shares_them_between_its_stages():
    short = TINY_MODEL.lasting(10)
    shares = short.image.budget.minutes or 0, short.transformer.budget.minutes or 0
    assert min(shares) > 1 and sum(shares) == pytest.approx(10)
    assert replace(short, image=TINY_MODEL.image, transformer=TINY_MODEL.transformer) == TINY_MODEL


def test_the_tiny_model_is_as_large_as_it_says():
    model = replace(TINY.model, vocabulary=TINY_MODEL.vocabulary.size)
    with torch.device("meta"):
        parts = Transformer(model), ImageTokenizer(TINY_MODEL.image.tokenizer)
        small = Transformer(replace(SMALL.model, vocabulary=TINY_MODEL.vocabulary.size))
    millions = [sum(parameter.numel() for parameter in part.parameters()) / 1e6 for part in (*parts, small)]
    assert millions == pytest.approx([2.9, 1.4, 38], rel=0.03)
    assert MODELS["tiny"] == TINY_MODEL and TINY_MODEL.vocabulary.pieces == TINY_MODEL.pieces


def test_a_described_model_is_plain_and_whole():
    plain = json.loads(json.dumps(plain_values(TINY_MODEL)))
    transformer = plain["transformer"]
    assert transformer["model"]["fixes"] == [{"is": "QueryKeyNorm", "eps": 1e-5, "groups": 1}]
    assert transformer["objective"]["penalties"] == [{"is": "ZLoss", "weight": 1e-4}]
    assert transformer["recipe"]["muon_rate"] == TINY.recipe.muon_rate
    assert transformer["recipe"]["schedule"] == {"is": "CoolDown", "share": 0.3, "floor": 0.02}
    assert transformer["data"]["weights"] == TINY_MODEL.scenes.weights


TWO = """
import logging, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from support import IMAGE
from test_training import *
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.vocabulary import Vocabulary

torch.set_num_threads(1)
torch.manual_seed(0)
image = ImageTokenizer(IMAGE).eval()
mixed = MixedModalTokenizer(ByteTokenizer(), image, Vocabulary.layout(12, 256))
module = language(mixed, Recipe(rate=1e-3, warm_up=2), Budget(steps=3))
history = trained(Path({folder!r}), module, SceneBatches(mixed, tokens=236, pool=3), processes={processes})
assert len(history.records) == 3
"""


@pytest.mark.slow
def test_two_processes_take_different_batches_of_each_step(tmp_path):
    tokens = {}
    for processes in (1, 2):
        script = tmp_path / f"train{processes}.py"
        here = Path(__file__).parent
        folder = tmp_path / f"run{processes}"
        script.write_text(TWO.format(paths=[str(here), str(here.parent)], folder=str(folder), processes=processes))
        subprocess.run([sys.executable, str(script)], check=True, timeout=180, cwd=tmp_path)
        tokens[processes] = RunFolder(folder).history.series("tokens")[1]
        assert RunFolder(folder).checkpoint.exists()
    assert sum(tokens[2]) > 1.5 * sum(tokens[1])


# On a GPU, where Lightning finds one


def on_gpu(module: PacedModule, _record: object) -> None:
    assert module.device.type == "cuda"


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch):
    """Convolutions whose sums come in one order: else a picture's codes, and so losses, differ from run to run."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.usefixtures("repeatable")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation:UserWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_on_a_gpu_goes_on_with_its_own_random_numbers(stage, precision, tmp_path):
    build, batches = stage
    wanted = trained(tmp_path / "whole", build(budget=Budget(steps=STEPS)), batches, on_gpu, precision=precision)
    folder, options = tmp_path / "stopped", {"precision": precision}
    with pytest.raises(Stopped):
        trained(folder, build(budget=Budget(steps=STEPS)), batches, stop_at(3, Stopped), save_minutes=0, **options)
    resumed = trained(folder, build(budget=Budget(steps=STEPS), seed=99), batches, on_gpu, **options)
    for one, other in zip(wanted.records, resumed.records, strict=True):  # other dropout would show in the first digits
        assert other.values["loss"] == pytest.approx(one.values["loss"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_trains_in_bf16_mixed_with_all_that_an_experiment_may_have(mixed, compiled, tmp_path):
    """Muon beside AdamW, packed rows, weights of targets, dropout, held-out rows, and every monitor at every step."""
    plain = SceneBatches(mixed, tokens=236)
    documents = [plain(place) for place in range(3)]
    weighted = [replace(each, weights_BT=torch.rand(each.inputs_BT.shape)) for each in documents]
    packed = [
        replace(each, documents_BT=torch.arange(each.inputs_BT.shape[1]).expand(each.inputs_BT.shape) // 40)
        for each in weighted
    ]
    batches = [documents[0], packed[0]] if compiled else [*documents, *packed]  # since each shape is compiled anew
    torch.manual_seed(0)
    module = LanguageModule(
        Transformer(replace(MODEL, vocabulary=mixed.vocabulary.size)),
        Objective(penalties=(ZLoss(1e-4),), text_weight=2.0),
        Recipe(rate=3e-3, warm_up=2, muon_rate=0.02, schedule=CoolDown(0.3)),
        Budget(steps=36),
        monitors=[replace(monitor, every=1) for monitor in MONITORS],
        held_out=documents[:1],
        held_out_every=12,
        compiled=compiled,
    )
    history = trained(tmp_path, module, lambda place: batches[place % len(batches)], on_gpu, precision="bf16-mixed")
    losses = history.series("loss")[1]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert len(history.series("held_out_loss")[1]) == 3 and len(history.series("attention_logit_bound")[1]) == 36
