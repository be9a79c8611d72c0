"""Fine-tune a language model on your own data and measure whether it helped.

    import tunesmith

    run = tunesmith.tune("reviews.csv", model="minilm-l6")
    print(run.report.verdict)
    print(tunesmith.load(run.folder).classify("great phone").label)

Every command of `tunesmith` has a function with the same name and parameters; `help(tunesmith.tune)` explains one.
Heavy libraries are imported when a function is called; `Message` and `Sampling` when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith import quick_imports as quick_imports
from tunesmith.api import Listing, Served
from tunesmith.api_data import (
    audit,
    collect,
    export_labels,
    feedback,
    init,
    label,
    votes_export,
    votes_import,
    votes_summary,
)
from tunesmith.api_models import (
    ask,
    check_model,
    demo,
    diff_runs,
    doctor,
    evaluate,
    export,
    list_models,
    load,
    make_challenge,
    push,
    runs,
    serve,
    verify,
    verify_chat,
)
from tunesmith.api_training import compare, learning_curve, plan, plan_rlhf, preview, rebase, replay, rlhf, tune
from tunesmith.errors import (
    CheckpointError,
    DataError,
    ModelError,
    RecipeError,
    Refused,
    RewardError,
    StorageError,
    TemplateError,
    TunesmithError,
)

if TYPE_CHECKING:
    from tunesmith.data.tokenization.messages import Message
    from tunesmith.models.generation.sampling import Sampling
    from tunesmith.training.callbacks import Callback, Interrupted

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "CheckpointError",
    "DataError",
    "Interrupted",
    "Listing",
    "Message",
    "ModelError",
    "RecipeError",
    "Refused",
    "RewardError",
    "Sampling",
    "Served",
    "StorageError",
    "TemplateError",
    "TunesmithError",
    "__version__",
    "ask",
    "audit",
    "check_model",
    "collect",
    "compare",
    "demo",
    "diff_runs",
    "doctor",
    "evaluate",
    "export",
    "export_labels",
    "feedback",
    "init",
    "label",
    "learning_curve",
    "list_models",
    "load",
    "make_challenge",
    "plan",
    "plan_rlhf",
    "preview",
    "push",
    "rebase",
    "replay",
    "rlhf",
    "runs",
    "serve",
    "tune",
    "verify",
    "verify_chat",
    "votes_export",
    "votes_import",
    "votes_summary",
]

# Exported name -> the module that defines it, imported by `__getattr__` on first access.
_LAZY = {
    "Callback": "tunesmith.training.callbacks",
    "Interrupted": "tunesmith.training.callbacks",
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
