"""What every objective can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from tunesmith.data.examples import Example
from tunesmith.data.rows import Row
from tunesmith.data.template import Encoded, Template
from tunesmith.model.batch import Batch
from tunesmith.model.policy import Policy
from tunesmith.model.rollout import Figures


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum over a batch and the number of units it is a sum of; the loop divides by the window's units.

    `figures` go into the journal beside it.
    """

    total: Tensor
    units: int
    figures: Figures = field(default_factory=dict)


class Learner(Protocol):
    """What the loop needs to know: batches in, a loss out."""

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """The batch with everything that needs no gradient."""
        ...

    def units(self, batch: Batch) -> int:
        """What a loss over this prepared batch is a sum of: learned tokens or rows."""
        ...

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """The summed loss of a prepared batch: a pure function of tensors."""
        ...


@runtime_checkable
class WholeStepLearner(Protocol):
    """A learner that needs to see all micro-batches of a step before one of them is learned from."""

    def together(self, batches: Sequence[Batch], policy: Policy) -> list[Batch]:
        """The prepared micro-batches with what only all of them tell; nothing here needs a gradient."""
        ...


class Objective(Protocol):
    """What is learned, as the recipe names it: rows in, sequences and a head out. Most are their own learner."""

    families: ClassVar[tuple[str, ...]]

    @property
    def kind(self) -> str:
        """The word for it in a recipe."""
        ...

    @property
    def instruction(self) -> str:
        """Text put before every question; empty where there is none."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, as long as nearly all of the rows'; 0 where none is written or none is known."""
        ...

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Which column plays which part, named or as the rows show; raises DataError where that is unclear."""
        ...

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Typed examples of this objective, read by `columns` or as the rows show.

        Raises DataError with the faults of the whole file.
        """
        ...

    def bind(self, examples: Sequence[Example], family: str) -> Self:
        """The objective with what only the data can tell (labels, head, answer length) filled in."""
        ...

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Token sequences of one example, at most `limit` long."""
        ...

    def head(self, policy: Policy) -> nn.Module | None:
        """A fresh output layer of the objective's own over this network, None where the network's is used."""
        ...
