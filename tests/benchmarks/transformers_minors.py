"""Which releases of transformers open the lab's exports, and what works there: prints the table of docs/weights.md.

    python tests/benchmarks/transformers_minors.py 4.43.4 4.57.6 5.24.0
    python tests/benchmarks/transformers_minors.py --all       # the last of each minor from 4.43 on in the index

Each release is installed with its dependencies into a folder of its own (about 100 MB), before the packages of this
Python, asked in a process of its own, and removed again unless `--keep FOLDER`: half a minute a release, by network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn

TEXT = "draw a small red circle left of a blue square: naïve 日本語 ▁ </b>\n"
PROMPT = "what do you see?"
STEPS = ("model", "logits", "tokenizer", "processor", "chat", "pipeline")

PROBE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, transformers
from PIL import Image
transformers.logging.set_verbosity_error()
folder, asked = sys.argv[1], json.load(open(sys.argv[2]))
answers = {"version": transformers.__version__}

def step(name):
    def run(function):
        try:
            answers[name] = function() or "yes"
        except Exception as error:
            answers[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return run

def same(ours, theirs):
    assert list(ours) == list(theirs), f"{list(theirs)[:12]} instead of {list(ours)[:12]}"

@step("model")
def _():
    global model
    model = transformers.ChameleonForConditionalGeneration.from_pretrained(folder).eval()

@step("logits")
def _():
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([asked["prompt"]])).logits[0]
    wanted = torch.tensor(asked["logits"])
    kept = logits > torch.finfo(logits.dtype).min
    apart = float((logits - wanted)[kept].abs().max())
    assert apart < 1e-3, f"{apart} apart"

@step("tokenizer")
def _():
    global tokenizer
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    same(asked["text"], tokenizer(asked["words"]).input_ids)
    back = tokenizer.decode(asked["text"][1:], clean_up_tokenization_spaces=False)
    assert back == asked["words"], repr(back)

@step("processor")
def _():
    global processor
    processor = transformers.ChameleonProcessor.from_pretrained(folder)
    same(asked["prompt"], processor(text=asked["question"], return_tensors="pt").input_ids[0].tolist())
    image = Image.new("RGB", (40, 30), "red")
    inputs = processor(text="<image>" + asked["question"], images=image, return_tensors="pt")
    same(asked["shape"], (inputs.input_ids.shape[1],))
    with torch.no_grad():
        model(**inputs)

@step("chat")
def _():
    talk = [{"role": "user", "content": asked["question"]}]
    ids = tokenizer.apply_chat_template(talk, tokenize=True)
    same(asked["prompt"], ids["input_ids"] if hasattr(ids, "keys") else ids)
    processor.chat_template = tokenizer.chat_template["processor"]  # no release takes it from the folder
    talk = [{"role": "user", "content": [{"type": "text", "text": asked["question"]}]}]
    text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    same(asked["prompt"], processor(text=text, return_tensors="pt").input_ids[0].tolist())

@step("pipeline")
def _():
    if not hasattr(transformers, "ImageTextToTextPipeline"):
        return "not there yet"
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    image = Image.new("RGB", (40, 30), "red")
    parts = [{"type": "image", "image": image}, {"type": "text", "text": asked["question"]}]
    talk = [{"role": "user", "content": parts}]
    written = pipe(text=talk, max_new_tokens=5, return_full_text=False)
    assert isinstance(written[0]["generated_text"], str), written

print("ANSWERS" + json.dumps(answers))
"""


def questions(lab: Chameleon) -> dict[str, object]:
    """What a release is asked, with the lab's own answers."""
    prompt = lab.encode(Document.of(PROMPT, EndTurn()))
    with torch.inference_mode():
        logits = lab.model(torch.from_numpy(prompt)[None])[0]
    return {
        "words": TEXT,
        "question": PROMPT,
        "prompt": prompt.tolist(),
        "logits": logits.tolist(),
        "text": lab.encode(Document.of(TEXT)).tolist(),
        "shape": [len(prompt) + lab.tokenizer.image_tokens],
    }


def minors() -> list[str]:
    """The last release of each minor of transformers from 4.43 on that the index has."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "transformers"], capture_output=True, text=True, check=True
    ).stdout
    releases = sorted(
        tuple(map(int, match)) for match in re.findall(r"\b(\d+)\.(\d+)\.(\d+)\b", told.split("Available")[1])
    )
    last = {release[:2]: release for release in releases if release >= (4, 43, 0)}
    return [".".join(map(str, release)) for release in last.values()]


def answers(version: str, shelf: Path, export: Path, asked: Path) -> dict[str, str]:
    """What one release says of an export; "" where it could not be installed."""
    place = shelf / version
    if not place.is_dir():  # else it is whole: it gets its name when all of it is there
        partial = shelf / f"{version}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(partial)]
        told = subprocess.run([*command, f"transformers=={version}"], capture_output=True, text=True)
        if told.returncode == 0:
            partial.rename(place)
        else:
            shutil.rmtree(partial, ignore_errors=True)
            return {"version": version, "model": "not installable: " + told.stderr.strip().splitlines()[-1][:200]}
    environment = os.environ | {"PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-c", PROBE, str(export), str(asked)], capture_output=True, text=True, env=environment
    )
    line = next((line for line in told.stdout.splitlines() if line.startswith("ANSWERS")), None)
    if line is None:
        return {"version": version, "model": (told.stderr.strip().splitlines() or ["no answer"])[-1][:200]}
    return json.loads(line.removeprefix("ANSWERS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="*", help="of transformers, such as 4.43.4")
    parser.add_argument("--all", action="store_true", help="the last of each minor from 4.43 on")
    parser.add_argument("--model", default="tiny", help="what is exported (default: tiny)")
    parser.add_argument("--keep", type=Path, help="folder to install into, kept for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        shelf, export, asked = options.keep or Path(scratch), Path(scratch) / "export", Path(scratch) / "asked.json"
        lab = Chameleon.load(options.model, device="cpu")
        lab.save(export, format="huggingface", pictures=False)
        asked.write_text(json.dumps(questions(lab)))
        print(f"| transformers | {' | '.join(STEPS)} |\n|---|{'---|' * len(STEPS)}")
        faults: list[str] = []
        for version in minors() if options.all else options.version:
            told = answers(version, shelf, export, asked)
            cells = [told.get(step, "no") for step in STEPS]
            short = [cell if cell in ("yes", "not there yet") else "**no**" for cell in cells]
            print(f"| {version} | {' | '.join(short)} |", flush=True)
            faults += [f"{version}, {step}: {cell}" for step, cell in zip(STEPS, cells, strict=True) if cell != "yes"]
        print("\n" + "\n".join(faults))


if __name__ == "__main__":
    main()
