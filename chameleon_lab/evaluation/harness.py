"""A model as EleutherAI's lm-evaluation-harness takes it (0.4.13): any of its tasks, with pictures in the context too.

```python
from lm_eval import simple_evaluate

lab = Chameleon.load("tiny")
output = simple_evaluate(model=HarnessModel(lab), tasks=["arc_easy"])
values = harness_values(output, lab)  # each with its protocol
```

From a shell it is the harness's own command, which then knows this model: `python -m chameleon_lab.evaluation.harness
--model chameleon-lab --model_args pretrained=tiny --tasks arc_easy`. The harness's own model for pictures refuses
log-likelihoods; this one takes them. Needs the extra `harness`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.evaluation.prompting import ContinuationScore, PromptContext, Prompting, messages_text, reply_wishes
from chameleon_lab.evaluation.results import evaluation_card
from chameleon_lab.records import MetricValue

try:
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
except ImportError:
    raise ImportError(
        "Tasks of the lm-evaluation-harness are run by the package lm_eval, which is not installed: pip install "
        "'chameleon-lab[harness]'."
    ) from None


@register_model("chameleon-lab")
class HarnessModel(LM):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    """A model of the lab for the harness. `pretrained`: the model, or its folder or name; `turns`: whether a context is
    a user's turn, for a model that was trained on conversations alone."""

    MULTIMODAL = True

    def __init__(
        self,
        pretrained: Chameleon | str = "tiny",
        *,
        batch_size: int | str = 16,
        turns: bool = False,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # The harness fills these in where its command line does not: the first is fixed here, so "auto" is not asked.
        batch = int(batch_size) if str(batch_size).isdigit() else min(16, max_batch_size or 16)
        lab = Chameleon.load(pretrained, device=device) if isinstance(pretrained, str) else pretrained
        self.prompting = Prompting(lab, batch, turns)
        self._device = lab.model.embedding.weight.device

    @property
    def tokenizer_name(self) -> str:
        return f"chameleon-lab-{self.prompting.lab.vocabulary.size}"

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        return messages_text(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [(_context(request), request.args[1]) for request in requests]
        with tqdm(total=len(pairs), desc="log-likelihoods", disable=disable_tqdm) as bar:
            answers: list[ContinuationScore] = self.prompting.likelihoods(pairs, bar.update)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, tuple(answer[:2]))
        return [(answer.log, answer.greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        with tqdm(total=len(requests), desc="rolling log-likelihoods", disable=disable_tqdm) as bar:
            logs = self.prompting.rolling([request.args[0] for request in requests], bar.update)
        for request, total in zip(requests, logs, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return logs

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="replies", disable=disable_tqdm) as bar:
            for places in alike.values():
                wishes = reply_wishes(requests[places[0]].args[1], self.prompting.lab.settings)
                some = self.prompting.replies(
                    [_context(requests[place]) for place in places], **wishes, progress=bar.update
                )
                for place, text in zip(places, some, strict=True):
                    texts[place] = text
                    self.cache_hook.add_partial("generate_until", requests[place].args, text)
        return texts


def _context(request: Any) -> PromptContext:
    more = request.args[2] if len(request.args) > 2 else {}
    return PromptContext(request.args[0], list(more.get("visual") or ()))


def harness_values(output: Mapping[str, Any], lab: Chameleon) -> dict[tuple[str, str], MetricValue]:
    """What `simple_evaluate` returned of a model as values with their protocol, by (task, metric).

    A card has the harness's version, the task's, its shots and filter, so that only the like is compared.
    """
    values: dict[tuple[str, str], MetricValue] = {}
    for task, numbers in output["results"].items():
        n = output.get("n-samples", {}).get(task, {}).get("effective", 0)
        for name, number in numbers.items():
            metric, _, filtered = name.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(number, int | float):
                continue
            higher = output.get("higher_is_better", {}).get(task, {}).get(metric)
            config = output.get("configs", {}).get(task, {})
            card = evaluation_card(
                metric,
                f"lm-evaluation-harness {lm_eval.__version__}, {task} version {output['versions'].get(task)}, "
                f"{output['n-shot'].get(task)} shots, filter {filtered}",
                f"{config.get('dataset_path') or task} {config.get('test_split') or ''}".strip(),
                [str(config.get("dataset_kwargs")), str(config.get("doc_to_text"))],
                n=int(n),
                lab=lab,
                pictures="doc_to_image" in config,
            )
            values[task, metric if filtered == "none" else f"{metric} ({filtered})"] = MetricValue(
                float(number), "", higher is not False, card
            )
    return values


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
