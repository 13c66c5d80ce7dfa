"""What the makers of cards say of them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What a maker says of a card: dense bfloat16 products in TFLOP/s, memory in TB/s."""

    teraflops: float
    terabytes: float


CARDS = {
    "H100 PCIe": Card(756, 2.0),
    "H100 NVL": Card(835, 3.9),
    "H100": Card(989, 3.35),
    "H200 NVL": Card(835, 4.8),
    "H200": Card(989, 4.8),
    "GH200": Card(989, 4.0),
    "B200": Card(2250, 8.0),
    "A100-SXM4-80GB": Card(312, 2.04),
    "A100 80GB PCIe": Card(312, 1.94),
    "A100": Card(312, 1.56),
    "L40S": Card(362, 0.86),
    "L4": Card(121, 0.30),
    "A10G": Card(70, 0.60),
    "RTX 4090": Card(165, 1.01),
    "RTX 3090": Card(71, 0.94),
}
"""By a part of the name that the driver gives; the longest that fits counts. From the makers' data sheets."""


def card_of(name: str) -> Card | None:
    """What is known of a card of that name; None for others."""
    fitting = [each for each in CARDS if re.search(rf"\b{re.escape(each)}\b", name)]
    return CARDS[max(fitting, key=len)] if fitting else None
