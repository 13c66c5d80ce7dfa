"""The command line: help that reads well, one line for an error, and a model from nothing."""

import logging
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import PIL.Image
import pytest
import torch
from support import failed

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.commands.main import main
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.generation.settings import SETTING_NAMES, Settings
from chameleon_lab.history import History, RecordedRun
from chameleon_lab.objective import Objective
from chameleon_lab.tokenizers.image import ImageTokenizerConfig
from chameleon_lab.training.alignment import ALIGNMENTS
from chameleon_lab.training.data import Scenes
from chameleon_lab.training.experiments import EXPERIMENTS
from chameleon_lab.training.image_experiments import IMAGE_EXPERIMENTS
from chameleon_lab.training.modules import Budget
from chameleon_lab.training.pipeline import MODELS, TINY_MODEL
from chameleon_lab.training.run import Run

TRANSFORMER = TINY_MODEL.transformer
MINIATURE = replace(
    TINY_MODEL,
    name="miniature",
    image=replace(
        TINY_MODEL.image,
        tokenizer=ImageTokenizerConfig(
            side=64,
            codes=16,
            code_width=4,
            widths=(8, 16),
            latent_width=4,
            blocks=1,
            patch=8,
            groups=4,
            middle=False,
            quantizer="moving_average",
        ),
        budget=Budget(steps=3),
        batch=2,
    ),
    pieces=330,
    transformer=replace(
        TRANSFORMER,
        model=replace(
            TRANSFORMER.model, width=32, layers=1, heads=2, kv_heads=2, head_width=16, ffn_width=48, context=200
        ),
        data=Scenes(tokens=236),
        budget=Budget(steps=4),
    ),
    settings=Settings(temperature=1.0, max_tokens=30),
)
"""Seconds small, and otherwise like the shipped one."""


@pytest.fixture
def model(lab, tmp_path) -> str:
    lab.save(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_modality_holds_an_answer_to_one_picture(capsys, model, tmp_path):
    arguments = ["generate", "draw", "--model", model, "--modality", "picture", "--max-tokens", "40"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("picture-0-*.png")
    assert capsys.readouterr().out.strip() == f"[{path}]"


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["reconstruct"]], ids=str)
def test_help_reads_well(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and text.startswith("usage: chameleon-lab")
    assert "None" not in text and "==" not in text
    options = text.split("options:")[1].strip().splitlines()
    described = [line for line in options if line.lstrip().startswith("-")]
    for line, below in zip(described, [options[options.index(line) + 1 :] for line in described], strict=True):
        wrapped = below[0] if below and not below[0].lstrip().startswith("-") else ""
        assert len(line.split("  ", 2)[-1].split()) > 2 or wrapped, f"{line!r} has no help"
    assert not command or "." in text.split("\n\n")[1]  # what the command does, as a sentence
    assert command or all(name in text for name in ("train", "generate", "reconstruct"))


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "large"], ["generate"], ["generate", "a", "--seed", "x"]])
def test_a_command_that_does_not_exist_is_refused_with_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: chameleon-lab" in capsys.readouterr().err


def test_errors_are_one_line(capsys, model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "nowhere is no model folder" in failed(capsys, "generate", "hi", "--model", str(tmp_path / "nowhere"))
    assert "The prompt is empty" in failed(capsys, "generate", " ", "--model", model)
    assert "161 tokens" in failed(capsys, "generate", "a" * 159, "--model", model)
    assert "no device 'gpu'" in failed(capsys, "generate", "a", "--model", model, "--device", "gpu")
    assert "temperature must" in failed(capsys, "generate", "a", "--model", model, "--temperature", "-1")
    assert "top_p must" in failed(capsys, "generate", "a", "--model", model, "--top-p", "2")
    assert "half a character" in failed(capsys, "generate", "a\udcff", "--model", model)
    missing, broken = str(tmp_path / "missing.png"), str(tmp_path / "broken.png")
    assert "no picture at" in failed(capsys, "generate", "a", "--model", model, "--image", missing)
    assert "is not a picture" in failed(capsys, "generate", "a", "--model", model, "--image", broken)
    assert "broken.png is a file" in failed(capsys, "generate", "a", "--model", model, "--out", broken)
    assert "--context must be 1 or more, not 0" in failed(capsys, "plan", "7b", "--context", "0")
    assert "no picture at" in failed(capsys, "reconstruct", missing, "--model", model)
    assert "is not a picture" in failed(capsys, "reconstruct", broken, "--model", model)
    assert "but a folder" in failed(capsys, "reconstruct", str(tmp_path), "--model", model)
    assert "--minutes must be more than 0" in failed(capsys, "train", "tiny", "--minutes", "0")
    assert "--threads must be 1 or more" in failed(capsys, "train", "tiny", "--threads", "-2")


def test_seeds_reproduce_and_a_seed_below_nought_is_refused(capsys, model, tmp_path):
    def told(seed: str) -> str:
        out = tempfile.mkdtemp(dir=tmp_path)  # a picture of an earlier prompt would keep its number
        arguments = ["--model", model, "--out", out, "--seed", seed, "--temperature", "1"]
        assert main(["generate", "hello", *arguments]) == 0
        return capsys.readouterr().out.replace(out, "")

    assert told("5") == told("5") != told("6")
    assert "seed" in failed(capsys, "generate", "hello", "--model", model, "--seed", "-1")


def test_every_setting_of_a_reply_has_an_option(capsys, monkeypatch, model):
    given = []
    monkeypatch.setattr(Chameleon, "stream", lambda lab, document, **settings: given.append(settings) or [])
    values = dict.fromkeys(SETTING_NAMES, 1)
    assert main(["generate", "a", "--model", model, *(f"--{name.replace('_', '-')}=1" for name in values)]) == 0
    assert given == [{"seed": 0, "modality": None, **values}] and Settings().changed(**values).image_sampler == Sampler(
        1, 1, 1, 1
    )
    capsys.readouterr()
    assert "top_k must be" in failed(capsys, "evaluate", "--model", model, "-n", "1", "--top-k", "-1")


def test_reconstruct_writes_codes_and_the_picture(capsys, model, picture, tmp_path):
    picture.save(tmp_path / "noise.png")
    assert main(["reconstruct", str(tmp_path / "noise.png"), "--model", model]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    seen = Chameleon.load(model).tokenizer.image.reconstruct(picture)
    assert [[int(code) for code in row.split()] for row in rows] == seen.codes.tolist()
    assert last.startswith(f"16 codes, PSNR {seen.psnr:.1f} dB")
    with PIL.Image.open(tmp_path / "noise-reconstructed.png") as written:
        assert written.tobytes() == seen.picture.tobytes()
    again = ("reconstruct", str(tmp_path / "noise.png"), "--model", model)
    assert "is there already" in failed(capsys, *again)
    assert "is the picture itself" in failed(capsys, *again, "--overwrite", "--out", str(tmp_path / "noise.png"))
    (tmp_path / "link.png").symlink_to(tmp_path / "noise.png")
    assert "is the picture itself" in failed(capsys, *again, "--overwrite", "--out", str(tmp_path / "link.png"))
    assert "is a folder" in failed(capsys, *again, "--out", str(tmp_path))
    assert main([*again, "--overwrite"]) == 0
    capsys.readouterr()
    assert main([*again, "--overwrite", "--layout", "native", "--dtype", "bfloat16"]) == 0
    assert "16 codes" in capsys.readouterr().out
    assert "does not hold the files of the layout 'meta'" in failed(capsys, *again, "--overwrite", "--layout", "meta")
    assert "There is no tokenizer at" in failed(capsys, *again, "--overwrite", "--tokenizer", str(tmp_path / "gone"))
    assert main([*again, "--overwrite", "--tokenizer", model]) == 0
    capsys.readouterr()
    strange = ("--out", str(tmp_path / "noise.strange"))
    told = failed(capsys, "reconstruct", str(tmp_path / "noise.png"), "--model", model, *strange)
    assert "has no ending of a picture that is written here" in told
    assert main([*again, "--out", str(tmp_path / "new" / "noise.webp")]) == 0  # its folder is made
    capsys.readouterr()


def test_a_model_is_trained_from_nothing_and_used(capsys, caplog, monkeypatch, tmp_path, picture):
    monkeypatch.setitem(MODELS, "miniature", MINIATURE)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    assert main(["train", "miniature", "--threads", "1"]) == 0
    told = caplog.text
    for part in ("image tokenizer", "transformer", "100.0 %", "s left", "loss", "The model is in runs/miniature/model"):
        assert part in told
    folder = Path("runs/miniature")
    lines = (folder / "transformer" / "metrics.jsonl").read_text()
    assert [record.step for record in History.from_jsonl(lines.splitlines()).records] == [0, 1, 2, 3]
    weights = (folder / "model" / "model.safetensors").read_bytes()
    assert main(["train", "miniature"]) == 0  # nothing is left to do
    assert (folder / "transformer" / "metrics.jsonl").read_text() == lines
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    lab = Chameleon.load(folder / "model")
    assert lab.settings == MINIATURE.settings and lab.card["experiment"]["name"] == "miniature"
    assert lab.vocabulary.pieces == 330 and lab.tokenizer.grid == (4, 4)
    capsys.readouterr()
    picture.save("noise.png")
    model = str(folder / "model")
    assert main(["generate", "draw a red circle", "--model", model, "--image", "noise.png", "--out", "drawn"]) == 0
    assert capsys.readouterr().out.endswith("\n") and Path("drawn").is_dir()
    assert main(["reconstruct", "noise.png", "--model", model, "--out", "again.png"]) == 0
    with PIL.Image.open("again.png") as again:
        assert again.size == (64, 64)


@pytest.mark.parametrize("name", sorted({*MODELS, *IMAGE_EXPERIMENTS, *EXPERIMENTS, *ALIGNMENTS}))
def test_every_named_experiment_can_be_started_and_one_without_data_says_so(capsys, monkeypatch, tmp_path, name):
    started = []

    def start(run: Run) -> Run:
        started.append(run.experiment.name)
        raise ValueError("started")

    monkeypatch.setattr(Run, "start", start)
    error = failed(capsys, "train", name, "--folder", str(tmp_path))
    if name in EXPERIMENTS and EXPERIMENTS[name].data is None:
        assert f"{name} has no data of its own" in error and not started and not list(tmp_path.iterdir())
    else:
        assert started == [name] and "started" in error


def test_an_experiment_alone_is_trained_and_goes_on(monkeypatch, caplog, tmp_path, lab):
    lab.save(tmp_path / "model")
    toy = replace(
        MINIATURE.transformer, name="toy", data=Scenes(tmp_path / "model", tokens=236), budget=Budget(steps=2)
    )
    monkeypatch.setitem(EXPERIMENTS, "toy", toy)
    caplog.set_level(logging.INFO)
    folder = tmp_path / "run"
    assert main(["train", "toy", "--folder", str(folder)]) == 0
    assert f"The run is in {folder}, its weights in {folder}/checkpoints/last.ckpt." in caplog.text
    assert main(["train", "toy", "--folder", str(folder), "--minutes", "0.001"]) == 0
    assert len(RecordedRun(folder).history.records) >= 2 and RecordedRun(folder).state.status == "finished"


SHARED = """
import sys
sys.path[:0] = {paths!r}
from test_cli import *
MODELS["miniature"] = MINIATURE
raise SystemExit(main(["train", "miniature", "--folder", {folder!r}, "--processes", "2", "--threads", "1"]))
"""


@pytest.mark.slow
def test_two_processes_share_the_last_stage_and_leave_one_whole_folder(tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "train.py"
    script.write_text(SHARED.format(paths=[str(here), str(here.parent)], folder=str(tmp_path / "run")))
    subprocess.run([sys.executable, str(script)], check=True, timeout=300, cwd=tmp_path)
    for stage, steps in {"text": 1, "image": 3, "transformer": 4}.items():
        run = RecordedRun(tmp_path / "run" / stage)
        assert run.state.status == "finished" and len(run.history.records) == steps
    card = Chameleon.load(tmp_path / "run" / "model").card
    assert card["steps"] == 4 and ", 2 x 1 CPU thread(s)" in card["machine"]


def test_drawn_pictures_are_numbered_files(capsys, lab, tmp_path):
    lab.settings = Settings(temperature=1.0)
    with torch.no_grad():  # now nothing is likelier than a picture, where it is likely at all
        lab.model.head.weight[lab.vocabulary.end_turn :] = 0
        lab.model.head.weight[lab.vocabulary.begin_image] *= 50
    lab.save(tmp_path / "model")
    reply = lab.generate(Document.of("draw", EndTurn()), seed=3)
    assert main(["generate", "draw", "--model", str(tmp_path / "model"), "--seed", "3", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert len(reply.pictures) >= 2
    for number, drawn in enumerate(reply.pictures, 1):
        path = tmp_path / f"picture-3-{number}.png"
        assert f"[{path}]" in told
        with PIL.Image.open(path) as written:
            assert written.tobytes() == drawn.tobytes()
    assert len(list(tmp_path.glob("*.png"))) == len(reply.pictures)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert main(["generate", "draw", "--model", str(tmp_path / "model"), "--seed", "3", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2 * len(before), "a picture of before has gone"
    assert all(path.read_bytes() == content for path, content in before.items())


@dataclass(frozen=True)
class PressesCtrlC:
    """A penalty as a user might write one, and a user who thinks better of it, once."""

    presses: ClassVar[list[int]] = []

    def penalty(self, logits_XV: torch.Tensor) -> torch.Tensor:
        if not self.presses:
            self.presses.append(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.5)
        return logits_XV.new_zeros(len(logits_XV))


@pytest.fixture
def _sigint():
    """Ctrl+C as at a prompt: a process started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint")
def test_ctrl_c_is_a_line_and_130_and_the_same_command_goes_on(capsys, monkeypatch, tmp_path):
    train = ["train", "miniature", "--folder", str(tmp_path / "run")]
    pressing = replace(MINIATURE.transformer, objective=Objective(penalties=(PressesCtrlC(),)))
    monkeypatch.setitem(MODELS, "miniature", replace(MINIATURE, transformer=pressing))
    assert main(train) == 130
    told = capsys.readouterr().err
    last = tmp_path / "run" / "transformer" / "checkpoints" / "last.ckpt"
    assert told.endswith(f"chameleon-lab: stopped; the same command goes on from the last checkpoint, {last}\n")
    stages = {stage: RecordedRun(tmp_path / "run" / stage).state.status for stage in ("text", "image", "transformer")}
    assert stages == {"text": "finished", "image": "finished", "transformer": "stopped"}
    image = (tmp_path / "run" / "image" / "tokenizer" / "image_tokenizer.safetensors").read_bytes()
    assert main(train) == 0
    assert (tmp_path / "run" / "image" / "tokenizer" / "image_tokenizer.safetensors").read_bytes() == image


def test_a_published_size_is_known_in_capitals(capsys):
    assert main(["plan", "7B", "--context", "16"]) == 0
    assert "7,013,158,912 parameters" in capsys.readouterr().out


def test_an_answer_has_stdout_for_itself(model, tmp_path):
    Chameleon.load(model, device="cpu").save(tmp_path / "meta", format="meta", pictures=False)
    model = tmp_path / "meta"
    command = [
        sys.executable,
        "-m",
        "chameleon_lab.shell",
        "generate",
        "hi",
        "--model",
        str(model),
        "--out",
        str(tmp_path),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True)
    assert "has the layout 'meta'" in answer.stderr and "has the layout" not in answer.stdout


def test_the_module_runs_as_a_command_and_is_quiet(tmp_path):
    command = [sys.executable, "-m", "chameleon_lab.shell", "generate", "hi", "--model", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert answer.returncode == 2 and not answer.stdout
    assert answer.stderr == (
        f"chameleon-lab: {tmp_path} is no model folder: it holds no config.json and no params.json. Give a folder "
        "that `lab.save` or `chameleon-lab train` wrote, one in Meta's or Hugging Face's layout, or 'tiny'.\n"
    )
