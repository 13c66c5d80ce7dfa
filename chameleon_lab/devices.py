"""What a training takes on many devices, on paper: memory a device, tokens a second, days.

Memory is that of `planner` for one device, cut as FSDP2 cuts it (see `training.sharding`). Speed is a device's own
rate, as measured, against what its link carries. Nothing was run: arithmetic says what would break first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from chameleon_lab.optimization import Recipe
from chameleon_lab.planner import GAPS, GAPS_SHARE, GB, RESERVE, Plan, plan
from chameleon_lab.transformer import ModelConfig

A100_FLOPS = 312e12
"""Of a device of the paper: dense bfloat16 products, by its data sheet."""

PAPER_HOURS = {"7b": 856_481, "34b": 4_282_407}
"""Hours of one A100 80 GB that the paper's trainings took (arXiv 2405.09818, table 2)."""

PAPER_TOKENS = 9.2e12
"""Of each of the two."""

USUAL_MFU = 0.4
"""Share of the peak that is assumed where no rate was measured; the paper's hours imply a little more."""

RECOMPUTED = 4 / 3
"""Arithmetic of a step with recomputed blocks: a forward pass more, to one forward and a backward one that is two."""


def flops_per_token(config: ModelConfig, parameters: int, context: int) -> float:
    """Multiplications and additions of a training step, a token: 6 a parameter that multiplies, and attention's
    products over the whole context (as arXiv 2204.02311, appendix B, counts them; recomputing is no part of it)."""
    multiplying = parameters - (0 if config.tied else config.vocabulary * config.width)  # the embedding is looked up
    return 6.0 * multiplying + 12.0 * config.layers * config.heads * config.head_width * context


@dataclass(frozen=True)
class FleetPlan:
    """A training over `devices` with FSDP2: bytes on each of them, and its pace.

    `stands`: a device's part of weights, gradients and optimizer's state; `gathered`: weights that are whole for a
    while (embedding and head, the block that is due and the next one) and gradients (of the first two and a block);
    `activations` with `recompute` are what enters each block, and one block whole. `compute` and `exchange`: seconds of
    a step for the arithmetic and for what goes over the link, of which none, or all, may hide behind the arithmetic.
    """

    one: Plan
    devices: int
    tokens_at_once: int
    stands: int
    gathered: int
    activations: int
    recompute: bool
    compute: float
    exchange: float
    flops: float
    peak_flops: float
    assumed: bool
    tokens: float | None = None

    @property
    def peak(self) -> int:
        """The most that a device holds at once, in bytes."""
        return self.stands + self.gathered + self.activations + int(min(GAPS, GAPS_SHARE * self.activations))

    @property
    def fits(self) -> bool | None:
        """Whether a device holds that and `RESERVE`; None where no memory is given."""
        memory = self.one.device_memory
        return None if memory is None else self.peak + RESERVE <= memory

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens a second of all devices: at worst, where nothing of the exchange is hidden, and at best."""
        tokens = self.devices * self.tokens_at_once
        return tokens / (self.compute + self.exchange), tokens / max(self.compute, self.exchange)

    @property
    def mfu(self) -> tuple[float, float]:
        """The share of the devices' peak that goes into the model's own arithmetic, at worst and at best."""
        worst, best = (rate * self.flops / (self.devices * self.peak_flops) for rate in self.rates)
        return worst, best

    @property
    def days(self) -> tuple[float, float] | None:
        """For all tokens, at best and at worst."""
        return (
            None if self.tokens is None else (self.tokens / self.rates[1] / 86400, self.tokens / self.rates[0] / 86400)
        )

    @property
    def first_limit(self) -> str:
        """What breaks first, in words."""
        if self.fits is False:
            return f"memory: {self.peak / GB:.1f} GB a device"
        if self.exchange > self.compute:
            batch = math.ceil(self.exchange / self.compute * self.tokens_at_once)
            return f"the link: from {batch:,} tokens a device and step on the arithmetic would hide it"
        return "nothing here: the exchange can be hidden behind the arithmetic"

    def __str__(self) -> str:
        note = "what enters each block, and one block made again" if self.recompute else f"in the {self.one.moment}"
        how = f"assumed: {USUAL_MFU:.0%} of the peak" if self.assumed else "as measured"
        rows = [
            ("parts", self.stands, f"of weights, gradients, optimizer: a {self.devices}th of {self.one.parameters:,}"),
            ("gathered", self.gathered, "embedding, head, two blocks; gradients of one block and of those"),
            ("activations", self.activations, note),
            ("peak", self.peak, ""),
        ]
        lines = [f"{self.devices} devices, FSDP2, {self.tokens_at_once:,} tokens each a step:"]
        lines += [f"  {name:12s}{size / GB:9.2f} GB  {words}".rstrip() for name, size, words in rows]
        if self.one.device_memory is not None:
            lines.append(f"  {'fits' if self.fits else 'does not fit'} {self.one.device_memory / GB:g} GB a device")
        lines.append(f"  a step       {self.compute:9.2f} s of arithmetic ({how}), {self.exchange:.2f} s on the link")
        (slow, fast), (low, high) = self.rates, self.mfu
        share = f"{low:.0%} to {high:.0%} of the devices' peak"
        lines.append(f"  pace         {slow:,.0f} to {fast:,.0f} tokens/s, {share}")
        if self.days is not None and self.tokens is not None:
            lines.append(f"  {self.tokens:.3g} tokens in {self.days[0]:,.1f} to {self.days[1]:,.1f} days")
        return "\n".join([*lines, f"  first limit: {self.first_limit}"])


def plan_devices(
    config: ModelConfig,
    devices: int,
    device_memory: float | None = None,
    *,
    rows: int = 1,
    context: int | None = None,
    recompute: bool = False,
    precision: str = "bf16-mixed",
    rate: float | None = None,
    link: float = 25.0,
    tokens: float | None = None,
    peak_flops: float = A100_FLOPS,
) -> FleetPlan:
    """A training of this shape with AdamW over so many devices, each with `rows` documents of `context` tokens a step.

    `rate`: tokens a second of one device alone, measured without recomputing; otherwise `USUAL_MFU` of `peak_flops` is
    assumed. `link`: GB/s that a device sends and receives in an exchange of all with all, as its slowest part carries
    them (25: 200 Gbit/s). Raises ValueError for numbers that are none, and as `planner.plan` does.
    """
    numbers = {"devices": devices, "rate": rate, "link": link, "tokens": tokens, "peak_flops": peak_flops}
    for name, number in numbers.items():
        if number is not None and not (0 < number < math.inf):
            raise ValueError(f"{name} must be a finite number above 0, not {number!r}.")
    if isinstance(devices, bool) or not isinstance(devices, int):
        raise ValueError(f"devices must be a whole number, not {devices!r}.")
    context = context or config.context

    def with_layers(layers: int) -> Plan:
        shape = replace(config, layers=layers)
        return plan(shape, rows=rows, context=context, training=Recipe(), precision=precision)

    one, two, three = (with_layers(layers) for layers in (config.layers, 2, 3))
    block = three.weights - two.weights
    around = max(0, two.weights - 2 * block)
    stands = math.ceil((one.weights + one.gradients + one.optimizer) / devices)
    gathered = 0 if devices == 1 else min(one.weights, around + 2 * block) + around + block
    activations = one.activations
    if recompute:
        inside = max(0, three.activations - two.activations)
        entering = rows * context * config.width * 4  # the residual stream, float32 also in mixed precision
        whole = max(0, two.activations - 2 * inside) + inside + config.layers * entering
        activations = min(activations, whole)
    flops = flops_per_token(config, one.parameters, context)
    pace = rate or USUAL_MFU * peak_flops / flops
    compute = rows * context / pace * (RECOMPUTED if recompute else 1.0)
    # Weights come together for the forward and again for the backward pass, gradients go out once; float32, as stored.
    exchange = 3 * one.weights * (devices - 1) / devices / (link * GB)
    memory = None if device_memory is None else device_memory * GB
    return FleetPlan(
        replace(one, device_memory=memory),
        devices,
        rows * context,
        stands,
        gathered,
        activations,
        recompute,
        compute,
        exchange,
        flops,
        peak_flops,
        rate is None,
        tokens,
    )


def implied_mfu(config: ModelConfig, parameters: int, tokens: float, hours: float, peak: float = A100_FLOPS) -> float:
    """The share of a device's peak that a training of so many device hours made use of."""
    return tokens * flops_per_token(config, parameters, config.context) / (hours * 3600 * peak)
