"""The card of a model of a person's own data, as a page to read."""

from __future__ import annotations

from typing import Any

from chameleon_lab.corpora.own_data import survey_lines


def own_page(card: dict[str, Any]) -> str:
    """What it learned from, how, and how well, with what each figure means."""
    plan, minutes = card["plan"], card["minutes"]
    lines = [
        "# Model card: a model of one's own data",
        "",
        *(f"- {line}" for line in survey_lines(card["survey"])),
        f"- Read from: {', '.join(each['path'] for each in card['survey']['sources'])}",
        "",
        "## How it was trained",
        "",
        f"- {minutes['image tokenizer']:g} min image tokenizer, {minutes['transformer']:g} min transformer: "
        f"{card['steps']:,} steps, {card['tokens']:,} tokens, on {card['machine']}, {card['trained']}",
        *(f"- {name}: {plan[name]:,} ({plan['reasons'].get(name, 'asked for')})" for name in _NAMES),
        f"- image tokenizer: {_origin(card['begins from'])}",
        f"- documents: {', '.join(f'{name} {share:.0%}' for name, share in card['mixture'].items())}",
        f"- augmentation: {card['augmentation']['views of each picture']} views of each picture, shifted, scaled, and "
        f"mirrored for {card['augmentation']['mirrored pictures']:,} of them",
        f"- noise on input codes {card['noise on input codes']:.0%}, dropout {card['dropout']:.0%}",
        f"- weights: {card['stopped']}",
        "",
        "## What it knows",
        "",
        "Nats: how surprised it is, a code of a picture that is asked for by its caption, and a piece of a name.",
        "Words pick: how often a caption makes its own picture likelier by more than any other of as many.",
        "Named right: the name that it gives is, letter by letter, one of the captions.",
        "",
        "| | " + " | ".join(card["scores"]) + " |",
        "|---|" + "---|" * len(card["scores"]),
    ]
    sides = list(card["scores"].values())
    for measure in sides[0] if sides else ():
        lines.append(f"| {measure} | " + " | ".join(f"{each[measure]:g}" for each in sides) + " |")
    return "\n".join([*lines, ""])


_NAMES = ("side", "grid", "codes", "pieces", "width", "layers", "context")


def _origin(origin: dict[str, Any]) -> str:
    if origin.get("frozen"):
        return f"{origin['frozen']}, as it is"
    return f"trained on from {origin['begins_from']}" if origin.get("begins_from") else "trained from scratch"


def own_summary(card: dict[str, Any]) -> str:
    """How well the model does, in a line a side of the split."""
    lines = [
        f"{side} ({each['pictures']}): {each['psnr']:.1f} dB, {each['image nats']:.2f} nats a code, "
        f"{each['text nats']:.2f} nats a piece, words pick their picture {each['words pick their picture']:.0%}, "
        f"named right {each['named right']:.0%}"
        for side, each in card["scores"].items()
    ]
    return "\n".join(lines)
