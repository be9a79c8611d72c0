"""What an objective declares and what the training loop calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from tunesmith.data.examples.types import Example
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.models.batch import Batch, StepMetrics
from tunesmith.models.policy import Policy


@dataclass(frozen=True, slots=True)
class Loss:
    """A summed loss over a batch, the number of units in the sum, and metrics for the log.

    The training loop divides by the units of the whole step.
    """

    total: Tensor  # scalar
    units: int
    metrics: StepMetrics = field(default_factory=dict)


class Learner(Protocol):
    """What the training loop calls: batches in, a summed loss out."""

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """Return the batch with everything that needs no gradient."""
        ...

    def units(self, batch: Batch) -> int:
        """Return what the loss of a prepared batch sums over: learned tokens, rows or pairs."""
        ...

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the summed loss of a prepared batch; deterministic given its tensors."""
        ...


@runtime_checkable
class WholeStepLearner(Protocol):
    """A learner that needs all micro-batches of a step before the first loss, as KTO does for its KL estimate."""

    def together(self, batches: Sequence[Batch], policy: Policy) -> list[Batch]:
        """Return the prepared micro-batches with what depends on all of them; needs no gradient."""
        ...


Produces = Literal["labels", "text", "score", "likelihood"]
# The name of the only task of a run that has no others.
SINGLE_TASK = ""


class Objective(BaseModel, ABC):
    """What is learned: the section `objective` of a recipe, and the capabilities that other packages ask for.

    Rows become typed examples (`columns`, `examples`), examples become token sequences (`encode`), and the policy may
    get an output layer (`head`). Code outside `objectives/` and `config/` asks for a capability, not for a class, so
    that a new objective is one file and one entry in `OBJECTIVES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    families: ClassVar[tuple[str, ...]] = ("decoder", "encoder")
    # What the tuned model returns for an input: labels, an answer, a score of an answer, or a likelihood of a text.
    produces: ClassVar[Produces]
    # Whether training samples completions from the policy instead of learning from those of the rows.
    samples_completions: ClassVar[bool] = False

    @property
    def label_mode(self) -> Literal["single", "multi"] | None:
        """Return how many labels a row has; None if the model produces no labels."""
        return None

    @property
    def has_label_head(self) -> bool:
        """Return whether labels are produced by a linear head rather than as words."""
        return False

    @property
    def reference(self) -> Literal["none", "precomputed", "per_step"]:
        """Return when the loss needs the reference model: never, once before training, or at every step."""
        return "none"

    @property
    def starts_at_reference(self) -> bool:
        """Return whether training must start from the reference model because the loss measures the distance to it."""
        return self.reference != "none"

    @property
    def completion_budget(self) -> int:
        """Return the tokens that are sampled per training row, over all of its completions."""
        return 0

    @property
    def updates_per_step(self) -> int:
        """Return the optimizer updates on the same prepared batches."""
        return 1

    @property
    def rewards(self) -> Mapping[str, float]:
        """Return the reward models and functions with their weights; empty if nothing is rewarded."""
        return {}

    @property
    def task_objectives(self) -> Mapping[str, Objective]:
        """Return the objective of every task by name; a single task has the name `SINGLE_TASK`."""
        return {SINGLE_TASK: self}

    def task_policy(self, policy: Policy, task: str) -> Policy:
        """Return the policy with the head of one task."""
        return policy

    def learning_rate_scale(self, family: str, *, plain_weights: bool, adapter: bool, steps: int) -> float:
        """Return the automatic learning rate as a fraction of the technique's own.

        Args:
            family: `decoder` or `encoder`.
            plain_weights: the technique updates weights or low-rank updates of them, not soft prompts or vectors.
            adapter: the technique is LoRA over unquantized weights.
            steps: optimizer steps of the run.
        """
        return 1.0

    def encode_all(self, example: Example, template: Template, *, limit: int) -> list[Encoded]:
        """Encode one example as training rows: one, or a row for each window of a document."""
        return [self.encode(example, template, limit=limit)]

    def inference_objective(self) -> Objective:
        """Return the objective that the tuned model is saved and used with."""
        return self

    def without_rows(self) -> Self:
        """Return the objective without the paths of its rows, for a model that is given to others."""
        return self

    @abstractmethod
    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return which column has which role, as named or as detected. Raises DataError if that is ambiguous."""

    @abstractmethod
    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into typed examples. Raises DataError with the errors of the whole file."""

    @abstractmethod
    def bind(self, examples: Sequence[Example], family: str) -> Self:
        """Return the objective with everything that depends on the data: labels, head, answer length."""

    @abstractmethod
    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode one example as token sequences of at most `limit` tokens."""

    @abstractmethod
    def head(self, policy: Policy) -> nn.Module | None:
        """Return a new output layer for this network; None if the network's own is used."""
