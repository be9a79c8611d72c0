"""What every technique can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tunesmith.model.load import LoadOptions
from tunesmith.model.policy import Policy


class Technique(Protocol):
    """Which numbers move. The recipe entry itself has these methods."""

    @property
    def kind(self) -> str:
        """The word for it in a recipe."""
        ...

    def load_options(self) -> LoadOptions:
        """How the base must be read."""
        ...

    def learning_rate(self, hidden: int, family: str) -> float:
        """A rate that works for a model of this width and family."""
        ...

    def virtual_tokens(self) -> int:
        """How many of a model's positions it takes for itself."""
        ...

    def refusal(self, base: Any, *, family: str) -> str:
        """Why this network cannot be tuned so, and the nearest that works; empty where it can."""
        ...

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """The base network as a policy whose trainable numbers are this technique's.

        `start` are the ids of a text about the task, for techniques that begin with one.
        """
        ...

    def save(self, policy: Policy, folder: Path) -> None:
        """Write what was tuned, in the ecosystem's own format."""
        ...

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """The policy that was saved, over a fresh base network."""
        ...


def width_rule(hidden: int, family: str) -> float:
    """Full fine-tuning's learning rate for a model of this width and family.

    Thinking Machines' fit over Llama models (tinker-cookbook, hyperparam_utils): 5e-5 at 2,000 wide,
    falling with width to the power 0.781; narrow models want larger steps. They are decoders; a third
    of it suits encoders: MiniLM on the shipped reviews (seed 0, 1,862 rows) 86.7 % at 6e-5, 80.5 % at 1.8e-4.
    """
    decoder = float(5e-5 * (2000 / hidden) ** 0.781)
    return decoder / 3 if family == "encoder" else decoder
