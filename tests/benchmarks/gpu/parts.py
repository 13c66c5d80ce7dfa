"""The parts: each measures one thing and writes it into its report."""

from __future__ import annotations

import contextlib
import functools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from chameleon_lab import planner
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation import recording
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.generation.engine import Engine
from chameleon_lab.generation.fused import compile_steps
from chameleon_lab.generation.settings import Settings
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Recipe
from chameleon_lab.quantization import Int4Linear, Int8Linear, quantize
from chameleon_lab.stability import Dropout, QueryKeyNorm, ZLoss
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.compilation import compile_blocks
from chameleon_lab.training.data import Scenes
from chameleon_lab.training.experiments import SMALL
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary
from gpu import ROOT, environment
from gpu.cards import Card, card_of
from gpu.measuring import bandwidth, device, drawn, matrix_bytes, seconds, wait
from gpu.report import Report
from gpu.sizes import ADAM, TOY_SHAPE, Sizes


def run_tests(sizes: Sizes, report: Report) -> None:
    """All tests marked `gpu` but the benchmark, of which there is a part; without one they are only collected."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    tested(report, "tests marked gpu", ["-m", "gpu"], files)


def run_trainings(sizes: Sizes, report: Report) -> None:
    """The ordinary tests of trainings, which go to a GPU by themselves where there is one."""
    names = ("test_training", "test_image_experiments", "test_objective")  # which need no Jupyter
    files = [ROOT / "tests" / f"{name}.py" for name in names]
    chosen = ["-m", "not slow and not gpu", "-k", "not two_processes"]
    tested(report, "tests of trainings", chosen, files)


def tested(report: Report, name: str, chosen: list[str], files: Sequence[Path]) -> None:
    options = [*chosen, "-v", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "-rfE", "--tb=short"]
    if not torch.cuda.is_available():
        options.append("--collect-only")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        order = [sys.executable, "-m", "pytest", *options, f"--junitxml={results}", *map(str, files)]
        log = Path(folder) / "log"
        with (
            subprocess.Popen(
                order, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as done,
            log.open("w") as kept,
        ):
            assert done.stdout is not None
            for line in done.stdout:  # as it comes: a part that is killed leaves it in its log
                print(line, end="", flush=True)
                kept.write(line)
        lines = log.read_text().strip().splitlines() or ["nothing was said"]
        report.add(name, outcome=lines[-1].strip("= "), exit_code=done.returncode)
        for line in lines:
            if line.startswith(("FAILED", "ERROR")):
                report.remark(line[:300])
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {lines[-1]}")


def run_decoding(sizes: Sizes, report: Report) -> None:
    """Steps a second at 7B shapes: recorded, compiled or neither, of one row to three, in bfloat16, int8 and int4."""
    speed = bandwidth(sizes)
    stated = card_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    report.add(
        "a copy on the device", GB_per_second=speed / 1e9, stated=stated.terabytes * 1e3 if stated else "unknown"
    )
    config = sizes.decoded
    model = drawn(config)
    gpu = torch.cuda.is_available()
    for rows in (1, 2, 3):
        for recorded in (True, False) if gpu and rows == 1 else (gpu,):
            with report.attempt(name := f"bfloat16, {rows} row(s), {'recorded' if recorded else 'not recorded'}"):
                decoding(model, rows, recorded, speed, stated, sizes, report, name)
    with report.attempt("a step's kernels"), torch.inference_mode():
        decoder, token_11 = Decoder(model, 1, sizes.before + 8), torch.full((1, 1), 5, device=device())
        decoder.cache.lengths[:] = sizes.before
        kernels(lambda: decoder.logits(decoder.trunk(token_11)), report)
    for rows in (1, 2) if gpu else ():
        with report.attempt(name := f"bfloat16, {rows} row(s), compiled"):
            compile_steps(model)
            decoding(model, rows, True, speed, stated, sizes, report, name)
    del model
    plain = "recorded" if gpu else "not recorded"
    for bits in (8, 4):
        packed = quantize(drawn(config), bits)
        for compiled in (False, True) if gpu else (False,):
            with report.attempt(name := f"int{bits}, 1 row, {'compiled' if compiled else plain}"):
                if compiled:
                    compile_steps(packed)
                decoding(packed, 1, gpu, speed, stated, sizes, report, name)
        del packed


def decoding(
    model: Transformer,
    rows: int,
    recorded: bool,
    speed: float,
    stated: Card | None,
    sizes: Sizes,
    report: Report,
    name: str,
) -> None:
    config = model.config
    replays = recording.replays
    if not recorded:
        recording.replays = lambda device: False
    try:
        decoder = Decoder(model, rows, sizes.before + sizes.steps + sizes.patience + 8)
        tokens_B1 = torch.full((rows, 1), 5, device=device())

        @torch.inference_mode()
        def steps(count: int) -> None:
            latest_B1 = tokens_B1
            decoder.cache.lengths[:] = sizes.before
            for _ in range(count):
                outputs_BTD = decoder.feed(latest_B1, [1] * rows)
                latest_B1 = decoder.logits(outputs_BTD[:, -1:]).argmax(-1)

        steps(sizes.patience + 4)  # until the step is recorded
        took = seconds(lambda: steps(sizes.steps)) / sizes.steps
        worker = decoder.worker
    finally:
        recording.replays = replays
    numbers = 2 * config.layers * config.kv_heads * config.head_width * (sizes.before + sizes.steps / 2) * rows
    read = matrix_bytes(model) + numbers * model.embedding.weight.element_size()
    figures: dict[str, Any] = {"steps_per_second": 1 / took, "tokens_per_second": rows / took, "worker": worker}
    figures["share_of_copy"] = read / took / speed
    if stated:
        figures["share_of_stated"] = read / took / (stated.terabytes * 1e12)
    report.add(name, **figures)


def kernels(work: Callable[[], object], report: Report, most: int = 14) -> None:
    """Says in remarks on which kernels the device spends a work's time."""
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    work()
    wait()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        work()
        wait()
    times = {
        each.key: (each.self_device_time_total if gpu else each.self_cpu_time_total, each.count)
        for each in profiler.key_averages()
    }
    whole = sum(spent for spent, _ in times.values())
    report.remark(f"{whole / 1e3:.3g} ms of kernels, {sum(count for _, count in times.values()):,} of them:")
    for name, (spent, count) in sorted(times.items(), key=lambda each: -each[1][0])[:most]:
        report.remark(f"{spent / max(whole, 1e-9):.1%} in {count} x {name[:110]}")


def run_products(sizes: Sizes, report: Report) -> None:
    """Products of a few rows with one large matrix, by each kernel there is: bytes of weights read a second."""
    config, speed = sizes.decoded, bandwidth(sizes)
    outputs, inputs = 2 * config.ffn_width, config.width
    plain = nn.Linear(inputs, outputs, bias=False, device=device(), dtype=torch.bfloat16)
    weight_OI = plain.weight.detach()
    eighth, quarter = Int8Linear(inputs, outputs), Int4Linear(inputs, outputs, device().type)
    for packed in (eighth, quarter):
        packed.take(packed.pack(weight_OI))
    bytes_OI, scales_O = (each.to(device()) for each in Int8Linear(inputs, outputs).pack(weight_OI).values())

    def unpacked(x_NI: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x_NI, bytes_OI.to(x_NI.dtype)) * scales_O

    def within(x_NI: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._weight_int8pack_mm(x_NI, bytes_OI, scales_O)

    with compiler(sizes.compiler):
        fused = torch.compile(unpacked, dynamic=False)
    works: dict[str, tuple[Callable[[torch.Tensor], object], int]] = {
        "bfloat16": (plain, weight_OI.nbytes),
        "int8, the lab's": (eighth, bytes_OI.nbytes),
        "int8, torch's own": (within, bytes_OI.nbytes),
        "int8, unpacked and compiled": (fused, bytes_OI.nbytes),
        "int4, the lab's": (quarter, bytes_OI.nbytes // 2),
    }
    with torch.inference_mode():
        for rows in (1, 3):
            x_NI = torch.randn(rows, inputs, device=device(), dtype=torch.bfloat16)
            for kind, (work, size) in works.items():
                with report.attempt(name := f"{kind}, {rows} row(s)"):
                    off = float((work(x_NI).float() - plain(x_NI).float()).square().mean().sqrt())  # pyright: ignore[reportAttributeAccessIssue]
                    took = seconds(lambda: [work(x_NI) for _ in range(20)], turns=5) / 20  # noqa: B023
                    report.add(
                        name,
                        us=1e6 * took,
                        GB_per_second=size / took / 1e9,
                        share_of_copy=size / took / speed,
                        error=off,
                    )


class ManyPieces:
    """A text tokenizer of so many pieces, for a vocabulary of the real size: a letter is a piece."""

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % self.size for letter in text]

    def decode(self, pieces: Sequence[int]) -> str:
        return "".join(chr(97 + piece % 26) for piece in pieces)


def run_picture(sizes: Sizes, report: Report) -> None:
    """A guided picture from words to pixels, through the engine: sampler, grammar, guidance and picture decoder."""
    pieces = sizes.decoded.vocabulary - Vocabulary.layout(sizes.images.codes, 0).size
    with torch.device(device()):
        images = ImageTokenizer(sizes.images).to(torch.bfloat16).eval()
    text = ManyPieces(pieces)
    tokenizer = MixedModalTokenizer(text, images, Vocabulary.layout(sizes.images.codes, pieces))
    model = drawn(replace(sizes.decoded, vocabulary=tokenizer.vocabulary.size))
    rows, columns = tokenizer.grid
    prompt = Document.of("a fox under a birch in the first snow of the year", EndTurn())
    engine = Engine(model, tokenizer)
    grammar = engine.grammar_of({"text": False, "max_images": 1, "min_images": 1})
    kinds = [("guided picture", 3.0, False), ("unguided picture", 1.0, False)]
    kinds += [("guided picture, compiled", 3.0, True)] * torch.cuda.is_available()
    for name, guidance, compiled in kinds:
        with report.attempt(name):
            if compiled:
                compile_steps(model)
            settings = Settings(temperature=1.0, image_temperature=1.0, guidance=guidance)
            times = list[float]()
            for seed in range(3 if guidance != 1 else 2):
                wait()
                started = time.perf_counter()
                reply = engine.generate([prompt], settings, [seed], grammar)[0]
                [codes] = [part.codes for part in reply if isinstance(part, Image) and part.codes is not None]
                images.decode(codes)
                wait()
                times.append(time.perf_counter() - started)
            report.add(name, seconds=min(times[1:]), first=times[0], codes=rows * columns)


def fixed_batches(config: ModelConfig, rows: int, positions: int, count: int = 4) -> list[Batch]:
    """Random tokens, half of the targets those of images, all learned."""
    generator = torch.Generator().manual_seed(1)
    batches = list[Batch]()
    for _ in range(count):
        tokens_BT = torch.randint(4, config.vocabulary, (rows, positions + 1), generator=generator)
        kinds_T = (torch.arange(positions) >= positions // 2).to(torch.uint8)
        learned_BT = torch.ones(rows, positions, dtype=torch.bool)
        batches.append(
            Batch(
                tokens_BT[:, :-1].clone(),
                tokens_BT[:, 1:].clone(),
                learned_BT,
                kinds_T.expand(rows, -1).clone(),
                rows * positions,
            )
        )
    return batches


class Enough(Exception):
    """So many steps are taken: nothing is to be saved."""


def step_times(
    config: ModelConfig,
    recipe: Recipe,
    batches: Sequence[Batch],
    steps: int,
    monitors: Sequence[Any] = (),
    compiled: bool = False,
) -> list[float]:
    """Seconds of each step of a training as a `Run` does it, in bf16-mixed, without its checkpoint at the end."""
    from chameleon_lab.training.folder import RunFolder
    from chameleon_lab.training.loop import train
    from chameleon_lab.training.modules import LanguageModule
    from chameleon_lab.training.trainable import Prepared

    torch.compiler.reset()  # or the sizes of another training would make these kernels ones for any size
    torch.manual_seed(0)
    with torch.device(device()):
        model = Transformer(config)
    objective = Objective(penalties=(ZLoss(1e-5),))
    module = LanguageModule(model, objective, recipe, Budget(steps=10**6), monitors=monitors, compiled=compiled)
    clock = list[float]()

    def note(_module: Any, record: Any) -> None:
        clock.append(record.seconds)
        if not math.isfinite(record.values["loss"]):
            raise FloatingPointError(f"The loss is {record.values['loss']} at step {record.step}.")
        if len(clock) >= steps:
            raise Enough

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        prepared = Prepared(module, lambda place: batches[place % len(batches)])
        train(prepared, RunFolder(folder), note, precision="bf16-mixed", save_minutes=1e9)
    assert len(clock) == steps, f"{len(clock)} steps of {steps} were taken"
    return np.diff([0.0, *clock]).tolist()


@contextlib.contextmanager
def compiler(backend: str) -> Iterator[None]:
    """`torch.compile` with this backend, where the caller names none."""
    compile_ = torch.compile
    torch.compile = functools.partial(compile_, backend=backend)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.compile = compile_


def flops_of_a_token(config: ModelConfig, positions: int) -> float:
    """Of a training step: six for each weight of a matrix, head included, and attention's products, of which each
    position has half of those before and behind it."""
    with torch.device("meta"):
        model = Transformer(config)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    return 6 * weights + 6 * config.layers * config.heads * config.head_width * positions


def run_training(sizes: Sizes, report: Report) -> None:
    """Training steps as a `Run` does them: MFU, compiled and not, and the memory beside what the planner says."""
    name_of_card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    stated = card_of(name_of_card)
    with report.attempt("bfloat16 product of 8,192 squared"):
        side = 8192 if torch.cuda.is_available() else 64
        square = torch.randn(side, side, device=device(), dtype=torch.bfloat16)
        took = seconds(functools.partial(torch.mm, square, square), turns=10, warm=3)
        report.add(
            "bfloat16 product of 8,192 squared",
            TFLOPs=2 * side**3 / took / 1e12,
            stated=stated.teraflops if stated else "unknown",
        )
        del square
    for title, (config, recipe, rows, positions, ways) in sizes.trainings.items():
        config = replace(config, vocabulary=config.vocabulary or 1047, context=max(config.context, positions))
        batches = fixed_batches(config, rows, positions)
        for compiled in ways:
            with report.attempt(name := f"{title}{', compiled' if compiled else ''}"):
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                with compiler(sizes.compiler):
                    times = step_times(config, recipe, batches, sizes.warm + sizes.timed, (), compiled)
                took = median(times[sizes.warm :])
                work = rows * positions * flops_of_a_token(config, positions)
                figures: dict[str, Any] = {
                    "ms_per_step": 1e3 * took,
                    "tokens_per_second": rows * positions / took,
                    "TFLOPs": work / took / 1e12,
                    "MFU": work / took / (stated.teraflops * 1e12) if stated else "unknown",
                    "first_step_s": times[0],
                    "whole_s": time.perf_counter() - began,
                }
                if torch.cuda.is_available():
                    figures["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9
                    figures["reserved_GB"] = torch.cuda.max_memory_reserved() / 1e9
                report.add(name, **figures)
            if title == list(sizes.trainings)[-1]:
                with report.attempt(f"{name}: kernels"), compiler(sizes.compiler):
                    step_kernels(config, batches[0], compiled, report)
            if not compiled:
                with report.attempt(name):
                    planned = planner.plan(
                        config, rows=rows, context=positions, training=recipe, precision="bf16-mixed"
                    )
                    report.add(name, planned_GB=planned.peak / 1e9)


def step_kernels(config: ModelConfig, batch: Batch, compiled: bool, report: Report) -> None:
    """On which kernels a forward and a backward pass spend their time."""
    with torch.device(device()):
        model = Transformer(config).train()
    if compiled:
        compile_blocks(model)
    here, objective = batch.to(device()), Objective(penalties=(ZLoss(1e-5),), compiled=compiled)

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16):
            objective(model, here)["loss_with_penalties"].backward()
        model.zero_grad()

    kernels(step, report)


def run_images(sizes: Sizes, report: Report) -> None:
    """The image tokenizer at its own side, of random weights with a codebook among its latents."""
    config = sizes.images
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(config).eval()
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(sizes.batch, 3, config.side // 8, config.side // 8, generator=generator) * 2 - 1
    pixels_BCHW = nn.functional.interpolate(coarse, config.side)
    with torch.inference_mode():
        started = time.perf_counter()
        latents_XC = tokenizer.quant_conv(tokenizer.encoder(pixels_BCHW[:1])).movedim(1, -1).flatten(0, 2)
        picks = torch.randint(len(latents_XC), (config.codes,), generator=generator)
        noise = torch.randn(config.codes, config.code_width, generator=generator) * latents_XC.std(0) / 2
        tokenizer.quantize.embedding.weight.copy_(latents_XC[picks] + noise)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType, reportCallIssue]
        exact_BHW = tokenizer.encode_pixels(pixels_BCHW[:1])
        seen_BCHW = tokenizer.decode_pixels(exact_BHW)
        report.add("float32 on the CPU, 1 picture", seconds_there_and_back=time.perf_counter() - started)
    here = tokenizer.to(device())
    exact_BHW, seen_BCHW, pixels_BCHW = exact_BHW.to(device()), seen_BCHW.to(device()), pixels_BCHW.to(device())
    tf32 = torch.backends.cudnn.allow_tf32
    kinds = {
        "float32": (torch.float32, False, torch.contiguous_format),
        "float32, TF32 convolutions": (torch.float32, True, torch.contiguous_format),
        "bfloat16": (torch.bfloat16, True, torch.contiguous_format),
        "bfloat16, channels last": (torch.bfloat16, True, torch.channels_last),
    }
    for kind, (dtype, fast, layout) in kinds.items():
        torch.backends.cudnn.allow_tf32 = fast
        here = here.to(dtype=dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]
        for count in (1, sizes.batch):
            with report.attempt(name := f"{kind}, {count} at once"), torch.inference_mode():
                some_BCHW = pixels_BCHW[:count].to(dtype).contiguous(memory_format=layout)
                codes_BHW = exact_BHW.expand(count, -1, -1).contiguous()
                encode = seconds(lambda: here.encode_pixels(some_BCHW)) / count  # noqa: B023
                decode = seconds(lambda: here.decode_pixels(codes_BHW)) / count  # noqa: B023
                equal = (here.encode_pixels(some_BCHW)[:1] == exact_BHW).float().mean().item()
                off = (here.decode_pixels(codes_BHW)[:1].float() - seen_BCHW).abs().max().item()
                report.add(
                    name,
                    encoded_per_second=1 / encode,
                    decoded_per_second=1 / decode,
                    codes_equal_to_CPU=equal,
                    pixels_off_at_most=off,
                )
    torch.backends.cudnn.allow_tf32 = tf32


def run_monitors(sizes: Sizes, report: Report) -> None:
    """What the default monitors add to a training's steps, all and one by one at the steps when they are due."""
    config, recipe, rows, positions, _ = next(iter(sizes.trainings.values()))
    config = replace(config, vocabulary=config.vocabulary or 1047)
    rows = 8 * rows
    batches = fixed_batches(config, rows, positions)

    def peak() -> dict[str, float]:
        return {"peak_GB": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_available() else {}

    def times(monitors: Sequence[Any], steps: int) -> list[float]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return step_times(config, replace(recipe, muon_rate=0.0), batches, steps, monitors)

    bare = times((), sizes.warm + sizes.timed)[sizes.warm :]
    base = median(bare)
    report.add("without monitors", ms_per_step=1e3 * base, tokens_per_step=rows * positions, **peak())
    for monitor in MONITORS if torch.cuda.is_available() else MONITORS[-1:]:
        with report.attempt(name := f"{type(monitor).__name__} alone, every step"):
            took = median(times([replace(monitor, every=1)], sizes.warm + sizes.timed)[sizes.warm :])
            report.add(
                name,
                ms_more=1e3 * (took - base),
                every=monitor.every,
                share=(took - base) / monitor.every / base,
                **peak(),
            )
    with report.attempt("all, as often as by default"):
        spent = times(MONITORS, sizes.watched)[1:]
        report.add(
            "all, as often as by default",
            ms_per_step=1e3 * float(np.mean(spent)),
            share=float(np.mean(spent)) / base - 1,
            **peak(),
        )
    with report.attempt("a step's data"):
        data = Scenes("tiny", tokens=sizes.data).open(0, None)
        data.batches(0)
        started = time.perf_counter()
        count = 32 if torch.cuda.is_available() else 1
        for place in range(16, 16 + count):
            data.batches(place)
        report.add(
            "a step's data", ms_per_batch=1e3 * (time.perf_counter() - started) / count, where="the CPU, one thread"
        )


def run_parity(sizes: Sizes, report: Report) -> None:
    """The shipped model on the CPU and on the GPU: logits, codes, greedy tokens, a drawn picture."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    here, there = Chameleon.load("tiny", device="cpu"), Chameleon.load("tiny", device=device())
    prompts = [
        Document.of(text, EndTurn())
        for text in ("draw a large red circle", "draw a small blue square left of a green triangle", "who are you?")
    ][: 3 if sizes.greedy > 100 else 1]
    documents = [here.encode(prompt) for prompt in prompts]
    with torch.inference_mode():
        off, same, positions = 0.0, 0, 0
        for tokens in documents:
            one, other = (
                lab.model(torch.from_numpy(tokens)[None].to(lab.model.embedding.weight.device)).cpu()
                for lab in (here, there)
            )
            off = max(off, float((one - other).abs().max()))
            same += int((one.argmax(-1) == other.argmax(-1)).sum())
            positions += len(tokens)
    report.add("logits in float32", off_at_most=off, likeliest_equal=same / positions)
    replies = list[list[Any]]()
    for lab in (here, there):
        replies.append(
            [lab.encode(lab.generate(each, temperature=0.0, guidance=1.0, max_tokens=sizes.greedy)) for each in prompts]
        )
    for prompt, one, other in zip(prompts, *replies, strict=True):
        shared = next(
            (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        words = " ".join(part.text for part in prompt if isinstance(part, Text))
        report.add(f"greedy tokens after {words!r}", equal=shared, of=max(len(one), len(other)))
    seeded = [lab.generate(prompts[0], seed=7, max_tokens=sizes.greedy) for lab in (here, there)]
    report.add(
        "sampled with one seed, guided", equal=here.encode(seeded[0]).tolist() == here.encode(seeded[1]).tolist()
    )
    from chameleon_lab.corpora.mixture import scene_pairs

    pictures = [part.picture for document in scene_pairs(8) for part in document if isinstance(part, Image)]
    codes = [lab.tokenizer.image.encode_batch(pictures) for lab in (here, there)]
    report.add("codes of 8 pictures", equal=float((codes[0] == codes[1]).mean()))
    seen = [np.asarray(lab.tokenizer.image.decode(codes[0][0])).astype(int) for lab in (here, there)]
    report.add("a decoded picture", levels_off_at_most=int(np.abs(seen[0] - seen[1]).max()))
    if torch.cuda.is_available():
        with report.attempt("logits in bfloat16"), torch.inference_mode():
            half = Chameleon.load("tiny", device="cuda", dtype=torch.bfloat16)
            tokens = torch.from_numpy(documents[0])[None]
            one, other = here.model(tokens), half.model(tokens.cuda()).cpu()
            kl = nn.functional.kl_div(other.log_softmax(-1), one.softmax(-1), reduction="none").sum(-1).mean()
            report.add(
                "logits in bfloat16",
                mean_KL_in_nats=float(kl),
                likeliest_equal=float((one.argmax(-1) == other.argmax(-1)).float().mean()),
            )


def run_resume(sizes: Sizes, report: Report) -> None:
    """A training with dropout, stopped and resumed, beside one that was not: bitwise equal losses."""
    from chameleon_lab.training.control import Control
    from chameleon_lab.training.folder import RunFolder
    from chameleon_lab.training.loop import train
    from chameleon_lab.training.modules import LanguageModule
    from chameleon_lab.training.trainable import Prepared

    config = replace(TOY_SHAPE, width=64, head_width=32, fixes=(QueryKeyNorm(), Dropout(0.2)))
    batches = fixed_batches(config, 4, 64)
    steps = sizes.resumed

    def losses(folder: Path, precision: str, recipe: Recipe, stop: int | None) -> list[float]:
        torch.manual_seed(3)
        module = LanguageModule(Transformer(config), Objective(), recipe, Budget(steps=steps))
        control, values = Control(), list[float]()

        def note(_module: Any, record: Any) -> None:
            values.append(record.values["loss"])
            if len(values) == stop:
                control.stop()

        train(
            Prepared(module, lambda place: batches[place % 4]),
            RunFolder(folder),
            note,
            control=control,
            precision=precision,
        )
        torch.manual_seed(999)  # so that only what was saved can make the rest equal
        return values

    kinds = [("AdamW", ADAM, "32-true"), ("Muon", SMALL.recipe, "bf16-mixed"), ("AdamW", ADAM, "bf16-mixed")]
    for kind, recipe, precision in kinds[: 3 if steps > 4 else 1]:
        with report.attempt(name := f"{kind}, {precision}"), tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            whole, again = (losses(folder / each, precision, recipe, None) for each in ("whole", "again"))
            parts = losses(folder / "parts", precision, recipe, steps // 2)
            parts += losses(folder / "parts", precision, recipe, None)
            off = max(abs(one - other) for one, other in zip(whole, parts, strict=True))
            report.add(name, repeats_bitwise=whole == again, resumes_bitwise=whole == parts, off_at_most=off)
            if whole == again and whole != parts:
                raise AssertionError(f"The resumed run differs by up to {off}, though the run repeats bitwise.")


PARTS: dict[str, tuple[Callable[[Sizes, Report], None], float]] = {
    "tests": (run_tests, 150),
    "parity": (run_parity, 60),
    "resume": (run_resume, 60),
    "decoding": (run_decoding, 130),
    "products": (run_products, 60),
    "picture": (run_picture, 110),
    "training": (run_training, 180),
    "images": (run_images, 60),
    "monitors": (run_monitors, 90),
    "trainings": (run_trainings, 90),
}
"""Each part, and its limit in seconds on a GPU."""
