"""What loading and converting a big checkpoint takes of memory. Prints; asserts the bound on memory, nothing of time.

make benchmarks

Mapped pages of files count as resident, but the system takes them back when it needs them; what a process must have is
its anonymous memory, which is read here every few milliseconds from outside. The resident peak is told too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.opened import Parts
from chameleon_lab.checkpoints.tensors import LazyTensor, open_safetensors, size, write_safetensors
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

pytestmark = pytest.mark.slow

GIB = 2**30
LARGE = ModelConfig(
    vocabulary=65_536,
    width=2048,
    layers=16,
    heads=16,
    kv_heads=16,
    head_width=128,
    ffn_width=5504,
    context=4096,
    fixes=(QueryKeyNorm(),),
)
"""1,078,011,904 parameters, 2.16 GB in bfloat16."""

START = """
import sys
import torch
from pathlib import Path
from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.opened import ReadOptions

torch.zeros(2**20).bfloat16()
here = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
"""
END = """
print("done", flush=True)
sys.stdin.readline()
"""
CONVERT = "formats.write_opened(formats.open_folder(here / '{}'), here / '{}', '{}', shards={}, pictures=False)"
TASKS = {
    "load as bfloat16": ("parts = formats.read_parts(here / 'native')", 2),
    "load as float32": ("parts = formats.read_parts(here / 'native', options=ReadOptions(dtype=torch.float32))", 4),
    "native to Meta's, 4 shards": (CONVERT.format("native", "meta", "meta", 4), 0),
    "load Meta's": ("parts = formats.read_parts(here / 'meta')", 2),
    "Meta's to Hugging Face's": (CONVERT.format("meta", "port", "huggingface", None), 0),
    "load Hugging Face's": ("parts = formats.read_parts(here / 'port')", 2),
    "Hugging Face's to native": (CONVERT.format("port", "again", "native", None), 0),
}
"""What is done, and how many bytes of every parameter stay in memory at the end."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, image_config) -> Iterator[Path]:
    """A folder with a native checkpoint of random bfloat16 weights, made shard by shard, and taken away afterwards."""
    folder = tmp_path_factory.mktemp("large")
    text = ByteTokenizer()
    others = Vocabulary.layout(image_config.codes, text.size, sentinels=0).size
    vocabulary = Vocabulary.layout(image_config.codes, text.size, sentinels=LARGE.vocabulary - others)
    tokenizer = MixedModalTokenizer(text, ImageTokenizer(image_config), vocabulary)
    small = Transformer(replace(LARGE, width=8, layers=1, heads=1, kv_heads=1, head_width=8, ffn_width=8))
    formats.write_parts(Parts(small, tokenizer), folder / "native")
    path = folder / "native" / "config.json"
    config = json.loads(path.read_text())
    config["model"] |= {key: value for key, value in asdict(replace(LARGE, fixes=())).items() if key != "fixes"}
    path.write_text(json.dumps(config))
    with torch.device("meta"):
        state = Transformer(LARGE).state_dict()
    write_safetensors({name: drawn(tensor.shape) for name, tensor in state.items()}, folder / "native", largest=10**9)
    yield folder
    shutil.rmtree(folder)


def drawn(shape: torch.Size) -> LazyTensor:
    return LazyTensor(tuple(shape), torch.bfloat16, lambda: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02))


def anonymous(process: int) -> int:
    """Bytes of a process that no file stands behind."""
    return memory(process, "RssAnon") + memory(process, "RssShmem")


def memory(process: int, kind: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(lines[kind].split()[0]) * 1024


def peak(task: str, folder: Path) -> tuple[int, int, float]:
    """Bytes that a task takes at its peak, anonymous and resident, and its seconds, in a process of its own."""
    command = [sys.executable, "-c", START + task + END, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        told = process.stdout
        assert process.stdin and told
        assert told.readline() == "ready\n"
        before = most = anonymous(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        started, done = time.perf_counter(), []
        waiting = threading.Thread(target=lambda: done.append(told.readline()))
        waiting.start()
        while waiting.is_alive():
            most = max(most, anonymous(process.pid))
            waiting.join(0.005)
        seconds = time.perf_counter() - started
        assert done == ["done\n"]
        resident = memory(process.pid, "VmHWM")
        process.stdin.write("end\n")
    return most - before, resident, seconds


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_and_converting_take_the_model_and_little_more(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = open_safetensors(large / "native", "model")
    largest = max(tensor.nbytes for tensor in tensors.values())
    elements = size(tensors) // 2
    with capsys.disabled():
        print(f"\n{elements:,} parameters in bfloat16, {size(tensors) / GIB:.2f} GiB, largest {largest / GIB:.2f} GiB")
    for name, (task, kept) in TASKS.items():
        taken, resident, seconds = peak(task, large)
        over = taken - kept * elements
        with capsys.disabled():
            print(
                f"{name:28s} takes {taken / GIB:.2f} GiB, which is {over / GIB:.2f} GiB beside the model; "
                f"resident with all that is mapped {resident / GIB:.2f} GiB; {seconds:.1f} s"
            )
        assert over <= largest + GIB, name
    first, last = (open_safetensors(large / folder, "model") for folder in ("native", "again"))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name].read(), last[name].read()) for name in first), "not what it was"
