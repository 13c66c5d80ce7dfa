"""Reinforcement: what is learned from is what was drawn, by the distribution that drew it, and as GRPO says."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints.provenance import LicenceError
from chameleon_lab.corpora.requests import requested_scene
from chameleon_lab.corpora.scenes import NOVEL_PAIRS, Scene, sample_where
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.measures import MEASURES, measure_of
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.plain import described
from chameleon_lab.stability import Dropout, QueryKeyNorm, ZLoss
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.policy import PromptBatches, PromptRows, RolloutBatch, advantages
from chameleon_lab.training.reinforcement import GRPO, RewardExperiment
from chameleon_lab.training.rewards import (
    REWARDED_PAIRS,
    UNREWARDED_PAIRS,
    PairRequests,
    RelationRequests,
    pair_reward,
    scene_reward,
)
from chameleon_lab.training.run import Run
from chameleon_lab.vocabulary import Modality

FAVOURITE = 3


def favourite_codes(document: Document) -> float:
    """The share of a picture's codes that are the favourite."""
    (image,) = [part for part in document if isinstance(part, Image)]
    return float((np.asarray(image.codes) == FAVOURITE).mean())


def letters(rng: np.random.Generator) -> Document:
    return Document.of("".join(rng.choice(list("abcd"), 5)), EndTurn())


@pytest.fixture
def toy(make_lab, lettered) -> RewardExperiment:
    return RewardExperiment(
        "toy",
        favourite_codes,
        letters,
        Budget(steps=6),
        begins_from=make_lab(lettered),
        grpo=GRPO(group=4, prompts=2),
        recipe=Recipe(rate=3e-3, weight_decay=0.0, warm_up=0, schedule=Constant()),
        monitors=(),
        checkpoints=0,
    )


def lab_of(experiment: RewardExperiment) -> Chameleon:
    assert isinstance(experiment.begins_from, Chameleon)
    return experiment.begins_from


def drawn(experiment: RewardExperiment, seed: int = 0) -> RolloutBatch:
    prompts = PromptBatches(experiment.prompts, seed, experiment.grpo.prompts)(0)
    return experiment.rollouts(lab_of(experiment))(lab_of(experiment).model, prompts)


# What is learned from


def test_the_policy_is_the_distribution_that_replies_are_drawn_from(toy):
    lab, temperature = lab_of(toy), 0.6
    grpo = GRPO(group=300, prompts=1, temperature=temperature)
    rollouts = replace(toy, grpo=grpo).rollouts(lab)
    prompts, counts = PromptRows((Document.of("abca", EndTurn()),), 0), np.zeros(lab.vocabulary.size)
    for seed in range(4):
        rows = rollouts.draw(lab.model, replace(prompts, seed=seed))
        counts += np.bincount([row.tokens[row.start + 1] for row in rows], minlength=len(counts))
    batch = rollouts(lab.model, prompts)
    logs_BT, at = rollouts.objective.logs(lab.model, batch), int(batch.learned_BT[0].nonzero()[0])
    with torch.no_grad():
        logits_V = lab.model(batch.inputs_BT[:1, : at + 1])[0, -1]
    codes_V = torch.from_numpy(lab.vocabulary.modality == Modality.IMAGE)
    shares_V = (logits_V / temperature).masked_fill(~codes_V, -torch.inf).softmax(-1)
    assert torch.allclose(logs_BT[:, at].exp(), shares_V[batch.targets_BT[:, at]], atol=1e-5)
    total, likely_V = counts.sum(), shares_V.numpy() > 0.01
    pairs = [(counts[token], total * float(shares_V[token])) for token in likely_V.nonzero()[0]]
    pairs.append((counts[~likely_V].sum(), total * float(shares_V[~likely_V].sum())))
    assert not counts[~codes_V.numpy()].any() and sum((count - mean) ** 2 / max(mean, 1) for count, mean in pairs) < 35
    # Over whole replies: mean log-probabilities are minus the entropy, within four standard errors.
    entropy = rollouts.objective(lab.model, batch)["reply_entropy"]
    means_B = logs_BT.sum(1) / batch.learned_BT.sum(1)
    assert abs(float(means_B.mean() + entropy)) < 4 * float(means_B.std()) / 300**0.5


@pytest.mark.parametrize("modality", ["picture", "words", "free", "interleaved"])
def test_log_probabilities_are_those_that_the_engine_scores_and_only_choices_are_learned(toy, modality):
    lab = lab_of(toy)
    experiment = replace(toy, reward=lambda document: float(len(document)), grpo=replace(toy.grpo, modality=modality))
    experiment = replace(experiment, grpo=replace(experiment.grpo, max_tokens=None if modality == "picture" else 60))
    rollouts = experiment.rollouts(lab)
    prompts = PromptBatches(letters, 1, 2)(0)
    batch, rows = rollouts(lab.model, prompts), rollouts.draw(lab.model, prompts)
    logs_BT = rollouts.objective.logs(lab.model, batch)
    compared = 0
    for at, row in enumerate(rows):
        reply = rollouts.reply(row)
        assert not batch.learned_BT[at, : row.start - 1].any()
        assert batch.inputs_BT[at, : len(row.tokens) - 1].tolist() == list(row.tokens[:-1])
        if modality != "picture":  # the engine masks for the room of a whole context, and rollouts for their own
            continue
        scores = lab.engine.score([reply], Document((*prompts.documents[at // 4],)), rollouts.grammar)[0]
        ours = logs_BT[at, row.start - 1 : row.start - 1 + len(scores.logs_T)]
        assert np.allclose(ours.numpy(), scores.logs_T, atol=1e-5)
        compared += 1
        # The picture's begin and end are forced; its codes, and how the reply ends, are chosen.
        assert int(batch.learned_BT[at].sum()) == len(row.tokens) - row.start - 2
    assert compared or modality != "picture"


def test_without_an_update_every_ratio_is_1_to_the_bit_and_the_kl_to_oneself_is_0(toy):
    lab, batch = lab_of(toy), drawn(toy)
    objective = replace(toy.rollouts(lab).objective, epsilon=1e-9, beta=0.1)  # in float32 the clip is [1, 1]
    logs_BT = objective.logs(lab.model, batch)
    measures = objective(lab.model.train(), replace(batch, drawn_logs_BT=logs_BT, reference_logs_BT=logs_BT))
    assert measures["clip_fraction"] == 0 and measures["kl"] == 0
    lab.model.eval()
    # A clip at which a ratio beside 1 is counted: a bit more or less is one.
    ahead_BT = torch.nextafter(logs_BT, torch.tensor(-torch.inf)) - 1e-6
    assert objective(lab.model, replace(batch, drawn_logs_BT=ahead_BT))["clip_fraction"] > 0


def test_loss_and_gradients_are_grpos(toy):
    lab, batch = lab_of(toy), drawn(toy)
    objective = replace(toy.rollouts(lab).objective, epsilon=0.1, beta=0.3, temperature=0.8)
    torch.manual_seed(5)
    logs_BT = objective.logs(lab.model, batch)
    drawn_BT, reference_BT = (logs_BT + 0.2 * torch.randn_like(logs_BT) for _ in range(2))
    batch = replace(batch, drawn_logs_BT=drawn_BT, reference_logs_BT=reference_BT)
    measures = objective(lab.model, batch)
    measures["loss_with_penalties"].backward()
    ours = [parameter.grad.clone() for parameter in lab.model.parameters() if parameter.grad is not None]
    lab.model.zero_grad()

    logits_BTV = lab.model(batch.inputs_BT) / 0.8
    means, clips, kls = [], [], []
    for row in range(len(batch.inputs_BT)):
        terms = []
        for at in batch.learned_BT[row].nonzero()[:, 0].tolist():
            allowed_V = torch.from_numpy(batch.masks[batch.choices_BT[row, at]].allowed_V)
            log = logits_BTV[row, at].masked_fill(~allowed_V, -torch.inf).log_softmax(-1)[batch.targets_BT[row, at]]
            ratio, advantage = (log - drawn_BT[row, at]).exp(), batch.advantages_BT[row, at]
            clipped = ratio.clamp(0.9, 1.1)
            apart = reference_BT[row, at] - log
            kl = apart.exp() - apart - 1
            terms.append(-torch.minimum(ratio * advantage, clipped * advantage) + 0.3 * kl)
            clips.append(bool(clipped * advantage < ratio * advantage))
            kls.append(float(kl.detach()))
        means.append(torch.stack(terms).mean())
    loss = torch.stack(means).mean()
    loss.backward()
    theirs = [parameter.grad for parameter in lab.model.parameters() if parameter.grad is not None]
    assert float(measures["loss_with_penalties"].detach()) == pytest.approx(float(loss.detach()), rel=1e-4)
    assert float(measures["kl"]) == pytest.approx(np.mean(kls), rel=1e-4)
    assert 0 < float(measures["clip_fraction"]) == pytest.approx(np.mean(clips))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(ours, theirs, strict=True))


def test_advantages_are_within_a_group_and_a_group_of_equals_has_none():
    rewards = np.array([[0.0, 1.0, 1.0, 4.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.1, 0.1, 0.4]])
    scaled, plain = advantages(rewards), advantages(rewards, scaled=False)
    assert np.allclose(scaled.sum(1), 0) and np.allclose(plain.sum(1), 0)
    assert (scaled[1] == 0).all() and (plain[1] == 0).all()
    assert np.allclose(plain[0], [-1.5, -0.5, -0.5, 2.5]) and np.allclose(plain[0], 10 * plain[2])
    assert np.allclose(scaled[0], plain[0] / rewards[0].std(ddof=1), rtol=1e-3)
    assert np.allclose(scaled[0], scaled[2], rtol=1e-2)  # scaled, a hard prompt's small differences weigh as much


def test_prompts_and_rollouts_are_of_their_seed_and_step_alone(toy):
    batches = PromptBatches(letters, 3, 2)
    assert batches(5) == PromptBatches(letters, 3, 2)(5) != batches(6)
    assert batches(5) != PromptBatches(letters, 4, 2)(5)
    one, other = drawn(toy, 1), drawn(toy, 1)
    assert torch.equal(one.inputs_BT, other.inputs_BT) and one.figures == other.figures
    assert one.figures["distinct_share"] == 1


# The training


def values(run: Run) -> list[dict[str, float]]:
    return [record.values for record in run.history.records]


def weights(experiment: RewardExperiment, folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_what_is_rewarded_becomes_likelier_and_kl_holds_it_back(toy, tmp_path):
    ends = {}
    for beta in (0.01, 3.0):
        grpo, recipe = GRPO(12, 1, beta=beta), replace(toy.recipe, rate=1e-2)
        experiment = replace(toy, name=f"beta-{beta}", budget=Budget(steps=9), grpo=grpo, recipe=recipe)
        before = {name: tensor.clone() for name, tensor in lab_of(toy).model.state_dict().items()}
        run = experiment.run(tmp_path / str(beta))
        result = run.result(120)
        assert (
            isinstance(result, Chameleon) and result.generate(Document.of("ab", EndTurn()), modality="picture").pictures
        )
        ends[beta] = values(run)
        assert all(torch.equal(tensor, before[name]) for name, tensor in lab_of(toy).model.state_dict().items())
    rewards = {
        beta: [np.mean([each["reward"] for each in some]) for some in (end[:3], end[-3:])] for beta, end in ends.items()
    }
    assert rewards[0.01][1] > rewards[0.01][0] + 0.3
    assert ends[3.0][-1]["kl"] < ends[0.01][-1]["kl"] / 3 and rewards[3.0][1] < rewards[0.01][1]


@pytest.mark.parametrize("inner", [1, 3])
def test_stopped_within_a_round_and_taken_up_again_it_is_bitwise_the_same(toy, tmp_path, monkeypatch, inner):
    experiment = replace(toy, budget=Budget(steps=8), grpo=replace(toy.grpo, inner_steps=inner))
    whole = experiment.run(tmp_path / "whole")
    whole.wait(120)
    run, prompts = Run(experiment, tmp_path / "run"), PromptBatches.__call__

    def until_five(batches: PromptBatches, step: int) -> PromptRows:
        if step == 4:
            run.stop()  # after this step, the second of its round of three
        return prompts(batches, step)

    with monkeypatch.context() as patched:
        patched.setattr(PromptBatches, "__call__", until_five)
        run.start().wait(120)
    assert run.state.status == "stopped" and len(run.history.records) == 5
    torch.manual_seed(99)
    again = experiment.run(tmp_path / "run")
    again.wait(120)
    assert values(again) == values(whole)
    pair = [weights(experiment, tmp_path / name) for name in ("run", "whole")]
    assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[1])
    clips = [each["clip_fraction"] for each in values(whole)]
    assert all(clip == 0 for clip in clips[::inner]) and (inner == 1 or any(clips))  # a round's first step has ratio 1
    rounds = [each["reward"] for each in values(whole)]
    assert all(rounds[at] == rounds[at - at % inner] for at in range(8)) and len(set(rounds)) > 1


def test_all_monitors_watch_it_and_each_measure_has_words(toy, tmp_path):
    monitors = tuple(replace(monitor, every=1) for monitor in MONITORS)  # pyright: ignore[reportArgumentType]
    run = replace(toy, monitors=monitors, budget=Budget(steps=2), penalties=(ZLoss(1e-4),)).run(tmp_path)
    run.wait(120)
    last = values(run)[-1]
    own = {"reward", "right_share", "reward_spread", "silent_groups", "distinct_share", "reply_tokens", "kl"}
    assert {*own, "clip_fraction", "reply_entropy", "policy_loss", "image_entropy", "update_ratio"} <= last.keys()
    assert last["image_gradient_share"] + last["special_gradient_share"] == pytest.approx(1, abs=1e-3)
    assert all(measure_of(name).about for name in last if name in MEASURES) and own <= MEASURES.keys()


def test_epsilon_and_beta_can_be_changed_while_it_trains(toy, tmp_path):
    run = replace(toy, budget=Budget(steps=200)).run(tmp_path)
    while not run.history.records:
        time.sleep(0.01)
    assert run.settings["epsilon"] == 0.2 and run.settings["beta"] == 0.02
    with pytest.raises(ValueError, match="epsilon must lie between 0 and 1"):
        run.change(epsilon=1.0)
    run.change("held back", beta=0.5)
    while run.settings["beta"] != 0.5 and not run.state.over:
        time.sleep(0.01)
    run.stop()
    (change,) = run.wait(60).interventions
    assert (change.name, change.before, change.after) == ("beta", 0.02, 0.5)


# What it is


def with_weight(weight: float) -> Callable[[Document], float]:
    return lambda document: weight * len(document.pictures)


def test_a_reward_s_source_and_a_prompt_s_are_part_of_what_the_experiment_is(toy):
    def other_letters(rng: np.random.Generator) -> Document:
        return Document.of("".join(rng.choice(list("abc"), 5)), EndTurn())

    rewards = [favourite_codes, with_weight(1.0), with_weight(2.0), scene_reward]
    experiments = [replace(toy, reward=reward) for reward in rewards] + [replace(toy, prompts=other_letters)]
    assert len({each.fingerprint for each in experiments}) == len(experiments)
    assert replace(toy, reward=with_weight(2.0)).fingerprint == experiments[2].fingerprint
    assert "FAVOURITE" in str(described(toy)["sources"]) and "scene_reward" in str(described(experiments[3]))


@pytest.mark.parametrize(
    "reward", ["much", None, float("nan"), float("-inf"), True, 1e300, 10**400, 1j], ids=lambda reward: str(reward)[:9]
)
def test_a_reward_that_is_no_finite_number_is_one_clear_error(toy, tmp_path, reward):
    run = replace(toy, reward=lambda document: reward).run(tmp_path)
    with pytest.raises(ValueError, match="number"):
        run.wait(60)
    assert run.state.status == "failed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grpo": {"group": 1}}, "rollouts of a group must be a whole number from 2"),
        ({"grpo": {"prompts": 0}}, "prompts of a step"),
        ({"grpo": {"inner_steps": 0}}, "steps on the same rollouts"),
        ({"grpo": {"epsilon": 1.0}}, "epsilon must lie above 0 and below 1"),
        ({"grpo": {"temperature": 0.0}}, "temperature must lie above 0"),
        ({"grpo": {"beta": -0.1}}, "beta must be 0"),
        ({"grpo": {"modality": "song"}}, "modality is one of"),
        ({"grpo": {"max_tokens": 0}}, "tokens of a reply"),
        ({"reward": 3}, "no reward"),
        ({"prompts": None}, "no source of prompts"),
        ({"reward": PairRequests}, "is a class"),
        ({"penalties": (3,)}, "penalty"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_said(toy, change, words):
    with pytest.raises(ValueError, match=words):
        replace(toy, **{name: GRPO(**value) if name == "grpo" else value for name, value in change.items()})


def test_a_source_of_what_is_no_prompt_and_a_fix_of_the_model_are_refused(toy, tmp_path):
    words: Any = lambda rng: "draw"  # noqa: E731
    with pytest.raises(ValueError, match="A source of prompts gives a Document"):
        replace(toy, prompts=words).run(tmp_path).wait(60)
    with pytest.raises(ValueError, match="changes the model, which is that of the weights"):
        toy.with_fixes(ZLoss(1e-3), QueryKeyNorm())
    assert toy.with_fixes(ZLoss(1e-3), ZLoss(1e-4)).penalties == (ZLoss(1e-3), ZLoss(1e-4))


def test_weights_that_may_not_draw_are_not_rewarded_for_drawing(toy, tmp_path):
    card = {"licence": "Chameleon Research License"}
    lab = Chameleon(lab_of(toy).model, lab_of(toy).tokenizer, card=card)
    with pytest.raises(LicenceError):
        replace(toy, begins_from=lab).run(tmp_path / "pictures").wait(60)
    words = replace(toy, begins_from=lab, reward=lambda document: float(len(document.text)))
    words = replace(words, grpo=GRPO(2, 1, modality="words", max_tokens=5), budget=Budget(steps=1))
    words.run(tmp_path / "words").wait(60)


def test_dropout_of_the_weights_is_off(make_lab, lettered, toy, tmp_path):
    lab = make_lab(lettered, fixes=(QueryKeyNorm(), Dropout(0.5)))
    experiment = replace(toy, begins_from=lab, grpo=replace(toy.grpo, inner_steps=2), budget=Budget(steps=2))
    run = experiment.run(tmp_path)
    run.wait(60)
    assert values(run)[0]["clip_fraction"] == 0 == values(run)[0]["kl"]


# Rewards of scenes


def test_the_rewards_of_scenes_are_of_the_picture_that_was_asked_for():
    rng = np.random.default_rng(1)
    requests = PairRequests(UNREWARDED_PAIRS, held_out=True)
    for _ in range(8):
        scene = requests.scene(rng)
        assert scene.things[0].pair in UNREWARDED_PAIRS and scene.held_out
        asked = Document.of("draw " + scene.caption(), EndTurn())

        def paid(picture: Scene | None, asked: Document = asked) -> tuple[float, float]:
            document = asked if picture is None else Document((*asked, Image(picture.picture())))
            return scene_reward(document), pair_reward(document)

        other = sample_where(rng, "trainable", 1)
        assert paid(scene) == (1.0, 1.0) and paid(None) == (0.0, 0.0)
        assert paid(other)[0] < 1 and paid(other)[1] == 0
        moved = replace(scene, background="gray" if scene.background != "gray" else "tan")
        assert 0.5 < paid(moved)[0] < 1 and paid(moved)[1] == 1
    assert not set(REWARDED_PAIRS) & set(UNREWARDED_PAIRS) and len(REWARDED_PAIRS) == 4


def test_a_pair_in_a_relation_is_asked_for_beside_one_that_the_data_have():
    for pairs, held_out in ((REWARDED_PAIRS, True), (UNREWARDED_PAIRS, False)):
        source = RelationRequests(pairs, held_out)
        scenes = [source.scene(np.random.default_rng(seed)) for seed in range(20)]
        novel = [[thing.pair for thing in scene.things if thing.pair in NOVEL_PAIRS] for scene in scenes]
        assert all(len(each) == 1 and each[0] in pairs for each in novel)
        assert {scene.layout for scene in scenes} == {"beside", "above"}
        assert {scene.held_out for scene in scenes} == {held_out}
        request = source(np.random.default_rng(0))
        assert requested_scene(request.text) == scenes[0]
        assert not request.pictures


def test_a_reward_that_fails_ends_the_run_with_its_own_words_and_what_was_trained_stays(toy, tmp_path):
    calls = []

    def breaks_later(document):
        calls.append(document)
        if len(calls) > 2 * toy.grpo.group * toy.grpo.prompts:  # in the third round
            raise ZeroDivisionError("a mistake in a cell")
        return float(len(calls) % 2)

    run = replace(toy, reward=breaks_later).run(tmp_path)
    with pytest.raises(ZeroDivisionError, match="a mistake in a cell"):
        run.wait(60)
    assert run.state.status == "failed" and "a mistake in a cell" in str(run.state)
    assert len(run.history.records) == 2 * toy.grpo.inner_steps
