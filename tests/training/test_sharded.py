"""A run in two processes that divide the weights of its network is the run in one process."""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file

from tests.golden.runs import TASKS
from tests.training import processes, sharded
from tests.training.sharded import CASES, LARGE, SMALL, TIED
from tests.training.test_processes import TIMEOUT, Both, check_steps
from tunesmith.config import make_recipe, sharding_refusal
from tunesmith.config.checks import SHARDING_TORCH

MODULE = "tests.training.sharded"
pytestmark = [
    pytest.mark.long,  # their processes are started once for all tests, by whichever is first
    pytest.mark.timeout(2 * TIMEOUT),  # other tests may keep both cores busy
    pytest.mark.skipif(Version(torch.__version__) < Version(SHARDING_TORCH), reason="refused with this torch"),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Run all cases in two processes, once."""
    folder = tmp_path_factory.mktemp("sharded")
    processes.write_rows(folder)
    sharded.write_models(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        processes.resumable(folder / "1 to 2", stop=2, **SMALL)
        codes, said = processes.run(folder, "memory", module=MODULE)
        assert "ProcessError: step 3: out of memory; run the same command again" in said[1], said
        assert "ProcessError: another process of this run has ended" in said[0], said
        codes, said = processes.run(folder, "cases", module=MODULE)
        assert (folder / "facts.json").exists(), said
        yield Both(folder, json.loads((folder / "facts.json").read_text(encoding="utf-8")), codes, said)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_shards_take_the_steps_of_one(name: str, both: Both, tmp_path: Path):
    with sharded.as_in(name):
        own = processes.three_steps(name, tmp_path, case=CASES[name])
    check_steps(name, own, both.taken(name))


def test_answers_of_a_sharded_network_are_those_of_a_whole_one(both: Both):
    own, theirs = processes.answers(both.folder), both.facts["answers"]
    assert (theirs["greedy"], theirs["sampled"]) == (own["greedy"], own["sampled"])
    for name in ("options", "scores", "states"):
        assert torch.tensor(theirs[name]) == pytest.approx(torch.tensor(own[name]), rel=1e-5, abs=1e-5)


def test_a_sharded_run_is_resumed_by_any_number_of_processes_to_the_same_bytes(both: Both):
    assert list((both.folder / "2 to 1" / "checkpoints" / "last").glob("shard-0000[12]-*.safetensors"))
    processes.resumable(both.folder / "2 to 1", **SMALL)
    assert not list((both.folder / "2 to 1" / "checkpoints" / "last").glob("shard-*"))
    processes.resumable(both.folder / "one", **SMALL)
    for name in ("whole", "2 to 2", "2 to 1", "1 to 2"):
        assert end(both.folder / name) == end(both.folder / "one"), name
        # Two processes add the losses of their rows in another order.
        assert journal(both.folder / name) == pytest.approx(journal(both.folder / "one"), rel=1e-14)


def test_with_a_tied_head_and_clipped_gradients_a_resumed_run_has_the_bytes_of_as_many_processes(both: Both):
    assert end(both.folder / "tied 2 to 2") == end(both.folder / "tied whole")
    processes.resumable(both.folder / "tied one", **TIED)
    found, expected = (load_file(both.folder / name / "end.safetensors") for name in ("tied whole", "tied one"))
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < 1e-5


def end(run: Path) -> bytes:
    """The trained parameters of a run."""
    return (run / "end.safetensors").read_bytes()


def journal(run: Path) -> list[float]:
    """The training losses in a journal."""
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_a_killed_process_loses_only_the_steps_since_the_last_whole_checkpoint(both: Both):
    assert both.codes[1] == -9, both.said
    assert both.codes[0] != 0
    assert "ProcessError: another process of this run has ended; run the same command again to resume" in both.said[0]
    last = both.folder / "killed" / "checkpoints" / "last"
    assert json.loads((last / "state.json").read_text(encoding="utf-8"))["step"] == 2
    processes.resumable(both.folder / "killed", **SMALL)
    assert end(both.folder / "killed") == end(both.folder / "whole")


def test_after_an_out_of_memory_error_all_processes_end_and_resume_with_recomputed_activations(both: Both):
    run = both.folder / "memory"
    assert '"recompute": true' in (run / "journal.jsonl").read_text(encoding="utf-8")
    processes.resumable(both.folder / "enough memory", **LARGE)
    assert journal(run) == pytest.approx(journal(both.folder / "enough memory"), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("way", ["full", "lora"])
def test_the_folder_of_a_model_that_was_sharded_opens_without_tunesmith(way: str, both: Both):
    folder = both.folder / "tuned" / way / "model"
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(folder if way == "full" else both.folder / "untied")
    network = base if way == "full" else peft.PeftModel.from_pretrained(base, folder)
    context = processes.prepared("instruct", way, "untied", 8)
    policy = context.recipe.technique.restore(context.base.network, folder, family="decoder")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.allclose(network(input_ids=ids).logits, policy.network(input_ids=ids).logits, atol=1e-5)
    assert (
        "distributed_config" not in (folder / ("config.json" if way == "full" else "adapter_config.json")).read_text()
    )


def test_no_file_of_a_sharded_run_is_a_pickle(both: Both):
    runs = [both.folder / name for name in ("2 to 2", "killed", "tuned")]
    files = [path for run in runs for path in run.rglob("*") if path.is_file()]
    assert any(path.name.startswith("shard-00002") for path in files)
    for path in files:
        assert path.suffix not in (".metadata", ".distcp", ".pt", ".bin"), path
        assert path.name != ".metadata"
        assert not zipfile.is_zipfile(path), path
        if path.suffix == ".safetensors":  # whose first byte, the size of the header, may be an opcode
            assert load_file(path) or path.name.startswith("numbers"), path
            continue
        with pytest.raises((ValueError, IndexError, UnicodeDecodeError, OverflowError)):
            list(pickletools.genops(path.read_bytes()))


REFUSED = {
    "prompt": ({"technique": "prompt"}, "technique prompt is not supported over sharded weights; use technique: lora"),
    "dora": ({"technique": "dora"}, "technique dora is not supported over sharded weights; use technique: lora"),
    "qlora": (
        {"technique": "qlora"},
        "4-bit weights are copied to every process, never sharded; set machine.shard: none",
    ),
    "8 bits": (
        {"technique": "full", "schedule": {"optimizer": "adamw-8bit"}},
        "schedule.optimizer: adamw-8bit has no shards; use adamw",
    ),
    "a reference": (
        {"technique": "full", "objective": {"kind": "preference", "loss": "kto"}},
        "a reference at every step (kto, rl) is sharded for a single task and technique: lora",
    ),
    "tasks with references": (
        {"objective": {"kind": "multitask", "tasks": TASKS}, "data": {}},
        "a reference at every step (kto, rl) is sharded for a single task",
    ),
    "masked words": ({"objective": {"kind": "domain"}}, "an encoder's word embeddings are also its output layer"),
    "classify": ({}, ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sharded_is_refused_with_what_to_do(name: str):
    change, reason = REFUSED[name]
    raw = {"model": "llama", "objective": {"kind": "classify"}, "technique": "lora", "data": {"train": "rows.jsonl"}}
    recipe, _ = make_recipe({**raw, **change}, place="test")
    refusal = sharding_refusal(recipe, "encoder")
    assert refusal.startswith(reason)
    assert bool(refusal) is bool(reason)
    assert sharding_refusal(recipe, "decoder") == ("" if name == "masked words" else refusal)


def test_an_older_torch_is_refused_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _ = make_recipe({"data": {"train": "rows.jsonl"}, "objective": "classify"}, place="recipe.yaml")
    monkeypatch.setattr("tunesmith.config.checks.version", lambda name: "2.10.0")
    assert sharding_refusal(recipe, "encoder").startswith("dividing weights needs torch 2.13, here is 2.10.0; upgrade")
