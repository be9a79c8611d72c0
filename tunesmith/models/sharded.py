"""The one way to run the body of a network, which may later have its weights divided among processes."""

from __future__ import annotations

from typing import Any


def run_body(network: Any, **inputs: Any) -> Any:
    """Run a network without its output layer, and return what transformers' base model returns."""
    return network.base_model(**inputs)
