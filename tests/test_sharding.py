"""Weights in parts make the same steps as whole ones; what is written in parts becomes a model in any format."""

import json
import pickle
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import shared_ranks
from test_launch import CPU, PLAIN, TOYS

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.adapters import LoRA
from chameleon_lab.commands.main import main
from chameleon_lab.history import RecordedRun
from chameleon_lab.monitors.attention import AttentionBound
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.stability import FIXES, Dropout, QKClip, QueryKeyNorm, kind
from chameleon_lab.training.experiments import LAB, Experiment
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.modules import Budget
from chameleon_lab.training.run import Run
from chameleon_lab.training.sharded_files import PartOfCheckpoint, link_checkpoint, name_checkpoint, sharded_tensors
from chameleon_lab.training.sharding import drawn_model, require_shardable, weights_later
from chameleon_lab.transformer import Transformer

SHAPE = replace(PLAIN.model, fixes=(QueryKeyNorm(),))
PARTS = replace(PLAIN, name="parts", model=SHAPE, monitors=MONITORS, held_out_every=4, recompute=True)
CODE = (
    TOYS
    + """
from test_sharding import *
stops = [At(0, {stop}, stopped), At(1, {stop}, stopped)]
raise SystemExit(take_part(PARTS, Path({folder!r}), CPU | dict(strategy="fsdp", callbacks=stops)))
"""
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A run of two processes with FSDP2 that was stopped after a step and started again."""
    folder = tmp_path_factory.mktemp("parts") / "run"
    ranks = shared_ranks()
    for stop in (3, 99):
        codes = ranks(CODE.format(stop=stop, folder=str(folder)), 2, folder.with_suffix(".log"))
        assert codes == [0, 0], folder.with_suffix(".log").read_text()
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Run:
    """The same steps by one process, whose weights are whole."""
    run = PARTS.run(tmp_path_factory.mktemp("one") / "one", trainer=CPU | {"accumulate_grad_batches": 2})
    run.wait()
    return run


def test_two_processes_with_weights_in_parts_make_the_steps_of_one(parts, one):
    one, two = one.history, RecordedRun(parts).history
    for name in ("loss", "text_loss", "image_loss", "held_out_loss", "tokens"):
        assert two.series(name)[0] == one.series(name)[0]
        assert two.series(name)[1] == pytest.approx(one.series(name)[1], abs=1e-5)
    for name in ("gradient_norm", "update_ratio"):
        assert two.series(name)[1] == pytest.approx(one.series(name)[1], rel=1e-3)
    read = {name.removeprefix("held_out_") for record in one.records for name in record.values} - set(two.names)
    assert read == {"gradient_cosine", *(f"{each}_gradient_share" for each in ("text", "image", "special"))}
    (alarm, *_) = two.alarms
    assert alarm.rule == "monitors" and "GradientBalance" in alarm.message and "samples" in alarm.message


def test_a_checkpoint_in_parts_goes_on_only_in_parts(parts, one):
    with pytest.raises(ValueError, match="a checkpoint in parts, as strategy='fsdp' writes it: go on with"):
        Run(replace(PARTS, budget=Budget(steps=12)), parts).start().wait()
    assert one.state.status == "finished"


@pytest.fixture(scope="module")
def native(parts, tmp_path_factory) -> Path:
    return consolidated(parts, tmp_path_factory.mktemp("native"), "native")


def consolidated(parts: Path, folder: Path, name: str) -> Path:
    (folder / "train.py").write_text("from test_sharding import PARTS as experiment\n")
    words = ["consolidate", str(parts), str(folder / name), "--format", name]
    words += ["--from", str(folder / "train.py"), *["--without-pictures"] * (name != "native")]
    assert main(words) == 0
    return folder / name


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_checkpoint_in_parts_becomes_a_model_of_each_format(name, parts, one, native, tmp_path, monkeypatch):
    alive, held, put_together = list[weakref.ref[torch.Tensor]](), list[int](), PartOfCheckpoint.__call__

    def counted(self: PartOfCheckpoint) -> torch.Tensor:
        tensor = put_together(self)
        alive.append(weakref.ref(tensor))
        held.append(sum(each.nbytes for each in (reference() for reference in alive) if each is not None))
        return tensor

    monkeypatch.setattr(PartOfCheckpoint, "__call__", counted)
    folder = consolidated(parts, tmp_path, name)
    weights = sum(tensor.nbytes for tensor in sharded_tensors(RunFolder(parts).checkpoint).values())
    assert max(held) < weights / 2  # a few tensors at once
    lab = Chameleon.load(folder, layout=name, tokenizer=native)
    assert name != "native" or lab.card["experiment"]["name"] == "parts"
    whole = one.result()
    tokens_BT = torch.arange(0, lab.vocabulary.size, 7)[None]
    torch.testing.assert_close(lab.model(tokens_BT), whole(tokens_BT), rtol=0, atol=1e-4)
    assert torch.equal(lab.model(tokens_BT), Chameleon.load(native).model(tokens_BT))
    for place, tensor in whole.state_dict().items():
        torch.testing.assert_close(lab.model.state_dict()[place], tensor, rtol=0, atol=1e-5)


class Trap:
    def __reduce__(self):
        return (print, ("opened",))


def test_damage_of_any_part_is_named_and_nothing_is_unpickled(parts, tmp_path, capsys):
    last = parts / "checkpoints" / "last.ckpt"
    names = sorted(path.name for path in last.iterdir())
    assert names == [".metadata", "__0_0.distcp", "__1_0.distcp", "contents.json", "meta.pt"]
    for number, name in enumerate(names):
        folder = RunFolder(tmp_path / str(number))
        shutil.copytree(last, folder.checkpoint)
        (folder.checkpoint / name).unlink()
        with pytest.raises(ValueError, match=rf"last.ckpt is damaged \((its part {name} is missing|.*no readable)"):
            folder.whole_checkpoint()
        shutil.copy(last / name, folder.checkpoint / name)
        assert folder.whole_checkpoint() == (folder.checkpoint, "")
    with (folder.checkpoint / ".metadata").open("wb") as file:
        pickle.dump(Trap(), file)
    sums = json.loads((folder.checkpoint / "contents.json").read_text())
    sums.pop(".metadata")
    (folder.checkpoint / "contents.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match=r"builtins.print, which is no part of a checkpoint"):
        folder.whole_checkpoint()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("before", [None, "file", "folder"])
def test_a_checkpoint_takes_its_name_from_whatever_had_it(before, tmp_path):
    path, partial = tmp_path / "last.ckpt", tmp_path / "last.partial"
    if before:
        path.mkdir() if before == "folder" else path.write_text("old")
    partial.mkdir()
    (partial / "part").write_text("new")
    name_checkpoint(partial, path)
    link_checkpoint(path, tmp_path / "kept.ckpt")
    assert (tmp_path / "kept.ckpt" / "part").read_text() == "new" == (path / "part").read_text()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept.ckpt", "last.ckpt"]


@pytest.mark.parametrize("name", [name for name, fix in FIXES.items() if kind(fix) == "model"])
def test_a_model_without_memory_has_the_weights_that_would_have_been_drawn(name):
    config = LAB.with_fixes(FIXES[name]).model
    config = replace(config, vocabulary=40, width=16, layers=2, heads=2, kv_heads=1, head_width=8, ffn_width=24)
    torch.manual_seed(3)
    usual, after = Transformer(config).state_dict(), torch.rand(())
    torch.manual_seed(3)
    with weights_later():
        model = drawn_model(lambda: Transformer(config))
    assert torch.rand(()) == after
    draws = dict(getattr(model, "draws", ()))
    for place, tensor in usual.items():
        here = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        assert here[place].is_meta == (place in draws)
        assert torch.equal(draws[place].tensor(here[place]) if place in draws else here[place], tensor)
    copies = ("mixture_of_transformers", "sigma_reparam")  # make weights of weights, and so have them at once
    assert bool(draws) == (name not in copies)


@pytest.mark.parametrize(
    ("experiment", "why"),
    [
        (replace(PLAIN, recipe=replace(PLAIN.recipe, muon_rate=0.02)), "muon_rate needs them whole"),
        (replace(PLAIN, recipe=replace(PLAIN.recipe, update_clipping=True)), "update_clipping needs them whole"),
        (replace(PLAIN, frozen_rows="codes"), "frozen_rows needs them whole"),
        (replace(PLAIN, monitors=(QKClip(),)), r"QKClip\(.*\) needs them whole \(it changes rows"),
        (replace(PLAIN, adapter=LoRA()), "an adapter needs them whole"),
    ],
)
def test_what_needs_whole_weights_is_refused_by_name(experiment: Experiment, why: str):
    if experiment.adapter is not None:
        pytest.importorskip("peft")
    with pytest.raises(ValueError, match=why):
        require_shardable(experiment.build())


def test_recomputed_blocks_learn_the_same_to_the_bit_from_fewer_activations(tmp_path):
    usual = replace(PLAIN, model=replace(PLAIN.model, fixes=(Dropout(0.2),)), monitors=(*MONITORS, AttentionBound()))
    before = usual.run(tmp_path / "usual").wait()
    after = replace(usual, recompute=True).run(tmp_path / "recomputed").wait()
    assert [record.values for record in after.records] == [record.values for record in before.records]

    def saved(experiment: Experiment) -> int:
        module, total = experiment.build(), 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module.model(module.batches(0).inputs_BT)
        return total

    assert saved(replace(usual, recompute=True)) < saved(usual) / 2
    assert (
        usual.fingerprint == replace(usual, recompute=False).fingerprint != replace(usual, recompute=True).fingerprint
    )


FULL = (
    TOYS
    + """
from test_sharding import *
import errno, resource, torch
import chameleon_lab.training.loop as loop
from torch.distributed.checkpoint.filesystem import FileSystem

def refuses(owner, name, of):
    real = getattr(owner, name)
    def call(*arguments, **options):
        if armed == [of] and (of != "rest" or str(arguments[1]).endswith((".partial", "meta.pt"))):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)
    setattr(owner, name, call)

armed = []
if RANK == 0:
    refuses(FileSystem, "rename", "contents")  # of .metadata
    refuses(torch, "save", "rest")
    refuses(loop, "seal", "seal")
    refuses(loop, "link_checkpoint", "name")
refuses(loop, "checksums", "sums")

class Disk(lightning.Callback):
    \"\"\"Of one process, after a step: it takes no more for one save.\"\"\"
    def on_train_batch_end(self, trainer, module, *_):
        (keeper,) = (each for each in trainer.callbacks if type(each).__name__ == "_Keeper")
        rank, what = {faults}.get(module.step, (0, ""))
        if what:
            self.save(keeper.try_to_save, trainer, module, rank, what)
        if {last} and module.step == 10:
            save = keeper.save
            keeper.save = lambda trainer: self.save(lambda trainer, module: save(trainer), trainer, module, *{last})

    def save(self, save, trainer, module, rank, what):
        armed[:] = [what] if RANK == rank else []
        if armed == ["part"]:  # the system's own refusal, of a file that grows
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            save(trainer, module, **({{"keep": True}} if what == "name" else {{}}))
        finally:
            armed.clear()
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

trainer = CPU | dict(strategy={strategy!r}, callbacks=[Disk()])
raise SystemExit(take_part(PARTS, Path({folder!r}), trainer))
"""
)


@pytest.mark.parametrize(
    ("strategy", "faults"),
    [
        (
            "fsdp",
            {1: (1, "part"), 2: (0, "part"), 3: (0, "contents"), 4: (0, "rest"), 6: (1, "sums"), 7: (0, "seal")},
        ),
        ("ddp", {1: (0, "part"), 6: (0, "name")}),
    ],
)
def test_a_disk_of_one_process_that_takes_no_checkpoint_leaves_the_last_good_one(strategy, faults, one, tmp_path):
    """Whichever file of a checkpoint it is, and whichever process: all go on together, and to the same losses."""
    folder, ranks = tmp_path / "run", shared_ranks()
    last = (1, "part") if strategy == "fsdp" else (0, "part")
    about = {"strategy": strategy, "folder": str(folder)}
    codes = ranks(FULL.format(faults=faults, last=last, **about), 2, tmp_path / "log")
    onlooker = RecordedRun(folder)
    assert codes[0] == 2 and codes[1], (tmp_path / "log").read_text()
    assert onlooker.state.status == "failed" and "make room on its disk" in onlooker.state.error
    assert "goes on from the last good checkpoint" in onlooker.state.error
    alarms = [alarm for alarm in onlooker.history.alarms if alarm.rule == "checkpoint"]
    assert [alarm.step for alarm in alarms] == [*faults]
    for alarm, (rank, what) in zip(alarms, faults.values(), strict=True):
        reason = "too large|unexpected pos|write" if what == "part" else "No space left"
        assert re.search(reason, alarm.message) and alarm.message.endswith("the last good one is kept")
        assert f"process {rank}" in alarm.message or what in ("seal", "name")
    assert not [*folder.glob("checkpoints/*.partial")]
    kept, fault = RunFolder(folder).whole_checkpoint()
    assert kept == RunFolder(folder).checkpoint and not fault  # that of the half, which stands in no fault's way
    assert ranks(FULL.format(faults={}, last=None, **about), 2, tmp_path / "log") == [0, 0], (
        tmp_path / "log"
    ).read_text()
    assert onlooker.state.status == "finished"
    assert onlooker.history.series("loss")[1] == pytest.approx(one.history.series("loss")[1], abs=1e-5)
