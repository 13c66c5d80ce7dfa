"""What lies in the place of a file and is none is told at once: a pipe would wait, and a device never end."""

import json
import os
import shutil
import signal
import socket
import sys
from dataclasses import asdict

import pytest
from fuzz_rooms import FOLDER_READERS, copied
from support import IN_PLACES, in_place_of
from test_damage import in_so_much_memory

from chameleon_lab.documents import Document
from chameleon_lab.files import absence, require_regular
from chameleon_lab.history import RecordedRun, RunState
from chameleon_lab.storage import resumable_folder
from chameleon_lab.studies import Journal, Study
from chameleon_lab.training.folder import Appender, RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux has it")


@pytest.mark.parametrize("name", ["pairs", "conversations", "prompts", "bank", "coco", "geneval"])
def test_in_the_place_of_any_file_it_is_an_error_that_names_it_or_nobody_minds(tmp_path, name):
    """Of each kind of file in a folder one; the fuzz does the others, and the other folders."""
    reader, whole = FOLDER_READERS[name], tmp_path / "whole"
    whole.mkdir()
    reader.make(whole)
    files = [file.relative_to(tmp_path / "first") for file in copied(whole, tmp_path / "first")]
    kinds = {(file.parent.name if name == "benchmarks" else "", file.suffix): file for file in files}

    def look() -> None:
        for file in kinds.values():
            for state in ("a pipe", "a folder", "a device"):  # which wait, which fail, which do not end
                copied(whole, tmp_path / "read")
                in_place_of(tmp_path / "read" / file, state)
                signal.alarm(120)
                try:
                    reader.read(tmp_path / "read")
                except (ValueError, OSError) as error:
                    named = str(tmp_path / "read") in str(error) or file.stem in str(error)
                    assert named, f"{file}, {state}: {error}"
                shutil.rmtree(tmp_path / "read")

    in_so_much_memory(2**30, look)


@pytest.mark.parametrize("state", IN_PLACES)
def test_what_is_there_instead_of_a_file_is_said(tmp_path, state):
    place = tmp_path / "config.json"
    in_place_of(place, state)
    if state == "empty":
        assert absence(place) == "" and require_regular(place) == place
        return
    with pytest.raises((ValueError, FileNotFoundError), match=f"{place}.*|There is no file"):
        require_regular(place)
    assert absence(place) == ("is missing" if state == "missing" else f"is {state}, not a file")


def test_a_link_to_nothing_is_said(tmp_path):
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    assert absence(tmp_path / "link") == "is a link to what is not there"


@pytest.mark.parametrize("state", ["a pipe", "a folder", "a link to nothing"])
@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "orders.jsonl", "judges/Ann.jsonl", "x.partial/lock"])
def test_in_the_place_of_a_file_that_grows_it_is_an_error_and_nobody_waits(tmp_path, name, state):
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    os.symlink(tmp_path / "gone" / "x", place) if state == "a link to nothing" else in_place_of(place, state)
    signal.alarm(60)
    if name == "metrics.jsonl":
        appender = Appender(place)
        appender.write("x")
        assert appender.flush()
    elif name == "judges/Ann.jsonl":
        replies = {name: [Document.of(name)] for name in ("ours", "theirs")}
        Study.of_pairs("a study", [Document.of("a question")], replies).write(tmp_path)
        with pytest.raises(OSError, match="move it away"):
            Journal(tmp_path, "Ann")
    elif name == "x.partial/lock":
        with pytest.raises(OSError, match="move it away"), resumable_folder(tmp_path / "x"):
            pass
    elif name == "lock":
        with pytest.raises(OSError, match="move it away"), RunFolder(tmp_path).locked():
            pass
    else:
        state = RunState("run", "running", process=os.getpid(), host=socket.gethostname())
        (tmp_path / "state.json").write_text(json.dumps(asdict(state)))
        with pytest.raises((OSError, ValueError), match=r"orders\.jsonl"):
            RecordedRun(tmp_path).act("pause")
    signal.alarm(0)
