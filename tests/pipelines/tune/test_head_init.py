"""A head of labels or tags begins where a linear probe of the untouched network ends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.pipelines.conftest import recipe, reviews, topics, tune
from tests.pipelines.tune.test_tag import orders
from tunesmith.config import Recipe
from tunesmith.metrics import baselines
from tunesmith.metrics.baselines import fit_linear
from tunesmith.models.batch import collate
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Tag
from tunesmith.training import head_init as first_head
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.head_init import init_heads_from_probe
from tunesmith.training.prepare import TrainingContext, prepare
from tunesmith.training.train import adapted_policy

pytestmark = pytest.mark.usefixtures("small_world")


def begun(made: Recipe) -> tuple[TrainingContext, Policy, Classify]:
    """What a run has before its first step."""
    prepared = prepare(made, on_event=lambda event: None, offline=True)
    policy = adapted_policy(prepared)
    init_heads_from_probe(prepared, policy, lambda event: None)
    assert isinstance(prepared.recipe.objective, Classify)
    return prepared, policy, prepared.recipe.objective


@torch.no_grad()
def share_right(prepared: TrainingContext, policy: Policy, objective: Classify) -> float:
    """How many of the training rows have all labels right before any step."""
    batch = collate(prepared.train)
    assert batch.labels is not None
    assert policy.head is not None
    logits = policy.head(policy.pooled(batch))
    told = logits > 0 if objective.multi else logits == logits.max(dim=1, keepdim=True).values
    return float((told.float() == batch.labels).all(dim=1).float().mean())


def test_folded_weights_answer_as_the_standardised_regression_they_come_from():
    chance = np.random.default_rng(0)
    known = chance.normal(size=(90, 6)) * [1, 10, 0.1, 1, 1, 0] + [0, 5, 0, 0, 0, 1e-3]
    known[:, 4] = chance.normal(size=90) * 1e-30  # the last bits of nothing
    labels = [("red", "green", "blue")[int(x[0] + x[1] / 10 > 0) + int(x[2] > 0.05)] for x in known]
    fit = fit_linear(known, labels)
    assert fit.labels == ("blue", "green", "red")
    assert np.abs(fit.weight[:, 4:]).max() < 1e-6
    middle, spread = known[:, :4].mean(axis=0), known[:, :4].std(axis=0)
    scaled = (known[:, :4] - middle) / spread
    same = [LogisticRegression(C=c, max_iter=2000).fit(scaled, labels).predict(scaled).tolist() for c in (0.01, 0.1)]
    assert fit.label(known) in same
    assert fit_linear(known, ["red"] * 90).label(known[:2]) == ["red", "red"]


def test_a_head_starts_from_a_quarter_of_the_probe_so_that_its_rows_leave_something_to_learn():
    chance = np.random.default_rng(0)
    states = chance.normal(size=(60, 5)).astype(np.float32)
    targets = np.stack([states[:, 0] > 0, states[:, 0] <= 0], axis=1).astype(np.float32)
    fit = fit_linear(states, [("no", "yes")[int(row[1])] for row in targets])
    single = Classify(labels=("no", "yes"), output="linear", metric="accuracy")
    weight, bias = single.probe_head(states, targets)
    assert weight == pytest.approx(fit.weight / 4)
    assert bias == pytest.approx(fit.bias / 4)
    fixed = fit_linear(states, [("no", "yes")[int(row[1])] for row in targets], tries=False)
    weight, bias = single.model_copy(update={"multi": True}).probe_head(states, targets)
    assert weight[1] == pytest.approx((fixed.weight[1] - fixed.weight[0]) / 4)
    assert bias[1] == pytest.approx((fixed.bias[1] - fixed.bias[0]) / 4)


KINDS: list[tuple[str, Any]] = [("bert", "lora"), ("bert", {"kind": "prompt", "tokens": 4}), ("llama", "full")]


@pytest.mark.parametrize(("kind", "technique"), KINDS)
def test_a_fresh_run_tells_labels_as_a_probe_does_before_any_step(tmp_path: Path, kind: str, technique: Any):
    objective = {"kind": "classify", "output": "linear"}
    found = begun(recipe(tmp_path, reviews(), kind, objective=objective, technique=technique))
    assert share_right(*found) > 0.9


def test_each_of_several_labels_begins_as_a_probe_of_its_own(tmp_path: Path):
    assert share_right(*begun(recipe(tmp_path, topics(), "bert"))) > 0.6
    every = [row | {"label": [*row["label"], "phone"]} for row in topics()]
    prepared, policy, objective = begun(recipe(tmp_path, every, "bert"))
    assert policy.head is not None
    place = objective.labels.index("phone")  # which all rows have
    assert float(policy.head.bias[place].detach()) == pytest.approx(np.log(len(prepared.train) + 1))
    assert not policy.head.weight[place].any()


def test_a_listed_label_that_no_row_has_begins_as_unlikely(tmp_path: Path):
    objective = {"kind": "classify", "labels": ["positive", "mixed", "negative"]}
    prepared, policy, bound = begun(recipe(tmp_path, reviews(), "bert", objective=objective))
    assert share_right(prepared, policy, bound) > 0.9
    assert policy.head is not None
    with torch.no_grad():
        told = policy.head(policy.pooled(collate(prepared.train))).argmax(dim=1)
    assert (told != 1).all()


def test_rare_labels_begin_with_the_share_that_learning_adds(tmp_path: Path):
    rows = [row for i, row in enumerate(reviews(80)) if row["label"] == "positive" or i % 16 == 1]
    prepared, policy, objective = begun(recipe(tmp_path, rows, "bert"))
    assert objective.shares
    with torch.no_grad():
        probability = objective.logits(collate(prepared.train), policy).softmax(dim=1).mean(dim=0)
    assert probability.tolist() == pytest.approx(objective.shares, abs=0.15)


def test_a_beginning_sees_no_more_rows_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(first_head, "MOST_ROWS", 12)
    asked: list[int] = []
    plain = baselines.fit_linear

    def fit(states: Any, labels: Any, **more: Any) -> Any:
        asked.append(len(labels))
        return plain(states, labels, **more)

    monkeypatch.setattr(baselines, "fit_linear", fit)
    begun(recipe(tmp_path, reviews(), "bert"))
    assert asked == [12]


def test_a_run_that_goes_on_keeps_the_head_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = recipe(tmp_path, reviews(), "bert", schedule={"probe": False, "save_steps": 1})
    stops = iter([False, False, True])
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "run", stop=lambda: next(stops, True))
    monkeypatch.setattr("tunesmith.training.train.init_heads_from_probe", lambda *_: pytest.fail("begun anew"))
    assert tune(made, tmp_path / "run").report.training.best_step


def test_a_run_whose_first_checkpoint_could_not_be_written_begins_with_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = recipe(tmp_path, reviews(), "bert", schedule={"probe": False, "epochs": 1})
    stops = iter([False, True])
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "run", stop=lambda: next(stops, True))
    for entry in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.rmtree(entry)
    begun: list[object] = []
    monkeypatch.setattr("tunesmith.training.train.init_heads_from_probe", lambda prepared, *_: begun.append(prepared))
    tune(made, tmp_path / "run")
    assert len(begun) == 1


def test_tags_begin_as_a_probe_of_the_tokens_and_a_listed_label_without_spans_as_unlikely(tmp_path: Path):
    objective = {"kind": "tag", "labels": ["AMOUNT", "COLOUR", "PLACE"]}
    made = recipe(tmp_path, orders(), "bert", objective=objective, technique="full")
    prepared = prepare(made, on_event=lambda event: None, offline=True)
    policy = adapted_policy(prepared)
    init_heads_from_probe(prepared, policy, lambda event: None)
    bound = prepared.recipe.objective
    assert isinstance(bound, Tag)
    batch = collate(prepared.train)
    assert batch.targets is not None
    with torch.no_grad():
        told = bound.logits(batch, policy).argmax(dim=1)
    inside = batch.targets > 0
    assert float((told == batch.targets)[inside].float().mean()) > 0.3
    assert float((told == batch.targets)[~inside].float().mean()) > 0.9
    assert not {bound.all_tags[tag] for tag in told.tolist()} & {"B-COLOUR", "I-COLOUR"}
