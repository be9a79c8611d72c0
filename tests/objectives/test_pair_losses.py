"""Every loss over judged answers is TRL's on the same numbers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from tests.bases import tokens
from tunesmith.data.examples.types import Pair, UnpairedPreference
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.data.tokenization.messages import Message
from tunesmith.models.batch import Batch, collate
from tunesmith.objectives import Preference, Reward

ROWS = ("..xxx", "..x", "..xxxxx", "...xx")  # two pairs, with answers of 3 and 1, of 5 and 2 ids
LABELS = ((1.0, 0.0), (1.0, 0.0))
# Ours: the two answers of a pair follow each other. TRL's: all chosen ones, then the others.
THEIRS = [0, 2, 1, 3]
ASKED = (Message("user", "q"),)


def drawn(seed: int) -> Tensor:
    """[4, 5]: log-probabilities of the ids of four answers, none of them near 0."""
    return -0.2 - 3 * torch.rand(4, 5, generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    """[4, 7]: which ids TRL's padded rows learn."""
    return torch.tensor([[row[i : i + 1] == "x" for i in range(7)] for row in ROWS]).long()


def placed(logs: Tensor) -> Tensor:
    """[4, 6]: the log-probability of every learned id at its place after the first, 0 elsewhere."""
    found = torch.zeros(4, 6)
    for row, learned in enumerate(mask()[:, 1:].bool()):
        found[row, learned] = logs[row, : int(learned.sum())]
    return found


def batch_of(labels: tuple[tuple[float, ...], ...], before: Tensor | None) -> Batch:
    """The rows as our losses see them, as many of them an example as it has labels."""
    each = len(labels[0])
    made = [tokens(range(10 * i, 10 * i + len(row)), row) for i, row in enumerate(ROWS)]
    parts = [Encoded(tuple(made[i * each : (i + 1) * each]), "r", label=label) for i, label in enumerate(labels)]
    return replace(collate(parts), reference=before)


def trainer(**settings: Any) -> Any:
    """The part of a TRL trainer that its losses look at."""
    metrics: dict[str, Any] = defaultdict(lambda: defaultdict(list))
    same = SimpleNamespace(device="cpu", **dict.fromkeys(("gather", "gather_for_metrics"), lambda x: x))
    shared = {"model": SimpleNamespace(training=True), "accelerator": same, "aux_loss_enabled": False}
    shared |= {"use_weighting": False, "precompute_ref_logps": True, "_metrics": metrics}
    return SimpleNamespace(**shared | {"_total_train_tokens": 0, "_tp_size": 1} | settings)


def inputs(rows: list[int], **more: Tensor) -> dict[str, Any]:
    ids = torch.ones(len(rows), 7, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": ids, "completion_mask": mask()[rows], **more}


def saying(logs: Tensor) -> Any:
    """A model that gives every id the same log-probability whatever it reads."""
    beside = dict.fromkeys(("entropy", "mean_logits"), torch.zeros_like(logs))
    out = SimpleNamespace(log_probs=logs, is_top1=torch.zeros_like(logs, dtype=torch.bool), **beside)
    return lambda **given: out


def bound(**settings: Any) -> Any:
    return Preference(**settings).bind([Pair("r", ASKED, "a", "b")], "decoder").make_learner()


def mean_over_pairs(learner: Any, logs: Tensor, before: Tensor | None) -> float:
    batch = batch_of(LABELS, before)
    return float(learner.loss_of(logs, batch)) / learner.units(batch)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize(
    ("word", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo"), ("hinge", "hinge"), ("dpo_norm", "sigmoid_norm")]
)
def test_a_loss_over_pairs_is_trls(word: str, theirs: str, beta: float):
    logs, before = placed(drawn(1)), placed(drawn(2)).sum(dim=1)
    made = trainer(beta=beta, loss_types=[theirs], loss_weights=[1.0], ld_alpha=None, f_divergence_type="reverse_kl")
    given = inputs(THEIRS, ref_chosen_logps=before[::2], ref_rejected_logps=before[1::2])
    wanted = DPOTrainer._compute_loss(made, saying(logs[THEIRS]), given, False)
    found = mean_over_pairs(bound(loss=word, beta=beta, nll=0.0), logs.sum(dim=1), before)
    assert found == pytest.approx(wanted.item(), abs=1e-5)


def test_the_chosen_answers_own_loss_is_trls_for_answers_of_one_length():
    logs = placed(drawn(1)[[0, 1, 0, 1]])
    logs[2], logs[3] = 2 * logs[0], logs[1]  # two pairs of the same lengths, of which only the sums count
    made = trainer(beta=0.1, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.3], ld_alpha=None)
    made.f_divergence_type = "reverse_kl"
    given = inputs([0, 0, 1, 1], ref_chosen_logps=torch.zeros(2), ref_rejected_logps=torch.zeros(2))
    wanted = DPOTrainer._compute_loss(made, saying(logs[THEIRS]), given, False)
    rows = [tokens(range(10 * i, 10 * i + len(ROWS[i % 2])), ROWS[i % 2]) for i in range(4)]
    batch = collate([Encoded(tuple(rows[i : i + 2]), "r", label=(1.0, 0.0)) for i in (0, 2)])
    found = bound(loss="dpo", nll=0.3).loss_of(logs.sum(dim=1), batch) / 2
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("good", [(1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0)])
def test_kto_is_trls(good: tuple[float, ...], beta: float):
    logs, before = placed(drawn(1)), placed(drawn(2)).sum(dim=1)
    others, others_before = placed(drawn(3)).sum(dim=1) + 2, placed(drawn(4)).sum(dim=1)
    kl = (others - others_before).mean().clamp(min=0)
    assert kl > 0
    made = trainer(beta=beta, loss_type="kto", calculate_KL=True, desirable_weight=1.0, undesirable_weight=1.0)
    made._compute_kl_logps = lambda model, batch: others
    given = inputs([0, 1, 2, 3], label=torch.tensor(good), ref_logps=before, ref_KL_logps=others_before)
    wanted = KTOTrainer._compute_loss(made, saying(logs), given, False)
    thumbs = [UnpairedPreference("r", ASKED, "a", True)]
    learner: Any = Preference(loss="kto", beta=beta).bind(thumbs, "decoder").make_learner()
    batch = batch_of(tuple((one,) for one in good), before + kl)
    assert float(learner.loss_of(logs.sum(dim=1), batch)) / learner.units(batch) == pytest.approx(
        wanted.item(), abs=1e-5
    )


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpos_odds_ratio_is_trls_and_the_chosen_answers_loss_stands_beside_it(beta: float):
    each = placed(drawn(1)).sum(dim=1) / mask().sum(dim=1)
    ratio, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=beta), each[::2], each[1::2])
    found = mean_over_pairs(bound(loss="orpo", beta=beta), placed(drawn(1)).sum(dim=1), None)
    assert found == pytest.approx((-ratio - each[::2]).mean().item(), abs=1e-5)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.5)])
def test_simpo_is_trls(beta: float, gamma: float):
    each = placed(drawn(1)).sum(dim=1) / mask().sum(dim=1)
    made = trainer(alpha=0.0, beta=beta, loss_type="simpo", simpo_gamma=gamma, label_smoothing=0.0)
    wanted, *_ = CPOTrainer.cpo_loss(made, each[::2], each[1::2])
    objective = bound(loss="simpo", beta=beta, gamma=gamma, nll=0.0)
    assert mean_over_pairs(objective, placed(drawn(1)).sum(dim=1), None) == pytest.approx(
        wanted.mean().item(), abs=1e-5
    )


@pytest.mark.parametrize("center", [0.0, 0.01])
@pytest.mark.parametrize("margins", [None, (0.5, 2.0)])
def test_the_reward_loss_is_trls(center: float, margins: tuple[float, float] | None):
    scores = torch.tensor([1.5, -0.5, 0.25, 2.0])
    made = trainer(args=SimpleNamespace(center_rewards_coefficient=center))
    given: dict[str, Any] = {"attention_mask": torch.ones(4, 7)}
    given |= {} if margins is None else {"margin": torch.tensor(margins)}
    wanted = RewardTrainer.compute_loss(made, lambda **_: SimpleNamespace(logits=scores[THEIRS, None]), given)
    found = Reward(center=center).loss_of(scores, torch.tensor(margins or (0.0, 0.0))) / 2
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_an_answer_that_is_all_but_certain_leaves_orpo_finite():
    logs = torch.tensor([-1e-9, -30.0, -30.0, -1e-9], requires_grad=True)
    loss = bound(loss="orpo").loss_of(logs, batch_of(LABELS, None))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logs.grad).all()
