"""Keys, values and inner activations, each scaled by a learned number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import RecipeError
from tunesmith.model.load import LoadOptions
from tunesmith.model.policy import Policy
from tunesmith.model.quiet import quiet
from tunesmith.techniques.folder import open_adapter, save_adapter

# Families whose layers PEFT has no names for: those that are scaled, and which of them are scaled where they read.
LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "distilbert": (("k_lin", "v_lin", "lin2"), ("lin2",)),
    "modernbert": (("Wqkv", "mlp.Wo"), ("mlp.Wo",)),
}


class Ia3(BaseModel):
    """(IA)^3: one learned factor for each key, value and inner activation, all starting at 1, in PEFT's format.

    Paper: Liu et al. 2022, arXiv 2205.05638. The fewest numbers of all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ia3"] = "ia3"
    targets: tuple[str, ...] = Field((), description="layers by name; none: those of the family")
    feedforward: tuple[str, ...] = Field((), description="those of `targets` that are scaled where they read")

    def load_options(self) -> LoadOptions:
        """Plain weights."""
        return LoadOptions()

    def learning_rate(self, hidden: int, family: str) -> float:
        """Whatever the width: the paper's."""
        return 3e-3

    def virtual_tokens(self) -> int:
        """None."""
        return 0

    def refusal(self, base: Any, *, family: str) -> str:
        """Its layers must be known by name."""
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

        kind = base.config.model_type
        if self.targets or kind in LAYERS or kind in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
            return ""
        return f"the layers of a {kind} are not known; name technique.targets, or take the nearest that works: lora"

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Factors in place in the base network; switched off they leave the base exactly."""
        from peft import IA3Config, get_peft_model

        named = (self.targets, self.feedforward) if self.targets else LAYERS.get(base.config.model_type)
        config = IA3Config()  # without names PEFT takes its own for the family
        if named is not None:
            config = IA3Config(target_modules=list(named[0]), feedforward_modules=list(named[1]))
        with quiet():
            try:
                wrapped = get_peft_model(base, config)
            except ValueError as error:  # no layer of these names, or one that cannot be scaled
                said = " ".join(str(error).split())[:160]
                raise RecipeError(f"technique.targets: {self.targets}: {said}; leave it out") from error
        return _policy(base, wrapped, family)

    def save(self, policy: Policy, folder: Path) -> None:
        """An adapter folder that `PeftModel.from_pretrained` opens."""
        save_adapter(policy, folder)

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """The saved factors over a fresh base."""
        return _policy(base, open_adapter(base, folder), family)


def _policy(base: Any, wrapped: Any, family: str) -> Policy:
    """The base network with factors inside, and the switch that turns them off."""
    policy = Policy.over(base, family=family, reference=wrapped.disable_adapter)
    policy.adapter, policy.weights = wrapped, False
    return policy
