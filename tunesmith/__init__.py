"""Decide, tune, prove, ship: fit a language model to your own data, and know whether you should.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.errors import (
    CheckpointError,
    DataError,
    ModelError,
    RecipeError,
    Refused,
    RewardError,
    TemplateError,
    TunesmithError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.inference.local import LocalModel
    from tunesmith.recipe import Recipe
    from tunesmith.workflows.tune import Run

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DataError",
    "ModelError",
    "RecipeError",
    "Refused",
    "RewardError",
    "TemplateError",
    "TunesmithError",
    "__version__",
    "load",
    "tune",
]


def tune(
    data_or_recipe: str | Path | Recipe,
    *,
    model: str | None = None,
    technique: str | dict[str, Any] | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Run:
    """A finished run with `.folder` and `.report`: base and tuned model scored on the same held-out rows.

    `settings` are keys of the recipe: `objective="classify"`, `schedule={"epochs": 3}`, `seed=1`, or the
    names of other tools (`lora_r=8`); beside them `offline=True` and `listen`, a function that hears of
    each step. Without an objective the columns of the data decide. Raises TunesmithError.
    """
    from pathlib import Path

    from tunesmith.workflows.request import as_changes, request
    from tunesmith.workflows.tune import tune_recipe

    offline, listen = bool(settings.pop("offline", False)), settings.pop("listen", _unheard)
    changes = as_changes({"model": model, "technique": technique, **settings})
    asked = request(data_or_recipe, changes=changes, offline=offline)
    for text in asked.notes:
        listen({"event": "note", "text": text})
    return tune_recipe(asked.recipe, out=None if out is None else Path(out), listen=listen, offline=offline)


def load(run: str | Path, *, device: str = "auto", offline: bool = False) -> LocalModel:
    """The tuned model of a run, ready to `classify`, `generate` or `reply`. Raises TunesmithError."""
    from tunesmith.inference.folder import load as load_model

    return load_model(run, device=device, threads=None, offline=offline)


def _unheard(event: dict[str, Any]) -> None:
    """Let an event pass: a library says nothing unless it is asked to."""
