"""Kept answers: what is read again, what never is, and that the file may be in any state."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.bases import folder
from tunesmith.models import kept_answers as kept_module
from tunesmith.models.generation.generate import option_scores
from tunesmith.models.kept_answers import (
    UnknownAnswerError,
    answer_clock,
    kept_answers,
    kinds_of_answers,
    once,
    only_known,
    recall,
)
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.policy import Policy
from tunesmith.phases import Phases, phase, timing
from tunesmith.techniques import Full, Lora

PROMPTS = [[1, 2, 3, 4], [5, 6, 7]]
OPTIONS = [[8, 9], [10]]


def opened(base: Base) -> Policy:
    made = Policy.over(base.network, family=base.family)
    made.kept = kept_answers(base.network)
    return made


def asked(policy: Policy, prompts: list[list[int]] = PROMPTS) -> tuple[torch.Tensor, list[int]]:
    """The scores of the options, and the rows that were computed."""
    computed: list[int] = []

    def compute(rows: list[int]) -> torch.Tensor:
        computed.extend(rows)
        return option_scores(policy, [prompts[i] for i in rows], [OPTIONS] * len(rows))

    return policy.recall_tensor(["options", OPTIONS], prompts, compute), computed


def fresh() -> Base:
    return load_base(str(folder("llama")))


def test_an_answer_is_computed_once_and_is_the_same_to_the_bit(kept: Path):
    first, computed = asked(opened(fresh()))
    again, none = asked(opened(fresh()))
    assert (computed, none) == ([0, 1], [])
    assert torch.equal(first, again)
    third, one = asked(opened(fresh()), [[7, 7], PROMPTS[1]])
    assert one == [0]
    assert torch.equal(third[1], first[1])
    assert kinds_of_answers()["options"][0] == 3


def edited_weight(base: Base) -> Policy:
    with torch.no_grad():
        list(base.network.parameters())[3].view(-1)[-1] += 1e-3  # not among the values of the fingerprint
    return opened(base)


def edited_config(base: Base) -> Policy:
    base.network.config.rope_parameters = {**base.network.config.rope_parameters, "rope_theta": 123.0}
    return opened(base)


def in_half(base: Base) -> Policy:
    return replace(opened(base), autocast_dtype=torch.bfloat16)


def in_another_dtype(base: Base) -> Policy:
    return opened(load_base(str(folder("llama")), options=LoadOptions("bfloat16")))


def in_four_bits(base: Base) -> Policy:
    pytest.importorskip("bitsandbytes")
    return opened(load_base(str(folder("llama")), options=LoadOptions(quantize="nf4")))


def on_more_threads(base: Base) -> Policy:
    torch.set_num_threads(2)
    return opened(base)


def trained_in_place(base: Base) -> Policy:
    made = opened(base)
    optimizer = torch.optim.AdamW(base.network.parameters(), lr=1e-3)
    sum(value.sum() for value in base.network.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return made


def merged(base: Base) -> Policy:
    made = opened(base)
    list(base.network.parameters())[3].data.add_(1)  # as PEFT merges an adapter: the version stays
    return made


def adapted(base: Base) -> Policy:
    kept = opened(base).kept
    return replace(Lora(rank=4).adapt(base.network, family="decoder", keep_reference=False, start=[1]), kept=kept)


def adapted_in_full(base: Base) -> Policy:
    kept = opened(base).kept
    made = Full().adapt(base.network, family="decoder", keep_reference=False, start=[1])
    with torch.no_grad():
        list(made.network.parameters())[3].add_(1e-3)
    return replace(made, kept=kept)


def with_a_head(base: Base) -> Policy:
    return replace(opened(base), head=torch.nn.Linear(4, 1))


def cast(base: Base) -> Policy:
    made = opened(base)
    base.network.to(torch.bfloat16)
    return made


@pytest.mark.parametrize(
    "change",
    [
        edited_weight,
        edited_config,
        in_half,
        in_another_dtype,
        in_four_bits,
        on_more_threads,
        trained_in_place,
        merged,
        adapted,
        adapted_in_full,
        with_a_head,
        cast,
    ],
)
def test_another_model_or_precision_is_not_answered_for(change: Callable[[Base], Policy], kept: Path):
    asked(opened(fresh()))
    changed = change(fresh())
    assert asked(changed)[1] == [0, 1]
    with only_known(), pytest.raises(UnknownAnswerError, match="options"):
        asked(changed, [[9, 9]])


def test_other_code_or_libraries_compute_again(kept: Path, monkeypatch: pytest.MonkeyPatch):
    asked(opened(fresh()))
    monkeypatch.setattr(kept_module, "_code", lambda: ["another version"])
    assert asked(opened(fresh()))[1] == [0, 1]


def damaged(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[: len(data) // 2] = os.urandom(len(data) // 2)
    file.write_bytes(data)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5000])


def flipped(file: Path) -> None:
    with sqlite3.connect(file) as db:
        for rowid, value in db.execute("select rowid, value from answers").fetchall():
            db.execute("update answers set value = ? where rowid = ?", (value[:-1] + bytes([value[-1] ^ 1]), rowid))
    db.close()


def of_another_type(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("update answers set value = 'text' where rowid = 1")
        db.execute("update answers set value = null where rowid = 2")
    db.close()


def foreign(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("drop table answers")
        db.execute("create table answers (other text)")
    db.close()


def folder_in_the_way(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("harm", [damaged, truncated, flipped, of_another_type, foreign, folder_in_the_way])
def test_a_damaged_file_answers_nothing_and_stops_nothing(harm: Callable[[Path], None], kept: Path):
    first, _ = asked(opened(fresh()))
    harm(kept)
    again, computed = asked(opened(fresh()))
    assert computed == [0, 1]
    assert torch.equal(first, again)
    if harm not in (foreign, folder_in_the_way):  # the next run keeps its answers again
        asked(opened(fresh()))
        assert asked(opened(fresh()))[1] == []


def test_a_full_disk_keeps_nothing_and_stops_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(kept_module, "_write", full)
    assert asked(opened(fresh()))[1] == asked(opened(fresh()))[1] == [0, 1]


def test_a_locked_file_is_waited_for_once(kept: Path, monkeypatch: pytest.MonkeyPatch):
    asked(opened(fresh()))
    monkeypatch.setattr(kept_module, "PATIENCE", 0.01)
    db = sqlite3.connect(kept)
    db.execute("begin exclusive")
    assert asked(opened(fresh()))[1] == [0, 1]
    monkeypatch.setattr(sqlite3, "connect", None)
    assert asked(opened(fresh()))[1] == [0, 1]
    db.close()


def written(number: int) -> str:
    return str(number)


def loud(text: str) -> str:
    return text.upper()


def test_many_threads_keep_answers_at_once(kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_module, "PATIENCE", 60.0)

    def one(number: int) -> list[str]:
        return [once("squares", written, n) for n in range(number, number + 5)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(20)))
    assert found == [[str(n) for n in range(number, number + 5)] for number in range(20)]
    assert kinds_of_answers()["squares"][0] == 24


def test_the_older_half_goes_once_the_file_is_too_large(kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_module, "MOST_BYTES", 200_000)
    for number in range(40):
        once("texts", loud, f"{number}" * 10_000)
    assert kept.stat().st_size < 300_000
    with only_known():
        assert once("texts", loud, "39" * 10_000) == "39" * 10_000
        with pytest.raises(UnknownAnswerError):
            once("texts", loud, "0" * 10_000)


def test_a_clock_counts_what_a_reused_answer_took(kept: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("tunesmith.models.kept_answers.time.perf_counter", lambda: now[0])

    def slow(rows: list[int]) -> list[list[int]]:
        now[0] += 3.0 * len(rows)
        return [[row] for row in rows]

    seconds = []
    for rows in ([1, 2], [1, 2], [1, 2, 3]):
        with timing(Phases(clock=lambda: 0.0)) as phases, phase("scoring"):
            began = answer_clock()
            assert recall(["slow"], rows, slow) == [[i] for i in range(len(rows))]
            seconds.append((answer_clock() - began, phases.reused.get("scoring", 0.0)))
    assert seconds == [(6.0, 0.0), (6.0, 6.0), (9.0, 6.0)]


def test_arrays_are_kept_and_are_parts_of_a_key(kept: Path):
    def doubled(values: Any) -> Any:
        return 2 * values

    first = once("arrays", doubled, np.arange(3.0))
    with only_known():
        again = once("arrays", doubled, np.arange(3.0))
        with pytest.raises(UnknownAnswerError):
            once("arrays", doubled, np.arange(3.0, dtype=np.float32))
    assert again.dtype == first.dtype
    assert (again == first).all()
    with pytest.raises(TypeError, match="no part of a key"):
        once("arrays", doubled, object())
