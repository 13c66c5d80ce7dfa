"""Monitors for a model that is not the lab's, in a training loop that is not the lab's: one `with` around each step.

```python
watch = OutsideWatch(model, every=10)  # a transformers Llama, a nanoGPT, anything of torch
for batch in batches:
    with watch:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
watch.history.maximum("max_attention_logit"), watch.alarms
```

Nothing of the model need be known. Attention is read where torch itself computes it: a `TorchFunctionMode` sees each
call of `scaled_dot_product_attention`, or of a softmax over B, H, T, S, with the very queries, keys and masks. It sees
no kernels that bypass both (flash-attn's own), and nothing inside `torch.compile`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chameleon_lab.history import Alarm, History, StepRecord
from chameleon_lab.monitors.alarms import RULES, DivergenceDetector, Rule
from chameleon_lab.monitors.watch import Readout

SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax)


class OutsideWatch:
    """Reads a foreign model at steps divisible by `every`, and feeds `rules`; to be entered once a step.

    Recorded under the names that the lab's own monitors use: `max_attention_logit` and `attention_entropy` (by layer
    and head, layers in the order in which attention is computed), `residual_norm` (by block), `logit_norm` and
    `log_partition` of what the model returns (a tensor, or its `logits`), `loss` where it returns one.

    `rows`: number of query positions of each sequence that are looked at, drawn by the step; all where None. `blocks`:
    the modules whose outputs are the residual stream, by default the longest `nn.ModuleList` of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 10,
        rows: int | None = 16,
        rules: Iterable[Rule] = RULES,
        blocks: Iterable[nn.Module] | None = None,
    ) -> None:
        """Raises ValueError for a step that would never come, and for no rows."""
        if every < 1 or (rows is not None and rows < 1):
            raise ValueError(f"every and rows must be 1 or more, not {every} and {rows}.")
        self.model, self.every, self.rows = model, every, rows
        lists = [list(each) for each in model.modules() if isinstance(each, nn.ModuleList)]
        self.blocks = list(blocks) if blocks is not None else max(lists, key=len, default=[])
        self.step = 0
        self._records, self._alarms = list[StepRecord](), list[Alarm]()
        self._detector = DivergenceDetector(rules)
        self._started = time.monotonic()
        self._readings: dict[str, list[Tensor]] = {}
        self._stack = ExitStack()

    @property
    def history(self) -> History:
        """What was read so far; `figures.run_figure(history)` draws it."""
        return History(tuple(self._records), tuple(self._alarms))

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        return tuple(self._alarms)

    def __enter__(self) -> OutsideWatch:
        self._readings = {}
        if self.step % self.every == 0:
            hooks = [block.register_forward_hook(self._read_stream) for block in self.blocks]
            hooks.append(self.model.register_forward_hook(self._read_output))
            for hook in hooks:
                self._stack.callback(hook.remove)
            self._stack.enter_context(_AttentionCalls(self._read_attention))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        if kind is None and self._readings:
            readout = Readout()
            for name, values in self._readings.items():
                worst = torch.amin if name == "attention_entropy" else torch.amax
                each = torch.stack(values) if len({value.shape for value in values}) == 1 else torch.cat(values)
                readout.values[name] = float(worst(each))
                if each.numel() > 1:
                    readout.layers[name] = each.float().cpu().tolist()
            record = StepRecord(self.step, time.monotonic() - self._started, readout.values, readout.layers)
            self._records.append(record)
            self._alarms += self._detector.update(record)
        self.step += 1

    def _note(self, name: str, value: Tensor) -> None:
        self._readings.setdefault(name, []).append(value.detach())

    def _read_stream(self, _module: nn.Module, _inputs: object, output: object) -> None:
        x_BTD = output[0] if isinstance(output, tuple) else output
        if isinstance(x_BTD, Tensor) and x_BTD.is_floating_point():
            self._note("residual_norm", x_BTD.detach().float().square().mean().sqrt())

    @torch.no_grad()
    def _read_output(self, _module: nn.Module, _inputs: object, output: Any) -> None:
        logits_BTV = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if isinstance(logits_BTV, Tensor) and logits_BTV.is_floating_point() and logits_BTV.ndim >= 2:
            rows_XV = logits_BTV.detach().flatten(0, -2)
            if self.rows is not None:
                rows_XV = rows_XV[self._places(len(rows_XV), 4 * self.rows).to(rows_XV.device)]
            self._note("logit_norm", rows_XV.float().square().mean().sqrt())
            self._note("log_partition", rows_XV.float().logsumexp(-1).mean())
        if isinstance(loss := getattr(output, "loss", None), Tensor) and loss.numel() == 1:
            self._note("loss", loss.float().reshape(()))

    def _places(self, count: int, most: int) -> Tensor:
        """At most so many of 0 .. count - 1, drawn by the step and by no generator that anybody else uses."""
        generator = torch.Generator().manual_seed(self.step)
        return torch.randperm(count, generator=generator)[:most].sort().values

    def _read_attention(self, logits_of: Callable[[Tensor], Tensor], queries: int, device: torch.device) -> None:
        """`logits_of(rows_R)` gives logits B, H, R, S of these queries, -inf where one cannot look."""
        rows_R = self._places(queries, queries if self.rows is None else self.rows).to(device)
        logits_BHRS = logits_of(rows_R)
        visible_BHRS = logits_BHRS > -1e30  # some hide by the least number instead of -inf
        self._note("max_attention_logit", logits_BHRS.masked_fill(~visible_BHRS, -torch.inf).amax((0, 2, 3)))
        counts_BHR = visible_BHRS.sum(-1)
        shares_BHRS = logits_BHRS.masked_fill(~visible_BHRS, -torch.inf).softmax(-1).nan_to_num(0.0)
        entropy_BHR = -torch.special.xlogy(shares_BHRS, shares_BHRS).sum(-1) / counts_BHR.clamp_min(2).log()
        long_BHR = counts_BHR > 1
        if bool(long_BHR.any()):
            entropy_H = (entropy_BHR * long_BHR).sum((0, 2)) / long_BHR.sum((0, 2)).clamp_min(1)
            self._note("attention_entropy", entropy_H)


class _AttentionCalls(TorchFunctionMode):
    """Sees torch compute attention: hands each call's logits on, and lets it go on as it is."""

    def __init__(self, read: Callable[[Callable[[Tensor], Tensor], int, torch.device], None]) -> None:
        super().__init__()
        self._read = read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                self._attention(*args, **kwargs)
        elif func in SOFTMAXES:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                self._softmax(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if query.ndim != 4:
            return

        def logits_of(rows_R: Tensor) -> Tensor:
            k_BHSK = key.float().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            q_BHRK = query[:, :, rows_R].float() * (scale or 1 / math.sqrt(query.shape[-1]))
            logits_BHRS = q_BHRK @ k_BHSK.transpose(-1, -2)
            if is_causal:
                later_RS = torch.arange(key.shape[2], device=key.device) > rows_R[:, None]
                logits_BHRS = logits_BHRS.masked_fill(later_RS, -torch.inf)
            if attn_mask is not None:
                mask = attn_mask.expand(*attn_mask.shape[:-2], query.shape[2], key.shape[2])[..., rows_R, :]
                added = mask.float() if mask.dtype != torch.bool else torch.where(mask, 0.0, -torch.inf)
                logits_BHRS = logits_BHRS + added
            return logits_BHRS

        self._read(logits_of, query.shape[2], query.device)

    def _softmax(self, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
        if input.ndim == 4 and dim in (-1, 3) and input.is_floating_point():
            self._read(lambda rows_R: input[:, :, rows_R].float(), input.shape[2], input.device)
