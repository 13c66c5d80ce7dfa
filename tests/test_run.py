"""A run in the background: it can be watched, held, steered, forked and killed, and loses nothing by it."""

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Forked
from support import IMAGE

from chameleon_lab.corpora.mixture import Mixture, SceneBatches, Stage, scene_pairs
from chameleon_lab.corpora.packing import tokenize
from chameleon_lab.history import History, Intervention, RecordedRun, StepRecord
from chameleon_lab.monitors.alarms import NotANumber, Saturation
from chameleon_lab.monitors.attention import AttentionRows
from chameleon_lab.notices import NOTICE
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.plain import plain_values
from chameleon_lab.stability import FIXES, Dropout, NormReordering, QueryKeyNorm, QueryKeyRMSNorm, ZLoss, kind
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.training.control import release_workers
from chameleon_lab.training.data import Corpus
from chameleon_lab.training.experiments import Experiment, variations
from chameleon_lab.training.modules import SKIP_LIMIT, Budget, PacedModule
from chameleon_lab.training.run import Rescue, Run
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

STEPS = 12
MODEL = ModelConfig(
    vocabulary=0,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_width=8,
    ffn_width=24,
    context=500,
    fixes=(Dropout(0.2),),
)


@dataclass(frozen=True)
class Toys:
    """Two kinds of scene documents, mixed; or the lab's scenes as they come."""

    tokenizer: MixedModalTokenizer
    mixed: bool = False

    def open(self, seed: int, steps: int | None) -> Corpus:
        apart = SceneBatches(self.tokenizer, seed + 1, 236, pool=2)(0)
        if not self.mixed:
            return Corpus(self.tokenizer.vocabulary, SceneBatches(self.tokenizer, seed, 236, pool=2), [apart])
        parts = {name: tokenize(list(scene_pairs(6, at)), self.tokenizer) for at, name in enumerate(("one", "two"))}
        stages = [Stage({"one": 1.0, "two": 1.0})]
        mixture = Mixture(parts, stages, self.tokenizer.vocabulary, context=120, rows=2, seed=seed)
        return Corpus(self.tokenizer.vocabulary, mixture, [apart])


@pytest.fixture
def experiment(mixed) -> Experiment:
    return Experiment(
        "toy",
        MODEL,
        Budget(steps=STEPS),
        Toys(mixed),
        Recipe(rate=3e-3, warm_up=2, schedule=Constant()),
        monitors=(AttentionRows(every=2),),
        checkpoints=3,
        seed=1,
    )


def losses(history: History) -> dict[int, float]:
    return dict(zip(*history.series("loss"), strict=True))


def hold(run: Run, at: int = 0) -> None:
    """Pauses a run that has just begun once it has made a step after `at`: in the run's own thread, since it may be
    over before this one looks."""
    report = run._report

    def pause(module: PacedModule, record: StepRecord) -> None:
        report(module, record)
        if record.step == at:
            run.pause()

    run._report = pause
    while not (run._control.paused or run.state.over):
        time.sleep(0.01)
    stand(run)


def stand(run: Run) -> None:
    """Waits until a paused run stands still."""
    while run._control.turn.active and not run.state.over:
        time.sleep(0.01)


@dataclass(frozen=True)
class Slow:
    """A monitor that takes its time, so that there is time to act."""

    seconds: float = 0.03
    every: int = 1

    def watch(self, moment):
        time.sleep(self.seconds)
        yield
        return {}


@dataclass(frozen=True)
class Lost:
    """A penalty that is not a number from its `first` call to its `last`."""

    first: int
    last: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls", [])

    def penalty(self, logits_XV: torch.Tensor) -> torch.Tensor:
        calls = vars(self)["calls"]
        calls.append(0)
        lost = self.first <= len(calls) <= self.last
        return logits_XV.sum(-1) * (math.nan if lost else 0.0)


# Watching


def test_a_run_returns_at_once_and_tells_everything_at_the_end(experiment, tmp_path):
    run = replace(experiment, monitors=(*experiment.monitors, Slow())).run(tmp_path)
    assert not run.state.over
    history = run.wait()
    assert run.state.status == "finished" and run.state.progress == 1
    assert list(losses(history)) == list(range(STEPS))
    assert history.held_out_loss > 0 and history.maximum("max_attention_logit") > 0
    steps, heads = history.layers("max_attention_logit")
    assert steps == list(range(0, STEPS, 2)) and heads.shape == (STEPS // 2, 2, 2)
    seen = RecordedRun(tmp_path)
    assert seen.history == history == run.history and seen.config == run.config == plain_values(
        replace(experiment, monitors=(*experiment.monitors, Slow()))
    )
    assert replace(seen.state, settings={}) == replace(run.state, settings={})
    assert run.model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


def test_a_run_that_ended_is_over_at_once_and_the_same(experiment, tmp_path):
    history = experiment.run(tmp_path).wait()
    again = experiment.run(tmp_path)
    assert again.wait() == history and again.state.status == "finished"


def test_a_failing_run_says_so_and_raises_from_wait(experiment, tmp_path):
    @dataclass(frozen=True)
    class Broken:
        every: int = 1

        def watch(self, moment):
            yield
            raise RuntimeError("this monitor is broken")

    run = replace(experiment, monitors=(Broken(),)).run(tmp_path)
    with pytest.raises(RuntimeError, match="this monitor is broken"):
        run.wait()
    assert run.state.status == "failed" and "RuntimeError: this monitor is broken" in run.state.error
    assert RecordedRun(tmp_path).state.status == "failed"


def test_an_experiment_without_data_fails_clearly(experiment, tmp_path):
    run = replace(experiment, data=None).run(tmp_path)
    with pytest.raises(ValueError, match="'toy' has no data"):
        run.wait()


def test_waiting_for_what_was_not_started_or_too_long_is_an_error(experiment, tmp_path):
    with pytest.raises(ValueError, match="was not started"):
        Run(experiment, tmp_path).wait()
    run = replace(experiment, monitors=(Slow(0.1),)).run(tmp_path)
    with pytest.raises(TimeoutError, match="'toy' is"):
        run.wait(0.2)
    run.stop()
    run.wait()


def test_an_interrupt_while_waiting_stops_the_run(experiment, tmp_path, monkeypatch):
    run = replace(experiment, monitors=(Slow(),)).run(tmp_path)

    def interrupted(timeout: float | None = None) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(run._over, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.wait()
    assert run.state.over and run._over.is_set()


# Holding


def test_a_paused_run_stands_still_lets_others_pass_and_goes_on_unchanged(experiment, tmp_path):
    wanted = experiment.run(tmp_path / "whole").wait()
    run = replace(experiment, monitors=(*experiment.monitors, Slow())).run(tmp_path / "paused")
    hold(run)
    assert run.state.status == "paused"
    made = len(run.history.records)
    other = replace(experiment, seed=5).run(tmp_path / "other").wait()  # which draws random numbers of its own
    assert len(other.records) == STEPS and len(run.history.records) == made < STEPS
    run.resume()
    assert losses(run.wait()) == losses(wanted)


def test_a_run_that_makes_no_step_goes_on_giving_signs_of_life_until_it_is_over(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr("chameleon_lab.training.run.HEARTBEAT", 0.05)
    run = replace(experiment, monitors=(*experiment.monitors, Slow())).run(tmp_path)
    hold(run)
    beats, ends = set[float](), time.monotonic() + 60
    while len(beats) < 3:
        beats.add(RecordedRun(tmp_path).state.beat)
        assert time.monotonic() < ends, "no sign of life came"
        time.sleep(0.02)
    assert RecordedRun(tmp_path).state.status == "paused" and max(beats) <= time.time()
    run.stop()
    run.wait()
    assert not any(thread.name == f"signs of life of {run.name}" for thread in threading.enumerate())
    assert RecordedRun(tmp_path).state.status == "stopped"


def test_a_stopped_run_goes_on_where_it_was(experiment, tmp_path):
    wanted = experiment.run(tmp_path / "whole").wait()
    slow = replace(experiment, monitors=(*experiment.monitors, Slow()))
    run = slow.run(tmp_path / "stopped")
    hold(run, 2)
    run.stop()
    assert len(run.wait().records) < STEPS and run.state.status == "stopped"
    assert losses(run.start().wait()) == losses(wanted) and run.state.status == "finished"


def test_runs_wait_in_line_and_one_that_waits_can_be_stopped(experiment, tmp_path):
    first = replace(experiment, monitors=(Slow(0.3),)).run(tmp_path / "first")
    while first.state.status != "running":
        time.sleep(0.002)
    second = replace(experiment, seed=2).run(tmp_path / "second")
    time.sleep(0.1)
    assert second.state.status == "waiting"
    second.stop()
    assert not second.wait().records and second.state.status == "stopped"
    first.stop()
    first.wait()


def test_the_same_cell_run_again_leaves_no_orphan(experiment, tmp_path):
    slow = replace(experiment, monitors=(*experiment.monitors, Slow()))
    wanted = slow.run(tmp_path / "whole").wait()
    first = slow.run(tmp_path / "cell")
    hold(first, 1)
    again = slow.run(tmp_path / "cell")
    assert losses(again.wait()) == losses(wanted)
    assert first.state.status == "stopped"
    assert [each.name for each in threading.enumerate()].count("run toy") == 0


LOCK = """
import sys, time
from chameleon_lab.training.folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    sys.stdout.write("locked\\n"); sys.stdout.flush()
    time.sleep(60)
"""


def test_who_joins_a_run_under_way_gets_it_and_nobody_sees_it_stopped(experiment, tmp_path):
    watched = experiment.run(tmp_path)
    hold(watched)
    assert Run(experiment, tmp_path).join() is watched and watched.state.status == "paused"
    watched.stop()
    watched.wait()
    later = Run(experiment, tmp_path).join()  # nobody trains there any more: it goes on itself
    assert later is not watched and later.wait().records and later.state.status == "finished"


def test_two_processes_do_not_train_in_one_folder(experiment, tmp_path):
    with subprocess.Popen([sys.executable, "-c", LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="Another process trains in"):
            experiment.run(tmp_path).wait()
        other.kill()
    assert len(experiment.run(tmp_path).wait().records) == STEPS


# Steering


def test_orders_of_a_newer_version_or_of_nobody_are_refused_in_words_and_the_run_goes_on(experiment, tmp_path):
    lines = [
        '{"order": "newer", "command": "teleport", "arguments": {"to": "cuda"}}',
        '{"order": "argument", "command": "change", "arguments": {"rate": 0.01, "depth": 3}}',
        '{"order": "list", "command": "change", "arguments": [1, 2]}',
        '{"order": "value", "command": "change", "arguments": {"rate": {"a": [1]}}}',
        '{"order": "more", "command": "save", "arguments": {}, "version": 9, "signature": "x"}',
        '{"order": 7, "command": null}',
        '{"order": "half", "comm',
        "nonsense",
        "[]",
        "\ud83d",
    ]
    run = replace(experiment, monitors=(*experiment.monitors, Slow())).run(tmp_path / "run")
    hold(run)
    with (run.folder / "orders.jsonl").open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.write("".join(f"{line}\n" for line in lines))
    run.resume()
    assert losses(run.wait()) == losses(experiment.run(tmp_path / "plain").wait())
    refusals = {order: answer.refusal for order, answer in RecordedRun(run.folder).answers.items()}
    assert refusals["more"] == "" and all(refusals[each] for each in ("newer", "argument", "list", "value", "7"))
    assert "teleport" in refusals["newer"] and "depth" in refusals["argument"]


def test_a_change_holds_from_its_step_on_and_is_recorded(experiment, tmp_path):
    run = replace(experiment, monitors=(Slow(),), data=replace(experiment.data, mixed=True)).run(tmp_path)
    hold(run, 2)
    step = run.history.records[-1].step + 1
    run.change("too hot", rate=1e-3, clip=0.5, z_loss=0.25, dropout=0.0, image_weight=0.5, weights={"two": 1})
    run.resume()
    history = run.wait()
    told = [(each.step, each.name, each.before, each.after, each.reason) for each in history.interventions]
    assert told[:2] == [(step, "rate", 3e-3, 1e-3, "too hot"), (step, "clip", 1.0, 0.5, "too hot")]
    assert told[2:5] == [
        (step, "z_loss", 1e-5, 0.25, "too hot"),
        (step, "dropout", 0.2, 0.0, "too hot"),
        (step, "image_weight", 1.0, 0.5, "too hot"),
    ]
    assert told[5] == (step, "weights", {"one": 0.5, "two": 0.5}, {"one": 0.0, "two": 1.0}, "too hot")
    rates = dict(zip(*history.series("rate"), strict=True))
    assert rates[step - 1] == 3e-3 and rates[step] == 1e-3
    assert run.settings["z_loss"] == 0.25 and run.settings["weights"] == {"one": 0.0, "two": 1.0}


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"query_key_norm": True}, r"cannot be changed while a run goes on; rate, .* fork the run"),
    ({"rate": -1}, "rate must be a number of at least 0, not -1"),
    ({"clip": "big"}, "clip must be a number"),
    ({"rate": math.inf}, "rate must be a finite number, below"),
    ({"rate": 10**400}, "rate must be a finite number"),
    ({"clip": 10**400}, "clip must be a finite number"),
    ({"weights": 5}, "weights must be a mapping from a part"),
    ({"dropout": 1.5}, "dropout must lie below 1"),
    ({"z_loss": math.nan}, "z_loss must be a number"),
    ({"weights": {"three": 1}}, "no part three"),
    ({"weights": {"one": 0}}, "not all 0"),
]


def test_what_cannot_be_changed_is_refused_at_once_and_the_run_goes_on(experiment, tmp_path):
    run = replace(experiment, monitors=(Slow(),), data=replace(experiment.data, mixed=True)).run(tmp_path)
    hold(run)
    for setting, why in REFUSALS:
        with pytest.raises(ValueError, match=why):
            run.change(**setting)
    run.resume()
    assert not run.wait().interventions


SPECIAL = {
    "a rate of 0": (Recipe(rate=1e-3), {"rate": 0}, ""),
    "a rate of 0 beside an independent decay": (Recipe(rate=1e-3, independent=True), {"rate": 0}, "rate above 0"),
    "a rate of 0 of Muon": (Recipe(rate=1e-3, muon_rate=1e-3), {"muon_rate": 0}, ""),
    "no clipping": (Recipe(rate=1e-3), {"clip": math.inf}, ""),
    "no decay": (Recipe(rate=1e-3, independent=True), {"weight_decay": 0}, ""),
}


@pytest.mark.parametrize(("recipe", "setting", "refusal"), SPECIAL.values(), ids=SPECIAL)
def test_a_change_is_either_refused_at_once_or_carried_out_and_can_be_taken_back(
    experiment, tmp_path, recipe, setting, refusal
):
    run = replace(experiment, monitors=(Slow(),), recipe=recipe).run(tmp_path)
    hold(run)
    (name,) = setting
    before = run.settings[name]
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            run.change(**setting)
    else:
        run.change(**setting)
        run.change(**{name: before})
    run.resume()
    changes = [(each.before, each.after) for each in run.wait().interventions]
    assert changes == ([] if refusal else [(before, setting[name]), (setting[name], before)])


def test_a_panel_s_commands_are_checked(experiment, tmp_path):
    run = replace(experiment, monitors=(Slow(),)).run(tmp_path)
    hold(run)
    with pytest.raises(ValueError, match="has no command 'explode'; it has pause, resume"):
        run.act("explode")
    with pytest.raises(ValueError, match="No fix is called 'magic'"):
        run.act("fork", fix="magic")
    run.act("change", rate=1e-3, reason="panel")
    run.act("resume")
    assert run.wait().interventions[0].reason == "panel"
    with pytest.raises(ValueError, match="'toy' is finished: it cannot pause"):
        run.act("pause")


# Killing

KILLED = """
import sys
sys.path[:0] = {paths!r}
from test_run import *
torch.set_num_threads(1)
run = killed_toy().run({folder!r})
hold(run, 2)
run.change("by hand", rate=1e-3, weights={{"two": 1}})
run.resume()
run.wait()
"""


def killed_toy() -> Experiment:
    """The same in every process."""
    torch.manual_seed(0)
    tokenizer = MixedModalTokenizer(ByteTokenizer(), ImageTokenizer(IMAGE).eval(), Vocabulary.layout(12, 256))
    recipe, monitors = Recipe(rate=3e-3, warm_up=2), (Slow(0.1),)
    return Experiment("toy", MODEL, Budget(steps=STEPS), Toys(tokenizer, True), recipe, monitors=monitors)


def test_a_killed_run_goes_on_with_the_losses_of_one_never_killed(tmp_path):
    here, killed, whole = Path(__file__).parent, tmp_path / "killed", tmp_path / "whole"

    def made(folder: Path) -> History:
        return RecordedRun(folder).history if (folder / "metrics.jsonl").exists() else History()

    script = KILLED.format(paths=[str(here), str(here.parent)], folder=str(killed))
    first = Forked(script, tmp_path / "killed.log")
    while len(made(killed).records) < 7 and first.running:  # past the change, before the end
        time.sleep(0.03)
    first.kill()
    changes = made(killed).interventions
    assert [each.name for each in changes] == ["rate", "weights"] and RecordedRun(killed).state.status == "interrupted"
    assert len(made(killed).records) < STEPS
    checkpoints = sorted((killed / "checkpoints").glob("step-*"))
    toy = killed_toy()
    toy.run(killed).wait()  # in this process, which is another
    assert checkpoints and len(made(killed).records) == STEPS and made(killed).interventions == changes
    whole.mkdir()
    events = [json.dumps({"kind": "intervention", **vars(each)}) + "\n" for each in changes]
    (whole / "events.jsonl").write_text("".join(events))  # the same orders, carried out at the same steps
    toy.run(whole).wait()
    assert losses(made(whole)) == losses(made(killed))


def test_what_a_killed_write_leaves_behind_does_no_harm(experiment, tmp_path):
    wanted = experiment.run(tmp_path / "whole").wait()
    slow = replace(experiment, monitors=(*experiment.monitors, Slow()))
    run = slow.run(tmp_path / "torn")
    hold(run, 3)
    run.stop()
    run.wait()
    place = tmp_path / "torn"
    for name in ("checkpoints/last.partial", "checkpoints/step-00000099.partial", "state.json.partial"):
        (place / name).write_bytes(b"half of")
    with (place / "metrics.jsonl").open("a") as metrics, (place / "events.jsonl").open("a") as events:
        metrics.write('{"step": 99, "seco')
        events.write('{"kind": "inter')
    (place / "state.json").write_text("{")
    assert losses(slow.run(place).wait()) == losses(wanted)
    assert RecordedRun(place).state.status == "finished" and not (place / "checkpoints" / "last.partial").exists()


# Forking


def test_a_fork_without_a_difference_is_the_same_run(experiment, tmp_path):
    run = experiment.run(tmp_path / "run")
    wanted = run.wait()
    fork = run.fork(at=7)
    assert losses(fork.wait()) == losses(wanted)
    assert fork.state.parent == "toy" and fork.state.forked_at == 6 and run.state.forks == ("toy-fork-1",)
    assert RecordedRun(fork.folder).state.difference == "nothing changed"


def test_a_fork_differs_from_its_step_on(experiment, tmp_path):
    run = experiment.run(tmp_path / "run")
    wanted = losses(run.wait())
    fork = run.fork(QueryKeyNorm(), NormReordering(), at=6, rate=1e-3, reason="alarm")
    seen = losses(fork.wait())
    assert {step: seen[step] for step in range(6)} == {step: wanted[step] for step in range(6)}
    assert seen[6] != wanted[6] and len(seen) == STEPS
    assert fork.history.interventions == (Intervention(6, "rate", 3e-3, 1e-3, "alarm"),)
    assert "QueryKeyNorm" in fork.state.difference and "rate 0.001" in fork.state.difference
    names = {name for name, _ in fork.model.named_parameters()}
    assert any("query_norm" in name for name in names) and not any("pre_norm" in name for name in names)


def test_a_run_can_be_forked_while_it_goes_on(experiment, tmp_path):
    run = replace(experiment, monitors=(*experiment.monitors, Slow())).run(tmp_path)
    hold(run, 1)
    run.act("fork", fix="query_key_norm")
    (fork,) = run.forks
    assert fork.state.forked_at == len(run.history.records)
    assert len(fork.wait().records) == STEPS and run.state.status == "paused", "as it was before"
    run.resume()
    assert len(run.wait().records) == STEPS
    run.act("fork", fix="z_loss")  # from the end: there is nothing left of the budget
    assert losses(run.forks[1].wait()) == losses(run.history)


def test_a_fork_leaves_its_parent_training_and_says_that_it_waits_for_it(experiment, tmp_path):
    run = replace(experiment, monitors=(*experiment.monitors, Slow(0.1))).run(tmp_path)
    while not run.history.records:
        time.sleep(0.002)
    run.act("fork", fix="query_key_norm")
    (fork,) = run.forks
    if not run.state.over:
        assert run.state.status == "running" and (fork.state.status, fork.state.behind) == ("waiting", "toy")
    assert len(run.wait().records) == STEPS, "a cell that waits for the parent does not wait for ever"
    assert len(fork.wait().records) == STEPS and fork.state.behind == ""


@pytest.mark.parametrize(
    "fixes", [(), (QueryKeyNorm(),), (QueryKeyRMSNorm(), NormReordering())], ids=["bare", "norm", "two fixes"]
)
def test_what_is_offered_to_a_fork_can_be_installed_and_the_rest_is_refused_at_once(experiment, fixes):
    based = replace(experiment, model=replace(experiment.model, fixes=fixes))
    for name, fix in FIXES.items():
        if kind(fix) != "model":
            continue
        if name in based.offers:
            Transformer(replace(based.with_fixes(fix).model, vocabulary=40))
        else:
            with pytest.raises(ValueError, match="both want the slot"):
                based.with_fixes(fix)


@pytest.mark.parametrize("seed", range(2))
def test_runs_train_in_the_order_in_which_they_were_started(experiment, tmp_path, monkeypatch, seed):
    """However long the threads take to come as far as to ask for the machine."""
    began, dice, claim = list[str](), random.Random(seed), Run._claim

    def slowly(run: Run) -> None:
        time.sleep(dice.random() / 5)
        claim(run)

    def train(run: Run) -> None:
        began.append(run.name)
        run._status = "finished"

    monkeypatch.setattr(Run, "_claim", slowly)
    monkeypatch.setattr(Run, "_train", train)
    names = [f"run {number}" for number in range(6)]
    for run in [replace(experiment, name=name).run(tmp_path / name) for name in names]:
        run.wait()
    assert began == names


def test_a_fork_needs_a_checkpoint_and_says_which_there_are(experiment, tmp_path):
    run = replace(experiment, checkpoints=0).run(tmp_path)
    run.wait()
    with pytest.raises(ValueError, match=f"no checkpoint at or before step 3; its checkpoints: {STEPS}"):
        run.fork(at=3)


def test_a_folder_of_another_experiment_is_refused_and_a_larger_budget_goes_on(experiment, tmp_path):
    before = experiment.run(tmp_path).wait()
    with pytest.raises(ValueError, match=r"another experiment: recipe.rate \(0.003, now .*, seed \(1, now 7\) differ"):
        replace(experiment, seed=7, recipe=Recipe()).run(tmp_path).wait()
    assert RecordedRun(tmp_path).history == before
    longer = replace(experiment, budget=Budget(steps=STEPS + 2)).run(tmp_path).wait()
    assert len(longer.records) == STEPS + 2 and longer.records[: STEPS - 1] == before.records[: STEPS - 1]


# Alarms and faults


def test_an_alarm_rewinds_and_forks_and_gives_up_after_so_many_times(experiment, tmp_path):
    always = replace(experiment, rules=(Saturation("ALARM", 0.0, math.inf, checks=3),))
    rescue = Rescue(fixes=(QueryKeyRMSNorm(),), cool=0.5, back=2, times=2)
    run = Run(always, tmp_path / "run", rescue=rescue).start()
    run.wait()
    (first,) = run.forks
    first.wait()
    (second,) = first.forks
    second.wait()
    alarm = run.history.alarms[0]
    assert alarm.level == "ALARM" and f"Stopped by ALARM at step {alarm.step}" in run.state.error
    assert first.state.forked_at is not None and alarm.step - 4 < first.state.forked_at <= alarm.step - 2
    assert second.state.forked_at is not None and first.state.forked_at <= second.state.forked_at
    assert [each.after for each in second.history.interventions] == [1.5e-3, 0.75e-3]
    assert isinstance(second.experiment, Experiment)
    assert isinstance(second.experiment.model.fixes[-1], QueryKeyRMSNorm) and not second.forks
    assert second.state.status == "stopped" and "Nothing is left to be tried" in second.state.error


def test_a_step_that_is_no_number_changes_nothing_and_is_recorded(experiment, tmp_path):
    objective = Objective(penalties=(Lost(4, 5),))
    history = replace(experiment, objective=objective, monitors=(), rules=(NotANumber(),)).run(tmp_path).wait()
    skipped = dict(zip(*history.series("skipped"), strict=True))
    assert len(skipped) == 2 and all(math.isfinite(value) for value in losses(history).values())
    assert [each.step for each in history.alarms] == [min(skipped)] and "is nan" in history.alarms[0].message


def test_a_run_of_steps_that_are_no_numbers_gives_up_and_keeps_its_checkpoints(experiment, tmp_path):
    endless = replace(
        experiment, objective=Objective(penalties=(Lost(3, 999),)), budget=Budget(steps=40), checkpoints=20
    )
    run = endless.run(tmp_path)
    with pytest.raises(FloatingPointError, match=rf"not a number in {SKIP_LIMIT} steps in a row.*run.fork"):
        run.wait()
    assert run.state.status == "failed" and all(p.isfinite().all() for p in run.model.parameters())
    assert run._place.checkpoints


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(experiment, tmp_path, monkeypatch):
    import lightning

    real, calls = lightning.Trainer.save_checkpoint, []

    def full(self, path, *arguments, **options):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(self, path, *arguments, **options)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", full)
    run = experiment.run(tmp_path)
    history = run.wait()
    assert len(history.records) == STEPS and run.state.status == "finished"
    (alarm,) = history.alarms
    assert alarm.rule == "checkpoint" and "No space left on device" in alarm.message
    assert not list(tmp_path.rglob("*.partial")) and experiment.run(tmp_path).wait() == history


# Variations


def test_variations_share_data_and_differ_in_fixes(experiment):
    made = variations(experiment, seed=4)
    assert list(made) == ["baseline", "query_key_norm", "norms_and_z_loss"]
    assert {each.seed for each in made.values()} == {4} and len({each.fingerprint for each in made.values()}) == 3
    assert made["baseline"].model == experiment.model
    assert QueryKeyRMSNorm() in made["query_key_norm"].model.fixes
    assert (
        made["norms_and_z_loss"].objective.penalties == (ZLoss(1e-2),)
        and NormReordering() in made["norms_and_z_loss"].model.fixes
    )


def test_what_is_no_fix_is_refused(experiment):
    with pytest.raises(ValueError, match="is no fix"):
        experiment.with_fixes("query_key_norm")


@pytest.mark.skipif(not list(Path(torch.__file__).parent.glob("lib/libgomp*")), reason="needs GNU's OpenMP")
def test_releasing_workers_ends_their_threads_and_later_work_goes_on() -> None:
    torch.set_num_threads(2)
    matrix = torch.ones(512, 512)
    expected = (matrix @ matrix).exp().sum()
    busy = len(os.listdir("/proc/self/task"))
    release_workers()
    ends = time.monotonic() + 60
    while len(os.listdir("/proc/self/task")) >= busy:
        assert time.monotonic() < ends, "its threads stay"
        time.sleep(0.01)
    assert (matrix @ matrix).exp().sum() == expected


# Edited cells

CELL = """
@dataclass(frozen=True)
class Watch:
    every: int = 1

    def watch(self, moment):
        yield
        return {"mine": SIZE}
"""


def monitor(size: float):
    """A monitor as a notebook's cell defines it, run again after an edit."""
    space = {"__name__": "__main__", "dataclass": dataclass}
    exec(CELL.replace("SIZE", str(size)), space)
    return space["Watch"]()


def test_an_edited_cell_trains_anew_in_a_folder_of_its_own_and_says_so(experiment, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(NOTICE)  # what a notebook shows unasked
    before, after = (replace(experiment, budget=Budget(steps=2), monitors=(monitor(size),)) for size in (1.0, 2.0))
    first = before.run()
    assert first.wait().last("mine") == 1 and "was edited" not in caplog.text
    second = after.run()
    assert second.wait().last("mine") == 2 and second.folder != first.folder
    assert f"toy trains anew in {second.folder}: monitors.0 (the source of Watch) was edited." in caplog.text
    assert {each.levelno for each in caplog.records} == {NOTICE}, "whoever edits a cell need not be warned of it"
    again = replace(before, monitors=(monitor(1.0),)).run()
    assert again.folder == first.folder and again.wait() == first.history


def test_a_reused_folder_refuses_an_edited_cell_and_stays_as_it_is(experiment, tmp_path):
    before, after = (replace(experiment, budget=Budget(steps=2), monitors=(monitor(size),)) for size in (1.0, 2.0))
    before.run(tmp_path).wait()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused = after.run(tmp_path)
    with pytest.raises(ValueError, match=r"of another experiment: monitors.0 \(the source of Watch\) differ"):
        refused.wait()
    assert refused.state.status == "failed" and RecordedRun(tmp_path).state.status == "finished"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert [label.split()[0] for label in RecordedRun(tmp_path).sources][::-1] == ["Watch", "Toys"]


def test_a_second_process_leaves_the_state_of_the_first_alone(experiment, tmp_path):
    with subprocess.Popen([sys.executable, "-c", LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        (tmp_path / "state.json").write_text("theirs")
        with pytest.raises(ValueError, match="Another process trains in"):
            experiment.run(tmp_path).wait()
        assert (tmp_path / "state.json").read_text() == "theirs"
        other.kill()
