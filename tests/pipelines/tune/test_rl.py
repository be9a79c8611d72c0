"""From prompts and a reward to a measured run, with tiny models."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bases import folder
from tests.engine_stub import engine_stub, write_program
from tests.pipelines.conftest import answers, recipe, tune
from tests.test_examples import ROOT
from tunesmith.config import Recipe, make_recipe, save_recipe
from tunesmith.data.examples.prompts import Completion, RLPrompt
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import RecipeError, Refused, RewardError, TunesmithError
from tunesmith.evaluation.evaluators.rewards import find_warnings
from tunesmith.evaluation.results import RewardDiagnostics
from tunesmith.inference.saved_model import load
from tunesmith.objectives import Rl
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.report.html import write_reports
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.rewards import digests, scorer, scorer_of

pytestmark = pytest.mark.usefixtures("small_world")

RULES = """
import math

def short(attempt):
    return max(0.0, 1 - len(attempt.text) / 20)

def known(attempt):
    return attempt.row["prompt"] + attempt.question + attempt.prompt.reference

def constant(attempt):
    return 1

def nothing(attempt):
    return math.nan

def leaves(attempt):
    raise SystemExit(3)

def of_trl(prompts, completions, **more):
    return [0.0]

async def waits(attempt):
    return 1.0

def fails(attempt):
    return 1 / len("")
"""


RICH = """
from __future__ import annotations
from dataclasses import dataclass


@dataclass
class Rule:
    size: float


class Odd:
    def __float__(self):
        raise RuntimeError("no")


def late(attempt):
    from beside_rules import SIZE

    return Rule(SIZE).size


def odd(attempt):
    return Odd()


def huge(attempt):
    return 1e39
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.py"
    file.write_text(RULES, encoding="utf-8")
    return file


def made(place: Path, reward: Any, **parts: Any) -> Recipe:
    objective = {"kind": "rl", "reward": reward, "group": 4, "max_new_tokens": 6, **parts.pop("objective", {})}
    schedule = {"epochs": 1, "batch_rows": 8, "save_steps": 1, **parts.pop("schedule", {})}
    return recipe(place, answers(), "llama", objective=objective, schedule=schedule, **parts)


def attempt(text: str = "hello") -> Completion:
    return Completion(RLPrompt("rows:1", (Message("user", "Say it"),), row={"prompt": "x"}), text, True)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_run_is_measured_by_its_reward_and_answers_like_any_other(algorithm: str, rules: Path, tmp_path: Path):
    run = tune(made(tmp_path, f"{rules}:short", objective={"algorithm": algorithm}), tmp_path / "run")
    report = run.report
    assert [task.metric for task in report.tasks] == ["reward", "rouge_l"]
    assert report.baselines[0].name == "base"
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["score_tuned"] == pytest.approx(max(0.0, 1 - len(lines[0]["tuned"]) / 20))
    journal = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    told = {"reward", "reward_spread", "groups_alike", "kl", "answer_tokens", "cut_off_share", "repeated_share"}
    assert told <= set(journal[0])
    model = load(tmp_path / "run")
    assert model.policy.head is None
    assert [reply.text for reply in model.replies([[Message("user", lines[0]["question"])]])] == [lines[0]["tuned"]]


@pytest.mark.long
@pytest.mark.parametrize(("off", "ratio", "capped"), [(0.0, 1.0, 0.0), (-1.0, math.e, 1.0)])
def test_an_engine_samples_with_the_present_adapter_and_the_journal_has_its_weights(
    off: float, ratio: float, capped: float, rules: Path, tmp_path: Path
):
    with engine_stub(folder("llama"), off=off) as stub:
        tune(made(tmp_path, f"{rules}:short", objective={"engine": stub.url, "updates": 2}), tmp_path / "run")
    journal = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    steps = [line for line in journal if "engine_ratio" in line]
    assert len(steps) >= 2
    assert [line["engine_ratio"] for line in steps] == pytest.approx([ratio] * len(steps), abs=1e-3)
    assert {line["capped_share"] for line in steps} == {capped}
    sampled = [asked for asked in stub.asked if asked["n"] == 4]
    adapters = {asked["model"] for asked in stub.asked}
    assert len({asked["model"] for asked in sampled}) == len(steps)  # the weights of each step
    assert len({(*asked["prompt"], asked["seed"]) for asked in sampled}) == len(sampled)
    assert {asked["temperature"] for asked in stub.asked} == {0.0, 1.0}  # validation is greedy
    assert len(stub.folders) == len(adapters)
    assert not any(Path(place).exists() for place in stub.folders)
    assert set(stub.adapters) <= {""}


@pytest.mark.slow
def test_one_engine_samples_for_two_processes_as_for_one(rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUNESMITH_VLLM", str(write_program(tmp_path / "environment")))
    wanted = made(tmp_path, f"{rules}:short", objective={"engine": "vllm", "updates": 2})
    tune(wanted, tmp_path / "one")
    save_recipe(wanted, tmp_path / "recipe.yaml")
    command = [
        sys.executable,
        "-m",
        "tunesmith",
        "tune",
        "recipe.yaml",
        "--out",
        "two",
        "--offline",
        "--processes",
        "2",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (
        [
            {key: line[key] for key in ("reward", "engine_ratio", "capped_share", "loss")}
            for line in map(json.loads, (tmp_path / name / "journal.jsonl").read_text().splitlines())
            if "engine_ratio" in line
        ]
        for name in ("one", "two")
    )
    assert len(one) >= 2
    for own, other in zip(one, two, strict=True):
        assert other == pytest.approx(own, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"technique": "full"}, "objective.engine: only plain adapters are handed over to an engine; use technique"),
        ({"objective": {"temperature": 0.7}}, "objective.temperature: a running engine may report log-probabilities"),
        ({"objective": {"engine": "vlm"}}, "engine: expected vllm, sglang"),
        ({"objective": {"engine": "vllm 'x"}}, "engine: expected vllm, sglang"),
        ({"objective": {"engine": "http://me:secret@127.0.0.1:9"}}, "the address contains a password"),
    ],
)
def test_what_an_engine_cannot_sample_for_is_refused(parts: Any, said: str, rules: Path, tmp_path: Path):
    objective = {"engine": "http://127.0.0.1:9", **parts.pop("objective", {})}
    with pytest.raises(TunesmithError, match=said):
        tune(made(tmp_path, f"{rules}:short", objective=objective, **parts), tmp_path / "run")


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(rules: Path, tmp_path: Path):
    wanted = made(tmp_path, f"{rules}:short")
    whole = tune(wanted, tmp_path / "whole").report
    left = [False, True]
    with pytest.raises(Interrupted):
        tune(wanted, tmp_path / "cut", stop=lambda: left.pop(0))
    cut = tune(wanted, tmp_path / "cut").report
    assert cut.task == whole.task.model_copy(update={"name": cut.name})
    files = [(tmp_path / name / "model" / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_a_control_that_no_reward_might_tell_from_the_run_is_refused(rules: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"^controls: a reward may not depend on .*controls: false"):
        tune(made(tmp_path, f"{rules}:short", controls=True), tmp_path / "run")


@pytest.mark.parametrize("probe", [True, False])
def test_equal_rewards_end_a_run_before_its_base_is_scored(probe: bool, rules: Path, tmp_path: Path):
    wanted = made(tmp_path, f"{rules}:constant", objective={"missing_end_penalty": 0}, schedule={"probe": probe})
    with pytest.raises(Refused, match="all rewards within each group are equal"):
        tune(wanted, tmp_path / "run")
    assert not (tmp_path / "run" / "before.json").exists()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nothing", "expected a finite number, got nan"),
        ("leaves", r"it raised SystemExit: 3 \(line \d+ of rules.py\)"),
        ("fails", r"it raised ZeroDivisionError: .* \(line \d+ of rules.py\)"),
    ],
)
def test_a_reward_that_fails_is_named_with_prompt_and_answer(function: str, said: str, rules: Path):
    score = scorer_of(Rl(reward=f"{rules}:{function}"))
    with pytest.raises(RewardError, match=rf"rules.py:{function}: rows:1, answer 'hello': {said}"):
        score([attempt()])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "of_trl",
            r"takes \(prompts, completions, \*\*more\); take one completion; what TRL passes as completion is",
        ),
        ("waits", "is async; write a plain function"),
    ],
)
def test_a_function_that_cannot_score_one_attempt_is_refused(function: str, said: str, rules: Path):
    with pytest.raises(RecipeError, match=f"rules.py:{function} {said}"):
        scorer_of(Rl(reward=f"{rules}:{function}"))


def test_a_module_that_leaves_python_when_it_is_imported_is_refused(tmp_path: Path):
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('no key')\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"leaving.py cannot be imported \(SystemExit: no key\)"):
        scorer_of(Rl(reward=f"{tmp_path}/leaving.py:score"))


def test_a_reward_of_the_same_name_in_another_folder_is_that_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for value in (1.0, 2.5):
        folder = tmp_path / str(value)
        folder.mkdir()
        (folder / "same.py").write_text(f"def score(attempt):\n    return {value}\n", encoding="utf-8")
        monkeypatch.chdir(folder)
        assert scorer_of(Rl(reward="same.py:score"))([attempt()]) == [value]


@pytest.mark.parametrize("by_name", [True, False])
def test_a_reward_that_was_mended_in_the_same_process_is_the_one_that_scores(
    by_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mended_{by_name}" + ("" if by_name else ".py")
    file = tmp_path / f"mended_{by_name}.py"
    file.write_text("def score(attempt):\n    return 1.0\n", encoding="utf-8")
    assert scorer_of(Rl(reward=f"{name}:score"))([attempt()]) == [1.0]
    file.write_text("def score(attempt):\n    return 2.0 + 0.5\n", encoding="utf-8")
    assert scorer_of(Rl(reward=f"{name}:score"))([attempt()]) == [2.5]


def test_a_finished_run_whose_reward_was_changed_says_so(rules: Path, tmp_path: Path):
    wanted, told = made(tmp_path, f"{rules}:short"), list[str]()
    tune(wanted, tmp_path / "run")
    rules.write_text(RULES + "# mended\n", encoding="utf-8")
    callbacks = Callbacks(lambda event: told.append(getattr(event, "text", "")))
    again = tune_recipe(wanted, out=tmp_path / "run", callbacks=callbacks, offline=True)
    assert again.reused
    assert told == [
        f"{rules}:short: the file of the reward has changed since this run started; "
        "to train with the new file, give another --out"
    ]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"RULES:short": 0}, "objective.reward: all weights are 0, so all completions score the same; give"),
        ({"RULES:short": 1, "./RULES:short": 1}, "are the same; list it once, with the sum of the weights"),
    ],
)
def test_weights_that_count_nothing_or_one_thing_twice_are_refused(
    reward: dict[str, float], said: str, rules: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(rules.parent)
    named = {name.replace("RULES", rules.name): weight for name, weight in reward.items()}
    with pytest.raises(RecipeError, match=said):
        scorer_of(Rl(reward=named))


def test_a_weight_that_is_no_number_is_told_in_one_line():
    raw = {"data": "rows.jsonl", "objective": {"kind": "rl", "reward": {"rules:score": "x"}}}
    with pytest.raises(RecipeError, match="must be one name, or a mapping of name to a finite number") as told:
        make_recipe(raw, place="test")
    assert "\n" not in str(told.value)
    assert Rl(reward={"rules:score": "1e-3"}).rewards == {"rules:score": 0.001}  # as YAML reads it


def test_a_module_of_rewards_may_hold_dataclasses_and_import_what_lies_beside_it(tmp_path: Path):
    (tmp_path / "beside_rules.py").write_text("SIZE = 2.0\n", "utf-8")
    (tmp_path / "rich.py").write_text(RICH, "utf-8")
    assert scorer_of(Rl(reward=f"{tmp_path}/rich.py:late"))([attempt()]) == [2.0]
    for name, said in (("odd", "expected a finite number"), ("huge", "rows:1: the weighted sum is 1e.39; use smaller")):
        with pytest.raises(RewardError, match=said):
            scorer_of(Rl(reward=f"{tmp_path}/rich.py:{name}"))([attempt()])


def test_each_of_several_rewards_is_reported_beside_their_sum(rules: Path, tmp_path: Path):
    run = tune(made(tmp_path, {f"{rules}:short": 1.0, f"{rules}:constant": 0.5}), tmp_path / "run")
    whole, short, constant, _ = run.report.tasks
    assert [task.metric for task in run.report.tasks] == ["reward", "reward: short", "reward: constant", "rouge_l"]
    assert (constant.base, constant.tuned) == (1.0, 1.0)
    assert whole.tuned == pytest.approx(short.tuned + 0.5)


def test_rewards_of_one_name_in_two_files_are_told_apart_by_their_files(rules: Path, tmp_path: Path):
    other = rules.with_name("others.py")
    other.write_text(RULES, encoding="utf-8")
    run = tune(made(tmp_path, {f"{rules}:short": 1.0, f"{other}:short": 0.5}), tmp_path / "run")
    names = [task.metric for task in run.report.tasks]
    assert names == ["reward", f"reward: {rules}:short", f"reward: {other}:short", "rouge_l"]


def test_several_rewards_are_added_by_their_weights(rules: Path):
    score = scorer_of(Rl(reward={f"{rules}:short": 2.0, f"{rules}:constant": -0.5}))
    assert score([attempt("0123456789")]) == [pytest.approx(2 * 0.5 - 0.5)]


def test_a_reward_in_the_recipes_folder_is_found_by_its_name(rules: Path, tmp_path: Path):
    raw = {"data": "rows.jsonl", "objective": "rl", "reward": "rules:constant"}
    found, notes = make_recipe(raw, place="test", folder=tmp_path)
    assert isinstance(found.objective, Rl)
    assert found.objective.reward == f"{rules}:constant"
    assert notes == ["reward -> objective.reward: rules:constant"]
    assert scorer_of(found.objective)([attempt()]) == [1.0]


def test_a_reward_in_the_working_folder_is_found_by_its_name_without_a_recipe(
    rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(rules.parent)
    raw = {"data": "rows.jsonl", "objective": "rl"}
    for place in (None, tmp_path / "other"):
        found, _ = make_recipe(raw, place="test", folder=place, changes=[f"objective.reward={rules.stem}:constant"])
        assert isinstance(found.objective, Rl)
        assert found.objective.reward == f"{rules.name}:constant"
        assert scorer_of(found.objective)([attempt()]) == [1.0]


def test_a_tuned_reward_model_scores_answers_as_it_does_elsewhere(tmp_path: Path):
    pairs = [{"prompt": f"number {i}", "chosen": f"yes {i}", "rejected": f"no, not {i}"} for i in range(24)]
    (tmp_path / "pairs").mkdir()
    judged = recipe(tmp_path / "pairs", pairs, "llama", objective="reward", schedule={"epochs": 1})
    run = str(tune(judged, tmp_path / "judge").folder)
    answered = [attempt("yes"), attempt("no, not at all")]
    wanted = load(run).rewards([(one.prompt.prompt, one.text) for one in answered])
    assert scorer_of(Rl(reward={run: 2.0}))(answered) == [pytest.approx(2 * value) for value in wanted]
    assert wanted[0] != wanted[1]
    assert list(digests([run, f"{run}/model"])) == [run, f"{run}/model"]
    before = digests([run])
    tune(judged.model_copy(update={"seed": 1}), tmp_path / "other")
    shutil.rmtree(run)
    (tmp_path / "other").rename(run)
    assert digests([run]) != before
    assert scorer_of(Rl(reward={run: 2.0}))(answered) != [pytest.approx(2 * value) for value in wanted]
    report = tune(made(tmp_path, run), tmp_path / "run").report
    assert report.reward_diagnostics is not None
    assert report.reward_diagnostics.kl_per_token is not None
    assert report.reward_diagnostics.kl_per_token >= 0
    answering = str(tmp_path / "run")
    with pytest.raises(RecipeError, match="was tuned with instruct; name a run of objective: reward"):
        scorer_of(Rl(reward=answering))


def test_what_a_reward_is_cheated_by_raises_an_alarm():
    calm = RewardDiagnostics(kl_per_token=0.4, words=(10, 6), repeated_share=(0.0, 0.05), cut_off_share=(0.2, 0.1))
    assert find_warnings(calm) == ()
    wild = RewardDiagnostics(kl_per_token=0.7, words=(10, 24), repeated_share=(0.0, 0.3), cut_off_share=(0.1, 0.5))
    said = " | ".join(find_warnings(wild))
    assert "0.70 nats/token" in said
    assert "from 10.0 to 24.0 words" in said
    assert "30% of answers contain loops" in said
    assert "50% of answers never end" in said


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("", "objective.reward is missing"),
        ("runs/nowhere", "no run 'runs/nowhere' here"),
        ("no_such_module:score", "no_such_module cannot be imported"),
        ("json:no_such", "json has no function 'no_such'; it has"),
    ],
)
def test_a_reward_that_is_not_there_is_refused(reward: str, said: str):
    with pytest.raises(RecipeError, match=said):
        scorer_of(Rl(reward=reward))


def test_the_rules_of_the_example_are_kept_or_not():
    score = scorer_of(Rl(reward=f"{ROOT}/examples/synopsis_rules.py:score"))

    def of(text: str, *, finished: bool = True) -> float:
        row = RLPrompt("rows:1", (Message("user", "?"),), row={"id": "2vcard"})
        return score([Completion(row, text, finished)])[0]

    assert of("convert an address book to vCard") == 1.0
    assert of("convert an address book to vCard", finished=False) == 0.0
    assert [of(text) for text in ("", "a converter", "The converter", "2vcard converts", "x" * 80)] == [0.0] * 5
    assert of("anything that begins with an article's letters") == 1.0


def test_the_judges_of_the_example_count_rules_and_shared_words():
    fields = {"id": "2vcard", "document": "It converts vCards. More on that.", "summary": "vCard converter"}
    row = RLPrompt("rows:1", (Message("user", "?"),), row=fields)
    kept, nearness, about = (
        scorer(f"{ROOT}/examples/synopsis_rules.py:{name}", key="judge") for name in ("kept", "nearness", "about")
    )
    assert kept([Completion(row, "The 2vcard tool", True)]) == [0.5]
    assert nearness([Completion(row, "A converter", True), Completion(row, "nothing", True)]) == [0.5, 0.0]
    assert about([Completion(row, "converts vCards", True), Completion(row, "it converts", True)]) == [
        1.0,
        pytest.approx(2 / 3),
    ]


def test_the_page_shows_the_reward_and_what_it_was_paid_with(rules: Path, tmp_path: Path):
    run = tune(made(tmp_path, f"{rules}:short"), tmp_path / "run")
    write_reports(run.folder)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Side effects of optimizing the reward" in page
    assert "nats per token, on sampled answers" in page
