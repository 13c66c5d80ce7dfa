"""Whatever trains is trained by the same `Run`: watched, held, steered, stopped, killed and taken up again alike."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Forked

from chameleon_lab.history import Answer, RecordedRun, StepRecord
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.plain import described, plain_values
from chameleon_lab.stability import Dropout, QueryKeyNorm
from chameleon_lab.tokenizers.image import ImageTokenizerConfig
from chameleon_lab.tokenizers.losses import Adversary, ReconstructionObjective
from chameleon_lab.training.data import Scenes
from chameleon_lab.training.experiments import Experiment
from chameleon_lab.training.image_experiments import ImageExperiment, scenes
from chameleon_lab.training.modules import Budget, PacedModule
from chameleon_lab.training.run import Run
from chameleon_lab.training.text_experiments import TextExperiment
from chameleon_lab.training.trainable import Trainable
from chameleon_lab.transformer import ModelConfig
from chameleon_widgets import RunPanel

STEPS = 8
PAUSE = 0.03
"""Seconds that each step waits for its data, so that there is time to act."""


def slow_scenes(experiment: ImageExperiment) -> Callable[[int], torch.Tensor]:
    pixels = scenes(experiment)
    return lambda step: (time.sleep(PAUSE), pixels(step))[1]


class SlowScenes(Scenes):
    """Documents about scenes, after a while."""

    def open(self, seed: int, steps: int | None):
        corpus = super().open(seed, steps)
        return replace(corpus, batches=lambda place: (time.sleep(PAUSE), corpus.batches(place))[1])


def words(experiment: TextExperiment) -> list[str]:
    time.sleep(PAUSE)
    return ["draw a red circle", "draw a blue square", f"seed {experiment.seed}"] * 20


RECIPE = Recipe(rate=3e-3, warm_up=2, schedule=Constant())
IMAGE = ImageTokenizerConfig(
    side=16, codes=12, code_width=4, widths=(8, 16), latent_width=4, blocks=1, patch=2, groups=4, middle=False
)
MODEL = ModelConfig(0, 16, 1, 2, 1, 8, 24, 500, fixes=(Dropout(0.2),))
KINDS: dict[str, Any] = {
    "transformer": Experiment(
        "toy", MODEL, Budget(steps=STEPS), SlowScenes("tiny", 200), RECIPE, Objective(), monitors=(), checkpoints=3
    ),
    "image tokenizer": ImageExperiment(
        "toy",
        replace(IMAGE, quantizer="moving_average"),
        RECIPE,
        Budget(steps=STEPS),
        ReconstructionObjective("edges", adversary=Adversary(start_step=3, width=4, layers=1)),
        slow_scenes,
        batch=2,
        crop=16,
        checkpoints=3,
    ),
    "text tokenizer": TextExperiment("toy", 320, words),
}
STEPWISE = ("transformer", "image tokenizer")


@pytest.fixture(params=list(KINDS))
def kind(request) -> Trainable:
    return KINDS[request.param]


@pytest.fixture(params=STEPWISE)
def stepwise(request) -> Trainable:
    return KINDS[request.param]


def values(run: Run | RecordedRun) -> list[tuple[int, dict[str, float]]]:
    return [(record.step, record.values) for record in run.history.records]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one: Path, other: Path) -> bool:
    pairs = zip(weights(one).items(), weights(other).items(), strict=True)
    return all(name == also and torch.equal(a, b) for (name, a), (also, b) in pairs)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `condition` gives once it is true."""
    ends = time.monotonic() + seconds
    while not (reached := condition()):
        assert time.monotonic() < ends, "it never came to this"
        time.sleep(0.02)
    return reached


def hold(run: Run, at: int = 0) -> None:
    """Pauses a run once it has made a step after `at`, and waits until it stands still."""
    report = run._report

    def pause(module: PacedModule, record: StepRecord) -> None:
        report(module, record)
        if record.step == at:
            run.pause()

    run._report = pause  # in the run's own thread: it may be over before this one looks
    until(lambda: run._control.paused or run.state.over)
    until(lambda: not run._control.turn.active or run.state.over)


def test_it_leaves_a_whole_folder_and_what_is_done_is_not_done_again(kind, tmp_path):
    run = Run(kind, tmp_path).start()
    assert not run.state.over
    result = run.result()
    recorded = RecordedRun(tmp_path)
    assert recorded.state == replace(run.state, offers=recorded.state.offers) and recorded.state.status == "finished"
    assert recorded.state.progress == 1 and recorded.state.offers == tuple(kind.offers)
    assert recorded.history == run.history and len(run.history.records) == kind.budget.steps
    assert recorded.config == json.loads(json.dumps(run.config)) == json.loads(json.dumps(plain_values(kind)))
    assert recorded.sources == described(kind)["sources"]
    assert result is not None and list((tmp_path / "checkpoints").glob("last.ckpt"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "state.json"}
    again = Run(kind, tmp_path).start()
    again.result()
    assert values(again) == values(run) and again.state.status == "finished" and again.state.progress == 1
    after = {path: path.stat().st_mtime_ns for path in before if path.name not in ("config.json", "lock")}
    assert after.items() <= before.items()


def test_it_can_be_stopped_before_it_begins_and_then_goes_on(kind, tmp_path):
    Run(kind, tmp_path / "whole").start().wait()
    run = Run(kind, tmp_path / "run")
    run.stop()
    with pytest.raises(ValueError, match="'toy' is stopped: nothing came of it yet"):
        run.start().result()
    assert not run.history.records and RecordedRun(tmp_path / "run").state.status == "stopped"
    run.start().wait()
    assert run.state.status == "finished" and same(tmp_path / "run", tmp_path / "whole")


def test_what_ended_but_was_not_written_is_written_when_it_is_started_again(kind, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(type(kind), "finish", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left")))
        run = Run(kind, tmp_path).start()
        with pytest.raises(OSError, match="No space left"):
            run.wait()
        assert run.state.status == "failed" and kind.product(tmp_path) is None
    made = values(run)
    assert Run(kind, tmp_path).start().result() is not None
    assert values(RecordedRun(tmp_path)) == made


def test_stopped_and_taken_up_again_it_is_bitwise_the_same(stepwise, tmp_path):
    whole = Run(stepwise, tmp_path / "whole").start()
    whole.wait()
    run = Run(stepwise, tmp_path / "run").start()
    hold(run, 2)
    run.save()
    run.stop()
    run.wait()
    assert run.state.status == "stopped" and 2 < len(run.history.records) < STEPS
    torch.manual_seed(99)
    again = Run(stepwise, tmp_path / "run").start()
    again.wait()
    assert values(again) == values(whole) and same(tmp_path / "run", tmp_path / "whole")


def test_a_changed_rate_holds_from_its_step_on_and_again_when_it_is_trained_from_its_events(stepwise, tmp_path):
    run = Run(stepwise, tmp_path / "run").start()
    hold(run, 2)
    with pytest.raises(ValueError, match="'magic' cannot be changed"):
        run.change(magic=1)
    run.change("by hand", rate=1e-3)
    run.resume()
    (change,) = run.wait().interventions
    assert (change.name, change.before, change.after, change.reason) == ("rate", 3e-3, 1e-3, "by hand")
    rates = dict(zip(*run.history.series("rate"), strict=True))
    assert rates[change.step - 1] == 3e-3 and rates[change.step] == 1e-3
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "events.jsonl").write_bytes((tmp_path / "run" / "events.jsonl").read_bytes())
    twin = Run(stepwise, tmp_path / "twin").start()
    twin.wait()
    assert values(twin) == values(run) and same(tmp_path / "run", tmp_path / "twin")


def test_a_fork_without_a_difference_is_the_same_and_one_with_is_another(stepwise, tmp_path):
    run = Run(stepwise, tmp_path / "run").start()
    run.wait()
    fork = run.fork(at=5)
    other = run.fork(at=5, rate=1e-4, reason="cooler")
    assert fork.wait() and values(fork) == values(run)
    assert other.wait().interventions[0].after == 1e-4
    at = other.state.forked_at or 0
    assert 0 < at <= 5 and values(other)[:at] == values(run)[:at] and values(other)[at:] != values(run)[at:]
    assert fork.state.parent == "toy" and run.state.forks == ("toy-fork-1", "toy-fork-2")


def test_what_cannot_be_forked_says_so(tmp_path):
    text = Run(KINDS["text tokenizer"], tmp_path / "text").start()
    text.wait()
    with pytest.raises(ValueError, match="is learned in one step"):
        text.fork()
    with pytest.raises(ValueError, match="trains no transformer"):
        _ = text.model
    image = Run(KINDS["image tokenizer"], tmp_path / "image")
    with pytest.raises(ValueError, match=r"QueryKeyNorm\(.*\): fixes are for transformers"):
        image.fork(QueryKeyNorm())


# Orders through the folder


def answer(run: RecordedRun, order: str) -> Answer:
    return until(lambda: run.answers.get(order))


def test_orders_through_the_folder_are_carried_out_and_answered(stepwise, tmp_path):
    run = Run(replace(stepwise, budget=Budget(steps=40)), tmp_path).start()
    until(lambda: len(run.history.records) > 1)
    onlooker = RecordedRun(tmp_path)
    assert answer(onlooker, onlooker.act("pause")).refusal == ""
    until(lambda: not run._control.turn.active)
    assert until(lambda: onlooker.state.status == "paused") and not run.state.over
    made = len(run.history.records)
    changed = answer(onlooker, onlooker.act("change", rate=1e-3, reason="from afar"))
    assert (changed.refusal, changed.step) == ("", made)
    assert until(lambda: onlooker.state.settings["rate"] == 1e-3)
    refused = answer(onlooker, onlooker.act("change", rate=-1))
    assert refused.command == "change" and "rate must be a number of at least 0, not -1" in refused.refusal
    saved = answer(onlooker, onlooker.act("save"))
    assert saved.refusal == "" and until(lambda: made in run._place.checkpoints)
    assert len(run.history.records) == made
    assert answer(onlooker, onlooker.act("resume")).refusal == ""
    until(lambda: len(run.history.records) > made)
    assert answer(onlooker, onlooker.act("stop")).refusal == ""
    assert run.wait().interventions == onlooker.history.interventions
    assert run.history.interventions[0].reason == "from afar" and onlooker.state.status == "stopped"
    with pytest.raises(ValueError, match="is stopped: no process here trains it, so it cannot resume"):
        onlooker.act("resume")


def test_a_fork_is_ordered_through_the_folder(tmp_path):
    run = Run(replace(KINDS["transformer"], budget=Budget(steps=40)), tmp_path / "run").start()
    until(lambda: len(run.history.records) > 1)
    onlooker = RecordedRun(tmp_path / "run")
    assert answer(onlooker, onlooker.act("fork", fix="query_key_norm", reason="from afar")).refusal == ""
    (fork,) = run.forks
    assert len(fork.wait().records) == 40 and until(lambda: onlooker.state.forks == (fork.name,))
    assert len(run.wait().records) == 40  # a fork leaves its parent training


def test_orders_of_an_earlier_process_and_what_is_no_order_are_not_carried_out(stepwise, tmp_path):
    tmp_path.joinpath("orders.jsonl").write_text('{"order": "old", "command": "stop", "arguments": {}}\n')
    run = Run(replace(stepwise, budget=Budget(steps=20)), tmp_path).start()
    until(lambda: len(run.history.records) > 1)
    with tmp_path.joinpath("orders.jsonl").open("a") as file:
        file.write('half of an or\n[]\n{"order": "odd", "command": "pause", "arguments": {"very": 1}}\n')
        file.write('{"order": "none", "command": "explode", "arguments": {}}\n')
        file.write('{}\n{"order": 1, "command": null, "arguments": 3}\n{"order": "self", "command": "__init__"}\n')
        file.write('{"order": "list", "command": "change", "arguments": {"rate": [1], "clip": {}}}\n')
    onlooker = RecordedRun(tmp_path)
    assert "very" in answer(onlooker, "odd").refusal and "no command 'explode'" in answer(onlooker, "none").refusal
    assert all(answer(onlooker, order).refusal for order in ("1", "self", "list"))
    assert len(run.wait().records) == 20 and "old" not in onlooker.answers


WHATEVER = {
    "nested too deeply": b"[" * 100_000,
    "a number too long to be read": b'{"order": "1", "command": "change", "arguments": {"rate": ' + b"1" * 5000 + b"}}",
    "a number too large": b'{"order": "2", "command": "change", "arguments": {"rate": ' + b"1" * 400 + b"}}",
    "an infinite rate": b'{"order": "3", "command": "change", "arguments": {"rate": Infinity}}',
    "no letters": bytes(range(256)),
    "names of no kind": b'{"order": {}, "command": [1], "arguments": {"reason": {}}}',
    "a fix of no kind": b'{"order": "4", "command": "fork", "arguments": {"fix": ["dropout"], "reason": 3}}',
    "a reason of no kind": b'{"order": "5", "command": "change", "arguments": {"clip": 2, "reason": {"a": 1}}}',
}


def test_whatever_lies_in_the_file_of_orders_the_run_goes_on_and_the_next_order_is_heard(stepwise, tmp_path):
    run = Run(replace(stepwise, budget=Budget(steps=400)), tmp_path).start()
    until(lambda: len(run.history.records) > 1)
    onlooker = RecordedRun(tmp_path)
    for line in WHATEVER.values():
        with tmp_path.joinpath("orders.jsonl").open("ab") as file:
            file.write(line + b"\n")
    assert answer(onlooker, onlooker.act("save")).refusal == ""
    assert all(answer(onlooker, order).refusal for order in "234") and not answer(onlooker, "5").refusal
    assert all(isinstance(each.reason, str) for each in run.history.interventions)
    tmp_path.joinpath("orders.jsonl").unlink()
    assert answer(onlooker, onlooker.act("pause")).refusal == ""  # of a new file, with fewer orders than the old one
    assert answer(onlooker, onlooker.act("resume")).refusal == ""
    given = tmp_path.joinpath("orders.jsonl").read_bytes()
    tmp_path.joinpath("orders.jsonl").unlink()
    tmp_path.joinpath("orders.jsonl").mkdir()
    steps = len(run.history.records)
    until(lambda: len(run.history.records) > steps + 1 or run.state.over)
    tmp_path.joinpath("orders.jsonl").rmdir()
    tmp_path.joinpath("orders.jsonl").write_bytes(given)  # orders that were carried out once
    assert answer(onlooker, onlooker.act("stop")).refusal == ""
    assert run.wait() and run.state.status == "stopped"


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_deleted_meanwhile_ends_the_run_and_stays_deleted(stepwise, tmp_path, again):
    run = Run(replace(stepwise, budget=Budget(steps=400)), tmp_path / "run").start()
    until(lambda: len(run.history.records) > 1)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    if again:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "lock").touch()
    with pytest.raises(ValueError, match=r"was deleted while the run '.*' trained in it"):
        run.wait()
    assert [each.name for each in (tmp_path / "run").glob("*")] == (["lock"] if again else [])
    assert run.state.status == "failed"


def test_lines_and_files_that_are_none_of_a_run_s_do_no_harm(tmp_path):
    kind = replace(KINDS["transformer"], budget=Budget(steps=2))
    Run(kind, tmp_path / "run").start().wait()
    for name, line in (("metrics", '{"later\n[]\n3\n'), ("events", "[" * 100_000 + "\n\x00\n")):
        with (tmp_path / "run" / f"{name}.jsonl").open("a") as file:
            file.write(line)
    assert len(RecordedRun(tmp_path / "run").history.records) == 2
    grown = Run(replace(kind, budget=Budget(steps=3)), tmp_path / "run").start()
    assert len(grown.wait().records) == 3
    for text in ("{", "[]", ""):
        config = tmp_path / "run" / "config.json"
        config.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            Run(kind, tmp_path / "run").start().wait()
        assert config.read_text() == text
        beside = tmp_path / f"{kind.name}-{kind.seed}-beside"
        beside.mkdir(exist_ok=True)
        (beside / "config.json").write_text(text)
        assert len(Run(kind, tmp_path / f"other{len(text)}").start().wait().records) == 2


def test_a_run_that_is_started_again_here_hears_only_orders_of_its_new_life(stepwise, tmp_path):
    run = Run(replace(stepwise, budget=Budget(steps=400)), tmp_path).start()
    until(lambda: len(run.history.records) > 1)
    onlooker = RecordedRun(tmp_path)
    onlooker.act("stop")
    run.wait()
    run.start()
    until(lambda: run.state.status == "running")
    assert answer(onlooker, onlooker.act("save")).refusal == ""
    assert not run._control.stopping
    run.stop()
    run.wait()


def test_an_order_that_comes_during_the_last_step_is_refused_and_not_forgotten(tmp_path):
    def ordering(experiment: TextExperiment) -> list[str]:
        order = RecordedRun(tmp_path).act("pause")
        return [*words(experiment), order, order]

    run = Run(TextExperiment("toy", 320, ordering), tmp_path).start()
    run.wait()
    (late,) = RecordedRun(tmp_path).answers.values()
    assert (late.step, late.command, late.refusal) == (1, "pause", "The run 'toy' is finished: it cannot pause.")


def test_a_run_that_is_paused_before_it_begins_hears_orders(tmp_path):
    kind = KINDS["text tokenizer"]
    run = Run(kind, tmp_path)
    run.pause()  # before it has begun
    run.start()
    until(lambda: (tmp_path / "state.json").exists())
    onlooker = RecordedRun(tmp_path)
    assert until(lambda: onlooker.state.status == "paused")
    assert answer(onlooker, onlooker.act("resume")).refusal == ""
    run.wait()
    assert run.state.status == "finished"


def test_a_panel_shows_every_kind_live_and_from_its_folder(kind, tmp_path):
    run = Run(kind, tmp_path).start()
    live = RunPanel(run)
    history = run.wait()
    for panel in (live, RunPanel(tmp_path)):
        assert panel.history == history and panel.state.status == "finished"
        assert panel.figure().axes or "loss" not in history.names
        panel.close()


# Killing

KILLED = """
import sys
sys.path[:0] = {paths!r}
from test_trainable import *
from chameleon_lab.training.modules import PacedModule
torch.set_num_threads(1)
step = PacedModule.training_step
PacedModule.training_step = lambda *arguments: (time.sleep({rest}), step(*arguments))[1]
Run(KINDS[{kind!r}], {folder!r}).start().wait()
"""
"""`rest`: seconds before each step, so that an onlooker's order comes before the end."""


@pytest.mark.parametrize("name", STEPWISE)
def test_a_killed_process_s_run_is_seen_steered_and_goes_on_bitwise(name, tmp_path):
    here, folder = Path(__file__).parent, tmp_path / "killed"
    script = KILLED.format(paths=[str(here), str(here.parent)], kind=name, folder=str(folder), rest=0.6)
    first = Forked(script, tmp_path / "killed.log")
    until(lambda: (folder / "metrics.jsonl").exists())
    onlooker = RecordedRun(folder)
    until(lambda: len(onlooker.history.records) > 1 or not first.running)
    assert onlooker.state.status == "running" and onlooker.state.process == first.pid
    assert answer(onlooker, onlooker.act("pause")).refusal == ""
    assert until(lambda: onlooker.state.status == "paused")
    assert answer(onlooker, onlooker.act("save")).refusal == ""
    until(lambda: any((folder / "checkpoints").glob("step-*[1-9]*.ckpt")))
    first.kill()
    assert onlooker.state.status == "interrupted"
    Run(KINDS[name], folder).start().wait()  # in this process, which is another
    assert onlooker.state.status == "finished" and len(onlooker.history.records) == STEPS
    Run(KINDS[name], tmp_path / "whole").start().wait()
    assert same(folder, tmp_path / "whole") and values(onlooker) == values(RecordedRun(tmp_path / "whole"))


@pytest.mark.slow
def test_processes_that_share_a_training_obey_at_the_same_step(tmp_path):
    here, folder, script = Path(__file__).parent, tmp_path / "run", tmp_path / "train.py"
    source = KILLED.format(paths=[str(here), str(here.parent)], kind="transformer", folder=str(folder), rest=0.0)
    longer = "replace(KINDS['transformer'], budget=Budget(steps=10_000))"
    script.write_text(source.replace("Run(KINDS['transformer'], ", f"Run({longer}, processes=2, folder="))
    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path) as process:
        until(lambda: (folder / "metrics.jsonl").exists(), 200)
        onlooker = RecordedRun(folder)
        until(lambda: len(onlooker.history.records) > 1, 200)
        answer(onlooker, onlooker.act("pause"))
        until(lambda: onlooker.state.status == "paused")
        assert answer(onlooker, onlooker.act("change", rate=1e-3)).refusal == ""
        made = len(onlooker.history.records)
        onlooker.act("resume")
        until(lambda: len(onlooker.history.records) > made)
        process.send_signal(signal.SIGINT)  # only to the first: the other is told
        assert process.wait(120) == 1 or process.returncode == -signal.SIGINT
    assert onlooker.state.status == "stopped" and onlooker.history.interventions[0].after == 1e-3
    assert (folder / "checkpoints" / "last.ckpt").exists()
