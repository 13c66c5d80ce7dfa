"""Random kills and interrupts, by command; it prints a table. `LAB_KILLS` and `LAB_INTERRUPTS` say how many, `LAB_SEED`
when and where.

LAB_KILLS=200 LAB_INTERRUPTS=1000 python -m pytest -m slow tests/benchmarks/test_reliability.py -s
"""

import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from support import IMAGE
from test_emoji import write_emoji
from test_interrupts import REPLIES, Interrupts, begun, check_interrupted, everything, plain, read_on
from test_storage import files

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import formats
from chameleon_lab.corpora.shards import Shards, write_shards
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.retrieval.encoders import TwoTowerConfig
from chameleon_lab.tokenizers.image import TINY_IMAGES, ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.training.alignment import SceneCategory, alignment_on, save_aligned
from chameleon_lab.training.data import Instructions, Scenes
from chameleon_lab.training.emoji import EmojiDocuments, emoji_transformer
from chameleon_lab.training.encoders import DocumentPairs, EncoderExperiment
from chameleon_lab.training.experiments import TINY
from chameleon_lab.training.fine_tuning import fine_tune
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.image_experiments import TINY_PICTURES
from chameleon_lab.training.infilling import INFILLING, InfillDocuments, encode_scenes
from chameleon_lab.training.instructions import train_instructions
from chameleon_lab.training.modules import Budget
from chameleon_lab.training.own.training import OwnTraining
from chameleon_lab.training.reinforcement import GRPO, RewardExperiment
from chameleon_lab.training.retrieval import LOOKING_UP, FlagDocuments
from chameleon_lab.vocabulary import Vocabulary

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks beside threads")]

KILLS = int(os.environ.get("LAB_KILLS", "40"))
INTERRUPTS = int(os.environ.get("LAB_INTERRUPTS", "200"))
SEED = int(os.environ.get("LAB_SEED", "0"))
STEPS = 8


def kill_after(seconds: float, work: Callable[[], object]) -> bool:
    """Has a child do some work and kills it after so long; whether it was killed before it was done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the work itself failed"
    return os.WIFSIGNALED(status)


def hidden(folder: Path) -> list[str]:
    return [each.name for each in folder.rglob("*") if each.name.startswith(".") or "partial" in each.name]


def kill_trainings(place: Path, count: int, rng: random.Random, finish: Callable[[Path], object]) -> tuple[int, int]:
    """(kills that met a training, folders that were whole and bitwise the same in the end). `finish` begins a training
    in a folder, or goes on there, to its end."""
    place.mkdir()
    started = time.monotonic()
    finish(place / "whole")
    lasts, expected, met, same = time.monotonic() - started, outcome(place / "whole"), 0, 0
    while met < count:
        folder = place / f"{same}"
        while met < count and kill_after(rng.uniform(0.1, 1.1) * lasts, partial(finish, folder)):
            met += 1
        lasts *= 0.9  # the first took longer than the others, which find all imported
        finish(folder)
        assert outcome(folder) == expected and not hidden(folder)
        same += 1
    return met, same


def outcome(folder: Path) -> dict[str, Any]:
    """Every loss that a training recorded, and every weight that it wrote."""
    runs = [path.parent for path in sorted(folder.rglob("metrics.jsonl"))]
    losses = {
        str(run.relative_to(folder)): [(each.step, each.values) for each in RunFolder(run).history.records]
        for run in runs
    }
    weights = {name: content for name, content in files(folder).items() if name.endswith(".safetensors")}
    states = {
        str(run.relative_to(folder)): torch.load(RunFolder(run).checkpoint, weights_only=True)["state_dict"]
        for run in runs
        if RunFolder(run).checkpoint.is_file()
    }
    plain = {
        f"{run} {name}": tensor.numpy().tobytes() for run, state in states.items() for name, tensor in state.items()
    }
    assert losses and (weights or plain)
    return {"losses": losses, "weights": weights, **plain}


SMALL_MODEL = replace(TINY.model, width=32, layers=1, heads=2, kv_heads=2, head_width=16, ffn_width=48)


def trainings_under_kills(tmp_path: Path, lab: Chameleon) -> dict[str, Callable[[Path], object]]:
    """Each kind of training that the lab has, small: what begins one in a folder, or goes on there, to its end."""
    budget, tiny = Budget(steps=STEPS), Chameleon.load("tiny", device="cpu").tokenizer
    images = replace(TINY_PICTURES, tokenizer=IMAGE, budget=budget, batch=2, crop=16, checkpoints=3)
    base = replace(
        TINY,
        model=replace(lab.model.config, context=500),
        begins_from=None,
        budget=budget,
        data=Scenes(lab.tokenizer, tokens=236, held_out=2),
        monitors=(),
        checkpoints=3,
    )
    lab.save(tmp_path / "base")
    filling = replace(INFILLING, begins_from=None, model=SMALL_MODEL, budget=budget)
    encode_scenes(tiny, tmp_path / "scenes", np.arange(40))
    torch.manual_seed(0)
    drawings = ImageTokenizer(replace(TINY_IMAGES, codes=64, widths=(8, 16), groups=4)).eval()
    words = ByteTokenizer()
    emoji = MixedModalTokenizer(words, drawings, Vocabulary.layout(64, words.size))
    corpus = write_emoji(tmp_path / "emoji-corpus")
    documents = EmojiDocuments(corpus, emoji, tokens=300, read=2)
    artwork = replace(emoji_transformer(corpus, emoji, 300), model=SMALL_MODEL, data=documents, budget=budget)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        PIL.Image.new("RGB", (40 + number, 48), (20 * number, 90, 200 - 10 * number)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"thing {number}")
    own: dict[str, Any] = {"side": 16, "grid": 4, "codes": 32, "width": 64, "layers": 1, "tokens": 128}
    own |= {"steps": (STEPS, STEPS), "say": lambda words: None}
    pairs = DocumentPairs(
        tuple(Document.of(f"thing {n}", PIL.Image.new("RGB", (32, 32), (9 * n, 5, 9))) for n in range(16))
    )
    encoder = EncoderExperiment(
        encoder=TwoTowerConfig(side=32, channels=(8, 16)), pairs=pairs, batch=8, budget=budget, checkpoints=3
    )
    flags = replace(
        LOOKING_UP, begins_from=None, model=SMALL_MODEL, budget=budget, data=FlagDocuments(tiny, tokens=300)
    )
    infill = replace(filling, data=InfillDocuments(tmp_path / "scenes", tiny, tokens=300))
    chats = {name: SceneCategory(name, 12) for name in ("text", "visual chat")}
    aligned = alignment_on(chats, tmp_path / "base", rows=2, context=400, budget=budget, checkpoints=3)
    rewarded = RewardExperiment(
        "brightness",
        brightness,
        lambda rng: Document.of(f"draw {rng.integers(100)}", EndTurn()),
        budget,
        begins_from=tmp_path / "base",
        grpo=GRPO(group=2, prompts=2),
        monitors=(),
        checkpoints=3,
    )
    return {
        "image tokenizer": lambda folder: images.run(folder).result(),
        "fine-tuning": lambda folder: fine_tune(
            replace(base, begins_from=tmp_path / "base"), folder, earlier=base.data
        ),
        "infilling": lambda folder: infill.run(folder).result(),
        "emoji": lambda folder: artwork.run(folder).result(),
        "looking up": lambda folder: flags.run(folder).result(),
        "own data": lambda folder: OwnTraining(pictures, folder, 0.5, **own).result(),
        "retrieval encoder": lambda folder: encoder.run(folder).result(),
        "alignment": lambda folder: save_aligned(
            aligned.run(folder / "transformer").result(), aligned, folder / "model"
        ),
        "instructions": lambda folder: train_instructions(folder, budget, Instructions(tokens=300), every=1e9),
        "reinforcement": lambda folder: rewarded.run(folder).result(),
    }


def brightness(document: Document) -> float:
    return float(np.mean([np.asarray(picture).mean() for picture in document.pictures])) / 255


def kill_writers(
    place: Path, count: int, rng: random.Random, old: Callable[[Path], object] | None, new: Callable[[Path], object]
) -> tuple[int, int]:
    """(kills that met a writer, folders that were old, new or absent, and whole)"""
    place.mkdir()
    new(place / "new")
    started = time.monotonic()
    (old or new)(place / "old")
    lasts, met, whole = max(0.02, time.monotonic() - started), 0, 0
    wanted = [contents(place / name) for name in ("old", "new")]
    target = place / "target"
    while met < count:
        if old and not target.exists():
            old(target)
        met += kill_after(rng.uniform(0, 1.1) * lasts, lambda: new(target))
        assert (not target.exists() and not old) or contents(target) in wanted
        whole += 1
        (place / "away").mkdir(exist_ok=True)
        if target.exists():
            target.rename(place / "away" / str(whole))
    (old or new)(target)
    assert not [name for name in hidden(place) if ".target" in name]
    return met, whole


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if not name.startswith("card.json")}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # how many there are decides the last bits of a sum


def test_random_kills(lab, make_lab, mixed, spelled, tmp_path):
    rng, each = random.Random(SEED), max(1, KILLS // 5)
    other = make_lab(mixed, layers=1)
    documents = [Document.of("a word " * 20)] * 60
    convert = lambda folder: formats.write_opened(formats.open_folder(tmp_path / "model"), folder)  # noqa: E731
    lab.save(tmp_path / "model")
    rows = {
        "saves over a model": kill_writers(tmp_path / "saves", each, rng, other.save, lab.save),
        "saves of a new one": kill_writers(tmp_path / "fresh", each, rng, None, lab.save),
        "conversions": kill_writers(tmp_path / "conversions", each, rng, None, convert),
        "tokenizations": kill_writers(
            tmp_path / "shards", each, rng, None, lambda folder: write_shards(folder, iter(documents), lab.tokenizer)
        ),
    }
    print_kills(rows)
    assert isinstance(Chameleon.load(tmp_path / "saves" / "target"), Chameleon)
    assert len(Shards(tmp_path / "shards" / "target")) == 60


TRAININGS = (
    *("image tokenizer", "fine-tuning", "infilling", "emoji", "looking up", "own data", "retrieval encoder"),
    *("alignment", "instructions", "reinforcement"),
)


@pytest.mark.parametrize("name", TRAININGS)
def test_random_kills_of_trainings(name, lab, tmp_path):
    finish = trainings_under_kills(tmp_path, lab)[name]
    print_kills(
        {name: kill_trainings(tmp_path / "runs", max(1, KILLS // 5 // len(TRAININGS)), random.Random(SEED), finish)}
    )


def print_kills(rows: dict[str, tuple[int, int]]) -> None:
    print("\n| killed | kills | whole afterwards |\n|---|---|---|")
    for name, (met, whole) in rows.items():
        print(f"| {name} | {met} | {whole} |")


def test_random_interrupts(engine):
    rng, rows = random.Random(SEED + 1), dict[str, tuple[int, int]]()
    for name in REPLIES:
        whole, count, replies = list(map(plain, begun(engine, name).stream())), 0, 0
        while count < INTERRUPTS // len(REPLIES):
            often = 10 ** -rng.uniform(3.0, 4.5)
            interrupts = Interrupts(lambda code, place, visits, often=often: rng.random() < often, opcodes=True)
            assert list(map(plain, read_on(begun(engine, name), interrupts, everything))) == whole
            count, replies = count + interrupts.count, replies + 1
        rows[name] = count, replies
    print("\n| replies of | interrupts | replies, all bitwise equal |\n|---|---|---|")
    for name, (count, replies) in rows.items():
        print(f"| {name} | {count} | {replies} |")


@pytest.mark.parametrize("name", REPLIES)
def test_every_instruction(engine, name):
    interrupts = Interrupts(lambda code, place, visits: visits == 1, opcodes=True)
    check_interrupted(engine, name, interrupts, everything)
    print(f"\n{name}: interrupted at {interrupts.count} instructions of the lab's, bitwise equal")
