"""A run whose memory runs out goes on in smaller micro-batches, says so, and keeps to that when it is gone on with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines.conftest import recipe, reviews, tune
from tunesmith.errors import RecipeError, Refused
from tunesmith.models.batch import Batch
from tunesmith.models.policy import Policy
from tunesmith.models.recompute import recomputes
from tunesmith.objectives import Classify
from tunesmith.objectives.base import Loss
from tunesmith.training.batches import Batches
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.fit import FILLED
from tunesmith.training.journal import Journal

pytestmark = pytest.mark.usefixtures("small_world")
SCHEDULE = {"probe": False, "patience": 99, "save_steps": 1}


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """No more than three rows fit at once; the sizes of the batches that did."""
    learned, sizes = Classify.loss, []

    def loss(objective: Classify, batch: Batch, policy: Policy) -> Loss:
        if batch.rows > 3:  # in a validation too
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(batch.rows)
        return learned(objective, batch, policy)

    monkeypatch.setattr(Classify, "loss", loss)
    return sizes


def journal(run: Path) -> list[dict[str, Any]]:
    return Journal(run / "journal.jsonl").read()  # without checksums, which it checks: those of times differ by run


def test_it_says_so_in_journal_and_report_and_loses_no_step(cramped: list[int], tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama", schedule=SCHEDULE)
    said: list[dict[str, Any]] = []
    run = tune(made, tmp_path / "run", on_event=said.append)
    out = [record for record in journal(run.folder) if "out_of_memory" in record]
    assert [record["step"] for record in out] == [0, 0, 0]  # eight rows of a step: halved to four, then to two
    assert out.pop(0)["recompute"]  # before that
    assert out[0]["tokens_at_once"] // 2 >= out[1]["tokens_at_once"] - 1
    (note,) = [note for note in run.report.data.notes if "out of memory" in note][-1:]
    tokens = out[1]["tokens_at_once"]
    assert note == f"out of memory in step 1: at most {tokens} tokens per micro-batch from there on, same rows per step"
    assert note in [event.text for event in said if event.kind == "note"]
    assert run.report.training.steps == run.report.training.planned_steps == 10


def test_it_computes_activations_again_before_it_halves_a_micro_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    learned = Classify.loss
    runs, on = {}, list[bool]()

    def loss(objective: Classify, batch: Batch, policy: Policy) -> Loss:
        if torch.is_grad_enabled():
            on.append(recomputes(policy.network))
        if torch.is_grad_enabled() and not on[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return learned(objective, batch, policy)

    schedule = {**SCHEDULE, "probe": True}
    runs["roomy"] = tune(recipe(tmp_path, reviews(), "llama", schedule=schedule), tmp_path / "roomy")
    monkeypatch.setattr(Classify, "loss", loss)
    made = recipe(tmp_path, reviews(), "llama", schedule=schedule)
    left = [False, False, True]
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "cut", stop=lambda: left.pop(0))
    on.clear()
    runs["cut"] = tune(made, tmp_path / "cut")
    assert on
    assert all(on)  # a run that is resumed does not try without
    assert [{**r, "tokens_at_once": 0} for r in journal(runs["cut"].folder) if "out_of_memory" in r] == [
        {"step": 0, "out_of_memory": True, "recompute": True, "tokens_at_once": 0}
    ]
    losses = [[record["loss"] for record in journal(run.folder) if "loss" in record] for run in runs.values()]
    assert losses[0] == losses[1]  # to the bit
    assert any("computed again" in note for note in runs["cut"].report.data.notes)


def test_a_network_whose_layers_cannot_run_again_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("tunesmith.training.prepare.recompute_layers", lambda network, on: False)
    with pytest.raises(RecipeError, match=r"^schedule.recompute: transformers cannot run the layers of a llama again;"):
        tune(recipe(tmp_path, reviews(), "llama", schedule={**SCHEDULE, "recompute": True}), tmp_path / "run")


def test_a_run_gone_on_with_does_not_try_the_size_again_that_did_not_fit(cramped: list[int], tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama", schedule=SCHEDULE)
    whole = tune(made, tmp_path / "whole")
    left = [False, False, True]
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "cut", stop=lambda: left.pop(0))
    cut = tune(made, tmp_path / "cut")
    assert journal(cut.folder) == [
        record | {key: there[key] for key in ("seconds", "tokens_per_second", "peak_bytes") if key in record}
        for record, there in zip(journal(whole.folder), journal(cut.folder), strict=True)
    ]


def test_the_probe_takes_what_memory_holds_too(cramped: list[int], tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama", schedule={**SCHEDULE, "probe": True})
    assert tune(made, tmp_path / "run").report.training.steps == 10


def test_a_probe_that_memory_never_holds_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def loss(*given: Any) -> Loss:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Classify, "loss", loss)
    with pytest.raises(Refused, match="overfit check: memory does not hold one row at a time; lower data.max_tokens"):
        tune(recipe(tmp_path, reviews(), "llama", schedule={**SCHEDULE, "probe": True}), tmp_path / "run")


class Simulated:
    """The memory of a device that holds a forward and backward pass over so many tokens."""

    def __init__(self, patch: pytest.MonkeyPatch, tokens: int, *, raises: bool) -> None:
        self.tokens, self.peak = tokens, 0
        self.passes: list[int] = []
        learned = Classify.loss

        def loss(objective: Classify, batch: Batch, policy: Policy) -> Loss:
            if torch.is_grad_enabled():
                size = batch.rows * batch.row_index.shape[1]
                self.passes.append(size)
                self.peak = max(self.peak, size)
                if raises and size > tokens:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
            return learned(objective, batch, policy)

        patch.setattr(Classify, "loss", loss)
        patch.setattr("tunesmith.training.train.gpu_share", self.share)
        patch.setattr("tunesmith.training.fit.TOKENS_PER_PASS", 64)

    def share(self, device: torch.device, more: int = 0) -> float:
        share, self.peak = FILLED * self.peak / self.tokens, 0
        return share


def weights(run: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((run / "model").glob("*.safetensors")))


@pytest.mark.long
@pytest.mark.parametrize("raises", [True, False], ids=["out of memory", "nearly full"])
def test_a_pass_fills_the_memory_of_a_device_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raises: bool
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    settings = {"schedule": {**SCHEDULE, "batch_rows": 16}, "technique": {"kind": "lora", "rank": 4, "dropout": 0.2}}
    made = recipe(tmp_path, reviews(), "llama", **settings)
    with monkeypatch.context() as patch:
        memory = Simulated(patch, 200, raises=raises)
        found = tune(made, tmp_path / "found")
        trials = len(memory.passes)
        again = tune(made, tmp_path / "again")
    (tokens,) = (record["tokens_at_once"] for record in journal(found.folder) if "tokens_at_once" in record)
    assert 200 * 8 / 9 < tokens < 200 * 9 / 8  # rows are as long as their tokens, passes a token shorter
    assert max(memory.passes[:trials]) > 200  # larger sizes were tried
    assert max(memory.passes[trials:]) <= 200  # but not again by the second run
    assert not any("out of memory" in note for note in found.report.data.notes)
    settings["schedule"]["batch_tokens"] = tokens
    told = tune(recipe(tmp_path, reviews(), "llama", **settings), tmp_path / "told")
    assert weights(found.folder) == weights(again.folder) == weights(told.folder)
    losses = [[record["loss"] for record in journal(run.folder) if "loss" in record] for run in (found, again, told)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.long
@pytest.mark.parametrize("memory", [True, False], ids=["cramped", "roomy"])
def test_batches_packed_ahead_in_a_thread_are_those_packed_in_their_step(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path, memory: bool
):
    if memory:
        request.getfixturevalue("cramped")
    made = recipe(tmp_path, reviews(), "llama", schedule={**SCHEDULE, "epochs": 3})
    whole = tune(made, tmp_path / "whole")
    packed = set[str]()
    real = Batches.window
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.training.train._packer", lambda device: ThreadPoolExecutor(1, "packs"))
        patch.setattr(Batches, "window", lambda *given: (packed.add(threading.current_thread().name), real(*given))[1])
        left = [False, False, False, True]
        with pytest.raises(Interrupted):
            tune(made, tmp_path / "ahead", stop=lambda: left.pop(0))
        ahead = tune(made, tmp_path / "ahead")
    assert any(name.startswith("packs") for name in packed)
    assert weights(whole.folder) == weights(ahead.folder)
    steps = [
        [{**r, "seconds": 0, "tokens_per_second": 0, "peak_bytes": 0} for r in journal(run.folder)]
        for run in (whole, ahead)
    ]
    assert steps[0] == steps[1]
