"""Who does the sums for a token, and the only one who knows how. Facts:

- the model states the maths once (`transformer`). While gradients are on, or a hook listens, the model itself computes
- otherwise its lean twin does (`lean`, `kernels`), by the model's own methods
- one token a row is a single compiled call, where numba is installed and knows the model's parts (`compiled_step`)
- on a GPU a step of one token a row is recorded as one CUDA graph and replayed wherever the rows stand (`recording`),
  of compiled blocks where they were asked for (`fused`)
- keys and values of every position are stored (`kv_cache`), and nothing is computed twice, unless the weights changed
- where a reply begins, the model is compared with the one that all this was prepared for (`weights`)

Another kernel, runtime or device is added here, and nothing outside of it changes.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from chameleon_lab import crossovers, native_ops
from chameleon_lab.generation import fused, recording
from chameleon_lab.generation.compiled_step import CodeRun, CompiledStep
from chameleon_lab.generation.fused import FusedTwin
from chameleon_lab.generation.kv_cache import KVCache, Step
from chameleon_lab.generation.lean import LeanTwin
from chameleon_lab.generation.recording import Recorded
from chameleon_lab.generation.weights import Structure, weights_digest
from chameleon_lab.transformer import Transformer, turned_at

log = logging.getLogger(__name__)


class Decoder:
    """Rows of tokens under way in a model: feed them, get logits, take back; `worker` says who did the last sums.

    `worker` is "model", "lean", "compiled" or "graph"; `plain` has the model do all. `room` bounds a row's positions,
    by default the model's context. One that is `lasting` is used for several replies: if the weights have changed when
    one begins, what the old ones computed is forgotten. Raises ValueError where the cache does not fit into memory.
    """

    def __init__(
        self, model: Transformer, rows: int, room: int | None = None, *, lasting: bool = False, plain: bool = False
    ) -> None:
        self.model, self.lasting, self.plain = model, lasting, plain
        self.worker = "model"
        self._rows, self._room = rows, room or model.config.context
        self._structure: Structure | None = None
        self._digest = b""
        self._prepare()

    def _prepare(self) -> None:
        """An empty cache, and nothing bound to the model yet."""
        like = self.model.embedding.weight
        self.cache = self._allocate(like)
        turns_T1K = turned_at(torch.arange(self._room, device=like.device)[None], self.model.config)[0]
        self._turns_T1K = torch.cat([turns_T1K, turns_T1K[-1:]])  # the cache's spare place, which nobody sees, is none
        self._twin: LeanTwin | None = None
        self._compiled: CompiledStep | None = None
        self._listeners: list[dict] | None = []
        self._steps: dict[tuple[int, int, int], Recorded] = {}
        self._steps_taken = 0
        # Last, since by this `begin` sees whether all of it is done. It keeps the address taken.
        self._embedding_VD = like.detach()

    def _allocate(self, like: Tensor) -> KVCache:
        config, rows, room = self.model.config, self._rows, self._room
        try:
            return KVCache(config, rows, like, room)
        except RuntimeError as error:  # torch.OutOfMemoryError on a GPU; on a CPU a plain one: its words tell
            if not (isinstance(error, torch.OutOfMemoryError) or "memory" in str(error) or "overflow" in str(error)):
                raise
            position = 2 * config.layers * config.kv_heads * config.head_width * like.element_size()
            raise ValueError(
                f"Out of memory: the cache takes {rows} rows x {room} positions x {position} bytes = "
                f"{rows * room * position / 2**30:.1f} GiB on {like.device}. Take fewer documents at once, a smaller "
                "max_tokens, no guidance (each of its streams is a row), or a smaller dtype."
            ) from error

    def begin(self) -> None:
        """Looks at the model where a reply begins; what was prepared for, or computed with, others is forgotten.

        A lasting decoder compares modules, their settings, the addresses of weights and all weights themselves, or in
        models beyond `crossovers.COMPARED_BYTES` on a CPU as many rows as make that up. That takes about as long as a
        token. While a hook listens, each reply computes all anew, since nobody can say whether it still does what it
        did.
        """
        structure = Structure(self.model) if self.lasting else None  # else made for one reply, and bound to nothing yet
        moved = self._embedding_VD.data_ptr() != self.model.embedding.weight.data_ptr()
        if moved or (self._structure is not None and self._structure != structure):
            self._prepare()
        self._structure = structure
        if not self.lasting:
            return
        on_cpu = self.model.embedding.weight.device.type == "cpu"
        now = weights_digest(self.model, crossovers.COMPARED_BYTES if on_cpu else float("inf"))
        if self._digest not in (b"", now) or (structure is not None and structure.listens):
            self.cache.lengths[:] = 0
        self._digest = now

    def feed(self, tokens_BT: Tensor, counts: list[int], start: int = 0) -> Tensor:
        """Runs new tokens of the rows from `start` on, right-padded to one width; `counts` of each are real.

        The normed residual stream: outputs_BTD. Raises ValueError where they do not fit.
        """
        outputs_BTD = self.trunk(tokens_BT, start)
        self.cache.advance(counts, start)
        return outputs_BTD

    def trunk(self, tokens_BT: Tensor, start: int = 0) -> Tensor:
        """The same without keeping the tokens: rows stay at their lengths."""
        rows, twin = slice(start, start + len(tokens_BT)), self._lean()
        if twin is not None and tokens_BT.shape[1] == 1 and recording.replays(tokens_BT.device):
            self._steps_taken += 1
            if self._steps_taken > crossovers.GRAPH_PATIENCE:
                self.worker = "graph"
                return self._replay(twin, tokens_BT, rows)
        if twin is not None and tokens_BT.shape[1] == 1 and len(tokens_BT) <= crossovers.COMPILED_ROWS:
            compiled = self._renewed()
            if compiled is not None:
                self.worker = "compiled"
                return compiled.trunk(tokens_BT, rows)
        self.worker = "model" if twin is None else "lean"
        step = Step(self.cache, self._turns_T1K, rows, tokens_BT.shape[1])
        outputs_BTD = (twin.model if twin else self.model).trunk(tokens_BT, step)
        if step.attended < self.model.config.layers:
            raise ValueError(
                f"{step.attended} of {self.model.config.layers} layers asked their context what they see: the "
                "attention of the others cannot decode (see transformer.PART_CONTRACTS)."
            )
        return outputs_BTD

    def logits(self, outputs_BTD: Tensor) -> Tensor:
        """What the model's `logits` gives, float32."""
        twin = self._lean()
        if twin is not None and outputs_BTD.numel() <= crossovers.COMPILED_ROWS * outputs_BTD.shape[-1]:
            compiled = self._renewed()
            if compiled is not None:
                return compiled.logits(outputs_BTD)
        return (twin.model if twin else self.model).logits(outputs_BTD)

    def run_of_codes(self, rows: int) -> int:
        """How many codes of so many rows one call may draw: 1 where there is no such call."""
        compiled = None if self._lean() is None else self._renewed()
        if compiled is None or rows > crossovers.COMPILED_ROWS or type(self.model.cap) is not nn.Identity:
            return 1
        return max(1, min(crossovers.RUN_OF_CODES, crossovers.RUN_BYTES // compiled.matrix_bytes))

    def draw(self, run: CodeRun) -> tuple[list[list[int]], int]:
        """See `CompiledStep.draw`: only where `run_of_codes` says so."""
        compiled = self._renewed()
        assert compiled is not None
        self.worker = "compiled"
        return compiled.draw(run)

    def rewind(self, row: int, length: int) -> None:
        """Takes a row back to its first `length` positions, if it has more."""
        if length < self.cache.lengths[row]:
            self.cache.rewind(row, length)

    def _lean(self) -> LeanTwin | None:
        """The twin, or None while the model itself has to compute."""
        if self.plain or torch.is_grad_enabled() or self._listeners is None:
            return None
        if self._embedding_VD.data_ptr() != self.model.embedding.weight.data_ptr():  # moved within a reply
            self._twin, self._steps, self._embedding_VD = None, {}, self.model.embedding.weight.detach()
        if self._twin is None:
            self._listeners, self._twin = native_ops.listeners(self.model), LeanTwin(self.model)
            self._compiled = CompiledStep.of(self.model, self.cache, self._turns_T1K)
        return None if self._listeners is None or any(self._listeners) else self._twin

    def _renewed(self) -> CompiledStep | None:
        """The compiled step, made anew where a weight has moved since."""
        if self._compiled is not None and not self._compiled.current():
            self._compiled = CompiledStep.of(self.model, self.cache, self._turns_T1K)
        return self._compiled

    def _replay(self, twin: LeanTwin, tokens_B1: Tensor, rows: slice) -> Tensor:
        """A step as it was recorded; another is recorded for other rows, and for each `GRAPH_POSITIONS` of reach."""
        cache, lengths = self.cache, self.cache.lengths[rows]
        cache.require(int(lengths.min()) + 1)
        reach = (int(lengths.max()) // crossovers.GRAPH_POSITIONS + 1) * crossovers.GRAPH_POSITIONS
        kind = rows.start, len(lengths), min(reach, cache.room)
        if kind not in self._steps:
            # Without `self`, or the recording would keep the decoder, and it the recording, in memory.
            work = functools.partial(_recorded_step, twin, cache, self._turns_T1K, rows, kind[2])
            starts_B1 = cache.starts(rows)
            if self.model in fused.COMPILED_MODELS:
                work = self._compiled_work(work, tokens_B1, starts_B1)
            self._steps[kind] = Recorded(work, tokens_B1, starts_B1)
        return self._steps[kind](tokens_B1, cache.starts(rows))

    def _compiled_work(self, plain: functools.partial[Tensor], *inputs: Tensor) -> functools.partial[Tensor]:
        """The same step of compiled blocks; as it was, where the compiler fails, which is said and not tried again."""
        work = functools.partial(_recorded_step, FusedTwin(self.model), *plain.args[1:])
        try:
            work(*inputs)
        except Exception as error:
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("Decoding goes on without compiled steps, more slowly: %s", words)
            fused.COMPILED_MODELS.discard(self.model)
            return plain
        return work


def _recorded_step(
    twin: LeanTwin | FusedTwin,
    cache: KVCache,
    turns_T1K: Tensor,
    rows: slice,
    reach: int,
    tokens_B1: Tensor,
    starts_B1: Tensor,
) -> Tensor:
    return twin.model.trunk(tokens_B1, Step(cache, turns_T1K, rows, 1, starts_B1, reach))


@torch.no_grad()
def first_not_finite(model: Transformer, tokens_T: Tensor) -> str | None:
    """The name of the first module, in the order of the sums, whose output has a NaN or an infinity; None without one.

    The tokens are run through the model once more, with a hook on each part: those within one come before it.
    """
    names: list[str] = []

    def look(name: str, output: object) -> None:
        if not names and isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
            names.append(name)

    def hook(name: str):
        return lambda _module, _inputs, output: look(name, output)

    parts = [(name, part) for name, part in model.named_modules() if name]
    handles = [part.register_forward_hook(hook(name)) for name, part in parts]
    try:
        model(tokens_T[None])
    finally:
        for handle in handles:
            handle.remove()
    return names[0] if names else None
