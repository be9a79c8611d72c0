"""A reward function: shorter completions score higher."""

from tunesmith.data.examples.prompts import Completion


def brevity(completion: Completion) -> float:
    """Return 1 for an empty completion, and less the more words it has."""
    return 1 / (1 + len(completion.text.split()))
