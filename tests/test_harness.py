"""The shipped model in others' evaluation programs: local tasks, words and pictures. Skipped where they are missing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import COLOURS, PLACES, arrange
from chameleon_lab.evaluation import lmms
from chameleon_lab.evaluation.answers import last_number, majority_answer
from chameleon_lab.evaluation.prompting import PromptContext, Prompting

TASKS = {
    "scene_words": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
    """,
    "scene_colour": """
        output_type: multiple_choice
        doc_to_text: "<image>describe the picture"
        doc_to_choice: choices
        doc_to_target: answer
        doc_to_image: !function pictures_of.pictures
        target_delimiter: ""
        metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
    """,
    "scene_caption": """
        output_type: generate_until
        doc_to_text: "describe the picture"
        doc_to_target: "{{text}}"
        doc_to_image: !function pictures_of.pictures
        generation_kwargs: {until: ["\\n"], max_gen_toks: 64}
        metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
    """,
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Tasks as one writes them: a YAML file each, JSON Lines and pictures beside them."""
    folder, colours, rows = tmp_path_factory.mktemp("tasks"), list(COLOURS), []
    for place in range(4):
        scene = arrange([("star", colours[place], "large")], "single", "tan", list(PLACES)[4])
        scene.picture().save(folder / f"{place}.png")
        choices = [f"a large {colour} star" for colour in colours]
        rows.append(
            {"picture": str(folder / f"{place}.png"), "text": scene.caption(), "choices": choices, "answer": place}
        )
    (folder / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pictures_of.py").write_text(
        "import PIL.Image\n\n\ndef pictures(doc):\n    return [PIL.Image.open(doc['picture'])]\n"
    )
    for name, lines in TASKS.items():
        body = "\n".join(line.strip() for line in lines.strip().split("\n"))
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {folder}/scenes.jsonl}}\ntest_split: train"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}\n{body}\n")
    return folder


@pytest.mark.filterwarnings("default")  # the harness's own
def test_local_tasks_run_on_the_shipped_model(tasks, monkeypatch, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", exc_type=ImportError)
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from chameleon_lab.evaluation.harness import HarnessModel, harness_values

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    lab = Chameleon.load("tiny")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    output = lm_eval.simple_evaluate(
        model=HarnessModel(lab, turns=True), tasks=list(TASKS), task_manager=manager, bootstrap_iters=0
    )
    values = harness_values(output, lab)
    assert values["scene_colour", "acc"].value == 1 and values["scene_caption", "exact_match"].value == 1
    rows = [json.loads(line) for line in (tasks / "scenes.jsonl").read_text().splitlines()]
    nats = -sum(Prompting(lab).rolling([row["text"] for row in rows]))
    bits = nats / 0.6931471805599453 / sum(len(row["text"].encode()) for row in rows)
    assert values["scene_words", "bits_per_byte"].value == pytest.approx(bits, rel=1e-6)
    assert not values["scene_words", "bits_per_byte"].higher_is_better
    card = values["scene_colour", "acc"].card
    assert card.n == 4 and "lm-evaluation-harness" in card.definition and card.crop.startswith("centre crop")
    again = lm_eval.simple_evaluate(  # as the command line makes it
        model="chameleon-lab",
        model_args="pretrained=tiny,turns=True",
        batch_size="auto",
        tasks=["scene_colour"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert harness_values(again, lab)["scene_colour", "acc"] == values["scene_colour", "acc"]


def test_lmms_evals_entry_point_names_what_is_there():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    (target,) = project["entry-points"]["lmms_eval.models"].values()
    module, _, function = target.partition(":")
    assert module == lmms.__name__ and callable(getattr(lmms, function))


def test_lmms_eval_takes_the_manifest_and_the_model():
    registry_module = pytest.importorskip("lmms_eval.models.registry_v2", exc_type=ImportError)
    registry = registry_module.ModelRegistryV2()
    registry.register_manifest(lmms.model_manifest())
    model = registry.get_model_class("chameleon-lab")("tiny")
    scene = arrange([("star", "blue", "large")], "single", "tan")
    model.task_dict["scenes"] = {"test": [{"picture": scene.picture(), "answer": "a large blue star"}]}

    def pictures(document):
        return [document["picture"]]

    place = (pictures, 0, "scenes", "test")
    asked = [
        SimpleNamespace(args=("describe the picture", target, *place))
        for target in ("a large red star", lambda document: document["answer"])
    ]
    unwrapped = pytest.importorskip("lmms_eval.api.instance").unwrap_generation_output  # as its evaluator does
    wrong, right = (unwrapped(each)[0] for each in model.loglikelihood(asked))
    assert right[1] and 0 <= right[0] < wrong[0] - 0.5  # losses a token, of which lmms-eval takes the least
    wishes = {"until": [" star"], "max_new_tokens": 40}
    (text,) = model.generate_until([SimpleNamespace(args=("describe the picture", wishes, *place))])
    assert text == "a large blue"


def test_what_lmms_eval_asks_becomes_contexts_and_a_video_is_refused():
    picture = arrange([("star", "blue", "large")], "single", "tan").picture()
    documents = {"t": {"s": [picture, "film.mp4"]}}
    ask = [SimpleNamespace(args=("what?", {}, lambda document: [document], place, "t", "s")) for place in range(2)]
    assert lmms.visual_contexts(ask[:1], documents) == [PromptContext("what?", [picture])]
    with pytest.raises(ValueError, match="Document 1 of t comes with a str"):
        lmms.visual_contexts(ask, documents)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "chameleon_lab.evaluation.harness", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'chameleon-lab\[harness\]'"):
        importlib.import_module("chameleon_lab.evaluation.harness")


def test_a_majority_is_the_harnesss():
    selection = pytest.importorskip("lm_eval.filters.selection", exc_type=ImportError)
    rng = np.random.default_rng(0)
    votes = [[str(vote) for vote in rng.integers(0, 5, rng.integers(1, 12))] for _ in range(200)]
    theirs = [each[0] for each in selection.MajorityVoteFilter().apply(votes, [{}] * len(votes))]
    assert [majority_answer(each, last_number) for each in votes] == theirs
