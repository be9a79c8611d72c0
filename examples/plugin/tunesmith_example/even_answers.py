"""An objective: instruct, but an answer counts the same whether it is long or short."""

from typing import Literal

import torch

from tunesmith.models.batch import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Instruct
from tunesmith.objectives.base import Loss


class EvenAnswers(Instruct):
    """Lower the mean loss per token of each answer, averaged over answers."""

    kind: Literal["even-answers"] = "even-answers"

    def units(self, batch: Batch) -> float:
        """Return the number of rows: the loss sums over them."""
        return batch.rows

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the negative log-likelihood per learned token of each row, summed over rows, in nats."""
        tokens = torch.bincount(batch.row_ids, minlength=batch.rows).clamp(min=1)  # [B]
        return Loss(-(policy.logprobs(batch) / tokens).sum(), self.units(batch))
