"""Lightning is not hidden: a run takes what a `lightning.Trainer` takes, and a trainer takes what a run trains."""

import csv
import importlib.util
import inspect
from dataclasses import replace
from itertools import islice
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from chameleon_lab.corpora.mixture import Mixture, Stage
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.history import RecordedRun
from chameleon_lab.objective import Objective
from chameleon_lab.training.data import PAIRS
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.image_experiments import TINY_PICTURES
from chameleon_lab.training.modules import Budget, Steps, combined
from chameleon_lab.training.run import Run
from chameleon_lab.training.trainer_arguments import ARGUMENTS, check_trainer

SHORT = replace(LAB, budget=Budget(steps=6), monitors=(), checkpoints=0, data=replace(PAIRS, apart=3))
FEW = replace(SHORT, recipe=replace(LAB.recipe, muon_rate=0.02, warm_up=2), held_out_every=2)
"""With two optimizers, of which Lightning counts one."""


def test_each_argument_of_a_trainer_is_either_taken_or_refused_with_a_reason():
    names = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    assert ARGUMENTS.keys() == names
    for name, why in ARGUMENTS.items():
        if why:
            with pytest.raises(ValueError, match=f"the trainer's {name}=3: .*{why[:20]}"):
                check_trainer({name: 3})
        else:
            assert check_trainer({name: 3}) == {name: 3}


def test_an_unknown_argument_names_the_nearest_and_nothing_is_begun(tmp_path):
    with pytest.raises(ValueError, match="no argument 'num_node': did you mean 'num_nodes'"):
        SHORT.run(tmp_path / "run", trainer={"num_node": 2})
    with pytest.raises(ValueError, match="no argument 'xyz': there are accelerator, devices"):
        Run(SHORT, tmp_path / "run", trainer={"xyz": 2})
    with pytest.raises(ValueError, match="accumulate_grad_batches is a number of batches, 1 or more, not 0"):
        Run(SHORT, tmp_path / "run", trainer={"accumulate_grad_batches": 0})
    assert not (tmp_path / "run").exists()


class Counter(Callback):
    """Notes the steps that it is called for."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append(trainer.global_step)


def rows(folder: Path) -> list[dict[str, str]]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def test_a_run_hands_on_logger_callbacks_profiler_and_precision(tmp_path):
    counter, kept = Counter(), ModelCheckpoint(tmp_path / "best", monitor="held_out_loss", every_n_train_steps=2)
    trainer = {
        "logger": CSVLogger(tmp_path / "logs"),
        "log_every_n_steps": 1,
        "callbacks": [counter, kept, LearningRateMonitor()],
        "profiler": "simple",
        "precision": "bf16-mixed",
    }
    run = FEW.run(tmp_path / "run", trainer=trainer)
    history = run.wait()
    assert run.state.status == "finished" and counter.steps == [1, 2, 3, 4, 5, 6]
    assert RecordedRun(tmp_path / "run").config["precision"] == "bf16-mixed" == run.experiment.precision
    losses = [float(row["loss"]) for row in rows(tmp_path / "logs") if row.get("loss")]
    assert losses == pytest.approx(history.series("loss")[1])
    assert float(kept.best_model_score) == pytest.approx(min(history.series("held_out_loss")[1]))  # pyright: ignore[reportArgumentType]
    plain = FEW.run(tmp_path / "plain").wait()
    assert plain.series("loss")[1] != history.series("loss")[1]


def test_a_callback_that_ends_the_training_leaves_a_run_that_goes_on_bitwise(tmp_path):
    never_better = EarlyStopping("loss", patience=1, min_delta=100.0)

    class AtSteps(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            never_better._run_early_stopping_check(trainer)

    run = FEW.run(tmp_path / "run", trainer={"callbacks": [AtSteps()]})
    run.wait()
    assert run.state.status == "stopped" and len(run.history.records) < 6
    FEW.run(tmp_path / "run").wait()
    whole = FEW.run(tmp_path / "whole").wait()
    assert RecordedRun(tmp_path / "run").history.series("loss") == whole.series("loss")


def test_what_cannot_be_shared_by_processes_says_so(tmp_path):
    with pytest.raises(ValueError, match="2 processes were to share this training, but an image tokenizer"):
        Run(TINY_PICTURES, tmp_path / "run", trainer={"devices": 2, "accelerator": "cpu"}).start().wait()


# A trainer of a person's own


def own_trainer(folder: Path, **arguments) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **arguments,
    )


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_trainer_of_a_person_s_own_trains_logs_stops_and_goes_on(tmp_path):
    loggers: list = [CSVLogger(tmp_path / "csv")]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(tmp_path / "board"))
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)
    module = FEW.build()
    trainer = own_trainer(tmp_path, max_steps=4, logger=loggers, callbacks=[saver, LearningRateMonitor()])
    trainer.fit(module)
    history = FEW.run(tmp_path / "run").wait()
    losses = [float(row["loss"]) for row in rows(tmp_path / "csv") if row.get("loss")]
    assert trainer.global_step == module.step == 4 and losses == pytest.approx(history.series("loss")[1][:4])
    assert any(row.get("lr-AdamW/pg1") for row in rows(tmp_path / "csv"))
    again = FEW.build()
    (checkpoint,) = (tmp_path / "saved").glob("*step=2*.ckpt")
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)
    trainer = own_trainer(tmp_path, max_steps=6, logger=CSVLogger(tmp_path / "again"), callbacks=[saver])
    trainer.fit(again, ckpt_path=checkpoint, weights_only=True)
    losses = [float(row["loss"]) for row in rows(tmp_path / "again") if row.get("loss")]
    assert losses == pytest.approx(history.series("loss")[1][2:])


def test_validation_early_stopping_and_a_quick_try_see_the_held_out_loss(tmp_path):
    module = SHORT.build()
    stopper = EarlyStopping("held_out_loss", patience=1, min_delta=100.0)
    trainer = own_trainer(
        tmp_path, max_steps=50, val_check_interval=2, callbacks=[stopper], logger=False, enable_checkpointing=False
    )
    trainer.fit(module)
    assert stopper.stopped_epoch is not None and module.step == 4
    own_trainer(tmp_path, fast_dev_run=True, logger=False).fit(SHORT.build())
    ((scores),) = own_trainer(tmp_path, logger=False).validate(module, verbose=False)
    assert scores["held_out_loss"] == pytest.approx(module.trainer.callback_metrics["held_out_loss"].item())


# Several batches a step


def test_processes_and_batches_of_each_share_the_places_of_a_step():
    for processes, each in ((1, 1), (1, 4), (4, 1), (2, 2)):
        ranks = [Steps(3, processes, rank, each, offset=5) for rank in range(processes)]
        steps = zip(*(islice(iter(rank), 3) for rank in ranks), strict=True)
        batches = processes * each
        places = [
            sorted(place for part in step for place in ([part] if isinstance(part, int) else part)) for step in steps
        ]
        assert places == [[*range(5 + at * batches, 5 + (at + 1) * batches)] for at in (3, 4, 5)]


def test_the_data_order_goes_on_however_a_step_s_batches_are_shared():
    module = SHORT.build()
    module.share(2)
    module.step = 10
    module.share(1)
    assert module.batches_each == 2 and module.shares == [(0, 2)]  # the same step, by one process
    module.share(1, 1)
    module.step = 16
    module.share(3, 2)
    assert [module.place_of(step) for step in (0, 10, 11, 16, 17)] == [0, 20, 21, 26, 32]
    assert all(module.step_of(module.place_of(step)) == step for step in range(30))
    assert module.step_of(19) == 10 and module.step_of(27) == 17
    with pytest.raises(ValueError, match="6 batches, which 4 processes cannot share evenly: start 1 or 2 or 3 or 6"):
        module.share(4)


def test_what_a_step_records_does_not_hang_on_the_order_of_its_batches():
    each = [{"loss": 0.1, "tokens": 3.0, "text_loss": 0.7}, {"loss": 0.2, "tokens": 4.0}, {"loss": 1e17, "tokens": 1.0}]
    assert (
        combined(each) == combined(each[::-1]) and combined(each)["text_loss"] == 0.7 and combined(each)["tokens"] == 8
    )
    assert combined(each[:1]) == each[0]


def test_a_step_of_several_batches_learns_as_the_batch_whole(tmp_path):
    """Where each of them has as many tokens to learn: each counts as much as the others, whatever is in it."""

    class Halves:
        def __init__(self, whole: Mixture) -> None:
            self.whole = whole

        def __call__(self, place: int) -> Batch:
            batch, half = self.whole(place // 2), place % 2
            rows = slice(half, half + 1)
            learned_BT = torch.ones_like(batch.learned_BT)
            return replace(
                batch,
                **{
                    name: value[rows]
                    for name in ("inputs_BT", "targets_BT", "modality_BT", "documents_BT", "weights_BT")
                    if (value := getattr(batch, name)) is not None
                },
                learned_BT=learned_BT[rows],
            )

    corpus = replace(PAIRS, rows=2).open(0, None)
    assert isinstance(corpus.batches, Mixture) and isinstance(corpus.batches.stages[0], Stage)
    halves, experiment = Halves(corpus.batches), replace(SHORT, objective=Objective())

    def trained(batches, each: int) -> list[torch.Tensor]:
        module = experiment.build(replace(corpus, held_out=()))
        module.batches = batches
        trainer = own_trainer(tmp_path, max_steps=4, logger=False, enable_checkpointing=False)
        trainer.fit(module, DataLoader(Steps(each=each), batch_size=None))
        return [parameter.detach() for parameter in module.parameters()]

    def joined(place: int) -> Batch:
        one, two = halves(2 * place), halves(2 * place + 1)
        return replace(
            one,
            **{
                name: torch.cat([value, getattr(two, name)])
                for name in ("inputs_BT", "targets_BT", "modality_BT", "learned_BT", "documents_BT", "weights_BT")
                if (value := getattr(one, name)) is not None
            },
        )

    for one, other in zip(trained(halves, 2), trained(joined, 1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
