"""(IA)^3: keys, values and inner activations, each scaled by a trained factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunesmith.techniques.peft_base import Adapter, SplitNames, put_inside, unfit

if TYPE_CHECKING:
    from tunesmith.models.policy import Policy

# Families that PEFT has no layer names for: the scaled layers, and those of them whose input is scaled.
LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "distilbert": (("k_lin", "v_lin", "lin2"), ("lin2",)),
    "modernbert": (("Wqkv", "mlp.Wo"), ("mlp.Wo",)),
}


class Ia3(Adapter):
    """(IA)^3: one trained factor per key, value and inner activation, all starting at 1, in PEFT's format.

    The technique with the fewest trainable parameters. Paper: Liu et al. 2022, arXiv 2205.05638.
    """

    kind: Literal["ia3"] = "ia3"
    targets: Annotated[tuple[str, ...], SplitNames] = Field(
        (), description="layers by name; empty: those of the model family"
    )
    feedforward: Annotated[tuple[str, ...], SplitNames] = Field(
        (), description="those of `targets` whose input is scaled, not the output"
    )

    @model_validator(mode="after")
    def _some_of_targets(self) -> Self:
        """Raise ValueError unless the layers whose input is scaled are among the scaled ones."""
        if missing := [name for name in self.feedforward if name not in self.targets]:
            raise ValueError(f"feedforward: {missing[0]} is not among targets; name it in both")
        return self

    def learning_rate(self, hidden: int, family: str) -> float:
        """Return the paper's rate, for any width."""
        return 3e-3

    def refusal(self, base: Any, *, family: str) -> str:
        """Return why the layers to scale are unknown or cannot be scaled; empty if they can."""
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

        kind = base.config.model_type
        if self.targets:
            return unfit(base, self.targets, embeddings=False)
        if kind in LAYERS or kind in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
            return ""
        return f"the layers of a {kind} are not known; name technique.targets; nearest that works: lora"

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Put factors into the base network; with the adapter disabled, the base computes exactly as before."""
        from peft import IA3Config

        scaled, feedforward = layers_of(self, base.config.model_type)
        config = IA3Config(target_modules=list(scaled), feedforward_modules=list(feedforward))
        return self._policy(base, put_inside(base, config, targets=self.targets, fix="leave it out"), family)

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """Return the policy of any adapter, without weight decay: it would pull factors from 1 to 0."""
        policy = super()._policy(base, wrapped, family)
        policy.weights = False
        return policy


def layers_of(technique: Ia3, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the scaled layers of a model_type, and of those whose input is scaled."""
    from peft.utils import constants

    if technique.targets:
        return technique.targets, technique.feedforward
    if kind in LAYERS:
        return LAYERS[kind]
    return (
        tuple(constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind]),
        tuple(constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]),
    )
