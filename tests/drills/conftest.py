"""One folder for all drills, and the process that forks for each command."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.drills.commands import Lab


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The folder that the commands of the drills run in."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    made = Lab(tmp_path_factory.mktemp("drills"))
    yield made
    made.forks.close()
