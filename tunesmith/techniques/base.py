"""The interface of a technique, and the learning-rate rule that several share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from tunesmith.models.loading.locate import LoadOptions

if TYPE_CHECKING:
    from tunesmith.models.policy import Policy


class Technique(BaseModel, ABC):
    """A choice of trainable parameters: the section `technique` of a recipe.

    In all methods, `base` is the base network and `family` is `decoder` or `encoder`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str

    def load_options(self) -> LoadOptions:
        """Return how the base has to be loaded; by default with plain weights."""
        return LoadOptions()

    @abstractmethod
    def learning_rate(self, hidden: int, family: str) -> float:
        """Return the default learning rate for a model of this hidden width and family."""

    def virtual_tokens(self) -> int:
        """Return the number of positions of the model that the technique takes for virtual tokens."""
        return 0

    def count_trained(self, base: Any) -> int:
        """Return the number of parameters that `adapt` would train, for forecasts of extensions; 0 if not known."""
        return 0

    def refusal(self, base: Any, *, family: str) -> str:
        """Return why this network cannot be tuned with it, and the nearest technique that works; empty if it can."""
        return ""

    @abstractmethod
    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Return the base network as a policy whose trainable parameters are those of the technique.

        Args:
            base: may be changed in place.
            family: of the base.
            keep_reference: the loss needs the base model's log-probabilities during training.
            start: token ids of a text about the task, for techniques that are initialized from one.
        """

    @abstractmethod
    def save(self, policy: Policy, folder: Path) -> None:
        """Write the trained parameters to an existing folder, in the format of transformers or PEFT."""

    @abstractmethod
    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """Load a policy that `save` wrote over a fresh base network.

        Raises:
            CheckpointError: if the folder has no weights.
        """


def width_rule(hidden: int, family: str) -> float:
    """Return the learning rate of full fine-tuning for a model of this hidden width and family.

    Thinking Machines' fit over Llama models (tinker-cookbook, hyperparam_utils): 5e-5 at a width of 2,000, falling with
    the width to the power 0.781, so narrow models take larger steps. Those are decoders. Encoders take a third of it:
    MiniLM on the bundled reviews (seed 0, 1,862 rows) reaches 86.7 % at 6e-5 and 80.5 % at 1.8e-4.
    """
    decoder = float(5e-5 * (2000 / hidden) ** 0.781)
    return decoder / 3 if family == "encoder" else decoder
