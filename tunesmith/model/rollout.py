"""What is known of sampled answers before anything moves. Letters: M learned ids, the tokens of all answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# A sum and what it is a sum over, by name: what the journal tells beside the loss.
Figures = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Each [M]: how much better an answer's tokens are than expected, and what was said to them."""

    advantages: Tensor
    old: Tensor | None = None  # log p when they were drawn; None: nothing has moved since, so it is log p now
    reference: Tensor | None = None  # log p under the start
    values: Tensor | None = None  # what the value head expected
    returns: Tensor | None = None  # what it should have expected
    figures: Figures = field(default_factory=dict)

    def of(self, chosen: Tensor, figures: Figures) -> Rollout:
        """What is known of the chosen [M] of these tokens; the figures are sums, so only one part may have them."""
        old, reference, values, returns = (
            None if part is None else part[chosen] for part in (self.old, self.reference, self.values, self.returns)
        )
        return Rollout(self.advantages[chosen], old, reference, values, returns, figures)


def added(figures: list[Figures]) -> dict[str, float]:
    """The mean behind each name over several batches."""
    names = dict.fromkeys(name for one in figures for name in one)
    sums = {
        name: [sum(part) for part in zip(*(one[name] for one in figures if name in one), strict=True)] for name in names
    }
    return {name: total / max(count, 1e-9) for name, (total, count) in sums.items()}
