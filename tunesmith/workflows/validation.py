"""What a policy is worth while it trains: its loss on the validation rows, lower being better."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.errors import Refused
from tunesmith.evaluation import calibration
from tunesmith.model.batch import Batch
from tunesmith.model.device import NOT_ONE_ROW, out_of_memory
from tunesmith.model.policy import Policy
from tunesmith.objectives import Classify
from tunesmith.objectives.base import Learner
from tunesmith.objectives.practice import OnlineRLLearner
from tunesmith.training.fit import prepare_batches
from tunesmith.workflows.batches import Batches
from tunesmith.workflows.learner import held_out_reward, learner_of
from tunesmith.workflows.prepare import TrainingContext
from tunesmith.workflows.tasks import losses, mean_of


@torch.no_grad()
def validation_loss(prepared: TrainingContext, policy: Policy, learner: Learner | None = None) -> float:
    """Loss per unit over the validation rows; of several tasks the mean by their weights.

    With a head for one label of several it is taken at the temperature that suits it best: a small encoder grows
    too sure long before it stops getting better, and the run fits that temperature at its end anyway. `learner` is
    one that was made already. Raises Refused where memory does not hold one row.
    """
    if prepared.parts:
        return mean_of(prepared, losses(prepared, policy, validation_loss))
    learner = learner or learner_of(prepared)
    if isinstance(learner, OnlineRLLearner):
        return -held_out_reward(prepared, policy, learner)
    batches = Batches(prepared, prepared.validation)
    while True:
        try:
            return _loss(learner, policy, batches.all())
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        if not batches.halve_all():
            raise Refused(f"validation: {NOT_ONE_ROW}")


def _loss(learner: Learner, policy: Policy, batches: Sequence[Batch]) -> float:
    """Loss per unit over the batches."""
    if policy.head is not None and isinstance(learner, Classify) and not learner.multi:
        return _calibrated_loss(learner, policy, batches)
    total, units = 0.0, 0
    for batch in prepare_batches(policy, learner, batches):
        loss = learner.loss(batch, policy)
        total, units = total + float(loss.total), units + loss.units
    return total / max(1, units)


def _calibrated_loss(objective: Classify, policy: Policy, batches: Sequence[Batch]) -> float:
    """Cross-entropy per row of a head's labels at its best temperature."""
    logits = torch.cat([objective.logits(batch.to(policy.device), policy).cpu() for batch in batches]).numpy()
    gold = torch.cat([batch.labels.argmax(dim=1) for batch in batches if batch.labels is not None]).numpy()
    return calibration.nll(calibration.softmax(logits, temperature=calibration.fit_temperature(logits, gold)), gold)
