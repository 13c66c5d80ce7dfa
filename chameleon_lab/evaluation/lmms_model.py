"""The class that `lmms.model_manifest` names; it imports lmms-eval, and is imported by it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.evaluation.lmms import visual_contexts
from chameleon_lab.evaluation.prompting import Prompting, reply_wishes


class LmmsModel(lmms):  # pyright: ignore[reportUntypedBaseClass]
    """A model of the lab for lmms-eval. Contexts are a user's turns unless `turns` is false."""

    is_simple = True

    def __init__(
        self,
        pretrained: Chameleon | str = "tiny",
        *,
        batch_size: int | str = 16,
        turns: bool = True,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        lab = Chameleon.load(pretrained, device=device) if isinstance(pretrained, str) else pretrained
        batch = int(batch_size) if str(batch_size).isdigit() else min(16, max_batch_size or 16)
        self.prompting = Prompting(lab, batch, turns)

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Of each target its loss, in nats a token, and whether it is the greedy reply.

        That is what lmms-eval's own models return under this name, and the least loss is the choice that it takes. The
        pairs are wrapped, since 0.7.3 makes words of bare ones, which none of its tasks can then take apart.
        """
        contexts = visual_contexts(requests, self.task_dict)
        pairs: list[tuple[Any, str]] = []
        for request, context in zip(requests, contexts, strict=True):
            target, _, number, task, split = request.args[1:6]
            continuation = target if isinstance(target, str) else target(self.task_dict[task][split][number])
            pairs.append((context, str(continuation)))
        with tqdm(total=len(pairs), desc="log-likelihoods") as bar:
            answers = self.prompting.likelihoods(pairs, bar.update)
        return [GenerationResult((-each.log / max(1, each.tokens), each.greedy)) for each in answers]  # pyright: ignore[reportArgumentType]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        contexts, alike = visual_contexts(requests, self.task_dict), dict[str, list[int]]()
        for place, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="replies") as bar:
            for places in alike.values():
                wishes = reply_wishes(requests[places[0]].args[1], self.prompting.lab.settings)
                some = self.prompting.replies([contexts[place] for place in places], **wishes, progress=bar.update)
                for place, text in zip(places, some, strict=True):
                    texts[place] = text
        return texts

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise ValueError("The lab answers lmms-eval's tasks of one round: choose another task.")
