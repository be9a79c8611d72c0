"""People's judgement from rows to a measured run: pairs, thumbs, rewards."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.bases import folder
from tests.pipelines.conftest import recipe, tune
from tunesmith.config import load_recipe
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.evaluators.preferences import WRITTEN, find_warnings
from tunesmith.evaluation.results import PreferenceDiagnostics
from tunesmith.inference.saved_model import load
from tunesmith.models.policy import Policy
from tunesmith.pipelines.evaluate import evaluate
from tunesmith.pipelines.requests import EvaluateRequest
from tunesmith.report.schema import read_report
from tunesmith.training.journal import Journal
from tunesmith.training.prepare import prepare
from tunesmith.training.reference_logprobs import chosen_logprob_warning, precompute_reference_logprobs

pytestmark = pytest.mark.usefixtures("small_world")


def pairs(count: int = 48) -> list[dict[str, Any]]:
    return [
        {"prompt": f"number {i}", "chosen": f"it is good, {i}", "rejected": f"bad {i % 5}", "shop": f"s{i % 12}"}
        for i in range(count)
    ]


def thumbs(count: int = 48) -> list[dict[str, Any]]:
    said = ("it is good", "bad")
    return [{"prompt": f"number {i}", "completion": f"{said[i % 2]} {i}", "label": i % 2 == 0} for i in range(count)]


def journal(run: Path) -> list[dict[str, Any]]:
    return Journal(run / "journal.jsonl").read()  # without the checksums of lines, which it checks


@pytest.fixture(scope="module")
def preferred(small_world: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("preferred")
    made = recipe(place, pairs(), "llama", objective="preference", data={"group": "shop"}, schedule={"probe": False})
    return tune(made, place / "run").folder


@pytest.fixture(scope="module")
def rewarding(small_world: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rewarding")
    made = recipe(place, pairs(), "llama", objective="reward", schedule={"probe": False}, controls=True)
    return tune(made, place / "run").folder


def test_pairs_are_told_by_log_probability_and_the_longer_answer_stands_beside(preferred: Path):
    report = read_report(preferred)
    assert report.task.metric == "preference_accuracy"
    assert report.task.tuned == 1.0
    assert [task.metric for task in report.tasks] == ["preference_accuracy", "preference_accuracy_summed"]
    assert {arm.name: arm.score for arm in report.baselines}["the longer answer wins"] == 1.0
    assert report.preference_diagnostics is not None
    assert report.preference_diagnostics.chosen_logprob is not None
    assert report.preference_diagnostics.margin[1] > report.preference_diagnostics.margin[0]


def test_validations_say_what_the_preferred_answers_gained(preferred: Path):
    seen = [line for line in journal(preferred) if "validation_loss" in line]
    assert seen[-1]["margin"] > 0
    assert set(seen[-1]) == {"step", "validation_loss", "chosen_gain", "margin", "preferred_more"}


def test_what_the_start_says_is_kept_and_computed_once(preferred: Path):
    kept = sorted((preferred / "reference").glob("*.json"))
    assert len(kept) == 2  # training and validation rows
    assert all(len(row) == 2 for row in json.loads(kept[0].read_text(encoding="utf-8")))


def test_a_run_that_goes_on_does_not_ask_the_start_again(
    preferred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prepared = prepare(load_recipe(preferred / "recipe.yaml")[0], on_event=lambda event: None)
    start = Policy.over(prepared.base.network, family="decoder", reference=nullcontext)
    first = precompute_reference_logprobs(prepared, tmp_path, policy=start, on_event=lambda event: None)
    monkeypatch.delattr("tunesmith.training.reference_logprobs.add_reference_logprobs")
    again = precompute_reference_logprobs(prepared, tmp_path, policy=start, on_event=lambda event: None)
    assert again.train == first.train
    assert all(len(row.reference) == 2 for row in again.train)


@pytest.mark.parametrize(
    ("facts", "finding"),
    [
        ({"chosen_logprob": (-2.0, -2.2)}, "log-probability of the chosen answers fell by 0.20 nats/token"),
        ({"words": (20.0, 31.0)}, "answers grew from 20.0 to 31.0 words"),
        ({"words": (0.2, 0.9)}, "answers grew from 0.2 to 0.9 words"),
        ({"repeated_share": (0.0, 0.25)}, "25% of answers contain loops, 0% before"),
    ],
)
def test_what_goes_wrong_with_preferences_raises_an_alarm(facts: dict[str, Any], finding: str):
    (alarm,) = find_warnings(PreferenceDiagnostics(**facts), "dpo")
    assert finding in alarm
    assert (
        find_warnings(
            PreferenceDiagnostics(chosen_logprob=(-2.0, -2.05), words=(20.0, 29.0), repeated_share=(0.5, 0.5)),
            "dpo",
        )
        == ()
    )
    assert find_warnings(PreferenceDiagnostics(repeated_share=(0.0, 1 / WRITTEN)), "dpo") == ()


@pytest.mark.parametrize(("loss", "fix"), [("dpo", "loss: dpo_norm"), ("dpo_norm", "rate"), ("kto", "rate")])
def test_longer_answers_are_not_answered_with_the_loss_of_the_run_or_one_that_thumbs_cannot_have(loss: str, fix: str):
    (alarm,) = find_warnings(PreferenceDiagnostics(words=(20.0, 31.0)), loss)
    assert alarm.endswith(fix)


def test_a_validation_on_which_the_preferred_answers_fall_is_told():
    assert chosen_logprob_warning({"step": 3, "chosen_gain": -0.15}).startswith(
        "warning: log-probability of the chosen answers fell by 0.15 nats/token"
    )
    assert chosen_logprob_warning({"step": 3, "chosen_gain": -0.05}) == chosen_logprob_warning({"step": 3}) == ""


def test_a_base_is_scored_on_pairs_and_on_thumbs(tmp_path: Path):
    for rows, metric in ((pairs(12), "preference_accuracy"), (thumbs(12), "thumbs_auc")):
        file = tmp_path / f"{metric}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        page = evaluate(EvaluateRequest(str(folder("llama")), str(file)), on_event=lambda event: None).page
        assert page.metric == metric
        assert 0 <= page.score <= 1
    with pytest.raises(RecipeError, match="scores need a head, and this model has none"):
        evaluate(
            EvaluateRequest(str(folder("llama")), str(tmp_path / "preference_accuracy.jsonl"), objective="reward"),
            on_event=print,
        )


def test_held_out_thumbs_that_are_all_up_are_refused(tmp_path: Path):
    file = tmp_path / "up.jsonl"
    file.write_text("".join(json.dumps(row | {"label": True}) + "\n" for row in thumbs(12)))
    with pytest.raises(DataError, match=r"^up\.jsonl: all held-out answers are rated good"):
        evaluate(EvaluateRequest(str(folder("llama")), str(file)), on_event=lambda event: None)


def test_a_tuned_preference_run_answers_and_scores(preferred: Path):
    model = load(preferred)
    assert len(model.generate(["number 3"])) == 1
    chosen, other = model.scores([Message("user", "number 3")], ["it is good", "is it good"])
    assert chosen > other
    with pytest.raises(RecipeError, match="this one was tuned with preference"):
        model.reward("number 3", "bad 3")


def test_evaluate_scores_a_preference_run_on_other_pairs_and_against_its_base(preferred: Path, tmp_path: Path):
    file = tmp_path / "more.jsonl"
    file.write_text("".join(json.dumps(row | {"prompt": f"new {i}"}) + "\n" for i, row in enumerate(pairs(10))))
    page = evaluate(EvaluateRequest(str(preferred), str(file), against="base"), on_event=lambda event: None).page
    assert (page.metric, page.n, page.tuned) == ("preference_accuracy", 10, 1.0)
    assert page.base == pytest.approx(read_report(preferred).task.base, abs=0.35)


def test_a_pair_of_which_only_the_same_turns_fit_teaches_nothing(tmp_path: Path):
    told = "all that was said before, " * 40
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": told},
        {"role": "user", "content": "?"},
    ]
    rows = [*pairs(20), {"prompt": turns, "chosen": "good", "rejected": "bad"}]
    made = recipe(tmp_path, rows, "llama", objective="preference", data={"max_tokens": 96})
    prepared = prepare(made, on_event=lambda event: None, offline=True)
    left = [*prepared.facts.zero_label, *(one.where for one in prepared.loaded.split.validation)]
    assert all(row.sequences[0].ids != row.sequences[1].ids for row in [*prepared.train, *prepared.validation])
    assert "rows.jsonl:21" in " ".join([*left, *(one.where for one in prepared.loaded.split.test)])


def test_a_reward_run_scores_answers_beside_a_probe_a_control_and_length(rewarding: Path):
    report, model = read_report(rewarding), load(rewarding)
    assert report.task.tuned == 1.0
    assert [arm.name for arm in report.baselines] == ["base", "the longer answer wins"]
    assert report.baselines[0].detail == "linear probe on differences of the frozen states"
    assert [arm.name for arm in report.controls] == ["shuffled labels"]
    assert report.calibration is not None
    assert report.preference_diagnostics is not None
    assert report.preference_diagnostics.length_bias is not None
    good, bad = model.rewards([("number 7", "it is good, 7"), ("number 7", "bad 2")])
    assert good > bad
    assert model.reward("number 7", "bad 2") == pytest.approx(bad, abs=1e-4)
    with pytest.raises(RecipeError, match="a reward model cannot generate"):
        model.generate(["number 7"])
    # A recipe that is rewarded by it may say the same instruction before each prompt.
    model.objective = model.objective.model_copy(update={"instruction": "Say it well:"})
    assert model.reward("Say it well:\n\nnumber 7", "bad 2") == model.reward("number 7", "bad 2")


def test_evaluate_scores_a_reward_run_against_the_probe_on_its_base(rewarding: Path, tmp_path: Path):
    file = tmp_path / "more.jsonl"
    file.write_text("".join(json.dumps(row | {"prompt": f"new {i}"}) + "\n" for i, row in enumerate(pairs(10))))
    found = evaluate(EvaluateRequest(str(rewarding), str(file), against="base"), on_event=lambda event: None)
    assert found.page.tuned == 1.0
    assert "base: linear probe on differences of the frozen states" in found.page.notes
    assert {"where", "gold", "answer", "against", "worth"} <= set(found.answers[0])


def test_an_encoder_learns_rewards(tmp_path: Path):
    made = recipe(tmp_path, pairs(), "bert", objective="reward", schedule={"probe": False})
    found = tune(made, tmp_path / "run")
    assert found.report.task.tuned == 1.0
    assert len(load(found.folder).rewards([("a", "it is good"), ("b", "bad")])) == 2


@pytest.mark.long
@pytest.mark.parametrize("technique", ["full", "lora"])
def test_thumbs_are_learned_with_kto(tmp_path: Path, technique: str):
    parts = {"technique": technique, "schedule": {"probe": False, "learning_rate": 0.005}}
    found = tune(recipe(tmp_path, thumbs(), "llama", objective="preference", **parts), tmp_path / "run")
    assert found.report.task.metric == "thumbs_auc"
    assert found.report.task.tuned > found.report.task.base
    assert "loss: kto" in (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs(12)), encoding="utf-8")
    page = evaluate(EvaluateRequest(str(found.folder), str(file)), on_event=lambda event: None).page
    assert page.metric == "preference_accuracy"


@pytest.mark.long
@pytest.mark.parametrize("loss", ["ipo", "hinge", "dpo_norm", "kto", "orpo", "simpo"])
def test_every_loss_raises_the_preferred_answers(tmp_path: Path, loss: str):
    made = recipe(tmp_path, pairs(), "llama", objective={"kind": "preference", "loss": loss}, schedule={"probe": False})
    found = tune(made, tmp_path / "run").report
    assert found.task.tuned == 1.0
    assert (tmp_path / "run" / "reference").exists() == (loss not in ("orpo", "simpo"))


def test_thumbs_are_refused_where_a_loss_needs_pairs(tmp_path: Path):
    made = recipe(tmp_path, thumbs(), "llama", objective={"kind": "preference", "loss": "dpo"})
    with pytest.raises(DataError, match=r"objective\.loss dpo compares two completions, .* set loss: kto"):
        tune(made, tmp_path / "run")
