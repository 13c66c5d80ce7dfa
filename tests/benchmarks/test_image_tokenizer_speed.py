"""How fast pictures become codes and come back, beside `transformers` with the same weights. Prints; asserts no time.

make benchmarks
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CASE = """
import json, resource, sys, time
import torch
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, ImageTokenizer
from chameleon_lab.checkpoints.huggingface import our_name

who, side, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
torch.manual_seed(0)
theirs = ChameleonVQVAE(ChameleonVQVAEConfig()).eval()
ours = ImageTokenizer(CHAMELEON_IMAGES).eval()
ours.load_state_dict({our_name(name): tensor for name, tensor in theirs.state_dict().items()}, strict=False)
pixels_BCHW = torch.nn.functional.interpolate(torch.rand(1, 3, side // 8, side // 8) * 2 - 1, side)
with torch.inference_mode():
    latents_XC = ours.quant_conv(ours.encoder(pixels_BCHW)).movedim(1, -1).flatten(0, 2)
    spread = torch.randn(CHAMELEON_IMAGES.codes, CHAMELEON_IMAGES.code_width) * latents_XC.std(0)
    book = latents_XC[torch.randint(len(latents_XC), (CHAMELEON_IMAGES.codes,))] + spread / 2
    theirs.quantize.embedding.weight.copy_(book)
    ours.quantize.embedding.weight.copy_(book)
    exact_BHW = ours.encode_pixels(pixels_BCHW)
    if who != "as it is":
        ours = ours.to(memory_format=torch.channels_last)
        pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
    if who == "bfloat16":
        ours, pixels_BCHW = ours.bfloat16(), pixels_BCHW.bfloat16()
    if who == "convolutions alone":
        del theirs
        seen = []
        for layer in ours.encoder.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(lambda layer, inputs, _: seen.append((layer, torch.randn_like(inputs[0]))))
        ours.encoder(pixels_BCHW)
        work = {"encode": lambda: [layer._conv_forward(x, layer.weight, layer.bias) for layer, x in seen]}
    elif who == "transformers":
        del ours
        work = {"encode": lambda: theirs.encode(pixels_BCHW).image_tokens}
    else:
        del theirs
        work = {
            "encode": lambda: ours.encode_pixels(pixels_BCHW),
            "decode": lambda: ours.decode_pixels(exact_BHW),
        }
    told = {}
    for name, call in work.items():
        call()
        times = []
        for _ in range(3):
            started = time.perf_counter()
            result = call()
            times.append(time.perf_counter() - started)
        told[name] = min(times)
        if name == "encode" and who != "convolutions alone":
            told["equal"] = float((result.flatten() == exact_BHW.flatten()).float().mean())
told["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps(told))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_encoding_and_decoding_beside_transformers(threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    side = 512
    told = {}
    for who in ("transformers", "as it is", "channels last", "convolutions alone", "bfloat16"):
        arguments = [sys.executable, "-c", CASE, who, str(side), str(threads)]
        result = subprocess.run(arguments, capture_output=True, text=True, check=True)
        told[who] = json.loads(result.stdout.splitlines()[-1])
    base = told["transformers"]["encode"]
    lines = [f"{threads} thread(s), {side} x {side}, one picture"]
    for who, seen in told.items():
        decode = f", decode {seen['decode']:.2f} s" if "decode" in seen else ""
        equal = f"; {seen['equal']:.1%} equal codes" if "equal" in seen else ""
        lines.append(
            f"{who:18s} encode {seen['encode']:.2f} s, {base / seen['encode']:.2f} times"
            f"{equal}{decode}; peak {seen['peak']:.1f} GiB"
        )
    with capsys.disabled():
        print("\n" + "\n".join(lines))
