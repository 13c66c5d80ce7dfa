"""Folders that the lab reads, each whole and small, with what reads it: for the fuzz, and for tests that put something
else in the place of a file."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import PIL.Image
import torch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class FolderReader:
    """`make(folder)` writes good files, and `read(folder)` is all that the lab does with them."""

    make: Callable[[Path], object]
    read: Callable[[Path], object]


@cache
def _lab() -> Any:
    from test_formats import make_lab

    return make_lab()


def _picture(folder: Path, name: str, colour: str = "red", size: tuple[int, int] = (16, 16)) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(folder / name)


def _lines(path: Path, *values: Any) -> None:
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in values))


def _make_pairs(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        _picture(folder, name)
    _lines(
        folder / "pairs.jsonl",
        {"instruction": "make it red", "input": "a.png", "output": "b.png"},
        {"instruction": "how many?", "input": "a.png", "output": "three"},
        {"task": "objects at places", "instruction": "a lawn", "objects": [["a bird", 1, 1, 2, 3]], "output": "b.png"},
    )
    layer = PIL.Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    layer.paste("green", (8, 8, 20, 20))
    (folder / "cut").mkdir()
    layer.save(folder / "cut" / "leaf.png")
    (folder / "cut" / "leaf.txt").write_text("a green leaf")


def _read_pairs(folder: Path) -> None:
    from chameleon_lab.corpora.instructions import cutouts, instruction_documents, instruction_pairs
    from chameleon_lab.corpora.shards import write_shards

    pairs = [*instruction_pairs(folder / "pairs.jsonl"), *cutouts(folder / "cut")]
    write_shards(folder / "out", instruction_documents(pairs), _lab().tokenizer)


def _make_conversations(folder: Path) -> None:
    from test_turns import STYLES

    for name in ("a.png", "b.png"):
        _picture(folder, name)
    _lines(folder / "chats.jsonl", *STYLES.values())


def _read_conversations(folder: Path) -> None:
    from chameleon_lab.training.alignment import Conversations

    Conversations({"chats": folder / "chats.jsonl"}, _lab().tokenizer, rows=2, context=300).open(0, 1).batches(0)


def _make_prompts(folder: Path) -> None:
    _picture(folder, "star.png")
    _lines(
        folder / "own.jsonl",
        {"prompt": "draw a red circle", "shows": ["blue star"], "category": "drawing"},
        {"prompt": "describe it", "images": ["star.png"], "contains": ["Blue", "star"], "pictures": 0},
        {"prompt": "describe it", "images": "star.png", "regex": r"^a (large|small)\b", "check": "few", "limit": 2},
    )
    (folder / "checks.py").write_text("def few(reply, line):\n    return 0.5\n")


def _read_prompts(folder: Path) -> None:
    from chameleon_lab.documents import Document
    from chameleon_lab.evaluation.own_prompts import read_own_prompts

    for prompt in read_own_prompts(folder / "own.jsonl", folder / "checks.py"):
        prompt.score(Document.of("Blue star"))


def _make_benchmarks(folder: Path) -> None:
    from test_benchmarks import FILES, filled

    for name in FILES:
        filled(folder / name, name)


def _read_benchmarks(folder: Path) -> None:
    from chameleon_lab.evaluation.benchmarks import BENCHMARKS, benchmark_items
    from chameleon_lab.pictures import open_picture

    for name, benchmark in BENCHMARKS.items():
        place = benchmark.require_files(folder / name)
        for read in filter(None, (benchmark.read, benchmark.shots_from)):
            for item in benchmark_items(benchmark, place, read):
                if item.picture is not None:
                    open_picture(item.picture)


@cache
def _encoder() -> Any:
    from chameleon_lab.retrieval.encoders import TwoTower, TwoTowerConfig

    torch.manual_seed(0)
    return TwoTower(TwoTowerConfig(16, 64, 32, (4, 8))).eval()


def _make_bank(folder: Path) -> None:
    from chameleon_lab.documents import Document, Image
    from chameleon_lab.retrieval.bank import Bank

    picture = PIL.Image.new("RGB", (16, 16), "red")
    documents = [Document.of(words, Image(picture)) for words in ("a cat", "a dog", "a bus")]
    Bank.of(documents, _encoder(), _lab().tokenizer).save(folder / "bank")
    _encoder().save(folder / "encoder")


def _read_bank(folder: Path) -> None:
    from chameleon_lab.documents import Document, EndTurn
    from chameleon_lab.retrieval.bank import Bank
    from chameleon_lab.retrieval.encoders import TwoTower
    from chameleon_lab.retrieval.retriever import Retriever

    bank, encoder = Bank.load(folder / "bank"), TwoTower.load(folder / "encoder")
    bank.search(encoder.encode_text(["a cat"]), 2)
    _ = [*bank.documents]
    Retriever(_lab(), bank, encoder).look_up(Document.of("a cat", EndTurn()))


def _make_coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(3)]
    for name in names:
        _picture(folder / "val2014", name)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "id": number, "caption": "a cat"} for number in range(3)]
    plain = {"images": images, "annotations": annotations}
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(plain))
    for number in range(3):
        _picture(folder / "drawn", f"{number:06d}.png")
    _read_coco(folder)


def _read_coco(folder: Path) -> None:
    from chameleon_lab.evaluation.coco import ZeroShot, coco_captions, draw_captions
    from chameleon_lab.pictures import open_picture

    pairs = coco_captions(folder, 3)
    for each in (*draw_captions(_lab(), pairs, folder / "drawn", protocol=ZeroShot(tries=1)), pairs[0].picture):
        open_picture(each)


def _make_geneval(folder: Path) -> None:
    _lines(folder / "prompts.jsonl", {"prompt": "a bench", "tag": "one"}, {"prompt": "a cow", "tag": "one"})
    for number in range(2):
        _picture(folder / "out" / f"{number:05d}", "samples/0000.png")
    _read_geneval(folder)


def _read_geneval(folder: Path) -> None:
    from chameleon_lab.evaluation.geneval import export_geneval

    _ = [*export_geneval(_lab(), folder / "prompts.jsonl", folder / "out", samples=1)]


def _make_launch(folder: Path) -> None:
    _launch(folder)
    (folder / "run" / "checkpoints").mkdir()
    torch.save({"state_dict": {}}, folder / "run" / "checkpoints" / "last.ckpt")


def _launch(folder: Path) -> Any:
    from chameleon_lab.training.data import PAIRS
    from chameleon_lab.training.experiments import LAB
    from chameleon_lab.training.launch import launch

    toy = replace(LAB, name="toy", data=replace(PAIRS, apart=3), monitors=())
    return launch(toy, folder / "run", processes=1, trainer={"accelerator": "cpu"}, start=False)


def _read_launch(folder: Path) -> None:
    run = _launch(folder).run
    _ = run.state, run.config, run.history, run.answers


def _documents(most: int = 600) -> Iterator[Any]:
    from chameleon_lab.documents import Document

    for number in range(600):
        if number == most:
            raise KeyboardInterrupt
        yield Document.of(f"document {number} " + "word " * (number % 7))


@cache
def _shards() -> dict[str, bytes]:
    """What a tokenization that nobody stopped writes."""
    import tempfile

    from chameleon_lab.corpora.shards import write_shards

    with tempfile.TemporaryDirectory() as place:
        write_shards(Path(place, "corpus"), _documents(), _lab().tokenizer, shard_tokens=6000)
        return _bytes_of(Path(place, "corpus"))


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(folder.iterdir())}


def _make_tokenization(folder: Path) -> None:
    from chameleon_lab.corpora.shards import write_shards

    _shards()
    with contextlib.suppress(KeyboardInterrupt):
        write_shards(folder / "corpus", _documents(520), _lab().tokenizer, shard_tokens=6000, resumable=True)


def _read_tokenization(folder: Path) -> None:
    """What goes on ends at the same bytes, or does not go on."""
    from chameleon_lab.corpora.shards import write_shards

    write_shards(folder / "corpus", _documents(), _lab().tokenizer, shard_tokens=6000, resumable=True)
    if _bytes_of(folder / "corpus") != _shards():
        raise TypeError("a damaged tokenization went on to other bytes")


def _make_tables(folder: Path) -> None:
    lines = (ROOT / "data" / "balance.jsonl").read_text().split("\n")[:3]
    (folder / "balance.jsonl").write_text("\n".join(lines) + "\n")
    arms = [{"without": arm, "seed": 0, "steps": 3, "losses": {"caption": 1.5}} for arm in ("all tasks", "caption")]
    _lines(folder / "transfer.jsonl", *arms)


def _read_tables(folder: Path) -> None:
    from chameleon_lab.evaluation.balance import chances_by_balance, read_balances
    from chameleon_lab.evaluation.transfer import read_transfer, task_gains

    chances_by_balance(read_balances(folder / "balance.jsonl"))
    task_gains(read_transfer(folder / "transfer.jsonl"))


FOLDER_READERS = {
    "pairs": FolderReader(_make_pairs, _read_pairs),
    "conversations": FolderReader(_make_conversations, _read_conversations),
    "prompts": FolderReader(_make_prompts, _read_prompts),
    "benchmarks": FolderReader(_make_benchmarks, _read_benchmarks),
    "bank": FolderReader(_make_bank, _read_bank),
    "coco": FolderReader(_make_coco, _read_coco),
    "geneval": FolderReader(_make_geneval, _read_geneval),
    "launch": FolderReader(_make_launch, _read_launch),
    "tokenization": FolderReader(_make_tokenization, _read_tokenization),
    "tables": FolderReader(_make_tables, _read_tables),
}


def copied(whole: Path, place: Path) -> list[Path]:
    """The files of a copy of a folder, without those that nobody reads."""
    shutil.copytree(whole, place)
    names = ("lock", "skipped.jsonl", "start.sh", "requirements.txt")
    files = [each for each in sorted(place.rglob("*")) if each.is_file() and each.name not in names]
    return [each for each in files if each.suffix != ".sbatch"]
