"""Records of sampled completions, made before the weights change.

Letters: M learned ids, the tokens of all completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# By name, a sum and the count it is a sum over: metrics that the training log lists next to the loss.
StepMetrics = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Advantages, log-probabilities and values of the M tokens of sampled completions, each [M]."""

    advantages: Tensor
    old: Tensor | None = None  # log p at sampling time, nats; None if the weights are still those, so it is log p now
    reference: Tensor | None = None  # log p under the reference model, nats
    values: Tensor | None = None  # predictions of the value head
    returns: Tensor | None = None  # targets of the value head
    metrics: StepMetrics = field(default_factory=dict)

    def of(self, chosen: Tensor, metrics: StepMetrics) -> Rollout:
        """Return the record of some of the tokens.

        Args:
            chosen: mask of the tokens to keep, [M] bool.
            figures: metrics of the result. They are sums, so only one part of a batch may carry them.
        """
        old, reference, values, returns = (
            None if part is None else part[chosen] for part in (self.old, self.reference, self.values, self.returns)
        )
        return Rollout(self.advantages[chosen], old, reference, values, returns, metrics)


def mean_metrics(figures: list[StepMetrics]) -> dict[str, float]:
    """Compute the mean of each metric over several batches.

    Args:
        figures: sums and counts of each batch; a batch may lack some of the names.

    Returns:
        Mean by name: the total of the sums over the total of the counts.
    """
    means = {}
    for name in dict.fromkeys(name for batch in figures for name in batch):
        total, count = (sum(part) for part in zip(*(batch[name] for batch in figures if name in batch), strict=True))
        means[name] = total / max(count, 1e-9)
    return means
