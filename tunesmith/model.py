"""Deprecated import paths of `tunesmith.models`; kept for one release."""

from __future__ import annotations

import sys
import warnings

from tunesmith.models import sentence_embeddings
from tunesmith.models.generation import sampling
from tunesmith.models.loading import bundled_models, load

warnings.warn("tunesmith.model is deprecated; use tunesmith.models", DeprecationWarning, stacklevel=2)

# `import tunesmith.model.load` imports this module first and then finds the entry made here.
for name, module in {
    "load": load,
    "sampling": sampling,
    "sentence": sentence_embeddings,
    "shipped": bundled_models,
}.items():
    sys.modules[f"{__name__}.{name}"] = globals()[name] = module
__path__: list[str] = []
