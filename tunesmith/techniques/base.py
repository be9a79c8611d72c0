"""The interface of a technique, and the learning-rate rule that several share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tunesmith.models.loading.locate import LoadOptions
    from tunesmith.models.policy import Policy


class Technique(Protocol):
    """A choice of trainable parameters. The recipe's `technique:` entry itself has these methods."""

    @property
    def kind(self) -> str:
        """The technique's name in a recipe."""
        ...

    def load_options(self) -> LoadOptions:
        """Return how the base has to be loaded."""
        ...

    def learning_rate(self, hidden: int, family: str) -> float:
        """Return the default learning rate for a model of this hidden width and family."""
        ...

    def virtual_tokens(self) -> int:
        """Return the number of positions of the model that the technique takes for virtual tokens."""
        ...

    def refusal(self, base: Any, *, family: str) -> str:
        """Return why this network cannot be tuned with it, and the nearest technique that works; empty if it can.

        Args:
            base: the base network.
            family: decoder or encoder.
        """
        ...

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Return the base network as a policy whose trainable parameters are those of the technique.

        Args:
            base: the base network; may be changed in place.
            family: decoder or encoder.
            keep_reference: the loss needs the base model's log-probabilities during training.
            start: token ids of a text about the task, for techniques that are initialized from one.
        """
        ...

    def save(self, policy: Policy, folder: Path) -> None:
        """Write the trained parameters in the format of transformers or PEFT.

        Args:
            policy: the tuned model.
            folder: an existing folder.
        """
        ...

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """Load a saved policy over a fresh base network.

        Args:
            base: the base network.
            folder: a folder that `save` wrote.
            family: decoder or encoder.

        Raises:
            CheckpointError: if the folder has no weights.
        """
        ...


def width_rule(hidden: int, family: str) -> float:
    """Return the learning rate of full fine-tuning for a model of this hidden width and family.

    Thinking Machines' fit over Llama models (tinker-cookbook, hyperparam_utils): 5e-5 at a width of 2,000, falling with
    the width to the power 0.781, so narrow models take larger steps. Those are decoders. Encoders take a third of it:
    MiniLM on the bundled reviews (seed 0, 1,862 rows) reaches 86.7 % at 6e-5 and 80.5 % at 1.8e-4.
    """
    decoder = float(5e-5 * (2000 / hidden) ** 0.781)
    return decoder / 3 if family == "encoder" else decoder
