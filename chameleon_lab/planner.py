"""What fits where: the memory that a model takes, for use and for training, found without building it.

The lab's own code (trunk, cache, objective, optimizers, picture decoder, a look) runs on fake tensors that have shapes
and no data, while a ledger follows which of their storages are alive. So the figures are those of the code as it is,
fixes included: with an allocator that keeps nothing, eight small models took what was planned within 3 %. What this
cannot see is estimated: `GAPS` for the allocator, `RESERVE` for all else on a device.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chameleon_lab.by_modality import active_parameters
from chameleon_lab.crossovers import PROMPT_POSITIONS
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.inspection.effects import without_edges
from chameleon_lab.inspection.rollout import SQUARE_BYTES, AttentionRollout
from chameleon_lab.inspection.trace import LOGITS_AT_ONCE, Trace
from chameleon_lab.objective import Objective, chunked_sum
from chameleon_lab.optimization import Recipe
from chameleon_lab.outlines import outline
from chameleon_lab.quantization import BITS, quantize
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.transformer import Causal, ModelConfig, Transformer

GB = 10**9
RESERVE = 0.7 * GB
"""What a device holds besides: the driver's context, or the interpreter with its libraries (0.35 GB). An estimate."""

GAPS, GAPS_SHARE = 0.13 * GB, 0.35
"""What an allocator keeps of memory given back to it: this share of the activations, but no more than so much in all,
since large blocks do go back. Measured with glibc's over eight models (up to 0.15 GB), and not on a GPU."""

FEW_LAYERS = 3
"""Models of more layers are planned from 2 and 3 of them."""

DEVICES = (8, 16, 24, 80, 141)
"""Memory of usual devices, in GB."""

GUIDANCE = {"none": 1, "two-way": 2, "three-way": 3}
"""Rows of the cache for each row that is written."""

WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16, "int4": torch.bfloat16}
"""Kinds of weights, and the dtype of what stands beside them: embedding, norms, cache, activations."""

PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Plan:
    """The memory that a use of a model takes, in bytes; `print(plan)` shows it as a table.

    `parameters` and `image_parameters` are counts; `active` of the parameters are those that one token goes through.
    `cache_per_token` is for all `cache_rows` together. `inspection` is what an inspected document keeps: (layers + 2) x
    width numbers a token, in the dtype of what stands beside the weights, and, from the first rollout on (the inspector
    begins with one), a square of context x context numbers in float32, up to `SQUARE_BYTES`. `activations` is what
    the most demanding moment, `moment`, holds besides what stands in the other fields, `gaps` what the allocator loses
    by it. `advice` says what to change when it does not fit: each line is a change (on top of the ones before it) and
    what the peak would then be.
    """

    what: str
    parameters: int
    image_parameters: int
    weights: int
    gradients: int
    optimizer: int
    cache: int
    cache_rows: int
    cache_per_token: int
    activations: int
    gaps: int
    moment: str
    device_memory: float | None = None
    advice: tuple[str, ...] = ()
    inspection: int = 0
    active: int = 0

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        stands = self.weights + self.gradients + self.optimizer + self.cache + self.inspection
        return stands + self.activations + self.gaps

    @property
    def fits(self) -> bool | None:
        """Whether a device of `device_memory` bytes holds the peak and `RESERVE`; None where no device is given."""
        return None if self.device_memory is None else self.peak + RESERVE <= self.device_memory

    def __str__(self) -> str:
        cache = f"{self.cache_per_token / 1024:,.0f} KiB a token in {self.cache_rows} row(s)"
        pictures = f", and {self.image_parameters:,} of the image tokenizer" if self.image_parameters else ""
        active = f", of which a token meets {self.active:,}" if self.active not in (0, self.parameters) else ""
        rows = [
            ("weights", self.weights, f"{self.parameters:,} parameters{active}{pictures}"),
            ("gradients", self.gradients, ""),
            ("optimizer", self.optimizer, ""),
            ("cache", self.cache, cache),
            (
                "inspection",
                self.inspection,
                "(layers + 2) x width numbers a token, and rollout, context x context",
            ),
            ("activations", self.activations, f"at most, in the {self.moment}"),
            ("gaps", self.gaps, "of the allocator, about"),
            ("peak", self.peak, ""),
        ]
        lines = [self.what] + [
            f"  {name:12s}{size / GB:9.2f} GB  {note}".rstrip() for name, size, note in rows if size or name == "peak"
        ]
        if self.device_memory is not None:
            verdict = "fits" if self.fits else "does not fit"
            lines.append(f"  {verdict} {self.device_memory / GB:g} GB, {RESERVE / GB:g} GB of it kept for all else")
        lines += [f"  {'then' if number else 'try'}: {line}" for number, line in enumerate(self.advice)]
        return "\n".join(lines)


def verdicts(plan: Plan) -> str:
    """A line on which usual devices hold a plan, and whether this machine's memory does."""
    sizes = [*DEVICES, round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB)]
    names = [f"{size} GB" for size in DEVICES] + [f"this machine's {sizes[-1]} GB"]
    fitting = [name for name, size in zip(names, sizes, strict=True) if replace(plan, device_memory=size * GB).fits]
    return f"  fits {', '.join(fitting)}" if fitting else f"  fits none of {', '.join(names)}"


def plan(
    config: ModelConfig,
    device_memory: float | None = None,
    *,
    weights: str | None = None,
    rows: int = 1,
    context: int | None = None,
    guidance: str = "none",
    training: Recipe | None = None,
    precision: str = "32-true",
    image_tokenizer: ImageTokenizerConfig | None = None,
    inspection: bool = False,
) -> Plan:
    """What a model of this shape takes: to write `rows` documents of `context` tokens at once, to train on them, or, as
    `inspection`, to look at one.

    `device_memory` is in GB (10^9 bytes). `weights`: float32, bfloat16, int8 or int4; by default bfloat16 for use and
    float32 for training. `guidance`: none, two-way or three-way. A recipe as `training` plans a training with it, in
    Lightning's `precision` "32-true" or "bf16-mixed". The image tokenizer, where one is given, stands beside the model
    and draws a picture while the cache is full; a training works on codes and needs none.

    Prompts are taken to fill the context, or to leave room for a picture where it is guided: the most demanding case.
    Raises ValueError for settings that make no plan.
    """
    use = _Use(config, weights or ("float32" if training else "bfloat16"), rows, context or config.context)
    use = replace(use, guidance=guidance, training=training, precision=precision, image_tokenizer=image_tokenizer)
    use = replace(use, inspection=inspection)
    if device_memory is not None and not device_memory > 0:
        raise ValueError(f"A device has more than 0 GB of memory, not {device_memory}.")
    memory = None if device_memory is None else device_memory * GB
    answer = replace(use.plan(), device_memory=memory)
    return replace(answer, advice=tuple(use.advice(memory, answer.peak))) if answer.fits is False and memory else answer


@dataclass(frozen=True)
class _Use:
    """What is to be done with a model; see `plan` for the fields."""

    config: ModelConfig
    weights: str
    rows: int
    context: int
    guidance: str = "none"
    training: Recipe | None = None
    precision: str = "32-true"
    image_tokenizer: ImageTokenizerConfig | None = None
    inspection: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("weights", WEIGHTS), ("guidance", GUIDANCE), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.rows < 1 or not 1 <= self.context <= self.config.context:
            raise ValueError(
                f"rows must be 1 or more and context 1 to the model's {self.config.context}, not {self.rows} and "
                f"{self.context}."
            )
        if self.inspection and (self.training or self.rows > 1 or self.guidance != "none"):
            raise ValueError(
                f"A look is at one document, rows=1, without training or guidance; got rows={self.rows}, guidance="
                f"{self.guidance!r}{' and a recipe' if self.training else ''}."
            )
        if self.training and self.weights in BITS:
            raise ValueError(f"{self.weights} weights cannot be trained: take float32 or bfloat16.")

    def plan(self) -> Plan:
        """Without a device; the same use is planned once, since advice and those who ask again compare the same few."""
        try:
            hash(self)
        except TypeError:  # a person's own part holds a list, say
            return self._measure()
        return _plans(self)

    def _measure(self) -> Plan:
        """By a trace. Many alike layers are planned from a few: all that is held grows evenly with them."""
        layers = self.config.layers
        few = [self._trace(count) for count in ((layers,) if layers <= FEW_LAYERS else (2, 3))]
        moments = {name: _extrapolate([trace[name] for trace in few], layers) for name in few[0]}
        names = (
            "parameters",
            "active",
            "image parameters",
            "weights",
            "image tokenizer",
            "gradients",
            "optimizer",
            "cache",
        )
        parameters, active, image_parameters, weights, picture, gradients, optimizer, cache = map(moments.pop, names)
        inspection = moments.pop("inspection", 0)
        moment = max(moments, key=moments.__getitem__)
        activations = max(0, moments[moment] - weights - picture - gradients - optimizer - cache - inspection)
        cache_rows = 0 if self.training or self.inspection else self.rows * GUIDANCE[self.guidance]
        per_token = 2 * layers * self.config.kv_heads * self.config.head_width * WEIGHTS[self.weights].itemsize
        return Plan(
            what=self.title,
            parameters=parameters,
            image_parameters=image_parameters,
            weights=weights + picture,
            gradients=gradients,
            optimizer=optimizer,
            cache=cache,
            cache_rows=cache_rows,
            cache_per_token=per_token * cache_rows,
            activations=activations,
            gaps=int(min(GAPS, GAPS_SHARE * activations)),
            moment=moment,
            inspection=inspection,
            active=active,
        )

    @property
    def title(self) -> str:
        if self.inspection:
            return f"a look at a document of {self.context} tokens, weights in {self.weights}:"
        if self.training is None:
            return f"{self.rows} row(s) of {self.context} tokens, weights in {self.weights}, guidance {self.guidance}:"
        kind = "Muon and AdamW" if self.training.muon_rate else "AdamW"
        return f"a training step of {self.rows} x {self.context} tokens, {self.weights}, {self.precision}, {kind}:"

    def advice(self, memory: float, least: int) -> Iterator[str]:
        """Changes, gentlest first, until the peak, `least` bytes without them, fits; where one of them alone is enough,
        that one."""
        changed = self
        lines: list[str] = []
        for name, change in self._changes():
            if (peak := replace(self, **change).plan().peak) + RESERVE <= memory:
                yield f"{name}: {peak / GB:.2f} GB, which fits"
                return
            if changed is not self:
                peak = replace(changed, **change).plan().peak
            if peak >= least:
                continue
            changed, least = replace(changed, **change), peak
            lines.append(f"{name}: {peak / GB:.2f} GB")
            if peak + RESERVE <= memory:
                yield from lines[:-1]
                yield f"{lines[-1]}, which fits"
                return
        yield from lines
        yield "no setting of this model is enough: take a device with more memory, or a smaller model"

    def _changes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.training:
            if self.precision == "32-true" and self.weights == "float32":
                yield 'precision="bf16-mixed"', {"precision": "bf16-mixed"}
            if self.rows > 1:
                yield "rows=1", {"rows": 1}
            if not self.training.muon_rate:
                yield "Muon for the blocks' matrices", {"training": replace(self.training, muon_rate=0.02)}
            if self.weights == "float32":
                yield 'weights="bfloat16"', {"weights": "bfloat16", "precision": "32-true"}
        else:
            order = list(WEIGHTS)
            for weights in order[order.index(self.weights) + 1 :]:
                yield f'weights="{weights}"', {"weights": weights}
            if self.rows > 1:
                yield "rows=1", {"rows": 1}
            if self.guidance != "none":
                yield 'guidance="none"', {"guidance": "none"}
        for part in (2, 4):
            if self.context // part >= 256:
                yield f"context={self.context // part}", {"context": self.context // part}

    def _trace(self, layers: int) -> dict[str, int]:
        """Bytes alive with so many layers: what stands, by name, and the peaks of each moment."""
        use = replace(self, config=replace(self.config, layers=layers))
        with outline():
            model = Transformer(use.config)
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), _Ledger() as ledger:
            warnings.simplefilter("ignore")  # of kernels that are not fused, here where nothing is computed
            return {
                "parameters": _count(model),
                "active": active_parameters(model),
                **(use._sizes_in_training(ledger) if use.training else use._sizes_in_use(ledger)),
            }

    def _prefills(self) -> Iterator[tuple[str, int, int]]:
        """Rows and positions that the engine fills by parts, at most: a prompt, and, where guided rows begin to draw, a
        prompt that leaves room for the picture together with those of its twins."""
        yield "prefill", self.rows, self.context
        if GUIDANCE[self.guidance] > 1:
            rows, columns = self.image_tokenizer.grid if self.image_tokenizer else (0, 0)
            room = max(1, self.context - rows * columns - 2)
            yield "prefill of guided rows", self.rows * GUIDANCE[self.guidance], room

    def _sizes_in_use(self, ledger: _Ledger) -> dict[str, int]:
        dtype = WEIGHTS[self.weights]
        with torch.inference_mode():
            model = _stand_in(Transformer, self.config, dtype, BITS.get(self.weights))
            weights = ledger.now
            image = _stand_in(ImageTokenizer, self.image_tokenizer, dtype) if self.image_tokenizer else None
            picture = ledger.now - weights
            if self.inspection:
                return self._sizes_in_inspection(model, ledger) | {
                    "image parameters": _count(image),
                    "weights": weights,
                    "image tokenizer": picture,
                }
            decoder = Decoder(model, self.rows * GUIDANCE[self.guidance], self.context, plain=True)
            cached = ledger.now - weights - picture
            moments: dict[str, int] = {}

            for name, rows, length in self._prefills():
                with ledger.moment(name, moments):
                    last = min(length, PROMPT_POSITIONS)
                    decoder.cache.lengths[:rows] = length - last  # the last part sees farthest
                    outputs_BTD = decoder.trunk(torch.zeros(rows, last, dtype=torch.long))
                    model.logits(outputs_BTD[:, -1]).sort(-1)
                    del outputs_BTD
            if image is not None and self.image_tokenizer is not None:
                with ledger.moment("drawing of a picture", moments):
                    side = self.image_tokenizer.side // self.image_tokenizer.factor
                    latents_BCHW = torch.zeros(1, self.image_tokenizer.code_width, side, side, dtype=dtype)
                    image.decoder(image.post_quant_conv(latents_BCHW))
        return moments | {
            "image parameters": _count(image),
            "weights": weights,
            "image tokenizer": picture,
            "gradients": 0,
            "optimizer": 0,
            "cache": cached,
        }

    def _sizes_in_inspection(self, model: Transformer, ledger: _Ledger) -> dict[str, int]:
        """What a look keeps, and the peaks of its making and of the questions that take most."""
        moments: dict[str, int] = {}
        stands, tokens_T = ledger.now, np.zeros(self.context, np.int64)
        with ledger.moment("first look", moments):
            trace = _PlannedTrace(model, tokens_T)
            stream = ledger.now - stands
            model.logits(trace.outputs_TD[:LOGITS_AT_ONCE]).log_softmax(-1)
        with ledger.moment("rollout", moments):
            rollout = AttentionRollout(trace) if 4 * len(trace) ** 2 <= SQUARE_BYTES else None
            if rollout is not None:
                rollout.step()
        square = rollout.rows_TT.nbytes if rollout else 0  # it stays in what follows
        with ledger.moment("attention of a layer", moments):
            trace.weights(0, [*trace.spans(0)][-1])  # of the most keys
        with ledger.moment("knock-out", moments):
            beyond_TT = trace.hidden()
            model.trunk(
                trace.tokens_1T, without_edges(trace.context, beyond_TT, torch.zeros_like(beyond_TT)[None, None])
            )
        return moments | {"inspection": stream + square, "gradients": 0, "optimizer": 0, "cache": 0}

    def _sizes_in_training(self, ledger: _Ledger) -> dict[str, int]:
        """The second step of a training, when the optimizer's state and the gradients of the first are there."""
        assert self.training is not None
        model = _stand_in(Transformer, self.config, WEIGHTS[self.weights]).train()
        weights = ledger.now
        optimizers = self.training.optimizers(model)
        inputs_BT = torch.zeros(self.rows, self.context, dtype=torch.long)
        targets_X = inputs_BT.flatten()
        chunk = max(256, Objective().logits_at_once // self.config.vocabulary)
        autocast = torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()

        def term(outputs_XD: Tensor, part: slice) -> Tensor:
            return F.cross_entropy(model.logits(outputs_XD), targets_X[part], reduction="none").sum()

        moments: dict[str, int] = {}
        for _ in range(2):
            with ledger.moment("forward pass", moments), autocast:
                outputs_XD = model.trunk(inputs_BT, _Unshared()).flatten(0, 1)
            with ledger.moment("head and loss", moments), autocast:
                loss = chunked_sum(term, outputs_XD, model.parameters(), chunk)
            del outputs_XD
            with ledger.moment("backward pass", moments):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
            with ledger.moment("optimizer's step", moments):
                nn.utils.clip_grad_norm_(model.parameters(), self.training.clip)
                for optimizer in optimizers:
                    optimizer.step()
            del loss
        gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
        return moments | {
            "image parameters": 0,
            "weights": weights,
            "image tokenizer": 0,
            "gradients": gradients,
            "optimizer": ledger.now - weights - gradients,
            "cache": 0,
        }


class _Unshared(Causal):
    """Causal attention whose mask is not kept for other models, since it is a fake."""

    @staticmethod
    def _mask(length: int, device: torch.device) -> Tensor:
        return torch.full((length, length), -torch.inf, device=device).triu(1)


class _PlannedTrace(Trace):
    """A trace of fake tensors, whose masks no other model gets."""

    def context_of(self, length: int) -> Causal:
        return _Unshared()


@lru_cache(maxsize=64)
def _plans(use: _Use) -> Plan:
    return use._measure()


class _Ledger(TorchDispatchMode):
    """Counts the bytes of the storages that tensors made inside it hold: `now`, and at most (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._alive:
            return

        def forget(_: object) -> None:
            self.now -= size
            del self._alive[place]

        self._alive[place] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)

    @contextmanager
    def moment(self, name: str, moments: dict[str, int]) -> Iterator[None]:
        """Notes the peak of what is done inside."""
        self.peak = self.now
        yield
        moments[name] = max(moments.get(name, 0), self.peak)


def _stand_in(kind: Callable[[Any], Any], config: Any, dtype: torch.dtype, bits: int | None = None) -> Any:
    """A model of fake tensors on a CPU, in a dtype, made without a moment at which anything else is held."""
    with outline():
        model = kind(config)
    if bits:
        quantize(model, bits, "cpu")
    fakes: dict[int, Tensor] = {}
    for module in model.modules():
        tensors: Mapping[str, Tensor | None] = {**module._parameters, **module._buffers}
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if id(tensor) not in fakes:
                target = dtype if tensor.is_floating_point() else tensor.dtype
                fake = torch.empty(tensor.shape, dtype=target, device="cpu")
                fakes[id(tensor)] = (
                    nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
                )
            setattr(module, name, fakes[id(tensor)])
    return model.eval()


def _count(model: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in model.parameters()) if model else 0


def _extrapolate(sizes: list[int], layers: int) -> int:
    """A size at so many layers, from those at 2 and at 3 (or the one at that many)."""
    return sizes[0] if len(sizes) == 1 else sizes[0] + (sizes[1] - sizes[0]) * (layers - 2)
