"""Renamed attributes keep the key that files and `--json` have had; renamed public names warn and still work."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunesmith.cli.commands.doctor import DoctorCheck, _as_document
from tunesmith.cli.main import parser
from tunesmith.config.aliases import translate, translate_change
from tunesmith.config.recipe import Recipe
from tunesmith.data.audit.findings import Finding
from tunesmith.data.examples.prompts import Completion, RLPrompt
from tunesmith.data.tokenization.messages import Message
from tunesmith.evaluation.results import RewardDiagnostics
from tunesmith.pipelines.tune.tune import Run
from tunesmith.report.schema import MultitaskReport, Report, TaskReport
from tunesmith.training.optim import TrainingPlan, make_optimizer
from tunesmith.training.train_state import TrainingState, resume, save

# Reports that were written before the attributes were renamed, one per objective.
REPORTS = Path(__file__).parent / "golden" / "reports"


def _kept(stored: Any, written: Any) -> Any:
    """Return of `written` what `stored` has too: a field that is newer than a report is written with its default."""
    if isinstance(stored, dict):
        return {key: _kept(value, written[key]) for key, value in stored.items()}
    if isinstance(stored, list):
        return [_kept(one, other) for one, other in zip(stored, written, strict=True)]
    return written


@pytest.mark.parametrize("kind", ["classify", "domain", "preference", "reward", "rl", "multitask"])
def test_a_stored_report_is_read_and_written_with_the_same_keys(kind: str):
    stored = json.loads((REPORTS / f"{kind}.json").read_text(encoding="utf-8"))
    written = json.loads(Report.model_validate(stored).model_dump_json())
    assert _kept(stored, written) == stored
    assert Report.model_validate(written).model_dump(mode="json") == written


@pytest.mark.parametrize(
    ("model", "attribute", "key"),
    [
        (Report, "reward_diagnostics", "pursuit"),
        (Report, "preference_diagnostics", "judgement"),
        (Report, "warnings", "alarms"),
        (Report, "multitask", "together"),
        (MultitaskReport, "tasks", "parts"),
        (TaskReport, "single_task", "alone"),
        (Finding, "fix", "cure"),
    ],
)
def test_the_schema_names_the_key_and_code_the_attribute(model: type[Report], attribute: str, key: str):
    assert attribute in model.model_fields
    properties = model.model_json_schema()["properties"]
    assert key in properties
    assert attribute not in properties


def test_a_report_can_be_made_by_attribute_and_by_key():
    values = {"kl_per_token": None, "words": (1.0, 2.0), "repeated_share": (0.0, 0.0), "cut_off_share": (0.0, 0.0)}
    stored = json.loads((REPORTS / "classify.json").read_text(encoding="utf-8"))
    by_key = Report.model_validate({**stored, "pursuit": values})
    by_name = Report.model_validate(
        {**{k: v for k, v in stored.items() if k != "pursuit"}, "reward_diagnostics": values}
    )
    assert by_key == by_name
    assert by_key.reward_diagnostics == RewardDiagnostics(**values)


def test_findings_and_checks_keep_the_key_cure():
    finding = Finding(kind="leak", severity="blocking", count=1, rows=("a:1",), fix="drop it", about="", share=1.0)
    assert finding.model_dump(mode="json")["cure"] == "drop it"
    assert _as_document(DoctorCheck("disk", "fail", "full", "free some")) == {
        "name": "disk",
        "state": "fail",
        "finding": "full",
        "cure": "free some",
    }


def test_a_checkpoint_keeps_its_keys(tmp_path: Path):
    weight = torch.nn.Parameter(torch.ones(2))
    policy: Any = SimpleNamespace(trainable=lambda: iter([("weight", weight)]), weights=True)
    optimizer = make_optimizer(policy, TrainingPlan(steps=3, learning_rate=1e-3))
    state = TrainingState(step=3, bad_validations=1, forward_tokens=9, peak_bytes=7, validation_pending=True)
    save(policy, optimizer, state, tmp_path)
    stored = json.loads((tmp_path / "last" / "state.json").read_text(encoding="utf-8"))
    assert [stored[key] for key in ("worse", "computed", "peak", "owed")] == [1, 9, 7, True]
    assert resume(policy, optimizer, tmp_path) == state


def test_a_reward_function_may_read_the_prompt_by_its_old_name():
    prompt = RLPrompt("rows:1", (Message("user", "Who?"), Message("assistant", "I")), row={"level": 2})
    completion = Completion(prompt, "You", finished=True)
    with pytest.warns(DeprecationWarning, match="use completion.prompt"):
        assert completion.exercise is prompt
    with pytest.warns(DeprecationWarning, match="Attempt is Completion"):
        from tunesmith.data.exercises import Attempt, Exercise
    assert (Attempt, Exercise) == (Completion, RLPrompt)


def test_a_run_says_under_the_old_name_that_it_was_reused():
    report = Report.model_validate_json((REPORTS / "classify.json").read_text(encoding="utf-8"))
    with pytest.warns(DeprecationWarning, match=r"use Run\.reused"):
        assert Run(Path("runs/one"), report, reused=True).already


@pytest.mark.parametrize(
    ("words", "name", "value", "line"),
    [
        ("export run --numbers f16", "dtype", "f16", "--numbers is deprecated; use --dtype"),
        ("serve run --waiting 3", "max_queue", 3, "--waiting is deprecated; use --max-queue"),
        ("serve run --longest 9", "max_tokens", 9, "--longest is deprecated; use --max-tokens"),
    ],
)
def test_an_option_works_under_its_old_name(
    words: str, name: str, value: object, line: str, capsys: pytest.CaptureFixture[str]
):
    assert getattr(parser().parse_args(words.split()), name) == value
    assert line in capsys.readouterr().err


def test_the_learning_curve_has_its_old_command_too():
    old, new = (parser().parse_args([word, "recipe.yaml"]) for word in ("need", "learning-curve"))
    assert old.run is new.run


def test_a_recipe_may_have_the_old_keys_and_arms():
    old = {"compare": {"asks": "smollm2-135m", "facts": 3}, "arms": ["prompt", "taught"]}
    values, notes = translate(old)
    assert values == {"compare": {"model": "smollm2-135m", "changed_facts": 3}, "arms": ["prompt", "closed-book"]}
    assert notes == [
        "compare.asks -> compare.model: smollm2-135m",
        "compare.facts -> compare.changed_facts: 3",
        "arms: taught -> closed-book",
    ]
    assert translate_change("compare.facts=2") == (
        "compare.changed_facts=2",
        ["compare.facts -> compare.changed_facts: 2"],
    )
    with pytest.warns(DeprecationWarning, match="use closed-book"):
        made = Recipe.model_validate({"data": {"train": "a.jsonl"}, "objective": "instruct", "arms": ["taught"]})
    assert made.arms == ["closed-book"]
