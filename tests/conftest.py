"""Fixtures that tests share: random objects of the library, made of the toys in support.py in well under a second."""

import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Beside another worker, threads for all cores wait for each other: in kernels, in children, in runs' own threads. torch
# reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Numba takes a second to load, in a hundred processes of the suite, and is asked for by tests of what it compiles.
os.environ.setdefault("CHAMELEON_COMPILED", "0")

import numpy as np
import PIL.Image
import pytest
import torch
from kernels import nursery
from support import IMAGE, MODEL, TEXTS, LetterTokenizer

from chameleon_lab import crossovers
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.generation import compiled_step, recording
from chameleon_lab.generation.engine import Engine
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer, SentencePieceTokenizer, TextTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

# Each Lightning trainer asks anew which installed packages bring callbacks, for which Python reads all their metadata.
importlib.metadata.entry_points = functools.lru_cache(importlib.metadata.entry_points)
# jsonschema, when it is imported, builds a grammar of URIs with this one for three seconds; none are checked here.
sys.modules.setdefault("rfc3987_syntax", None)  # pyright: ignore[reportArgumentType]

# No test outlives a power failure: what is written may reach the disk later. Waiting for it takes 12 ms a file.
os.fsync = lambda fd: None

# Without a GPU `torch.manual_seed` still notes for each kind of GPU where in the program it was called: a millisecond,
# fifteen thousand times in the suite, for a seed that the CPU's generator takes in a microsecond.
if not torch.cuda.is_available():
    torch.manual_seed = torch.default_generator.manual_seed


def _shared_start(item: pytest.Item) -> int | None:
    """What a test begins with that takes ten seconds of a core and is shared by a worker's tests: JupyterLab with its
    kernels, a browser, or the parent of forked processes."""
    names = getattr(item, "fixturenames", ())
    if "quick_kernels" in names:
        return 0
    if "browser" in names:
        return 1
    module = vars(getattr(item, "module", pytest))
    return 2 if any(getattr(value, "__module__", "") == "processes" for value in module.values()) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each worker gets a row of neighbours, and who is done takes from the end of another's. Tests that share a costly
    start stand at the head of one row, so that one worker starts it, and early: they are the longest, too."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    heads, others = [list[pytest.Item]() for _ in range(workers)], list[pytest.Item]()
    for item in items:
        start = _shared_start(item) if workers > 1 else None
        (others if start is None else heads[start % workers]).append(item)
    length = len(items) // workers
    items.clear()
    for head in heads:
        fill = max(0, length - len(head))
        items += [*head, *others[:fill]]
        del others[:fill]
    items += others


@pytest.fixture(autouse=True)
def _steady(request: pytest.FixtureRequest) -> Iterator[None]:
    """One seed, and but for benchmarks one thread: what is this small only waits when threads share it."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    if "slow" not in request.keywords:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def compiled() -> Iterator[None]:
    """Decoding by numba, where it is installed, as outside of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiled_step.COMPILED_SWITCH, "1")
        compiled_step.kernels.cache_clear()
        yield
    compiled_step.kernels.cache_clear()


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return MODEL


@pytest.fixture(scope="session")
def image_config() -> ImageTokenizerConfig:
    return IMAGE


@pytest.fixture(scope="session")
def sentencepiece() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train([*TEXTS[:3], "draw a red circle", "draw a blue square"] * 20, 330)


@pytest.fixture(scope="session")
def image_tokenizer() -> ImageTokenizer:
    torch.manual_seed(1)
    tokenizer = ImageTokenizer(IMAGE).eval()
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight, std=0.3)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return tokenizer


def _mixed(text: TextTokenizer, image: ImageTokenizer) -> MixedModalTokenizer:
    return MixedModalTokenizer(text, image, Vocabulary.layout(image.codes, text.size))


@pytest.fixture(scope="session")
def mixed(image_tokenizer: ImageTokenizer) -> MixedModalTokenizer:
    """Bytes and a 4x4 grid of 12 codes."""
    return _mixed(ByteTokenizer(), image_tokenizer)


@pytest.fixture(scope="session")
def spelled(sentencepiece: SentencePieceTokenizer, image_tokenizer: ImageTokenizer) -> MixedModalTokenizer:
    """Sentencepiece and the same grid."""
    return _mixed(sentencepiece, image_tokenizer)


@pytest.fixture(scope="session")
def lettered(image_tokenizer: ImageTokenizer) -> MixedModalTokenizer:
    """Four letters and the same grid."""
    return _mixed(LetterTokenizer(), image_tokenizer)


@pytest.fixture
def make_lab() -> Callable[..., Chameleon]:
    """A random Chameleon around a tokenizer; keywords change the model's config."""

    def make(tokenizer: MixedModalTokenizer, **changes: object) -> Chameleon:
        plain = {name: getattr(MODEL, name) for name in MODEL.__dataclass_fields__}
        torch.manual_seed(3)
        config = ModelConfig(**{**plain, "vocabulary": tokenizer.vocabulary.size, **changes})
        return Chameleon(Transformer(config).eval(), tokenizer)

    return make


@pytest.fixture
def lab(make_lab: Callable[..., Chameleon], mixed: MixedModalTokenizer) -> Chameleon:
    return make_lab(mixed)


@pytest.fixture
def engine(make_lab: Callable[..., Chameleon], lettered: MixedModalTokenizer) -> Engine:
    """A random model of four letters, which often draws."""
    return make_lab(lettered).engine


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """`recording.capture` without a GPU: all results made, each of which is only changed by a replay."""
    made: list[torch.Tensor] = []

    def capture(work: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        output = work().clone()
        made.append(output)
        return (lambda: output.copy_(work())), output

    monkeypatch.setattr(recording, "capture", capture)
    return made


@pytest.fixture(params=["step by step", "ahead"])
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, recordings: list[torch.Tensor]) -> None:
    """Decoding as on a CPU, and as on a GPU: tokens picked ahead of what is known, steps recorded and replayed. The
    second gives prompts by parts, too."""
    if request.param == "ahead":
        monkeypatch.setitem(crossovers.CODES_AHEAD, "cpu", 5)
        monkeypatch.setattr(crossovers, "PROMPT_POSITIONS", 7)
        monkeypatch.setattr(recording, "replays", lambda device: True)
        monkeypatch.setattr(crossovers, "GRAPH_POSITIONS", 16)
        monkeypatch.setattr(crossovers, "GRAPH_PATIENCE", 2)


@pytest.fixture
def comms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widgets talk to a `Recorder` each, in this process."""
    import comm
    from widget_support import Recorder

    monkeypatch.setattr(comm, "create_comm", Recorder)


@pytest.fixture(scope="session")
def quick_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for JUPYTER_PATH whose Python begins with the libraries of others imported."""
    folder = tmp_path_factory.mktemp("kernels")
    with nursery(folder):
        yield folder


@pytest.fixture(scope="session")
def picture() -> PIL.Image.Image:
    """Noise, 16x16 RGB."""
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    """Texts that tokenizers like to damage."""
    return TEXTS
