"""Location of the user's cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ANSWERS = "answers.db"
# What a later run makes again by itself; `remote` has copies of data that is not on this machine. Models,
# certificates, times and copies of whole runs are not cleared.
CLEARED = (ANSWERS, "rows", "tokens", "passes", "shapes", "remote", "general")


def cache_dir() -> Path:
    """Return the folder for files that can be made again: $TUNESMITH_CACHE, or tunesmith/ in the user's cache."""
    own = os.environ.get("TUNESMITH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def models_dir() -> Path:
    """Return the folder of the bundled models: $TUNESMITH_MODELS, which may be read-only, or models/ in the cache."""
    own = os.environ.get("TUNESMITH_MODELS")
    return Path(own).expanduser() if own else cache_dir() / "models"


def clear_caches() -> None:
    """Delete what a later run computes again; nothing may be running."""
    for name in CLEARED:
        path = cache_dir() / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
