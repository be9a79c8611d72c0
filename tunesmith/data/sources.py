"""Deprecated import path of `tunesmith.data.splits.load`; kept for one release."""

import warnings

from tunesmith.data.splits.load import *  # noqa: F403

warnings.warn("tunesmith.data.sources is deprecated; use tunesmith.data.splits.load", DeprecationWarning, stacklevel=2)
