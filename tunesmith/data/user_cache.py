"""Location of the user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for files that can be made again: $TUNESMITH_CACHE, or tunesmith/ in the user's cache."""
    own = os.environ.get("TUNESMITH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"
