"""Write the frozen files anew: `python -m tests.golden.record [PYTEST OPTIONS]`."""

from __future__ import annotations

import os
import sys

import pytest

from tests.golden.frozen import HERE, RECORD


def main() -> int:
    """Run the golden tests in recording mode and return pytest's exit code."""
    os.environ[RECORD] = "1"
    words = sys.argv[1:] or [str(HERE)]
    return int(pytest.main(["-q", "-p", "no:cacheprovider", *words]))


if __name__ == "__main__":
    raise SystemExit(main())
