"""Frozen losses, validation losses and scores of tiny runs: a refactoring may not change one bit of them.

Where torch, transformers, the instructions torch uses and the processor are those that recorded the files, every
number must be equal. Elsewhere only journals are compared, with a relative tolerance of 1e-3: sums in another order
end in other bits, and a score may tip. `python -m tests.golden.record` writes the files anew.

The runs here take seconds and go before every landing; `test_more_loss_curves.py` has the others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.runs import QUICK, check_run


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("name", QUICK)
def test_a_run_gives_the_frozen_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_run(name, tmp_path)
