"""A whole step of one token a row in one compiled call, where numba is installed (the extra `speed`).

- `CompiledStep.of` says whether a model is one that the kernels know (`compiled_kernels`): the lab's blocks with norms,
  scales and caps of the usual kinds, in float32, bfloat16, 8 or 4 bits. None for all others
- weights are read where they lie; addresses are compared at each step, so that none is stale
- helpers share the work: as many as torch has threads, less one; they sleep between replies
- numba's machine code is compiled once for each processor, which takes seconds, and kept in its cache on disk
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import logging
import os
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from chameleon_lab import native_ops
from chameleon_lab.generation.kernels import on_cpu
from chameleon_lab.generation.kv_cache import KVCache
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.notices import NOTICE
from chameleon_lab.quantization import Int4Linear, Int8Linear
from chameleon_lab.stability.slots import GroupedNorm, Scale, SoftCap
from chameleon_lab.taps import Tap
from chameleon_lab.transformer import Attention, Block, FeedForward, Rotation, Transformer, Unplaced

log = logging.getLogger(__name__)

COMPILED_SWITCH = "CHAMELEON_COMPILED"  # 0 in the environment switches this off
SILENT_SECONDS = 2.0  # of compiling, until it is said


@functools.cache
def kernels() -> Any:
    """The module of compiled functions; None where there is no numba, or where it cannot compile or keep them."""
    if os.environ.get(COMPILED_SWITCH) == "0" or importlib.util.find_spec("numba") is None:
        return None
    words = "numba compiles the decoder's kernels for this processor, once, which takes some ten seconds of one core."
    message = threading.Timer(SILENT_SECONDS, log.log, (NOTICE, words))
    message.daemon = True
    message.start()
    try:
        from chameleon_lab.generation import compiled_kernels
    except Exception as error:  # whatever another program raises, torch computes
        line = (str(error).splitlines() or [""])[0]
        log.warning("Decoding goes on without numba, more slowly: %s: %s", type(error).__name__, line)
        return None
    finally:
        message.cancel()
    return compiled_kernels


class CodeRun(NamedTuple):
    """Codes to be drawn one after another, each from what may come (`ids_V`), with the same sampler and guidance.

    `logits_SBV` are those of the first, of the batch's rows and their twins; `live` the rows that draw. For each place
    and row `quantiles_PR` has the draw, and `strengths_PR2` those of a guidance of one twin (the first) or two.
    """

    logits_SBV: Tensor
    live: list[int]
    ids_V: Tensor
    sampler: Sampler
    quantiles_PR: np.ndarray
    strengths_PR2: np.ndarray
    pad: int


class CompiledStep:
    """A model's sums for one token a row, and its head's, as numbers and addresses for the kernels."""

    def __init__(self, model: Transformer, cache: KVCache, turns_T1K: Tensor) -> None:
        """Raises ValueError, with the reason, for a model, or a cache, that the kernels do not know."""
        self._k, config = kernels(), model.config
        if self._k is None:
            raise ValueError("numba is not there")
        self.model, self.cache = model, cache
        self._tensors: list[Tensor] = []
        self._drops: list[nn.Module] = []
        self._dtype = model.embedding.weight.dtype
        parts = [model, model.modality, model.embedding, model.positions, *model.blocks]
        _require_own(*parts, *(each for block in model.blocks for each in (block.attention, block.feed_forward)))
        if cache.stack is None or cache.room + 1 < self._k.OUTPUTS or len(model.blocks) != config.layers:
            raise ValueError("the cache is not the usual one")
        if type(model.modality) is not nn.Identity or model.embedding.max_norm:
            raise ValueError("what sees tokens is not the usual")
        if type(model.positions) is not Unplaced:
            raise ValueError("tokens are not placed by rotation alone")
        widths = config.width, config.heads * config.head_width, config.ffn_width
        if any(width % self._k.LANES for width in (*widths, config.head_width)):
            raise ValueError(f"a width is no multiple of {self._k.LANES}")
        rows, numbers = zip(*map(self._block, model.blocks), strict=True)
        embedding = self._address(model.embedding.weight, (config.vocabulary, config.width))
        (first, first_eps), (last, last_eps) = self._norm(model.embedding_norm, config.width), self._norm(model.norm)
        head = self._matrix(model.head, config.width, config.vocabulary)
        keys, values = cache.stack
        strides = [stride * keys.element_size() for stride in keys.stride()[:3]]
        if keys.dtype != self._dtype or not (keys.is_contiguous() and values.is_contiguous() and on_cpu_plain(keys)):
            raise ValueError("the cache is not the usual one")
        shape = config.layers, config.width, config.heads, config.kv_heads, config.head_width, config.ffn_width
        memory = keys.data_ptr(), values.data_ptr(), *strides, cache.room, turns_T1K.data_ptr(), embedding
        brain = int(self._dtype == torch.bfloat16)
        self._sizes = np.array([*shape, brain, *memory, config.vocabulary, *head, *first, *last], np.int64)
        self._table = np.array(rows, np.int64)
        ends = [first_eps, last_eps, *[0.0] * (self._k.LAYER_NUMBERS - 2)]
        self._numbers = np.array([*numbers, ends], np.float32)
        self._keep = turns_T1K, cache.stack, [tensor.detach() for tensor in self._tensors]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        each = 3 * config.width + (3 * config.heads + 2 * config.kv_heads) * config.head_width + 3 * config.ffn_width
        self.matrix_bytes = sum(tensor.nbytes for tensor in self._tensors if tensor.dim() > 1)
        self._scratch_numbers = each + max(widths) + self._k.ROUNDING_ROOM + config.heads * (cache.room + 1)
        self._scratch = np.empty(0, np.float32)
        self._alone = new_shared(self._k)

    @staticmethod
    def of(model: Transformer, cache: KVCache, turns_T1K: Tensor) -> CompiledStep | None:
        """None where torch has to compute: the log says why (level DEBUG)."""
        if type(model) is not Transformer or not on_cpu(model.embedding.weight) or kernels() is None:
            return None
        try:
            return CompiledStep(model, cache, turns_T1K)
        except ValueError as error:
            log.debug("torch computes steps, not numba: %s", error)
            return None

    def current(self) -> bool:
        """Whether weights, cache and the switches of dropout are where and what they were."""
        if self.cache.stack is None or any(module.training for module in self._drops):
            return False
        return [tensor.data_ptr() for tensor in self._tensors] == self._addresses

    def trunk(self, tokens_B1: Tensor, rows: slice) -> Tensor:
        """What the model's `trunk` gives for a new token of each of these rows: outputs_B1D. Lengths stay."""
        lengths = self.cache.lengths[rows]
        self.cache.require(int(lengths.min()) + 1)
        outputs = np.empty((len(tokens_B1), self.model.config.width), np.float32)
        tokens = np.ascontiguousarray(tokens_B1.numpy()[:, 0])
        if not self._run(self._k.STEP, tokens, np.ascontiguousarray(lengths), outputs, NONE_2, rows.start or 0):
            raise IndexError(
                f"A token of {tokens.tolist()} is none of the vocabulary's {self.model.config.vocabulary}."
            )
        return torch.from_numpy(outputs).to(self._dtype)[:, None]

    def logits(self, outputs_XD: Tensor) -> Tensor:
        """What the model's `logits` gives: float32."""
        outputs = outputs_XD.reshape(-1, outputs_XD.shape[-1]).float().contiguous().numpy()
        logits = np.empty((len(outputs), self.model.config.vocabulary), np.float32)
        self._run(self._k.LOGITS, NONE_1, NONE_1, outputs, logits)
        return self.model.cap(torch.from_numpy(logits).view(*outputs_XD.shape[:-1], -1))

    def draw(self, run: CodeRun) -> tuple[list[list[int]], int]:
        """Codes of the rows that draw, one place after another, and how many places have them: less than were asked
        where logits were not finite. Lengths count the codes fed, which are all but the last.

        The first are picked from `run.logits_SBV`.
        """
        k, count, (streams, batch) = self._k, len(run.ids_V), run.logits_SBV.shape[:2]
        places, live = len(run.quantiles_PR), np.array(run.live)
        codes_PR = np.zeros((places, len(live)), np.int64)
        logits = run.logits_SBV.flatten(0, 1).contiguous().numpy().copy()
        ids_V = np.ascontiguousarray(run.ids_V.numpy())
        order = np.empty(k.FIRST_KEY + count, np.int64)
        memory = run.strengths_PR2.ctypes.data, run.quantiles_PR.ctypes.data, codes_PR.ctypes.data
        order[: k.DRAWN + 1] = (
            *(places, len(live), live.ctypes.data, streams, batch, ids_V.ctypes.data, count, *memory),
            *(run.sampler.top_k, 0),
        )
        numbers = np.empty(k.FIRST_SHARE + -(-count // k.LANES) * k.LANES, np.float32)
        numbers[: k.FIRST_SHARE] = run.sampler.temperature, run.sampler.top_p, run.sampler.min_p
        tokens = np.full(streams * batch, run.pad)
        lengths = self.cache.lengths[: len(tokens)].copy()
        outputs = np.empty((len(tokens), self.model.config.width), np.float32)
        self._run(k.DRAW_RUN, tokens, lengths, outputs, logits, order=order, shares=numbers)
        self.cache.lengths[: len(tokens)] = lengths
        return codes_PR.tolist(), int(order[k.DRAWN])

    def _run(
        self,
        work: int,
        tokens: Any,
        lengths: Any,
        outputs: Any,
        logits: Any,
        start: int = 0,
        order: Any = None,
        shares: Any = None,
    ) -> bool:
        numbers = len(outputs) * self._scratch_numbers
        if self._scratch.size < numbers:
            self._scratch = np.empty(numbers, np.float32)
        sizes = self._sizes
        if start:
            sizes = sizes.copy()
            sizes[[self._k.KEYS, self._k.VALUES]] += start * sizes[self._k.ROW_STRIDE]
        order, shares = (NONE_1, NO_NUMBERS) if order is None else (order, shares)
        rest = sizes, self._table, self._numbers, tokens, lengths, outputs, logits, self._scratch, order, shares
        threads = torch.get_num_threads()
        if threads > 1 and HELPERS.lock.acquire(blocking=False):  # else another thread's step has them
            try:
                return self._k.run(work, HELPERS.wake(threads - 1), False, *rest)
            finally:
                HELPERS.lock.release()
        return self._k.run(work, self._alone, True, *rest)

    # The plan

    def _block(self, block: Any) -> tuple[list[int], list[float]]:
        """A layer's row in the tables of addresses and of numbers."""
        config, heads, fed = self.model.config, block.attention, block.feed_forward
        width, inner, ffn = config.width, config.heads * config.head_width, config.ffn_width
        shape = heads.heads, heads.kv_heads, heads.head_width
        if type(block) is not Block or shape != (config.heads, config.kv_heads, config.head_width):
            raise ValueError("an attention is not the usual one")
        _require_own(heads.query_tap, heads.key_tap, heads.head_outputs, heads.rotation)
        row = [
            *self._matrix(heads.qkv, width, inner + 2 * config.kv_heads * config.head_width),
            *self._matrix(heads.out, inner, width),
            *self._matrix(fed.gate_up, width, 2 * ffn),
            *self._matrix(fed.down, ffn, width),
        ]
        numbers: list[float] = []
        four = block.attention_pre_norm, block.attention_post_norm, block.ffn_pre_norm, block.ffn_post_norm
        norms = [self._norm(each) for each in four]
        norms += [self._norm(heads.query_norm, config.head_width), self._norm(heads.key_norm, config.head_width)]
        for norm, eps in norms:
            row += norm
            numbers.append(eps)
        row += [self._scale(block.attention_scale), self._scale(block.ffn_scale)]
        for drop in (block.attention_dropout, block.ffn_dropout):
            _require_own(drop)
            self._drops += [drop] if isinstance(drop, nn.Dropout) else []
        if any(drop.training for drop in self._drops):
            raise ValueError("dropout is on")
        _require_own(heads.cap, heads.softmax)
        if heads.softmax.dim != -1:
            raise ValueError("a softmax is not the usual one")
        return row, [*numbers, heads.cap.cap if isinstance(heads.cap, SoftCap) else 0.0]

    def _address(self, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
        """Where a tensor's numbers lie, which is looked at again at each step; 0 for none."""
        if tensor is None:
            return 0
        fits = tensor.shape == shape and tensor.is_contiguous() and on_cpu_plain(tensor)
        if not fits or tensor.dtype != (dtype or self._dtype):
            raise ValueError(f"weights are {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}, or not in order")
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def _matrix(self, module: Any, inputs: int, outputs: int) -> list[int]:
        """Kind, address, address of scales, and what else the kernels ask of a kind."""
        _require_own(module)
        if isinstance(module, nn.Linear) and module.bias is None:
            kind = self._k.FLOAT if module.weight.dtype == torch.float32 else self._k.BRAIN
            dtype = torch.float32 if kind == self._k.FLOAT else torch.bfloat16
            return [kind, self._address(module.weight, (outputs, inputs), dtype), 0, 0]
        if isinstance(module, Int8Linear):
            scales, weights = module.scales, module.in_first_order()
            brain = scales.dtype == torch.bfloat16
            scaled = self._address(scales, (outputs,), torch.bfloat16 if brain else torch.float32)
            return [self._k.BYTE, self._address(weights, (outputs, inputs), torch.int8), scaled, int(brain)]
        blocks = outputs % self._k.NIBBLE_BLOCK == 0 and native_ops.packs_int4_in_blocks()
        if not blocks or not isinstance(module, Int4Linear) or module.packed.dtype != torch.uint8:
            raise ValueError(f"a matrix is a {type(module).__name__} of a kind that is not known")
        four: Any = module
        address = self._address(four.packed, (outputs, inputs // 2), torch.uint8)
        scales = self._address(four.scales, (inputs // self._k.GROUP, outputs, 2), torch.bfloat16)
        return [self._k.NIBBLE, address, scales, outputs]

    def _norm(self, module: Any, width: int = 0) -> tuple[list[int], float]:
        """Kind, addresses of weight and bias, groups of heads; and eps."""
        _require_own(module)
        if isinstance(module, nn.Identity):
            return [self._k.NO_NORM, 0, 0, 1], 0.0
        shape = width or self.model.config.width
        grouped = isinstance(module, GroupedNorm)
        if not module.eps or (not grouped and tuple(module.normalized_shape) != (shape,)):
            raise ValueError("a norm is not the usual one")
        kind, groups = self._k.RMS if isinstance(module, nn.RMSNorm) else self._k.LAYER, module.groups if grouped else 1
        sizes = (groups, shape) if grouped else (shape,)
        weight, bias = (self._address(getattr(module, name, None), sizes) for name in ("weight", "bias"))
        return [kind, weight, bias, groups], module.eps

    def _scale(self, module: Any) -> int:
        _require_own(module)
        return self._address(module.weight_D, (self.model.config.width,)) if isinstance(module, Scale) else 0


NONE_1, NONE_2, NO_NUMBERS = np.empty(0, np.int64), np.empty((0, 0), np.float32), np.empty(0, np.float32)
LAB_MODULES = Transformer, Block, Attention, FeedForward, Rotation, Unplaced, Tap
LAB_PARTS = *LAB_MODULES, Int8Linear, Int4Linear, GroupedNorm, Scale, SoftCap
TORCH_PARTS = nn.Identity, nn.Embedding, nn.Linear, nn.RMSNorm, nn.LayerNorm, nn.Dropout, nn.Softmax
METHODS = "forward", "trunk", "turns", "logits", "project", "join", "product"
USUAL_METHODS: dict[type, dict[str, Any]] = {
    kind: {name: getattr(kind, name, None) for name in METHODS} for kind in (*LAB_PARTS, *TORCH_PARTS)
}
"""Which classes the kernels know, with their methods when this was imported."""


def _require_own(*modules: Any) -> None:
    """Raises ValueError for a module of another class, or one that somebody gave another method."""
    for module in modules:
        methods = USUAL_METHODS.get(type(module))
        if methods is None or any(name in vars(module) for name in METHODS):
            raise ValueError(f"a {type(module).__name__} is not known")
        if any(getattr(type(module), name, None) is not method for name, method in methods.items()):
            raise ValueError(f"{type(module).__name__} has another method than it had")


def on_cpu_plain(tensor: Tensor) -> bool:
    """Ordinary numbers in a CPU's memory, of a parameter or a buffer."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"


def new_shared(k: Any) -> np.ndarray:
    """What the threads of a step share; it begins with a line of the cache."""
    memory = np.zeros(k.SHARED_NUMBERS + 8, np.int64)
    shared = memory[-memory.ctypes.data % 64 // 8 :][: k.SHARED_NUMBERS]
    shared[k.FUNCTION] = k.do_piece.address
    return shared


class Helpers:
    """Threads that take pieces of one step at a time; whoever has `lock` may wake them. They end with the process."""

    def __init__(self) -> None:
        self.lock, self._ends, self._shared = threading.Lock(), False, NONE_1
        self._calls: list[threading.Event] = []
        self._threads: list[threading.Thread] = []

    def wake(self, count: int) -> np.ndarray:
        """So many of them look for pieces in what this gives; they go to sleep when there have been none for long."""
        if not self._shared.size:
            self._shared = new_shared(kernels())
        while len(self._calls) < count:
            call = threading.Event()
            thread = threading.Thread(target=self._help, args=(call,), name="decoding helper", daemon=True)
            self._calls.append(call)
            self._threads.append(thread)
            thread.start()
        for call in self._calls[:count]:
            call.set()
        return self._shared

    def _help(self, call: threading.Event) -> None:
        k, shared = kernels(), self._shared
        sizes, table, numbers = NONE_1, np.empty((0, 0), np.int64), NONE_2
        while True:
            call.wait()
            if self._ends:
                return
            call.clear()
            rest = NONE_1, NONE_1, NONE_2, NONE_2, NO_NUMBERS, NONE_1, NO_NUMBERS
            k.run(k.HELP, shared, False, sizes, table, numbers, *rest)

    def end(self) -> None:
        """Before Python goes: a thread in compiled code would come back to none."""
        self._ends = True
        for call in self._calls:
            call.set()
        for thread in self._threads:
            thread.join(1)


HELPERS = Helpers()


def _begin_anew() -> None:
    """In a forked process, which has none of its parent's threads."""
    global HELPERS
    HELPERS = Helpers()


atexit.register(lambda: HELPERS.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
