"""The card of a model as a page to read."""

from __future__ import annotations

from typing import Any

from chameleon_lab.evaluation.scenes import Score


def markdown(card: dict[str, Any]) -> str:
    """A page from the card that `train` began and `evaluate` completed."""
    experiment, minutes = card["experiment"], card["minutes"]
    command = f"chameleon-lab train {experiment['name']}"
    lines = [
        f"# Model card: {experiment['name']}",
        "",
        "Reads, draws, describes and changes small scenes; trained from nothing, on pictures and sentences that the",
        "lab makes itself (`chameleon_lab/corpora`). Apache-2.0, like the lab. It knows nothing of the world outside.",
        "",
        f"- command: `{command}`, then `chameleon-lab evaluate --write`",
        f"- trained: {card['trained']}, on {card['machine']}",
        f"- time: {minutes['image tokenizer']:g} min image tokenizer, {minutes['transformer']:g} min transformer",
        f"- transformer: {card['steps']:,} steps, {card['tokens']:,} tokens",
        *(f"- {note}" for note in card.get("notes", [])),
        "",
        "## How often it is right",
        "",
        "Held-out prompts; words by exact match, pictures by `corpora/checker.py` from their pixels; 95 % intervals.",
        f"Sampling: {', '.join(f'{name} {value}' for name, value in experiment['settings'].items() if name != 'is')}.",
        "",
        "| measure | right |",
        "|---|---|",
        *(f"| {name} | {Score(score['share'], score['n'])} |" for name, score in card["scores"].items()),
        "",
        "## How it learned",
        "",
        "| minutes | text loss (nats a token) | image loss (nats a token) |",
        "|---|---|---|",
        *_curve(card["curve"]),
        "",
    ]
    return "\n".join(lines)


def _curve(curve: dict[str, list[float | None]], rows: int = 12) -> list[str]:
    points = list(zip(curve["minutes"], curve["text_loss"], curve["image_loss"], strict=True))
    stride = max(1, len(points) // rows)
    cells = [["" if value is None else f"{value:.3g}" for value in point] for point in points[stride - 1 :: stride]]
    return [f"| {' | '.join(point)} |" for point in cells]
