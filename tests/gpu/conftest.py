"""Tests that need a CUDA GPU, skipped without one. `make test-gpu` runs them alone. Not run on a GPU yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and skip those for which there are not enough GPUs."""
    count = torch.cuda.device_count()
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker("gpu")
        wanted = item.get_closest_marker("gpus")
        needed = int(wanted.args[0]) if wanted else 1
        if count < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA GPU(s), found {count}"))


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Products in float32, not in TF32, so that two ways of computing can be compared."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
