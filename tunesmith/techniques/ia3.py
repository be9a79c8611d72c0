"""Keys, values and inner activations, each scaled by a learned number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.model.policy import Policy
from tunesmith.techniques.adapter import Adapter, names_in, put_inside, unfit

# Families whose layers PEFT has no names for: those that are scaled, and which of them are scaled where they read.
LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "distilbert": (("k_lin", "v_lin", "lin2"), ("lin2",)),
    "modernbert": (("Wqkv", "mlp.Wo"), ("mlp.Wo",)),
}
# Kinds of layers that PEFT puts factors beside: there are none for embeddings.
SCALABLE = (nn.Linear, Conv1D, nn.Conv2d, nn.Conv3d)


class Ia3(Adapter):
    """(IA)^3: one learned factor for each key, value and inner activation, all starting at 1, in PEFT's format.

    Paper: Liu et al. 2022, arXiv 2205.05638. The fewest numbers of all.
    """

    kind: Literal["ia3"] = "ia3"
    targets: tuple[str, ...] = Field((), description="layers by name; none: those of the family")
    feedforward: tuple[str, ...] = Field((), description="those of `targets` that are scaled where they read")

    @field_validator("targets", "feedforward", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A text of names is a list of them."""
        return names_in(value)

    @model_validator(mode="after")
    def _some_of_targets(self) -> Self:
        """What is scaled where it reads is one of the layers that are scaled. Raises ValueError."""
        if odd := [name for name in self.feedforward if name not in self.targets]:
            raise ValueError(f"feedforward: {odd[0]} is not among targets; name it in both")
        return self

    def learning_rate(self, hidden: int, family: str) -> float:
        """Whatever the width: the paper's."""
        return 3e-3

    def refusal(self, base: Any, *, family: str) -> str:
        """Its layers must be known by name."""
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

        kind = base.config.model_type
        if self.targets:
            return unfit(base, self.targets, SCALABLE)
        if kind in LAYERS or kind in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
            return ""
        return f"the layers of a {kind} are not known; name technique.targets, or take the nearest that works: lora"

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Factors in place in the base network; switched off they leave the base exactly."""
        from peft import IA3Config

        named = (self.targets, self.feedforward) if self.targets else LAYERS.get(base.config.model_type)
        config = IA3Config()  # without names PEFT takes its own for the family
        if named is not None:
            config = IA3Config(target_modules=list(named[0]), feedforward_modules=list(named[1]))
        return self._policy(base, put_inside(base, config, named=self.targets, cure="leave it out"), family)

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """As every adapter's; factors near 1 do not decay."""
        policy = super()._policy(base, wrapped, family)
        policy.weights = False
        return policy


def layers_of(technique: Ia3, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the layers that are scaled in a family, and those of them that are scaled where they read."""
    from peft.utils import constants

    if technique.targets:
        return technique.targets, technique.feedforward
    if kind in LAYERS:
        return LAYERS[kind]
    return (
        tuple(constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind]),
        tuple(constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]),
    )
