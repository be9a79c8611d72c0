"""Fine-tune a language model on your own data and measure whether it helped.

    import tunesmith

    run = tunesmith.tune("reviews.csv", model="minilm-l6")
    print(run.report.verdict)
    print(tunesmith.load(run.folder).classify(["great phone"])[0].label)

Heavy libraries are imported when a function is called; `Message` and `Sampling` when they are first used.
"""

from __future__ import annotations

import warnings
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

    from tunesmith.config import Recipe
    from tunesmith.data.tokenization.messages import Message
    from tunesmith.events import EventHandler
    from tunesmith.inference.local_model import LocalModel
    from tunesmith.models.generation.sampling import Sampling
    from tunesmith.pipelines.tune.tune import Run

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DataError",
    "Message",
    "ModelError",
    "RecipeError",
    "Refused",
    "RewardError",
    "Sampling",
    "TemplateError",
    "TunesmithError",
    "__version__",
    "load",
    "tune",
]

# Exported name -> the module that defines it, imported by `__getattr__` on first access.
_LAZY = {
    "Message": "tunesmith.data.tokenization.messages",
    "Sampling": "tunesmith.models.generation.sampling",
}


def __getattr__(name: str) -> Any:
    """Import `Message` or `Sampling` on first access (PEP 562), so that `import tunesmith` stays fast."""
    from importlib import import_module

    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def tune(
    data_or_recipe: str | Path | Recipe,
    *,
    model: str | None = None,
    technique: str | dict[str, Any] | None = None,
    out: str | Path | None = None,
    callback: EventHandler | None = None,
    **settings: Any,
) -> Run:
    """Fine-tune a model and score base and tuned model on the same held-out rows.

        run = tunesmith.tune("reviews.csv", model="minilm-l6", technique="full", schedule={"epochs": 3})
        print(run.report.verdict)

    Args:
        data_or_recipe: a file of rows, a recipe file, or a `Recipe`.
        model: alias, Hub id, folder, GGUF file or finished run; default `smollm2-135m`.
        technique: name such as `lora`, or a dictionary with its options.
        out: run folder; default `runs/NAME` with a name of data, objective, technique and model.
        callback: called with every progress event, see `tunesmith.events`.
        **settings: keys of the recipe (`objective="classify"`, `seed=1`), or their names in other trainers
            (`lora_r=8`); also `offline=True`. Without an objective, the columns of the data decide.

    Returns:
        The finished run with `.folder` and `.report`.

    Raises:
        TunesmithError: wrong input, refused data, or a model that cannot be loaded.
    """
    from pathlib import Path

    from tunesmith.config.resolve import as_changes, resolve_recipe
    from tunesmith.events import Note, as_dict, ignore
    from tunesmith.pipelines.tune.tune import tune_recipe
    from tunesmith.progress import reporting
    from tunesmith.training.callbacks import Callbacks

    offline = bool(settings.pop("offline", False))
    on_event = callback or ignore
    if (listen := settings.pop("listen", None)) is not None:
        warnings.warn("listen= is deprecated; use callback=, which receives typed events", DeprecationWarning, 2)
        on_event = lambda event: listen(as_dict(event))  # noqa: E731
    changes = as_changes({"model": model, "technique": technique, **settings})
    resolved = resolve_recipe(data_or_recipe, changes=changes, offline=offline)
    for text in resolved.notes:
        on_event(Note(text))
    folder = None if out is None else Path(out)
    with reporting(on_event):
        return tune_recipe(resolved.recipe, out=folder, callbacks=Callbacks(on_event), offline=offline)


def load(run: str | Path, *, device: str = "auto", offline: bool = False) -> LocalModel:
    """Load the tuned model of a run.

    Args:
        run: a run folder, or the `model/` folder in it.
        device: `auto`, `cpu`, `cuda` or a device such as `cuda:1`.
        offline: do not access the network.

    Returns:
        A model with `classify`, `generate`, `reply`, `embed`, `reward`, as its objective allows.

    Raises:
        TunesmithError: the folder is not a run, or its base model cannot be loaded.
    """
    from tunesmith.inference.saved_model import load as load_model

    return load_model(run, device=device, threads=None, offline=offline)
