"""The plan: counted on the real batches, timed without moving anything, printed first and compared at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import policy
from tests.pipelines.conftest import answers, recipe, reviews, tune
from tests.pipelines.tune.test_multitask import mixed
from tunesmith.config import sharding_refusal
from tunesmith.config.recipe import Machine
from tunesmith.errors import RecipeError
from tunesmith.models.profile import measure_size
from tunesmith.objectives import Domain, Rl
from tunesmith.pipelines.plan import plan as story
from tunesmith.pipelines.plan.cost_model import Placement
from tunesmith.pipelines.plan.phase_costs import CHECK_STEPS, count_run
from tunesmith.pipelines.plan.plan import plan_recipe, techniques_of
from tunesmith.pipelines.plan.predict_run import predict_run
from tunesmith.pipelines.plan.profile import named, placements, process_memory, profile_run
from tunesmith.pipelines.plan.report import PlanReport
from tunesmith.techniques import Full, Lora
from tunesmith.training.batches import Batches
from tunesmith.training.prepare import prepare

pytestmark = pytest.mark.usefixtures("small_world")


@pytest.fixture(autouse=True)
def no_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A history of this test alone."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


NAMES = ["full", "lora", "dora", "qlora", "ia3", "prompt", "prefix", "p-tuning"]


def nobody(event: dict[str, Any]) -> None:
    """Nobody listens."""


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_technique_has_its_line_and_one_is_recommended(kind: str, tmp_path: Path):
    found = plan_recipe(recipe(tmp_path, reviews(), kind), on_event=nobody)
    assert [option.technique for option in found.options] == NAMES
    assert found.recommendation is not None
    assert found.recommendation.technique in NAMES
    assert found.how == "from steps timed now"
    for option in found.options:
        made = option.prediction
        assert made is not None
        assert 0 < made.seconds.low < made.seconds.expected < made.seconds.high
        assert 0 < made.memory.low < made.memory.expected < made.memory.high
        assert option.whole_seconds is not None
        assert option.whole_seconds.expected > made.seconds.expected
    assert PlanReport.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_half_the_look_at_the_network_tells_the_same_of_the_recipes_own_technique(kind: str, tmp_path: Path):
    prepared = prepare(recipe(tmp_path, reviews(), kind), on_event=nobody)
    whole = profile_run(prepared)
    for technique in techniques_of(prepared.recipe):
        one = replace(prepared, recipe=prepared.recipe.model_copy(update={"technique": technique}))
        half = replace(whole, size=profile_run(one, own=True).size)
        assert half.cost(technique) == whole.cost(technique), technique.kind


def test_what_is_counted_is_what_the_steps_compute(tmp_path: Path):
    prepared = prepare(recipe(tmp_path, reviews(), "llama", schedule={"epochs": 3}), on_event=nobody)
    work, batches = profile_run(prepared).work, Batches(prepared, prepared.train)
    steps = [batches.window(one) for one in range(work.steps)]
    assert work.steps == 3 * 5  # 33 rows, eight a step
    assert work.rows == 3 * 33
    assert work.passes == sum(map(len, steps))
    assert work.computed == pytest.approx(sum(b.forward_tokens for window in steps for b in window), rel=0.05)
    assert work.learned == sum(len(b.targets) for window in steps for b in window)
    assert work.widest >= 0.9 * max(b.forward_tokens for window in steps for b in window)


def test_planning_moves_no_number_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    read = story.prepare
    monkeypatch.setattr(story, "prepare", lambda *a, **k: seen.append(read(*a, **k)) or seen[-1])
    made = recipe(tmp_path, reviews(), "llama")
    before = {name: value.clone() for name, value in prepare(made, on_event=nobody).base.network.state_dict().items()}
    plan_recipe(made, on_event=nobody)
    after = seen[0].base.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_quick_means_that_no_step_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(story, "step", None)
    found = plan_recipe(recipe(tmp_path, answers(), "llama", objective="instruct"), on_event=nobody, timed=False)
    assert found.how == "by formula"


@pytest.mark.parametrize("objective", ["preference", "reward", "domain"])
def test_every_objective_can_be_planned(objective: str, tmp_path: Path):
    rows = [{"prompt": f"number {i}", "chosen": f"it is good, {i}", "rejected": f"bad {i}"} for i in range(48)]
    texts = [{"text": f"The quick brown fox number {i} jumps over the lazy dog and runs."} for i in range(48)]
    made = recipe(tmp_path, texts if objective == "domain" else rows, "llama", objective=objective)
    found = plan_recipe(made, on_event=nobody)
    assert found.recommendation is not None
    assert all(option.prediction for option in found.options)


def test_several_tasks_at_once_are_planned_by_their_mixture(tmp_path: Path):
    found = plan_recipe(mixed(tmp_path, tasks=("mood", "liked", "count")), on_event=nobody)
    assert found.objective == "multitask"
    assert found.recommendation is not None


def test_a_document_is_as_much_to_read_as_it_is_long(tmp_path: Path):
    texts = [{"text": f"The quick brown fox number {i} jumps over the lazy dog and runs."} for i in range(48)]
    held_out = tmp_path / "test.jsonl"
    read = []
    for times in (1, 5):
        held_out.write_text(
            "".join(json.dumps({"text": f"Row {i} " + "is long " * 9 * times}) + "\n" for i in range(9))
        )
        made = recipe(tmp_path, texts, "llama", objective="domain", data={"test": str(held_out)})
        prepared = prepare(made, on_event=nobody)
        read.append(count_run(prepared, profile_run(prepared)).phases["test scoring"].read)
    assert read[1] > 2 * read[0]
    rounded = replace(prepared, machine=replace(prepared.machine, dtype="bfloat16"))
    work = count_run(rounded, profile_run(prepared)).phases["test scoring"]
    assert (work.read, work.read32) == (0, pytest.approx(read[1]))  # perplexity is measured in float32


def test_beside_training_an_encoder_reads_all_rows_for_its_probe_and_tries_no_wording(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", data={"validation": 0}, schedule={"eval_steps": 0, "probe": False})
    prepared = prepare(made, on_event=nobody)
    found = profile_run(prepared)
    train, test = len(prepared.train), len(prepared.test)
    phases = count_run(prepared, found).phases
    steps = found.work.steps * made.schedule.batch_rows
    per_row = found.work.computed / steps
    assert phases["base scoring"].read == pytest.approx((train + test) * per_row)
    assert phases["test scoring"].read == pytest.approx(test * per_row)
    assert phases["adapter and head"].read == pytest.approx(train * per_row)
    assert phases["overfit check"].trainings == phases["validation"].read == phases["general ability after"].read == 0
    assert not any(phase.written for phase in phases.values())
    rounded = replace(prepared, machine=replace(prepared.machine, dtype="bfloat16"))
    work = count_run(rounded, found).phases
    # Labels are scored in the dtype of training, the states of a probe are not.
    assert (work["test scoring"].read, work["test scoring"].read32) == (pytest.approx(test * per_row), 0)
    assert work["base scoring"].read == pytest.approx(test * per_row)
    assert work["base scoring"].read32 == pytest.approx(train * per_row)
    probing = prepared.recipe.schedule.model_copy(update={"probe": True})
    again = replace(prepared, recipe=prepared.recipe.model_copy(update={"schedule": probing}))
    assert count_run(again, found).phases["overfit check"].trainings == pytest.approx(CHECK_STEPS * 8 / steps)


def test_rl_is_not_planned(tmp_path: Path):
    made = recipe(tmp_path, answers(), "llama", objective="instruct")
    rl = Rl.model_construct(kind="rl")
    with pytest.raises(RecipeError, match="plan: rl: the length of completions is unknown before they are sampled"):
        plan_recipe(made.model_copy(update={"objective": rl}), on_event=nobody)


def test_a_technique_the_model_cannot_take_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "tunesmith.techniques.prefix_tuning.Prefix.refusal", lambda *_, **__: "not this one; take prompt"
    )
    found = plan_recipe(recipe(tmp_path, reviews(), "bert"), on_event=nobody, timed=False)
    (refused,) = [option for option in found.options if option.refused]
    assert (refused.technique, refused.refused, refused.fits) == ("prefix", "not this one; take prompt", False)


def test_qlora_is_not_offered_where_tune_would_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = plan_recipe(recipe(tmp_path, reviews(), "bert"), on_event=nobody, timed=False)
    (refused,) = [option for option in found.options if option.refused]
    assert refused.technique == "qlora"
    assert "nf4 needs bitsandbytes, which is missing" in refused.refused


def test_steps_that_run_out_of_memory_leave_the_formula_and_the_base_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[dict[str, Any]] = []

    def full_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(story, "step", full_memory)
    found = plan_recipe(recipe(tmp_path, reviews(), "llama"), on_event=said.append)
    assert found.how == "by formula"
    notes = [event.text for event in said if event.kind == "note"]
    assert [text for text in notes if text.startswith("out of memory while")] == [
        f"out of memory while timing {name}; using the analytic estimate" for name in ("lora", "full")
    ]


def test_an_optimizer_that_memory_does_not_hold_leaves_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", full_memory)
    said: list[dict[str, Any]] = []
    assert plan_recipe(recipe(tmp_path, reviews(), "llama"), on_event=said.append).how == "by formula"
    assert sum(getattr(event, "text", "").startswith("out of memory while") for event in said) == 2


def test_nothing_is_timed_whose_memory_does_not_surely_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(story, "SAFE_SHARE", 0.0)
    monkeypatch.setattr(story, "step", None)
    assert plan_recipe(recipe(tmp_path, reviews(), "llama"), on_event=nobody).how == "by formula"


def test_what_was_not_timed_keeps_the_wide_bounds(tmp_path: Path):
    found = plan_recipe(recipe(tmp_path, reviews(), "llama"), on_event=nobody)
    seconds = {option.technique: option.prediction.seconds for option in found.options if option.prediction}
    reach = {name: one.high / one.expected for name, one in seconds.items()}
    assert max(reach["lora"], reach["full"]) < 0.8 * min(reach[name] for name in set(NAMES) - {"lora", "full"})


def test_tune_forecasts_the_training_that_plan_has_timed(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama")
    planned = {option.technique: option.prediction for option in plan_recipe(made, on_event=nobody).options}
    out = tmp_path / "run"
    out.mkdir()
    found = predict_run(prepare(made, on_event=nobody), out, measured={})
    assert found is not None
    cost, forecast = found
    assert forecast.basis == "from steps timed before on this machine"
    assert planned["lora"] is not None
    # Both measure the speed of memory for themselves.
    assert cost.seconds.expected == pytest.approx(planned["lora"].seconds.expected, rel=0.5)


def test_the_room_on_a_gpu_is_what_this_process_holds_and_what_is_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7)
    assert process_memory("cuda:0") == (7.0, 40.0)


def test_the_recipes_own_settings_are_those_of_its_technique(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama", technique={"kind": "lora", "rank": 4, "dora": True})
    found = techniques_of(made)
    assert [named(one) for one in found] == NAMES
    assert [one.rank for one in found if isinstance(one, Lora)] == [4, 4, 4]
    assert isinstance(found[0], Full)


def test_tune_says_its_line_first_and_the_report_compares(tmp_path: Path):
    said: list[dict[str, Any]] = []
    run = tune(recipe(tmp_path, reviews(), "llama"), tmp_path / "run", on_event=said.append)
    texts = [getattr(event, "text", "") for event in said]
    first = next(i for i, text in enumerate(texts) if text.startswith("plan: lora: "))
    assert first < next(i for i, text in enumerate(texts) if text.startswith("evaluating the base"))
    kept = json.loads((run.folder / "prediction.json").read_text())
    assert kept["trainable"] == run.report.training.trainable
    assert run.report.memory.predicted_bytes == round(kept["memory"]["expected"])
    assert run.report.speed.predicted_seconds == kept["seconds"]["expected"]


def test_a_run_gone_on_with_keeps_its_first_prediction(tmp_path: Path):
    out = tmp_path / "run"
    out.mkdir()
    first = predict_run(prepare(recipe(tmp_path, reviews(), "llama"), on_event=nobody), out, measured={})
    other = prepare(recipe(tmp_path, reviews(40), "llama"), on_event=nobody)
    assert predict_run(other, out, measured={}) == first


def test_the_forecast_on_this_machine_knows_optimizer_recompute_and_processes(tmp_path: Path):
    prepared = prepare(recipe(tmp_path, reviews(), "llama", technique="full"), on_event=nobody)
    plain = profile_run(prepared)

    def cost(key: str, value: Any, processes: int = 1) -> Any:
        section, name = key.split(".")
        changed = getattr(prepared.recipe, section).model_copy(update={name: value})
        made = prepared.recipe.model_copy(update={section: changed})
        return replace(plain, recipe=made).shared(prepared, processes).cost(Full())

    one = plain.cost(Full())
    assert cost("schedule.recompute", "auto") == one
    bits, again = cost("schedule.optimizer", "adamw-8bit"), cost("schedule.recompute", True)
    assert one.memory.expected - bits.memory.expected == pytest.approx((8 - 2.03125) * plain.size.parameters)
    assert bits.seconds < one.seconds < again.seconds
    two, sharded = (cost("machine.shard", wish, 2) for wish in ("auto", "full"))
    assert plain.shared(prepared, 2).work.rows == pytest.approx(plain.work.rows / 2, abs=plain.work.steps)
    assert two.memory.expected > sharded.memory.expected
    assert 0.5 * one.seconds < sharded.seconds < two.seconds


def test_what_no_run_shards_is_never_planned_in_shards_and_all_else_is(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert").model_copy(update={"machine": Machine(shard="full")})
    hides = made.model_copy(update={"objective": Domain()})  # the embeddings of an encoder are its output layer, too
    decoder, encoder = measure_size(policy("llama")), measure_size(policy("bert"))
    part = replace(decoder, multimodal=True)
    four = Placement(processes=4, local=2)
    found = {
        name: {one.shards for one in placements(planned, technique, size, four)}
        for name, planned, technique, size in (
            ("encoder", made, Lora(), encoder),
            ("hidden words", hides, Lora(), encoder),
            ("texts", hides, Lora(), decoder),
            ("nf4", made, Lora(quantize="nf4"), decoder),
            ("lora", made, Lora(), decoder),
            ("text part, full", made, Full(), part),
            ("text part, lora", made, Lora(), part),
        )
    }
    # As `sharding_refusal` has it, which a run asks before it loads the model.
    assert found == {"encoder": {2, 4}, "hidden words": {1}, "texts": {2, 4}, "nf4": {1}, "lora": {2, 4}} | {
        "text part, full": {1},
        "text part, lora": {2, 4},
    }
    refused = [
        sharding_refusal(planned.model_copy(update={"technique": technique}), family)
        for planned, technique, family in (
            (hides, Lora(), "encoder"),
            (made, Lora(quantize="nf4"), "decoder"),
            (made, Lora(), "encoder"),
            (hides, Lora(), "decoder"),
            (made, Lora(), "decoder"),
        )
    ]
    assert [bool(refusal) for refusal in refused] == [True, True, False, False, False]
