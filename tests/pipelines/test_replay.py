"""`tunesmith replay`: an unchanged environment is the same, and whatever is changed on purpose is found and named."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from tokenizers import normalizers
from transformers.models.llama.modeling_llama import LlamaAttention

import tunesmith as ts
from tests.golden.runs import RUNS
from tests.golden.runs import tune as tune_golden
from tests.pipelines.conftest import answers, recipe, tune
from tests.pipelines.tune.test_embed import questions
from tests.tiny import DECODERS, tiny_decoder, tiny_encoder
from tunesmith.cli import main
from tunesmith.data.tokenization import chat_template
from tunesmith.errors import CheckpointError, OptionError
from tunesmith.evaluation import hard_negatives
from tunesmith.events import ignore
from tunesmith.models.loading import load
from tunesmith.pipelines import replay as replay_module
from tunesmith.pipelines.replay import Replay, replay
from tunesmith.pipelines.tune import golden as golden_module
from tunesmith.pipelines.tune.golden import GoldenMinute, GoldenStep
from tunesmith.training import batches

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_world: pytest.MonkeyPatch) -> Path:
    """A run of instruct with LoRA, more than eight steps."""
    place = tmp_path_factory.mktemp("run")
    objective = {"kind": "instruct", "max_new_tokens": 4}
    made = recipe(place, answers(), "llama", objective=objective, schedule={"epochs": 3, "probe": False})
    return tune(made, place / "run").folder


def again(run: Path, *changes: str) -> Replay:
    return replay(run, changes=changes, on_event=ignore, offline=True)


def test_an_unchanged_environment_is_the_same_and_the_run_is_not_changed(run: Path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = again(run)
    assert (found.outcome, found.first, found.environment) == ("same", "", {})
    assert found.sentence == "same: 8 steps and 4 scores are equal to the last bit"
    assert len(found.quantities) == 20
    assert all(one.then == one.now for one in found.quantities)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("tasks", "count", "chosen"),
    [("aaaabbbb", 4, [0, 1, 4, 5]), ("aaaaaab", 4, [0, 1, 2, 6]), ("aaaa", 2, [0, 1]), ("aabb", 16, [0, 1, 2, 3])],
)
def test_rows_of_every_task_are_scored(tasks: str, count: int, chosen: list[int]):
    assert golden_module._in_turn(tasks, count) == chosen


def test_the_recording_is_that_of_the_run_itself(run: Path):
    golden = json.loads((run / "golden.json").read_text("utf-8"))
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in journal if "grad_norm" in line][:8]
    assert [(one["loss"], one["grad_norm"]) for one in golden["steps"]] == [(s["loss"], s["grad_norm"]) for s in steps]
    assert len(golden["rows"]) == 16
    assert golden["environment"]["torch"] == torch.__version__


def after(place: Any, name: str, change: Callable[[Any], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a patch that changes an object once a method of its class has run."""
    former = getattr(place, name)

    def patched(self: Any, *given: Any, **more: Any) -> Any:
        result = former(self, *given, **more)
        change(self)
        return result

    return lambda patch: patch.setattr(place, name, patched)


def scale_softmax(module: Any) -> None:
    module.scaling *= 1.01


def scale_adapters(module: Any) -> None:
    module.scaling = {name: 1.01 * value for name, value in module.scaling.items()}


def larger_epsilon(patch: pytest.MonkeyPatch) -> None:
    former = torch.optim.AdamW.__init__
    patch.setattr(torch.optim.AdamW, "__init__", lambda *given, **more: former(*given, **{"eps": 1e-6, **more}))


def more_whitespace(patch: pytest.MonkeyPatch) -> None:
    former = chat_template.render
    patch.setattr(chat_template, "render", lambda *given: former(*given).replace("<|im_end|>", " <|im_end|>"))


def another_normalizer(patch: pytest.MonkeyPatch) -> None:
    former = load.read_tokenizer

    def changed(*given: Any, **more: Any) -> Any:
        tokenizer = former(*given, **more)
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("it", "that")
        return tokenizer

    patch.setattr(load, "read_tokenizer", changed)


def another_order(patch: pytest.MonkeyPatch) -> None:
    former = batches._shuffled
    patch.setattr(batches, "_shuffled", lambda rng, numbers: former(rng, numbers)[::-1])


def only_when_loaded(patch: pytest.MonkeyPatch) -> None:
    former = replay_module.load_over_base

    def changed(*given: Any) -> Any:
        model = former(*given)
        for module in model.policy.network.modules():
            if isinstance(module, LoraLayer):
                scale_adapters(module)
        return model

    patch.setattr(replay_module, "load_over_base", changed)


# What is changed -> the patch, and the first quantity that differs.
PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "scale of the softmax in attention": (after(LlamaAttention, "__init__", scale_softmax), "loss of step 1"),
    "scaling of LoRA in PEFT": (after(LoraLayer, "update_layer", scale_adapters), "gradient norm of step 1"),
    "epsilon of AdamW": (larger_epsilon, "loss of step 2"),
    "whitespace of the chat template": (more_whitespace, "the token ids of rows.jsonl:"),
    "normalizer of the tokenizer": (another_normalizer, "the token ids of rows.jsonl:"),
    "order of the rows": (another_order, "the order of the rows in step 1"),
    "how a saved adapter is loaded": (only_when_loaded, "score 1 of the tuned model"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_change_is_found_and_named(name: str, run: Path, monkeypatch: pytest.MonkeyPatch):
    plant, first = PLANTED[name]
    plant(monkeypatch)
    found = again(run)
    assert found.outcome == "changed"
    assert found.first.startswith(first), found.sentence
    assert found.sentence.startswith(f"changed: {first}")
    assert found.environment == {}


@pytest.mark.long
@pytest.mark.parametrize("name", ["classify-linear-full-encoder", "preference-dpo-lora-decoder", "domain-lora-encoder",
    "domain-lora-decoder", "multitask-lora-decoder", "rl-grpo-lora-decoder"])  # fmt: skip
def test_every_objective_can_be_replayed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    kind = RUNS[name]["model"]
    model = (tiny_decoder if kind in DECODERS else tiny_encoder)(tmp_path / "model", kind)
    found = again(tune_golden(name, model, tmp_path, progress=False))
    assert found.outcome == "same", found.sentence
    assert len(found.quantities) > 3


def test_passages_that_a_run_has_mined_are_not_chosen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = recipe(tmp_path, questions(), "bert", objective={"kind": "embed", "hard_negatives": 2}, technique="full",
        schedule={"epochs": 1, "probe": False})  # fmt: skip
    folder = tune(made, tmp_path / "run").folder
    ranked = hard_negatives._ranked
    monkeypatch.setattr(hard_negatives, "_ranked", lambda *given: [list(one)[::-1] for one in ranked(*given)])
    found = again(folder)
    assert found.outcome == "same", found.sentence


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda run: (run / "golden.json").unlink(), "no golden.json: a run of an earlier version"),
        (lambda run: (run / "report.json").unlink(), "no report.json, so the run is not finished"),
        (lambda run: (run / "golden.json").write_text("{}"), "golden.json"),
        (lambda run: (run.parent / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n'), "changed since"),
        (lambda run: (run.parent / "rows.jsonl").unlink(), "is missing; restore it"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(edit: Callable[[Path], object], error: str, tmp_path: Path):
    made = recipe(tmp_path, answers(24), "llama", objective={"kind": "instruct", "max_new_tokens": 2},
        schedule={"epochs": 1, "probe": False}, retention=False)  # fmt: skip
    folder = tune(made, tmp_path / "run").folder
    edit(folder)
    with pytest.raises(ts.TunesmithError) as caught:
        again(folder)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize("name", ["classify-linear-full-encoder", "rl-grpo-lora-decoder"])
def test_other_threads_and_instructions_in_a_process_of_their_own_are_within_rounding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    kind = RUNS[name]["model"]
    made = tune_golden(name, (tiny_decoder if kind in DECODERS else tiny_encoder)(tmp_path / "model", kind), tmp_path)
    words = f"-m tunesmith replay {made} --set machine.threads=2 --json --offline".split()
    # The plainest instructions of every library of matrix products.
    plain = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    done = subprocess.run([sys.executable, *words], env=os.environ | plain, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["environment"]["threads"] == ["1", "2"]
    assert found["outcome"] != "changed"
    if platform.machine() == "x86_64":
        assert found["outcome"] == "rounding"
        assert found["sentence"].startswith("within rounding: the largest relative difference is")


def test_the_command_prints_the_outcome_and_exits_with_1_if_anything_changed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main(["replay", str(run), "--offline"]) == 0
    assert capsys.readouterr().out.startswith("same: 8 steps and 4 scores ")
    another_order(monkeypatch)
    assert main(["replay", str(run), "--offline"]) == 1
    assert capsys.readouterr().out.startswith("changed: the order of the rows in step 1\n")


def test_only_the_machine_can_be_set(run: Path):
    with pytest.raises(OptionError, match="set only machine.device"):
        again(run, "technique.rank=8")


def test_a_folder_that_is_missing_is_one_line(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such folder"):
        again(tmp_path / "nothing")


ENVIRONMENT = {"dtype": "float32", "repeats": "yes"}


def recording(loss: float = 2.0, norm: float = 1.0, scores: Sequence[float] = (2.0,), **changed: str) -> GoldenMinute:
    step = GoldenStep(rows="", tokens="", loss=loss, grad_norm=norm)
    return GoldenMinute(environment=ENVIRONMENT | changed, sources=[], rows=[], steps=[step], scores=list(scores))


NAN = float("nan")
OTHER = {"torch": "3"}


@pytest.mark.parametrize(
    ("then", "now", "first"),
    [
        (recording(), recording(NAN), "loss of step 1"),
        (recording(NAN), recording(), "loss of step 1"),
        (recording(), recording(NAN, **OTHER), "loss of step 1"),
        (recording(), recording(norm=float("inf"), **OTHER), "gradient norm of step 1"),
        (recording(scores=(2.0, 3.0)), recording(scores=(2.0, NAN), **OTHER), "score 2 of the tuned model"),
        (recording(scores=(2.0, 3.0)), recording(scores=(2.0,)), "the number of scores"),
        (recording(), recording(scores=(), **OTHER), "the number of scores"),
        (recording(NAN), recording(NAN), ""),
        (recording(2.0), recording(2.0 + 1e-9), "loss of step 1"),
        # The sum of a policy-gradient loss is near 0, its terms are not.
        (recording(1e-9), recording(-2e-7, **OTHER), "rounding"),
        (recording(1e-9), recording(-2e-3, **OTHER), "loss of step 1"),
        # A GPU repeats itself only if asked to.
        (recording(repeats="no"), recording(2.0 + 1e-6, repeats="no"), "rounding"),
        (recording(repeats="no"), recording(2.1, repeats="no"), "loss of step 1"),
    ],
)
def test_what_is_no_number_or_missing_has_changed_and_rounding_needs_a_reason(
    then: GoldenMinute, now: GoldenMinute, first: str
):
    then = GoldenMinute.model_validate_json(then.model_dump_json())  # as it is read
    found = replay_module._compared(Path("run"), then, now, seconds=0)
    outcome = {"": "same", "rounding": "rounding"}.get(first, "changed")
    assert found.outcome == outcome, found.sentence
    assert outcome == "rounding" or found.first == first
    assert "inf;" not in found.sentence


def test_a_recording_without_steps_is_one_line(tmp_path: Path):
    (tmp_path / "golden.json").write_text(recording().model_copy(update={"steps": []}).model_dump_json())
    with pytest.raises(CheckpointError, match="golden.json: has no steps; run `tunesmith tune .*-again`$"):
        replay_module.read_golden(tmp_path)


def test_a_difference_in_another_environment_is_rounding_within_the_bounds(run: Path, monkeypatch: pytest.MonkeyPatch):
    then = replay_module.read_golden(run)
    steps = [step.model_copy(update={"loss": step.loss * (1 + 1e-6)}) for step in then.steps]
    other = then.model_copy(update={"steps": steps, "environment": then.environment | {"torch": "1.0"}})
    monkeypatch.setattr(replay_module, "read_golden", lambda run: other)
    found = again(run)
    assert found.outcome == "rounding"
    assert found.environment == {"torch": ("1.0", torch.__version__)}
    steps[0] = steps[0].model_copy(update={"loss": steps[0].loss * 1.02})
    found = again(run)
    assert (found.outcome, found.first) == ("changed", "loss of step 1")
