"""Deprecated import path of `tunesmith.data.examples.prompts`, with its old names; kept for one release."""

import warnings

from tunesmith.data.examples.prompts import *  # noqa: F403
from tunesmith.data.examples.prompts import Completion, RLPrompt, rl_prompts

warnings.warn(
    "tunesmith.data.exercises is deprecated; use tunesmith.data.examples.prompts, where Attempt is Completion",
    DeprecationWarning,
    stacklevel=2,
)

Attempt = Completion
Exercise = RLPrompt
exercises = rl_prompts
