"""Deprecated import path of `tunesmith.data.splits.load`; kept for one release."""

from tunesmith.data.splits.load import *  # noqa: F403
