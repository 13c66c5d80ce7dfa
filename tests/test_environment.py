"""The three files that name dependencies agree, and the wheel is whole."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from jupyterlab_server.config import get_page_config
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
CONDA_PIP = next(entry["pip"] for entry in CONDA if isinstance(entry, dict))


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in exact}


@pytest.mark.parametrize("requirement", DIRECT + DEV, ids=lambda r: r.name)
def test_every_direct_dependency_is_pinned_within_its_bounds(requirement):
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"constraints.txt has no pin for {requirement}; run 'make pins'"
    assert requirement.specifier.contains(pin), (
        f"constraints.txt pins {requirement.name} to {pin}, outside {requirement}"
    )


@pytest.mark.skipif(
    sys.platform != "linux", reason="the pins are made on Linux; elsewhere a few packages more come along"
)
def test_every_dependency_of_a_dependency_is_pinned():
    seen, waiting = set(), [(r.name, r.extras) for r in DIRECT + DEV]
    while waiting:
        name, extras = waiting.pop()
        if (canonicalize_name(name), *sorted(extras)) in seen:
            continue
        seen.add((canonicalize_name(name), *sorted(extras)))
        try:
            below = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:  # not needed on this machine, or no development environment
            continue
        needed = [r for r in below if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in {"", *extras})]
        waiting += [(r.name, r.extras) for r in needed]
    # PyTorch's CUDA build pins its own libraries.
    missing = {name for name, *_ in seen if not name.startswith(("nvidia-", "cuda-", "triton"))} - set(pins())
    assert not missing, f"constraints.txt lacks {sorted(missing)}; run 'make pins'"


def test_conda_gets_the_same_packages_and_the_same_pins():
    wanted = {str(requirement) for requirement in DIRECT}
    listed = {line for line in CONDA_PIP if not line.startswith("-")}
    assert listed == wanted, "the pip list of environment.yml differs from the dependencies of pyproject.toml"
    assert {"-c constraints.txt", "-e ."} <= set(CONDA_PIP)
    assert f"pytorch=={pins()['torch']}" in CONDA
    python = next(Requirement(entry) for entry in CONDA if isinstance(entry, str) and entry.startswith("python>"))
    assert PROJECT["requires-python"] in str(python.specifier).split(",")


def test_every_pin_has_the_hashes_of_its_files():
    """`pip install --require-hashes --no-deps -r requirements.lock` takes the pins and nothing else."""
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^([^#\s=]+)==([^\s;]+)[^\n]*\\\n((?:\s+--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M)
    assert {canonicalize_name(name): Version(version) for name, version, _ in entries} == pins()
    assert len(re.findall(r"^[^#\s]", text, re.M)) == len(entries)


def test_conda_s_jupyterlab_does_not_ask_the_network(monkeypatch):
    settings = yaml.safe_load((ROOT / "environment.yml").read_text())["variables"]
    monkeypatch.chdir(ROOT)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    disabled = get_page_config([])["disabledExtensions"]
    assert "@jupyterlab/apputils-extension:announcements" in disabled


def test_the_malicious_lightning_releases_can_never_be_installed():
    lightning = next(r for r in DIRECT if r.name == "lightning")
    for malicious in ("2.6.2", "2.6.3"):
        assert not lightning.specifier.contains(malicious)
    assert pins()["lightning"] >= Version("2.6.6")
    assert pins()["pytorch-lightning"] >= Version("2.6.6")


def test_the_wheel_alone_holds_the_bundles_and_loads_what_is_shipped(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "unpacked")
    bundles = {path.name for path in (ROOT / "widgets/chameleon_widgets/static").iterdir()}
    assert bundles and bundles == {p.name for p in (tmp_path / "unpacked/chameleon_widgets/static").iterdir()}
    look = (
        "import chameleon_lab, chameleon_widgets; from chameleon_lab.chameleon import Chameleon, load_image_tokenizer; "
        "Chameleon.load('tiny'); load_image_tokenizer('photographs'); print(chameleon_lab.__file__)"
    )
    environment = {"PYTHONPATH": str(tmp_path / "unpacked"), "PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", look]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    assert answer.stdout.strip().startswith(str(tmp_path / "unpacked"))
