"""A model as lmms-eval takes it (0.7.3), which finds it by this package's entry point: `--model chameleon-lab`.

```
python -m lmms_eval --model chameleon-lab --model_args pretrained=tiny --tasks ...
```

Needs lmms-eval installed beside the lab; it brings a hundred packages of its own, so no extra of the lab names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chameleon_lab.evaluation.prompting import PromptContext


def model_manifest() -> Any:
    """What the entry point gives lmms-eval: a name, and where the class is. Nothing of the lab is loaded for it."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest("chameleon-lab", simple_class_path="chameleon_lab.evaluation.lmms_model.LmmsModel")


def visual_contexts(requests: Sequence[Any], documents: Any) -> list[PromptContext]:
    """The context of each request of lmms-eval's simple kind, whose arguments end in (document to pictures, document's
    number, task, split). `documents`: by task and split. Raises ValueError for videos and sounds."""
    from chameleon_lab.evaluation.prompting import PromptContext

    contexts: list[PromptContext] = []
    for request in requests:
        text, _, to_pictures, number, task, split, *_ = request.args
        pictures = to_pictures(documents[task][split][number]) if to_pictures is not None else []
        pictures = [pictures] if not isinstance(pictures, list | tuple) else pictures
        for each in pictures:
            if not hasattr(each, "convert"):  # what has it is PIL's
                raise ValueError(
                    f"Document {number} of {task} comes with a {type(each).__name__}, and this model reads pictures: "
                    "choose a task of images."
                )
        contexts.append(PromptContext(text, list(pictures)))
    return contexts
