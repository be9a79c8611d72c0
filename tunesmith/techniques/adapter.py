"""What every technique of PEFT's shares: a configuration, a wrapped base, and a folder as PEFT writes and reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.model.load import LoadOptions
from tunesmith.model.policy import Policy
from tunesmith.model.quiet import quiet


class Adapter(BaseModel):
    """A technique that leaves the base's weights alone; what it learns is a small folder in PEFT's format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def load_options(self) -> LoadOptions:
        """Plain weights."""
        return LoadOptions()

    def virtual_tokens(self) -> int:
        """None."""
        return 0

    def refusal(self, base: Any, *, family: str) -> str:
        """Every network can be tuned so."""
        return ""

    def save(self, policy: Policy, folder: Path) -> None:
        """An adapter folder that `PeftModel.from_pretrained` opens."""
        # Answers are given without gradient, where an LSTM sums in another order: what it makes is kept as it answers.
        with quiet(), torch.no_grad():
            # The question whether embedding rows were added would go to the Hub; none ever are here.
            policy.adapter.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run writes one from measured facts

    def restore(self, base: Any, folder: Path, *, family: str) -> Policy:
        """The saved numbers over a fresh base. Raises CheckpointError where there are none."""
        from peft import PeftModel

        if not (folder / "adapter_model.safetensors").exists():
            raise CheckpointError(
                f"{folder}: no adapter_model.safetensors in it; the run was not finished, run `tunesmith tune` again"
            )
        with quiet():
            return self._policy(base, PeftModel.from_pretrained(base, folder), family)

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """The base with what PEFT put into it, and the switch that turns it off."""
        policy = Policy.over(base, family=family, reference=wrapped.disable_adapter)
        policy.adapter = wrapped
        return policy


def put_inside(base: Any, config: Any, *, named: object, cure: str) -> Any:
    """PEFT's model with changes inside the base's layers. Raises RecipeError where the layers named are not there."""
    from peft import get_peft_model

    with quiet():
        try:
            return get_peft_model(base, config)
        except ValueError as error:  # no layer of these names, or one that takes no change
            said = " ".join(str(error).split())[:160]
            raise RecipeError(f"technique.targets: {named!r}: {said}; {cure}") from error


def no_such_layer(base: Any, named: Sequence[str]) -> str:
    """Which of these names no layer of the network bears, whole or as its last part, and what there is instead."""
    layers = [name for name, module in base.named_modules() if next(module.parameters(recurse=False), None) is not None]
    for wanted in named:
        if not any(f".{name}".endswith(f".{wanted}") for name in layers):
            there = sorted({name.rpartition(".")[2] for name in layers})
            return f"technique.targets: no layer is called {wanted!r}; the last parts of names here: {', '.join(there)}"
    return ""
