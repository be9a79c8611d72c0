"""What is kept of a base for all runs over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bases import base, policy, template
from tunesmith.evaluation.retention import General
from tunesmith.techniques import Lora
from tunesmith.workflows import worth


def test_a_base_in_four_bits_is_not_told_what_was_measured_of_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    answers = iter([General(1.0, [True]), General(2.0, [False])])
    monkeypatch.setattr(worth, "measure", lambda policy, template: next(answers))
    found, made = replace(base("llama"), fingerprint="same"), policy("llama")
    for technique, nll in ((Lora(), 1.0), (Lora(quantize="nf4"), 2.0), (Lora(), 1.0), (Lora(quantize="nf4"), 2.0)):
        prepared = SimpleNamespace(base=found, template=template("llama"), recipe=SimpleNamespace(technique=technique))
        general = worth.general_before(prepared, made)  # type: ignore[arg-type]
        assert general is not None
        assert general.nll == nll
