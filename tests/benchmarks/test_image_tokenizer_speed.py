"""How fast pictures become codes and come back: transformers, torch and OpenVINO with the same weights.

python -m pytest -m slow tests/benchmarks/test_image_tokenizer_speed.py -s

Prints; asserts no time. Without the extra `openvino` it prints what there is. `LAB_SIDE` and `LAB_PICTURES` say of how
many pixels and how many pictures codes are compared (64 and 200).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SPEED = """
import json, sys, tempfile, time
from pathlib import Path
import torch
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
from chameleon_lab.checkpoints.huggingface import read_port_images
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, ImageTokenizer
from chameleon_lab.tokenizers.conversion import openvino_version

side, threads, turns = map(int, sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(0)
theirs = ChameleonVQVAE(ChameleonVQVAEConfig()).eval()
ours = ImageTokenizer(CHAMELEON_IMAGES, runtime="torch").eval()
with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(folder)
    ours.load_state_dict(read_port_images(Path(folder)).state_dict(), strict=False)
pixels_BCHW = torch.nn.functional.interpolate(torch.rand(1, 3, side // 8, side // 8) * 2 - 1, side)
with torch.inference_mode():
    latents_XC = ours.quant_conv(ours.encoder(pixels_BCHW)).movedim(1, -1).flatten(0, 2)
    spread = torch.randn(CHAMELEON_IMAGES.codes, CHAMELEON_IMAGES.code_width) * latents_XC.std(0)
    book = latents_XC[torch.randint(len(latents_XC), (CHAMELEON_IMAGES.codes,))] + spread / 2
    theirs.quantize.embedding.weight.copy_(book)
    ours.quantize.embedding.weight.copy_(book)
    exact_BHW = ours.encode_pixels(pixels_BCHW)
    drawn_BCHW = ours.decode_pixels(exact_BHW)

def encode(runtime):
    ours.runtime = runtime
    return ours.encode_pixels(pixels_BCHW)

def decode(runtime):
    ours.runtime = runtime
    return ours.decode_pixels(exact_BHW)

works = {("transformers", "encode"): lambda: theirs.encode(pixels_BCHW).image_tokens}
for runtime in ("torch", "exact", "fast") if openvino_version() else ("torch",):
    works[runtime, "encode"] = lambda runtime=runtime: encode(runtime)
    works[runtime, "decode"] = lambda runtime=runtime: decode(runtime)
figures = {}
with torch.inference_mode():
    for turn in range(turns + 1):  # in turns, so that a load of the machine meets all
        for (who, what), work in works.items():
            started, computed = time.perf_counter(), time.process_time()
            result = work()
            seconds, computed = time.perf_counter() - started, time.process_time() - computed
            row = figures.setdefault(who, {})
            if turn:
                row[what] = min(row.get(what, seconds), seconds)
                row[what + " cpu"] = min(row.get(what + " cpu", computed), computed)
                continue
            row["first " + what] = seconds
            if who != "transformers":
                row["worker"] = ours.worker
            if what == "encode":
                row["equal"] = float((result.flatten() == exact_BHW.flatten()).float().mean())
            else:
                levels = [((each.clamp(-1, 1) + 1) * 127.5).int() for each in (result, drawn_BCHW)]
                row["levels"] = int((levels[0] - levels[1]).abs().max())
print(json.dumps(figures))
"""

MEMORY = """
import resource, sys
import torch
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, ImageTokenizer

torch.set_num_threads(2)
ours = ImageTokenizer(CHAMELEON_IMAGES, runtime=sys.argv[1]).eval()
with torch.inference_mode():
    for _ in range(2):
        ours.decode_pixels(ours.encode_pixels(torch.rand(1, 3, 512, 512) * 2 - 1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""

EQUALITY = """
import json, sys
from pathlib import Path
import numpy as np, PIL.Image, torch
from skimage import data as samples
from chameleon_lab import crossovers
from chameleon_lab.checkpoints.native import read_native_images
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, ImageTokenizer

torch.manual_seed(0)
crossovers.RUNTIME_WEIGHTS.update(exact=0, fast=0)
random = np.random.default_rng(0)
names = ("astronaut", "coffee", "rocket", "chelsea", "immunohistochemistry")
photographs = [getattr(samples, name)() for name in names]

def crop(side):
    "Of a photograph, enlarged from any of its scales where it has too few pixels."
    picture = photographs[random.integers(len(photographs))]
    shortest = min(picture.shape[:2])
    part = side if side <= shortest // 2 else int(random.integers(shortest // 4, shortest + 1))
    top, left = (random.integers(size - part + 1) for size in picture.shape[:2])
    square = PIL.Image.fromarray(picture[top : top + part, left : left + part]).resize((side, side))
    return torch.from_numpy(np.array(square)).movedim(-1, 0).float() / 127.5 - 1

def margins(ours, pixels_CHW, right_BHW, other_BHW):
    "How much farther the other code lies than torch's, where they differ, as a share of the distance."
    latents_XC = ours.quant_conv(ours.encoder(pixels_CHW[None])).movedim(1, -1).flatten(0, 2)
    book = torch.from_numpy(ours.codebook)
    right_X, other_X = ((latents_XC - book[each.flatten()]).norm(dim=-1) for each in (right_BHW, other_BHW))
    return [float(each) for each in (other_X / right_X - 1)[(right_BHW != other_BHW).flatten()]]

def figures(ours, pixels):
    equal, codes, ties = {"exact": 0, "fast": 0}, 0, []
    for count, pixels_CHW in enumerate(pixels, 1):
        ours.runtime = "torch"
        right_BHW = ours.encode_pixels(pixels_CHW[None])
        codes += right_BHW.numel()
        for mode in equal:
            ours.runtime = mode
            same_BHW = ours.encode_pixels(pixels_CHW[None]) == right_BHW
            assert ours.worker == f"openvino {mode}"
            equal[mode] += int(same_BHW.sum())
            if mode == "exact" and not same_BHW.all():
                ties += margins(ours, pixels_CHW, right_BHW, ours.encode_pixels(pixels_CHW[None]))
        if count % 10 == 0:
            print(count, codes, equal, file=sys.stderr, flush=True)  # at 512 a picture takes 15 s of a core
    return {"pictures": count, "codes": codes, **equal, "margins of unequal exact codes": ties}

with torch.inference_mode():
    ours = ImageTokenizer(CHAMELEON_IMAGES).eval()
    side, pictures = map(int, sys.argv[2:])
    pixels = [crop(side) for _ in range(pictures)]
    latents_BCHW = torch.cat([ours.quant_conv(ours.encoder(each[None])) for each in pixels[: 3200 // side]])
    latents_XC = latents_BCHW.movedim(1, -1).flatten(0, 2)
    spread = torch.randn(CHAMELEON_IMAGES.codes, CHAMELEON_IMAGES.code_width) * latents_XC.std(0)
    ours.quantize.embedding.weight.copy_(
        latents_XC[torch.randint(len(latents_XC), (CHAMELEON_IMAGES.codes,))] + spread / 2
    )
    print("published shape, random weights", json.dumps(figures(ours, pixels)))
    ours = read_native_images(Path(sys.argv[1])).float()
    print("trained on photographs", json.dumps(figures(ours, [crop(2 * side) for _ in range(pictures)])))
"""
ROOT = Path(__file__).parent.parent.parent


def output(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "CHAMELEON_RUNTIME"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize("threads", [1, 2])
def test_encoding_and_decoding_beside_transformers(threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json.loads(output(SPEED, 512, threads, 3).splitlines()[-1])
    with capsys.disabled():
        print(f"\n{threads} thread(s), 512 x 512, one picture, in turns, the best of 3; load {os.getloadavg()[0]:.1f}")
        for who, row in figures.items():
            cells = (
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
            print(f"{who:13s} " + ", ".join(cells))


def test_memory_of_each_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        for runtime in ("torch", "exact", "fast"):
            print(f"\n{runtime}: peak {float(output(MEMORY, runtime).splitlines()[-1]):.2f} GiB", end="")


def test_codes_of_two_hundred_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    side, pictures = os.environ.get("LAB_SIDE", "64"), os.environ.get("LAB_PICTURES", "200")
    with capsys.disabled():
        print("\n" + output(EQUALITY, ROOT / "data/photographs", side, pictures))
