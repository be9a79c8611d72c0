"""A technique: only the scales of the normalization layers are trained, a few thousand parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tunesmith.models.loading.checkpoint import load_tensors, save_tensors
from tunesmith.models.policy import Policy
from tunesmith.techniques import Technique

FILE = "norms.safetensors"


class Norms(Technique):
    """Train the normalization layers (Zhao et al. 2023, arXiv 2312.11420)."""

    kind: Literal["norms"] = "norms"

    def learning_rate(self, hidden: int, family: str) -> float:
        """Return the default learning rate."""
        return 1e-3

    def count_trained(self, base: Any) -> int:
        """Return the number of trained weights, for the forecast of a run."""
        return sum(value.numel() for name, value in base.named_parameters() if _is_norm(name))

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Freeze everything but the weights of normalization layers."""
        for name, value in base.named_parameters():
            value.requires_grad_(_is_norm(name))
        return Policy.over(base, family=family)

    def save(self, policy: Policy, folder: Path) -> None:
        """Write the trained weights."""
        save_tensors(
            {name: value for name, value in policy.network.named_parameters() if _is_norm(name)}, folder / FILE
        )

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """Load the trained weights over the base."""
        base.load_state_dict(load_tensors(folder / FILE), strict=False)
        return Policy.over(base, family=family)


def _is_norm(name: str) -> bool:
    return "norm" in name.lower()
