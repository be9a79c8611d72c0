"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import CheckpointError
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.techniques.base import Technique, width_rule

if TYPE_CHECKING:
    from tunesmith.models.policy import Policy


class Full(Technique):
    """Full fine-tuning. Needs the most memory, and the result is a copy of the whole model."""

    kind: Literal["full"] = "full"

    def learning_rate(self, hidden: int, family: str) -> float:
        """Return the rate of the width rule: an encoder's is a third of a decoder's."""
        return width_rule(hidden, family)

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Make all weights trainable; a reference model costs a second copy of them."""
        from tunesmith.models.policy import Policy

        reference = copy.deepcopy(base).requires_grad_(False) if keep_reference else None
        base.requires_grad_(True)
        policy = Policy.over(base, family=family, reference=_no_reference)
        if reference is not None:
            start_policy = policy.start = Policy.over(reference, family=family)
            policy.reference = lambda: policy.answered_by(start_policy)
        return policy

    def save(self, policy: Policy, folder: Path) -> None:
        """Write a folder that transformers loads; of a multimodal checkpoint, with its other towers."""
        from tunesmith.models.loading.text_part import save_network

        with quiet():
            save_network(policy.network, folder, weights=policy.whole_weights)

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """Load the saved weights in place of the base's. Raises CheckpointError if there are none."""
        from tunesmith.models.loading.text_part import load_text_part, part_of
        from tunesmith.models.policy import Policy

        if not (folder / "model.safetensors").exists() and not list(folder.glob("model-*.safetensors")):
            raise CheckpointError(
                f"{folder}: no model.safetensors in it; the run was not finished, run `tunesmith tune` again"
            )
        with quiet():
            if part_of(base) is None:
                network = type(base).from_pretrained(folder, use_safetensors=True, dtype=base.dtype)
            else:
                network, _ = load_text_part(folder, where=str(folder), arguments={"dtype": base.dtype})
            network.to(base.device).eval()
        return Policy.over(network, family=family, reference=_no_reference)


def _no_reference() -> AbstractContextManager[None]:
    raise AssertionError("full fine-tuning has a reference model only if `adapt` was asked for one")
