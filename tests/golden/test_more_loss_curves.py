"""Frozen numbers of the losses, algorithms and techniques that `test_loss_curves.py` leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.runs import OTHERS, check_run


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_a_run_gives_the_frozen_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "qlora" in name:
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    check_run(name, tmp_path)
