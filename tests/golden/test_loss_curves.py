"""Frozen losses, validation losses and scores of tiny runs: a refactoring may not change one bit of them.

Where torch, transformers, the instructions torch uses and the processor are those that recorded the files, every
number must be equal. Elsewhere only journals are compared, with a relative tolerance of 1e-3: sums in another order
end in other bits, and a score may tip. `python -m tests.golden.record` writes the files anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden.frozen import check, differences, load, recording
from tests.golden.runs import RUNS, frozen, signature, tune

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_the_frozen_numbers(
    name: str, tiny_llama: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "qlora" in name:
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    model = {"llama": tiny_llama, "bert": tiny_bert}[RUNS[name]["model"]]
    found: dict[str, Any] = {"signature": signature(), **frozen(tune(name, model, tmp_path))}
    if recording() or load("losses", name)["signature"] == found["signature"]:
        check("losses", name, found)
    else:
        expected = load("losses", name)["journal"]
        assert not differences(expected, found["journal"], relative=1e-3)
