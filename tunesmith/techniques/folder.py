"""An adapter's folder, as PEFT writes and reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import CheckpointError
from tunesmith.model.policy import Policy
from tunesmith.model.quiet import quiet


def save_adapter(policy: Policy, folder: Path) -> None:
    """A folder that `PeftModel.from_pretrained` opens."""
    # Answers are given without gradient, where an LSTM sums in another order: what it makes is kept as it answers.
    with quiet(), torch.no_grad():
        # The question whether embedding rows were added would go to the Hub; none ever are here.
        policy.adapter.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run writes one from measured facts


def open_adapter(base: Any, folder: Path) -> Any:
    """PEFT's model around a fresh base, with the saved numbers in it. Raises CheckpointError where there are none."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").exists():
        raise CheckpointError(
            f"{folder}: no adapter_model.safetensors in it; the run was not finished, run `tunesmith tune` again"
        )
    with quiet():
        return PeftModel.from_pretrained(base, folder)
