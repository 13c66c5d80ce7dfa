"""A folder of drawings as GenEval's program reads it, which finds the things in them with a detector of its own.

```
00000/metadata.jsonl        the prompt's line of the file
00000/samples/0000.png ...  the drawings
```

The prompts are GenEval's `prompts/evaluation_metadata.jsonl` (github.com/djghosh13/geneval), or lines of one's own with
a `prompt` each; its `evaluation/evaluate_images.py FOLDER` then reads what was written here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.files import read_json_lines
from chameleon_lab.generation.grammar import MODALITY_SWITCHES
from chameleon_lab.parts import require_count
from chameleon_lab.storage import write_file


def export_geneval(
    lab: Chameleon,
    prompts: Path | str,
    folder: Path | str,
    *,
    samples: int = 4,
    request: str = "{prompt}",
    seed: int = 0,
    batch: int = 16,
) -> Iterator[Path]:
    """Draws each prompt `samples` times, with the lab's settings and a seed each; yields the prompts' folders as they
    are whole. What lies there already is not drawn again, so an interrupted export goes on.

    `request`: how a prompt is asked for, such as "draw {prompt}". Raises ValueError for a file whose lines have no
    prompt, and for a folder in which another prompt lies at a prompt's place.
    """
    require_count(samples, "samples of a prompt", 1)
    if "{prompt}" not in request:
        raise ValueError(f"A request says where the prompt stands, such as 'draw {{prompt}}', and not {request!r}.")
    lines = read_json_lines(prompts)
    strange = [number for number, line in enumerate(lines, 1) if not isinstance(line, dict) or "prompt" not in line]
    if strange or not lines:
        raise ValueError(f"{prompts} has no prompt at entry {strange[0] if strange else 1}: its lines are objects.")
    grammar = lab.engine.grammar_of(MODALITY_SWITCHES["picture"])
    for number, line in enumerate(lines):
        place = Path(folder) / f"{number:05d}"
        _begin_prompt(place, line)
        missing = [each for each in range(samples) if not (place / "samples" / f"{each:04d}.png").is_file()]
        document = Document.of(request.replace("{prompt}", str(line["prompt"])), EndTurn())
        for start in range(0, len(missing), batch):
            some = missing[start : start + batch]
            seeds = [seed + number * samples + each for each in some]
            replies = lab.engine.generate([document] * len(some), lab.settings, seeds, grammar)
            for each, reply in zip(some, replies, strict=True):
                written = io.BytesIO()
                reply.pictures[0].save(written, "PNG")
                write_file(place / "samples" / f"{each:04d}.png", written.getvalue())
        yield place


def _begin_prompt(place: Path, line: dict[str, Any]) -> None:
    path = place / "metadata.jsonl"
    if path.is_file():
        if read_json_lines(path) != [line]:
            raise ValueError(f"{path} is of another prompt than {line['prompt']!r}: export into a folder of its own.")
        return
    write_file(path, json.dumps(line, ensure_ascii=False) + "\n")
