"""Small files that ask for much, or say what nobody can mean, are refused at load, by name, before much is built."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import IN_PLACES, in_place_of
from test_formats import make_lab

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints.formats import open_folder
from chameleon_lab.checkpoints.torch_files import open_torch
from chameleon_lab.checkpoints.vqgans import read_yaml_config
from chameleon_lab.corpora.readers import PictureFolder
from chameleon_lab.corpora.shards import Shards
from chameleon_lab.documents import Document
from chameleon_lab.files import (
    DEEPEST_NESTING,
    intact,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_table,
    read_yaml,
    reason_of,
    require_regular,
    text_of_file,
)
from chameleon_lab.parts import require_fields
from chameleon_lab.records import MetricValue
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.tokenizers.image import TINY_IMAGES, ImageTokenizerConfig
from chameleon_lab.tokenizers.text import JsonTokenizer
from chameleon_lab.transformer import ModelConfig
from chameleon_lab.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A model in each layout that has files of its own."""
    place = tmp_path_factory.mktemp("saved")
    for layout in ("native", "meta", "huggingface"):
        make_lab().save(place / layout, format=layout)
    return place


@pytest.fixture
def copy(saved, tmp_path):
    """A layout's folder to be damaged."""

    def copied(layout: str) -> Path:
        shutil.copytree(saved / layout, tmp_path / layout)
        return tmp_path / layout

    return copied


def edit(path: Path, *keys: str, to: object) -> None:
    """Changes one value of a JSON or YAML file."""
    read, write = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
    plain = place = read(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    path.write_text(write(plain))


@pytest.mark.parametrize("state", IN_PLACES)
@pytest.mark.parametrize("layout", ["native", "meta", "huggingface"])
def test_of_a_model_the_error_names_the_file_that_is_not_what_it_should_be(layout, state, copy, tmp_path):
    """And no other, such as the config that asks for it; a file that nothing needs may be missing."""
    whole = copy(layout)
    names = sorted(str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file())
    assert len(names) > 2
    for name in names:
        shutil.rmtree(tmp_path / layout)
        in_place_of(copy(layout) / name, state)
        try:
            Chameleon.load(tmp_path / layout, device="cpu", acknowledge_licence=True)
        except (ValueError, FileNotFoundError) as error:
            others = [each for each in names if each != name and str(tmp_path / layout / each) in str(error)]
            named = {Path(name).name, f"*{Path(name).suffix}"}  # weights may have any name
            assert any(each in str(error) for each in named) and not others, f"{name}: {error}"


NUMBERS = {
    "native": (
        "config.json",
        [("model", name) for name in ("layers", "width", "heads", "context", "rope_theta", "norm_eps")],
    ),
    "meta": ("params.json", [("model", name) for name in ("n_layers", "dim", "n_heads", "rope_theta", "norm_eps")]),
    "huggingface": (
        "config.json",
        [("num_hidden_layers",), ("hidden_size",), ("max_position_embeddings",), ("rope_theta",), ("rms_norm_eps",)],
    ),
}
WRONG = ("12", "abc", [4], {"a": 1}, -3, 10**30, 3_000_000_000, float("inf"))


@pytest.mark.parametrize("layout", NUMBERS)
def test_a_setting_of_a_wrong_type_or_size_is_refused_when_it_is_read(layout, copy):
    """Never at the first reply: each number of a config, as each wrong thing."""
    folder = copy(layout)
    name, keys = NUMBERS[layout]
    whole = (folder / name).read_text()
    for path in keys:
        for wrong in WRONG:
            edit(folder / name, *path, to=wrong)
            if (path[-1], wrong) == ("rope_theta", 3_000_000_000):  # large, and yet one
                continue
            with pytest.raises(ValueError) as caught:
                Chameleon.load(folder, device="cpu", acknowledge_licence=True)
            assert str(folder) in str(caught.value) and "\n" not in str(caught.value), (path, wrong, caught.value)
            (folder / name).write_text(whole)


@pytest.mark.parametrize(
    ("layout", "file", "keys"),
    [
        ("native", "config.json", ("model", "layers")),
        ("native", "config.json", ("image_tokenizer", "blocks")),
        ("native", "config.json", ("vocabulary", "sentinels")),
        ("native", "config.json", ("vocabulary", "size")),
        ("native", "config.json", ("image_tokenizer", "code_width")),
        ("meta", "params.json", ("model", "n_layers")),
        ("meta", "tokenizer/vqgan.yaml", ("model", "params", "ddconfig", "num_res_blocks")),
        ("meta", "chameleon_lab.json", ("vocabulary", "sentinels")),
        ("meta", "chameleon_lab.json", ("grid",)),
        ("huggingface", "config.json", ("num_hidden_layers",)),
        ("huggingface", "config.json", ("vq_config", "num_res_blocks")),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else value,
)
def test_sizes_are_compared_with_the_files_before_anything_is_built(layout, file, keys, copy, monkeypatch):
    folder = copy(layout)
    monkeypatch.setattr(torch.nn, "ModuleList", lambda each=(): _few(each, torch.nn.modules.container.ModuleList))
    for size in (3_000_000, 10**10):
        edit(folder / file, *keys, to=[size, size] if keys == ("grid",) else size)
        with pytest.raises(ValueError):
            Chameleon.load(folder, device="cpu", acknowledge_licence=True)


def _few(modules, kind):
    """A list of modules, of which nobody may ask for thousands."""
    taken = []
    for module in modules:
        taken.append(module)
        assert len(taken) < 1000, "built before it was compared"
    return kind(taken)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 11)
)


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a [*a]", "[" * 500 + "]" * 500, "[" * 5000, "!!python/name:os.system", "a: b: c", "\0"]
)
def test_a_yaml_that_swells_or_is_none_is_refused(text, tmp_path):
    (tmp_path / "vqgan.yaml").write_text(text)
    for read in (read_yaml, read_yaml_config):
        with pytest.raises(ValueError, match=r"vqgan\.yaml"):
            read(tmp_path / "vqgan.yaml")


DEEP = ("[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500, '{"a":' * 200 + "1" + "}" * 200)


@pytest.mark.parametrize("text", [*DEEP, "", "{", "\ufffe", '{"a": 1}}', "1" * 5000, "nul"], ids=range(10))
def test_every_reader_of_json_names_the_file_that_it_cannot_parse(text, tmp_path, copy):
    """The same faults in each kind of file."""
    folder = copy("native")
    (folder / "config.json").write_text(text)
    (tmp_path / "card.json").write_text(text)
    (tmp_path / "addresses.json").write_text(text)
    (tmp_path / "text_tokenizer.json").write_text(text)
    port = copy("huggingface")
    (port / "chameleon_lab.json").write_text(text)
    readers = {
        "config.json": lambda: Chameleon.load(folder, layout="native"),
        "chameleon_lab.json": lambda: Chameleon.load(port),
        "card.json": lambda: Shards(tmp_path),
        "addresses.json": lambda: PictureFolder(tmp_path),
        "text_tokenizer.json": lambda: JsonTokenizer.load(tmp_path / "text_tokenizer.json"),
        "Not a document": lambda: Document.from_json(text),
        "metric value": lambda: MetricValue.from_json(text),
    }
    for name, read in readers.items():
        with pytest.raises(ValueError, match=name) as caught:
            read()
        assert len(str(caught.value)) < 700


def test_a_state_that_holds_itself_comes_to_an_end(tmp_path):
    state: dict = {"x": 1}
    state["state_dict"] = state
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no named tensors"):
        open_torch(tmp_path / "a.pth")


# The wrapper


class Unforeseen(Exception):
    pass


class PanicException(BaseException):
    """What Rust code raises in place of ending the process."""


@pytest.mark.parametrize(
    "error",
    [
        TypeError("no"),
        KeyError("key"),
        RecursionError(),
        MemoryError(),
        OverflowError("large"),
        Unforeseen(),
        ValueError(),
    ]
    + [AssertionError("odd"), PanicException("called `Option::unwrap()` on a `None` value"), IndexError("list\nindex")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_raised_is_one_value_error_that_names_the_file(error):
    with (
        pytest.raises(ValueError, match=r"^a/config\.json is damaged: .+\. Get it anew\.$"),
        intact("a/config.json", "Get it anew."),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), FileNotFoundError("x"), GeneratorExit()], ids=repr
)
def test_what_is_nobody_s_damage_passes(error):
    with pytest.raises(type(error)), intact("a/config.json"):
        raise error


def test_an_error_that_names_the_file_stays_as_it_is():
    with pytest.raises(ValueError, match=r"^look into a/config\.json$"), intact("a/config.json"):
        raise ValueError("look into a/config.json")


def test_reasons_are_one_short_line():
    assert reason_of(ValueError("a\n  b" * 400)).count("\n") == 0 and len(reason_of(ValueError("a" * 5000))) <= 300
    assert reason_of(KeyError("model")) == "it lacks 'model'" and reason_of(Unforeseen()) == "Unforeseen"


def test_only_regular_files_of_a_bearable_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 1001)
    (tmp_path / "latin").write_bytes(b"\xe9")
    for path, why in (
        (tmp_path / "pipe", "is a pipe, not a file"),
        (Path("/dev/zero"), "is a device, not a file"),
        (tmp_path, "is a folder"),
        (tmp_path / "large", "has 1,001 bytes, and of its kind at most 1,000"),
    ):
        with pytest.raises(ValueError, match=why):
            require_regular(path, 1000)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_bytes(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"latin is no UTF-8 text \(.* at byte 0\)"):
        text_of_file(tmp_path / "latin")
    (tmp_path / "list.json").write_text("[1]")
    assert read_json(tmp_path / "list.json") == [1]
    with pytest.raises(ValueError, match="holds no object, but list"):
        read_table(tmp_path / "list.json")


def test_nesting_has_a_limit_and_below_it_none():
    for depth, fine in ((DEEPEST_NESTING, True), (DEEPEST_NESTING + 1, False)):
        text = "[" * depth + "]" * depth
        if fine:
            parse_json(text, "it")
        else:
            with pytest.raises(ValueError, match="it is nested more than"):
                parse_json(text, "it")


@pytest.mark.parametrize(
    "half", ['"\\ud83d"', '["a\\udc00"]', '{"\\uD83D": 1}', '"\ud83d"', b'"\xed\xa0\xbd"', '"\\ude00\\ud83d"']
)
def test_half_a_character_is_no_text(half):
    """It can neither be tokenized nor written to a file, so it ends here and nothing later."""
    with pytest.raises(ValueError, match=r"it holds half a character, .*: take it out"):
        parse_json(half, "it")
    assert parse_json('"\\ud83d\\ude00 \\\\ud83d"', "it") == "\U0001f600 \\ud83d"


def test_lines_of_json_end_where_json_says(tmp_path):
    """Python's `splitlines` ends them at eight other characters, which may stand in any text."""
    text = "".join(map(chr, (0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029)))
    (tmp_path / "lines").write_text(f"{json.dumps(text, ensure_ascii=False)}\n\n2", encoding="utf-8")
    assert read_json_lines(tmp_path / "lines") == [text, 2]
    (tmp_path / "lines").write_text("1\n{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lines, line 2, is not JSON"):
        read_json_lines(tmp_path / "lines")


# Types and limits of configs

CONFIG: dict[str, Any] = {
    "vocabulary": 9,
    "width": 8,
    "layers": 1,
    "heads": 1,
    "kv_heads": 1,
    "head_width": 8,
    "ffn_width": 8,
    "context": 9,
}


@pytest.mark.parametrize("wrong", ["8", None, 1.5, [8], True, float("nan"), 10**30, -1, 0])
@pytest.mark.parametrize("name", [*(name for name in CONFIG if name != "vocabulary"), "rope_theta", "norm_eps", "tied"])
def test_a_config_holds_nothing_that_it_cannot_mean(name, wrong):
    fine = (name == "norm_eps" and wrong == 0) or (name == "tied" and wrong is True)
    fine = fine or (name == "rope_theta" and wrong in (1.5,) and not isinstance(wrong, bool))
    fields: dict[str, Any] = CONFIG | {name: wrong}
    if fine:
        ModelConfig(**fields)
        return
    with pytest.raises(ValueError, match=f"ModelConfig.{name} must|Rotary positions|cannot share"):
        ModelConfig(**fields)


@pytest.mark.parametrize("wrong", ["8", None, 1.5, 0, -4, 10**30])
@pytest.mark.parametrize("name", ["side", "codes", "code_width", "latent_width", "blocks", "patch", "groups"])
def test_an_image_tokenizer_s_config_neither(name, wrong):
    plain = {field: getattr(TINY_IMAGES, field) for field in TINY_IMAGES.__dataclass_fields__}
    with pytest.raises(ValueError, match=f"ImageTokenizerConfig.{name} must"):
        ImageTokenizerConfig(**plain | {name: wrong})


@pytest.mark.parametrize(
    "wrong", [{"sentinels": 10**10}, {"sentinels": -1}, {"size": 10**12}, {"codes": 10**9}, {"codes": "9"}]
)
def test_a_vocabulary_of_billions_is_refused_at_once(wrong):
    plain = {field: getattr(Vocabulary.layout(12, 20), field) for field in Vocabulary.__dataclass_fields__}
    began = time.process_time()
    with pytest.raises(ValueError):
        Vocabulary(**plain | wrong)
    assert time.process_time() - began < 5  # not a question of speed: a list of 10 billion would fill the memory


def test_fields_of_fixes_are_looked_at_too():
    with pytest.raises(ValueError, match=r"QueryKeyNorm\.eps must be of type float, not 'x'"):
        require_fields(QueryKeyNorm(eps="x"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pairs:
    of_two: tuple[str, int] | None = None
    of_any: tuple[int, ...] = ()
    by_name: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@pytest.mark.parametrize("wrong", [{"of_two": value} for value in ((1, 2), ("a",), ("a", 1, 2), ["a", 1], ("a", "b"))])
def test_the_parts_of_a_tuple_are_looked_at(wrong):
    require_fields(Pairs(("a", 1), (1, 2, 3), {"a": (1, 2)}))
    for each in (wrong, {"by_name": {"a": (1, "2")}}, {"of_any": (1, "2")}):
        with pytest.raises(ValueError, match="must be of type"):
            require_fields(Pairs(**each))  # pyright: ignore[reportArgumentType]


WRONG_KINDS = [3, None, [None], [3], {"a": 1}, "x", True]


@pytest.mark.parametrize("layout", ["native", "huggingface"])
def test_a_value_of_any_kind_in_any_place_of_a_config_is_read_or_one_error_that_names_the_folder(copy, layout):
    folder = copy(layout)
    config = json.loads((folder / "config.json").read_text())
    names = [*config, "architectures", "licence", "card"]
    for number, name in enumerate(dict.fromkeys(names)):
        changed = config | {name: WRONG_KINDS[number % len(WRONG_KINDS)]}
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            open_folder(folder, layout)
        except (ValueError, FileNotFoundError) as error:
            assert layout in str(error), f"{name}: {error}"  # the folder's name


def test_a_file_that_comes_while_it_is_looked_for_is_missing_and_not_damaged(tmp_path, monkeypatch):
    """Else a process that shares a training would fail where another just begins its journal."""
    path, really = tmp_path / "metrics.jsonl", os.stat

    def stat(place, **options):
        try:
            return really(place, **options)
        finally:
            path.touch()

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        require_regular(path)
    assert require_regular(path) == path
