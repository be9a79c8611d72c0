"""Every number moves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.errors import CheckpointError
from tunesmith.model.load import LoadOptions
from tunesmith.model.policy import Policy
from tunesmith.model.quiet import quiet
from tunesmith.techniques.base import width_rule


class Full(BaseModel):
    """All weights of the base; the most memory, and a copy of the whole model as the result."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["full"] = "full"

    def load_options(self) -> LoadOptions:
        """Plain weights."""
        return LoadOptions()

    def learning_rate(self, hidden: int, family: str) -> float:
        """The width rule: for an encoder a third of a decoder's rate."""
        return width_rule(hidden, family)

    def virtual_tokens(self) -> int:
        """None."""
        return 0

    def refusal(self, base: Any, *, family: str) -> str:
        """Every network can be tuned so."""
        return ""

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """All numbers trainable; a reference costs a second copy of the weights."""
        before = copy.deepcopy(base).requires_grad_(False) if keep_reference else None
        base.requires_grad_(True)
        return _beside(base, before, family)

    def save(self, policy: Policy, folder: Path) -> None:
        """A folder that plain transformers opens."""
        with quiet():
            policy.network.save_pretrained(folder)

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """The saved weights in place of the base's."""
        if not (folder / "model.safetensors").exists() and not list(folder.glob("model-*.safetensors")):
            raise CheckpointError(
                f"{folder}: no model.safetensors in it; the run was not finished, run `tunesmith tune` again"
            )
        with quiet():
            network = type(base).from_pretrained(folder, use_safetensors=True, dtype=base.dtype).to(base.device).eval()
        return _beside(network, None, family)


def _beside(network: Any, before: Any, family: str) -> Policy:
    """The network as a policy whose reference is another one, where there is one."""
    policy = Policy.over(network, family=family, reference=_none_kept)
    if before is not None:
        start = policy.start = Policy.over(before, family=family)
        policy.reference = lambda: policy.answered_by(start)
    return policy


def _none_kept() -> AbstractContextManager[None]:
    raise AssertionError("full tuning keeps no reference unless it is asked to")
