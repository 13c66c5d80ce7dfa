"""Folders are there whole or not at all, whatever kills their writer and whenever; the next write clears away."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from chameleon_lab import storage
from chameleon_lab.checkpoints import native
from chameleon_lab.corpora.shards import write_shards
from chameleon_lab.documents import Document
from chameleon_lab.retrieval.bank import Bank
from chameleon_lab.retrieval.encoders import TwoTower, TwoTowerConfig
from chameleon_lab.storage import whole_folder, write_file

FILE_EVENTS = ("open", "os.", "shutil.", "ctypes.call", "ctypes.dlsym")


def killed_at(work: Callable[[], object], place: int) -> bool:
    """Has a child do some work and die by SIGKILL at its n-th operation on files; whether it came that far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: the child only writes files
        child = os.fork()
    if not child:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            read = event == "open" and arguments[1] == "r"
            if event.startswith(FILE_EVENTS) and not read and not event.startswith("os.listdir"):
                count += 1
                if count == place:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "it neither died nor wrote"
    return os.WIFSIGNALED(status)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fill(folder: Path, letter: str) -> None:
    with whole_folder(folder, stays=lambda entry: entry.name == "notes") as whole:
        for name in (f"only-{letter}", "inner/weights"):
            write_file(whole / name, letter * 9)


@pytest.mark.skipif(sys.platform != "linux", reason="forks beside threads")
@pytest.mark.parametrize("swaps", [True, False], ids=["exchange", "two renamings"])
def test_a_writer_killed_at_any_operation_leaves_old_or_new_and_nothing_stays_over(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(storage, "EXCHANGES", {})
    folder = tmp_path / "model"
    for there in (False, True) if swaps else (True,):
        for place in range(1, 200):
            if there:
                fill(folder, "a")
                write_file(folder / "notes" / "mine.txt", "mine")
            died = killed_at(lambda: fill(folder, "b"), place)
            storage.recover(folder)
            if there or folder.exists():
                whole = files(folder)
                letters = {content for name, content in whole.items() if name != "notes/mine.txt"}
                assert letters in ({b"a" * 9}, {b"b" * 9}), f"a mixture after operation {place}"
                assert len(letters) == 1 and len(whole) == 2 + there and f"only-{letters.pop().decode()[0]}" in whole
            fill(folder, "c")
            assert {each.name for each in tmp_path.iterdir()} == {"model"}, f"left over after operation {place}"
            assert files(folder).keys() - {"notes/mine.txt"} == {"only-c", "inner/weights"}
            if not there:
                for each in sorted(folder.rglob("*"), reverse=True):
                    each.unlink() if each.is_file() else each.rmdir()
                folder.rmdir()
            if not died:
                break
        assert 10 < place < 199


ENCODER = TwoTower(TwoTowerConfig(16, 64, 32, (4, 8))).eval()

WRITERS: dict[str, Callable] = {
    "native": lambda lab, folder: lab.save(folder),
    "huggingface": lambda lab, folder: lab.save(folder, "huggingface", pictures=False),
    "meta": lambda lab, folder: lab.save(folder, "meta", pictures=False),
    "image tokenizer": lambda lab, folder: native.write_image_tokenizer(lab.tokenizer.image, folder),
    "anole": lambda lab, folder: lab.save(folder, "anole", pictures=False),
    "encoder": lambda lab, folder: ENCODER.save(folder),
    "bank": lambda lab, folder: Bank.of([Document.of("a cat"), Document.of("a dog")], ENCODER, lab.tokenizer).save(
        folder
    ),
    "shards": lambda lab, folder: write_shards(folder, iter([Document.of("a"), Document.of("b")]), lab.tokenizer),
}


@pytest.mark.skipif(sys.platform != "linux", reason="forks beside threads")
@pytest.mark.parametrize("name", WRITERS)
def test_every_folder_the_lab_writes_is_whole_or_not_there(lab, tmp_path, name):
    folder, write = tmp_path / "made", WRITERS[name]
    write(lab, tmp_path / "whole")
    whole = files(tmp_path / "whole")
    for place in (2, 6, 11, 17, 24, 32):
        if not killed_at(lambda: write(lab, folder), place):
            break
        assert not folder.exists() or files(folder).keys() == whole.keys()
    if folder.exists() and name in ("huggingface", "anole", "meta", "shards"):
        return  # these never replace a folder, and it has become whole
    write(lab, folder)
    assert {each.name for each in tmp_path.iterdir()} == {"made", "whole"} and files(folder) == whole


def test_a_model_saved_over_another_keeps_what_is_not_its_own_and_no_old_weights(lab, make_lab, lettered, tmp_path):
    folder = tmp_path / "model"
    lab.save(folder)
    (folder / "README.md").write_text("mine")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    make_lab(lab.tokenizer.with_parts(lab.tokenizer.text, None)).save(folder)
    names = files(folder).keys()
    assert {"README.md", ".git/HEAD", "config.json", "model.safetensors"} == set(names)
    lab.save(folder)
    with pytest.raises(ValueError, match="holds a whole model"):
        native.write_image_tokenizer(lab.tokenizer.image, folder)


def test_only_what_dead_writers_of_this_folder_left_is_removed(tmp_path):
    host, folder = storage._mark(tmp_path / "model").split(".", 2)[2], tmp_path / "model"
    here = f".model.{host}"
    dead = [f"{here}999999999.0123abcd.partial", f"{here}{os.getpid()}-x.0123abcd.partial", ".model-ab12cd_4"]
    living = f"{here}{os.getppid()}-{storage.process_start(os.getppid())}.0123abcd.partial"
    reused = f"{here}{os.getppid()}-another_1.0123abcd.partial"
    others = [".model.elsewhere.1.0123abcd.partial", ".model2-ab12cd_4", ".model-ab12cd_5", f"{here}x.partial"]
    for name in (*dead, living, reused, *others):
        (tmp_path / name).mkdir()
    (tmp_path / ".model-ab12cd_4" / "whole").mkdir()
    (tmp_path / ".model-ab12cd_5" / "somebody's").mkdir()
    fill(folder, "a")
    assert {each.name for each in tmp_path.iterdir()} == {"model", living, *others}


def test_what_is_somebody_s_is_never_replaced(tmp_path):
    folder = tmp_path / "model"
    write_file(folder / "ours.bin", "old")
    write_file(folder / ".notes", "hidden")
    with whole_folder(folder, ("ours.bin", "other.bin")) as whole:
        write_file(whole / "other.bin", "new")
    assert files(folder) == {"other.bin": b"new", ".notes": b"hidden"}
    write_file(folder / "photographs" / "me.jpg", "theirs")
    before = files(folder)
    for ours in ((), ("other.bin",)):
        with pytest.raises(ValueError, match=r"photographs.*would be lost"), whole_folder(folder, ours):
            pytest.fail("it began to write")
    assert files(folder) == before and [each.name for each in tmp_path.iterdir()] == ["model"]


def test_what_fails_within_leaves_the_old_folder_and_nothing_else(tmp_path):
    fill(tmp_path / "model", "a")
    for error in (ValueError, KeyboardInterrupt, OSError):
        with pytest.raises(error), whole_folder(tmp_path / "model", ("only-a", "inner")) as whole:
            (whole / "only-b").write_text("b")
            raise error
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
    assert files(tmp_path / "model")["inner/weights"] == b"a" * 9


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    fill(tmp_path / "there" / "real", "a")
    (tmp_path / "model").symlink_to(tmp_path / "there" / "real")
    fill(tmp_path / "model", "b")
    assert (tmp_path / "model").is_symlink() and files(tmp_path / "there" / "real")["inner/weights"] == b"b" * 9


def test_a_number_used_again_by_another_process_is_not_alive():
    from chameleon_lab.history import alive, process_start

    start = process_start(os.getpid())
    assert alive(os.getpid()) and alive(os.getpid(), start)
    assert not alive(os.getpid(), "another_1") or not start
