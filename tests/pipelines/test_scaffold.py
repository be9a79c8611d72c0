"""Recipes written from rows, and carried over from other trainers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import reviews, write_rows
from tests.drafts import draft
from tunesmith.config import Recipe, load_recipe, make_recipe
from tunesmith.config.annotated_yaml import AnnotatedRecipe
from tunesmith.config.importers.convert import convert
from tunesmith.errors import DataError, RecipeError, Refused, StorageError
from tunesmith.objectives import Instruct
from tunesmith.pipelines.tune.preview import preview
from tunesmith.training.prepare import prepare


def reread(made: AnnotatedRecipe, out: Path) -> Recipe:
    """The recipe as it is read back from its file."""
    made.write(out)
    recipe, notes = load_recipe(out)
    assert notes == []
    return recipe


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "reviews.jsonl", reviews())


def test_a_draft_is_read_back_as_it_was_written_and_runs_dry(rows: Path, tiny_llama: Path) -> None:
    made = draft(str(rows), changes=[f"model={tiny_llama}"])
    recipe = reread(made, rows.parent / "recipe.yaml")
    assert recipe == made.recipe
    assert (recipe.objective.kind, recipe.data.group) == ("classify", "group")
    assert preview(recipe, offline=True).problems == ()


def test_a_draft_leaves_out_the_sections_that_have_only_defaults(rows: Path) -> None:
    written = yaml.safe_load(draft(str(rows)).text(rows.parent))
    assert set(written) == {"model", "data", "objective", "technique", "schedule", "compare", "seed"}


def test_the_split_column_of_a_file_is_written_instead_of_the_sizes_it_names(tmp_path: Path) -> None:
    parts = ["train"] * 40 + ["test"] * 20
    file = write_rows(tmp_path / "a.jsonl", [{**row, "split": p} for row, p in zip(reviews(), parts, strict=True)])
    made = draft(str(file))
    assert "split: split" in made.text(tmp_path)
    assert "the file names its parts: train 40, test 20 rows" in made.text(tmp_path)
    assert "test: 0.2" not in made.text(tmp_path)
    assert reread(made, tmp_path / "recipe.yaml").data.split == "split"


def test_a_fraction_of_one_is_refused_with_both_readings() -> None:
    with pytest.raises(RecipeError, match=r"data\.test: expected .* a whole number of rows or a file; write 1 for a"):
        make_recipe({"data": {"train": "a.jsonl", "test": 1.0}, "objective": "classify"}, place="r.yaml")
    recipe, _ = make_recipe({"data": {"train": "a.jsonl", "test": 60}, "objective": "classify"}, place="r.yaml")
    assert (recipe.data.test, recipe.data.split) == (60, "")


def test_rows_are_held_out_of_those_that_the_split_column_leaves_for_training(tmp_path: Path) -> None:
    parts = ["train"] * 1_500 + ["test"] * 22_500
    rows = [{**row, "split": part} for row, part in zip(reviews(24_000), parts, strict=True)]
    made = draft(str(write_rows(tmp_path / "r.jsonl", rows)))
    assert "validation: 0.1" in made.text(tmp_path)


@pytest.mark.parametrize(
    ("count", "validation", "test"), [(60, 0.1, 0.2), (12_000, 0.1, 2_000), (24_000, 2_000, 2_000)]
)
def test_a_number_of_rows_is_held_out_of_a_large_file(
    count: int, validation: float, test: float, tmp_path: Path
) -> None:
    made = draft(str(write_rows(tmp_path / "r.jsonl", reviews(count))))
    data = reread(made, tmp_path / "recipe.yaml").data
    assert (data.validation, data.test) == (validation, test)
    assert f"# {min(2000, count // 5)} held-out rows: the 95 % interval" in made.text(tmp_path)


def test_every_decision_has_its_reason_above_it(rows: Path) -> None:
    text = draft(str(rows)).text(rows.parent)
    lines = text.splitlines()
    for key in ("model", "  train", "  test", "  group", "  max_tokens", "  metric", "technique", "  epochs"):
        above = lines[next(i for i, line in enumerate(lines) if line.startswith(f"{key}:")) - 1]
        assert above.strip().startswith("#"), key
    assert "train: reviews.jsonl" in text
    assert "positive 30, negative 30" in text
    assert "20 values in 60 rows" in text
    assert max(map(len, lines)) <= 120


def test_a_recipe_in_another_folder_finds_its_rows(rows: Path) -> None:
    folder = rows.parent / "recipes"
    folder.mkdir()
    recipe = reread(draft(str(rows)), folder / "recipe.yaml")
    assert Path(recipe.data.train).resolve() == rows


def test_nothing_is_overwritten(rows: Path) -> None:
    out = rows.parent / "recipe.yaml"
    out.write_text("mine")
    with pytest.raises(RecipeError, match="already exists and is not overwritten"):
        draft(str(rows)).write(out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("count", "epochs", "rank"),
    # 0.7 of the rows are trained on, 16 a step, 200 steps wanted: 3200 / 700, 3200 / 1400, 3200 / 70 (at most 5).
    [(1000, 5, 8), (2000, 3, 16), (100, 5, 8)],
)
def test_passes_and_rank_follow_the_number_of_rows(count: int, epochs: int, rank: int, tmp_path: Path) -> None:
    recipe = draft(str(write_rows(tmp_path / "r.jsonl", reviews(count))), changes=["model=smollm2-135m"]).recipe
    assert (recipe.schedule.epochs, recipe.technique.rank) == (epochs, rank)  # type: ignore[union-attr]


def test_the_longest_row_of_a_hundred_sets_max_tokens(tmp_path: Path) -> None:
    # 900 bytes are about 300 tokens; with 48 around them and in steps of 48: 384.
    lines = [{"prompt": "x" * 600, "answer": "y" * 300} for _ in range(50)]
    assert draft(str(write_rows(tmp_path / "r.jsonl", lines))).recipe.data.max_tokens == 384


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        (["yes", "no", "I cannot say"], "exact_match"),
        (["the display flickers when it is warm, so open it", "press the left key for three seconds"], "rouge_l"),
        ([f'{{"name": "weather", "arguments": {{"city": "{city}"}}}}' for city in ("Rome", "Oslo")], "tool_calls"),
        (["das Gerät wird größer und wärmer als üblich", "für alle Fälle hält man es kühl"], "chrf"),
        (
            ["it\u2019s red \u2014 so he changed the fuse", "\u201cpress\u201d the left key for three seconds"],
            "rouge_l",
        ),
    ],
)
def test_the_metric_fits_the_answers(answers: list[str], metric: str, tmp_path: Path) -> None:
    lines = [{"prompt": f"case {i}", "answer": answers[i % len(answers)]} for i in range(30)]
    assert draft(str(write_rows(tmp_path / "r.jsonl", lines))).recipe.objective.metric == metric


@pytest.mark.parametrize("form", ["xlam", "hermes"])
def test_calls_of_tools_are_scored_where_the_run_finds_calls_too(form: str, tmp_path: Path, tiny_llama: Path) -> None:
    def row(city: str) -> dict[str, Any]:
        call = json.dumps({"name": "weather", "arguments": {"city": city}})
        if form == "xlam":
            return {"query": f"How is {city}?", "tools": json.dumps([{"name": "weather"}]), "answers": f"[{call}]"}
        turns = [("human", f"How is {city}?"), ("gpt", f"<tool_call>\n{call}\n</tool_call>")]
        return {"conversations": [{"from": name, "value": text} for name, text in turns]}

    lines = [row(f"town {i}") for i in range(30)]
    wanted = [f"model={tiny_llama}", "data.max_tokens=512"]
    recipe = draft(str(write_rows(tmp_path / "r.jsonl", lines)), changes=wanted).recipe
    assert recipe.objective.metric == "tool_calls"
    assert preview(recipe, offline=True).problems == ()


@pytest.mark.parametrize(("calling", "metric"), [(3, "tool_calls"), (0, "rouge_l")])
def test_rows_that_offer_tools_are_scored_by_calls_if_any_calls(calling: int, metric: str, tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]}
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"How is town {i}?"},
                call if i < calling else {"role": "assistant", "content": "I do not know."},
            ],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        }
        for i in range(30)
    ]
    assert draft(str(write_rows(tmp_path / "r.jsonl", lines))).recipe.objective.metric == metric


def test_two_languages_are_a_translation(tmp_path: Path) -> None:
    pairs = [{"en": f"Paragraph {n}", "fr": f"Paragraphe {n}"} for n in range(40)]
    objective = draft(str(write_rows(tmp_path / "rows.jsonl", pairs))).recipe.objective
    assert isinstance(objective, Instruct)
    assert (objective.prompt, objective.answer, objective.metric) == ("en", "fr", "chrf")
    assert objective.instruction == "Translate into French:"


def test_rare_labels_make_macro_f1_the_headline(tmp_path: Path) -> None:
    lines = [{"text": f"mail {i}", "label": "rare" if i % 10 == 0 else "common"} for i in range(60)]
    made = draft(str(write_rows(tmp_path / "r.jsonl", lines)))
    assert made.recipe.objective.metric == "macro_f1"
    assert "common 54, rare 6" in made.reasons["objective.metric"]


@pytest.mark.parametrize(
    ("column", "values", "group"),
    [
        ("thread_id", [i // 3 for i in range(60)], "thread_id"),
        ("source", list(range(60)), ""),  # every row its own source
        ("user", ["a", "b"] * 30, ""),  # too few to cut
        ("colour", [i // 3 for i in range(60)], ""),  # no word for a source
        ("thread", ["", *(i // 3 for i in range(59))], "thread"),  # a blank now and then is cut alone
        ("thread", ["" if i % 2 else i // 3 for i in range(60)], ""),
    ],
)
def test_a_group_column_is_told_by_name_and_values(
    column: str, values: list[object], group: str, tmp_path: Path
) -> None:
    lines = [{"text": f"mail {i}", "label": "ab"[i % 2], column: values[i]} for i in range(60)]
    made = draft(str(write_rows(tmp_path / "r.jsonl", lines)))
    assert made.recipe.data.group == group
    assert ("name its column" in made.reasons["data.test"]) == (not group)


def test_columns_of_no_known_name_are_guessed_and_the_guess_is_shown(tmp_path: Path) -> None:
    lines = [{"words": f"mail {i}", "mood": "ab"[i % 2]} for i in range(30)]
    made = draft(str(write_rows(tmp_path / "r.jsonl", lines)))
    assert (made.recipe.objective.text, made.recipe.objective.label) == ("words", "mood")  # type: ignore[union-attr]
    assert made.guessed == "--set 'objective={kind: classify, text: words, label: mood}'"
    assert made.reasons["objective"].startswith("guessed from column names and values; check it: words -> text")
    again = draft(str(tmp_path / "r.jsonl"), changes=[shlex.split(made.guessed)[1]])
    assert (again.recipe.objective.text, again.recipe.objective.label) == ("words", "mood")  # type: ignore[union-attr]


def test_columns_that_give_no_guess_are_refused_until_they_are_named(tmp_path: Path) -> None:
    lines = [{"words": f"mail {i}", "mood": f"a{i}"} for i in range(30)]
    data = str(write_rows(tmp_path / "r.jsonl", lines))
    with pytest.raises(DataError, match="no known format"):
        draft(data)
    made = draft(data, changes=["objective={kind: classify, text: words, label: mood}"])
    assert (made.recipe.objective.text, made.reasons.get("objective")) == ("words", None)  # type: ignore[union-attr]


def test_what_was_asked_for_is_not_explained_by_us(rows: Path) -> None:
    made = draft(str(rows), changes=["technique=full", "data.max_tokens=99"])
    assert (made.recipe.technique.kind, made.recipe.data.max_tokens) == ("full", 99)
    assert made.reasons["technique"] == made.reasons["data.max_tokens"] == "set on the command line"


def test_the_small_encoder_is_tuned_in_full_and_asked_nothing(rows: Path) -> None:
    recipe = draft(str(rows), changes=["model=minilm-l6"]).recipe
    assert (recipe.technique.kind, recipe.objective.instruction) == ("full", "")


AXOLOTL: dict[str, Any] = {
    "base_model": "smollm2-135m",
    "datasets": [{"path": "train.jsonl", "type": "alpaca"}, {"path": "more.jsonl", "type": "alpaca"}],
    "val_set_size": 0.05,
    "output_dir": "./outputs/lora",
    "adapter": "lora",
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_linear": True,
    "lora_target_modules": ["q_proj"],
    "sequence_len": 256,
    "sample_packing": True,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 3,
    "optimizer": "adamw_bnb_8bit",
    "learning_rate": "2e-4",
    "bf16": "auto",
    "wandb_project": None,
    "wandb_name": "mine",
    "warmup_steps": 10,
    "evals_per_epoch": 4,
    "odd_key": 1,
}
FACTORY: dict[str, Any] = {
    "model_name_or_path": "smollm2-135m",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "q_proj, v_proj",
    "dataset": "mine,identity",
    "template": "llama3",
    "cutoff_len": 128,
    "max_samples": 10,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "val_size": 0.1,
    "plot_loss": True,
}


@pytest.fixture
def alpaca(tmp_path: Path) -> Path:
    lines = [{"instruction": f"say {i}", "input": "", "output": f"it is {i}"} for i in range(40)]
    return write_rows(tmp_path / "train.jsonl", lines)


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_axolotl_is_carried_over_and_runs_dry(alpaca: Path, tiny_llama: Path) -> None:
    made = convert(write(alpaca.parent / "axolotl.yaml", AXOLOTL | {"base_model": str(tiny_llama)}))
    recipe = reread(made, alpaca.parent / "recipe.yaml")
    assert (recipe.data.validation, recipe.data.max_tokens) == (0.05, 256)
    assert recipe.technique.model_dump(include={"kind", "rank", "alpha", "dropout", "targets"}) == {
        "kind": "lora", "rank": 32, "alpha": 16, "dropout": 0.05, "targets": "all-linear",
    }  # fmt: skip
    schedule = recipe.schedule
    assert (schedule.batch_rows, schedule.epochs, schedule.learning_rate) == (8, 3, 2e-4)
    assert preview(recipe, offline=True).problems == ()


def test_what_axolotl_says_in_vain_is_named_with_the_reason(alpaca: Path) -> None:
    made = convert(write(alpaca.parent / "axolotl.yaml", AXOLOTL))
    assert set(made.dropped) == {
        "datasets: more.jsonl", "output_dir", "sample_packing", "optimizer", "bf16", "wandb_name", "warmup_steps",
        "evals_per_epoch", "odd_key",
    }  # fmt: skip
    assert made.dropped["odd_key"] == "no counterpart in Tunesmith"
    text = made.text(alpaca.parent)
    assert "#   wandb_name: use track: [wandb]" in text
    assert "  # was lora_r\n  rank: 32" in text
    assert "# was micro_batch_size x gradient_accumulation_steps\n  batch_rows: 8" in text


def test_without_an_adapter_axolotl_moves_every_number(alpaca: Path) -> None:
    made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"adapter": None, "val_set_size": 500}))
    assert made.recipe.technique.kind == "full"
    assert "LoRA only" in made.dropped["lora_r"]
    assert made.dropped["val_set_size"].startswith("500 rows")
    assert made.recipe.data.validation == 0.1


def test_axolotl_chats_name_their_column(alpaca: Path) -> None:
    sets = [{"path": "train.jsonl", "type": "chat_template", "field_messages": "turns"}]
    made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"datasets": sets}))
    assert made.recipe.objective.messages == "turns"  # type: ignore[union-attr]
    sets = [{"path": "train.jsonl", "type": "completion", "field": "output"}]
    made = convert(write(alpaca.parent / "b.yaml", AXOLOTL | {"datasets": sets}))
    assert made.recipe.objective.text == "output"  # type: ignore[union-attr]


def test_axolotl_reward_model_learns_a_reward_and_what_its_data_set_says_is_not_lost(alpaca: Path) -> None:
    made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"reward_model": True}))
    assert made.recipe.objective.kind == "reward"
    chat = {"type": "chat_template.default", "field_messages": "m", "field_chosen": "c", "field_rejected": "r"}
    rest = {"rl": "dpo", "rl_beta": 0.3, "datasets": [{"path": "train.jsonl", "split": "train", **chat}]}
    made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | rest))
    assert made.recipe.objective.model_dump(include={"kind", "beta"}) == {"kind": "preference", "beta": 0.3}
    assert {name for name in made.dropped if name.startswith("datasets: ")} == {f"datasets: {name}" for name in chat}


def test_axolotl_grpo_is_carried_over_and_its_reward_is_to_be_named(alpaca: Path) -> None:
    trl = {"beta": 0.01, "num_generations": 4, "max_completion_length": 64, "reward_funcs": ["r.f"], "use_vllm": True}
    made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"rl": "grpo", "trl": trl}))
    found = made.recipe.objective.model_dump(include={"kind", "beta", "group", "max_new_tokens"})
    assert found == {"kind": "rl", "beta": 0.01, "group": 4, "max_new_tokens": 64}
    assert made.dropped["trl.reward_funcs"].startswith("objective.reward is a Python function of one completion")
    assert made.dropped["trl.use_vllm"] == "no counterpart in Tunesmith"
    assert made.dropped["reward"].startswith("set objective.reward")


def test_llama_factorys_lead_and_answer_loss_are_carried_over(alpaca: Path) -> None:
    rest = {"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0.5, "pref_ftx": 0.2, "dataset": "train.jsonl"}
    made = convert(write(alpaca.parent / "f.yaml", FACTORY | rest))
    found = made.recipe.objective.model_dump(include={"loss", "gamma", "nll"})
    assert found == {"loss": "simpo", "gamma": 0.5, "nll": 0.2}


@pytest.mark.parametrize(("given", "thinking"), [({"enable_thinking": False}, "drop"), ({}, "auto")])
def test_llama_factorys_switch_of_thoughts_is_carried_over(alpaca: Path, given: dict[str, bool], thinking: str) -> None:
    made = convert(write(alpaca.parent / "f.yaml", FACTORY | {"stage": "sft", "dataset": "train.jsonl"} | given))
    assert made.recipe.objective.model_dump()["thinking"] == thinking
    assert "enable_thinking" not in made.dropped


def test_llama_factorys_ppo_stays_ppo_and_its_reward_model_is_named_with_what_to_give(alpaca: Path) -> None:
    rest = {"stage": "ppo", "dataset": "train.jsonl", "reward_model": "saves/rm", "gradient_accumulation_steps": 8}
    raw = {key: value for key, value in FACTORY.items() if key != "per_device_train_batch_size"}
    made = convert(write(alpaca.parent / "f.yaml", raw | rest))
    assert made.recipe.objective.model_dump()["algorithm"] == "ppo"
    assert made.dropped["reward_model"].startswith("objective.reward is a run")
    assert made.dropped["reward"].startswith("set objective.reward")
    assert made.dropped["gradient_accumulation_steps"] == "schedule.batch_rows is the number of rows per optimizer step"


def test_rows_that_cannot_be_read_come_with_the_command_that_drops_them(tmp_path: Path) -> None:
    rows = [{"what they wrote": f"a longer sentence {i}", "team": 0.5 if i == 3 else "ab"[i % 2]} for i in range(40)]
    with pytest.raises(DataError) as error:
        draft(str(write_rows(tmp_path / "odd rows.jsonl", rows)))
    finding, cure = str(error.value).split("; to drop these rows")
    assert "odd rows.jsonl:4: column 'team' must be" in finding
    words = shlex.split(cure.split("`")[-2])
    assert words[:3] == ["tunesmith", "audit", str(tmp_path / "odd rows.jsonl")]
    columns = "objective={kind: classify, text: what they wrote, label: team}"
    assert words[3:] == ["--set", columns, "--fix", str(tmp_path / "odd rows-clean.jsonl")]


def test_rows_with_blank_cells_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [{"what they wrote": f"a longer sentence {i}", "team": "" if i == 3 else "ab"[i % 2]} for i in range(40)]
    made = draft(str(write_rows(tmp_path / "odd rows.jsonl", rows)))
    assert "1 of 40 rows skipped, 'team' is blank (odd rows.jsonl:4)" in made.reasons["data.train"]


def test_a_column_that_is_not_there_is_no_fault_of_rows(rows: Path) -> None:
    for change in ("data.group=foo", "objective={kind: classify, text: klas, label: label}"):
        with pytest.raises(DataError, match="no column") as error:
            draft(str(rows), changes=[change])
        assert "audit" not in str(error.value)


def test_the_guess_is_taken_where_only_its_objective_is_named(tmp_path: Path) -> None:
    lines = [{"words": f"mail {i}", "mood": "ab"[i % 2]} for i in range(30)]
    made = draft(str(write_rows(tmp_path / "r.jsonl", lines)), changes=["objective=classify"])
    assert (made.recipe.objective.text, made.recipe.objective.label) == ("words", "mood")  # type: ignore[union-attr]


def test_axolotl_data_sets_may_be_paths_alone_and_what_is_none_is_told(alpaca: Path) -> None:
    sets: object
    for sets in ("train.jsonl", ["train.jsonl", "more.jsonl"], {"path": "train.jsonl"}):
        made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"datasets": sets, "test_datasets": "held.jsonl"}))
        assert str(made.recipe.data.train).endswith("train.jsonl")
        assert made.recipe.data.validation == "held.jsonl"
    with pytest.raises(RecipeError, match=r"a\.yaml: datasets: expected a path or a mapping with a path, got 7"):
        convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"datasets": [7]}))


def test_axolotl_data_sets_for_pretraining_are_texts(alpaca: Path) -> None:
    raw = {key: value for key, value in AXOLOTL.items() if key != "datasets"}
    sets = [{"path": "train.jsonl", "type": "pretrain", "text_column": "output"}]
    for given, text in ((sets, "output"), ("train.jsonl", "")):
        made = convert(write(alpaca.parent / "a.yaml", raw | {"pretraining_dataset": given}))
        found = made.recipe.objective.model_dump(include={"kind", "text"})
        assert (found, made.recipe.data.train) == ({"kind": "domain", "text": text}, str(alpaca))
        assert "pretraining_dataset" not in made.dropped
    made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"pretraining_dataset": "texts.jsonl"}))
    assert made.dropped["datasets: texts.jsonl"] == "only one file is supported: concatenate them"


def test_methods_that_do_not_exist_here_are_not_replaced_by_others(alpaca: Path) -> None:
    with pytest.raises(RecipeError, match="unknown kind 'bco'"):
        convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"rl": "bco"}))
    with pytest.raises(RecipeError, match="'robust'"):
        convert(write(alpaca.parent / "f.yaml", FACTORY | {"stage": "dpo", "pref_loss": "robust"}), data=str(alpaca))


def test_columns_of_prompts_with_an_input_are_listed_where_they_are_not_converted(alpaca: Path) -> None:
    form = {"field_instruction": "q", "field_input": "i", "field_output": "a"}
    made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"datasets": [{"path": "train.jsonl", "type": form}]}))
    assert {f"datasets: type: {name}" for name in form} <= set(made.dropped)


def test_configurations_without_a_model_or_with_odd_keys_end_in_no_internal_error(alpaca: Path) -> None:
    raw = {key: value for key, value in AXOLOTL.items() if key != "base_model"}
    made = convert(write(alpaca.parent / "a.yaml", raw), data=str(alpaca))
    assert "model" not in yaml.safe_load(made.text(alpaca.parent))
    with pytest.raises(RecipeError, match="the key 1 is not a name"):
        convert(write(alpaca.parent / "a.yaml", AXOLOTL | {1: 2}))
    with pytest.raises(RecipeError, match="not a configuration of"):  # TRL's
        convert(write(alpaca.parent / "t.yaml", {"model_name_or_path": "m", "dataset_name": "d"}), data=str(alpaca))


def test_what_the_next_command_would_refuse_is_not_written(tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(3)])
    with pytest.raises(DataError, match="3 rows are too few for a test split; give 10 or more"):
        draft(str(few))
    more = write_rows(tmp_path / "more.jsonl", [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(30)])
    with pytest.raises(RecipeError, match="objective instruct: needs a decoder, minilm-l6 is an encoder"):
        draft(str(more), changes=["model=minilm-l6"])


def test_axolotl_prompts_by_field_name_theirs(alpaca: Path) -> None:
    form = {"field_instruction": "q", "field_output": "a", "format": "[INST] {instruction}"}
    sets = [{"path": "train.jsonl", "type": form}]
    made = convert(write(alpaca.parent / "a.yaml", AXOLOTL | {"datasets": sets}))
    objective = made.recipe.objective
    assert (objective.prompt, objective.answer) == ("q", "a")  # type: ignore[union-attr]
    assert "datasets: type: format" in made.dropped


def test_llama_factory_is_carried_over_by_its_list_of_data_sets(alpaca: Path, tiny_llama: Path) -> None:
    (alpaca.parent / "data").mkdir()
    listed = {"mine": {"file_name": "../train.jsonl", "columns": {"prompt": "instruction", "response": "output"}}}
    (alpaca.parent / "data" / "dataset_info.json").write_text(json.dumps(listed))
    made = convert(write(alpaca.parent / "f.yaml", FACTORY | {"model_name_or_path": str(tiny_llama)}))
    recipe = reread(made, alpaca.parent / "recipe.yaml")
    assert (recipe.data.rows, recipe.data.max_tokens, recipe.schedule.batch_rows) == (10, 128, 8)
    assert (recipe.schedule.warmup, recipe.objective.prompt) == (0.1, "instruction")  # type: ignore[union-attr]
    assert recipe.technique.targets == ("q_proj", "v_proj")  # type: ignore[union-attr]
    assert set(made.dropped) == {"dataset: identity", "do_train", "template", "lr_scheduler_type", "plot_loss"}
    assert preview(recipe, offline=True).problems == ()


def test_words_where_numbers_stand_are_left_out_with_a_reason(alpaca: Path) -> None:
    words = FACTORY | {"val_size": "auto", "quantization_bit": "nf4"}
    made = convert(write(alpaca.parent / "f.yaml", words), data=str(alpaca))
    assert made.dropped["val_size"] == "auto: the validation split is a fraction or a file"
    assert made.dropped["quantization_bit"] == "nf4: only 4-bit quantization is supported"
    assert made.recipe.technique.kind == "lora"


def test_a_data_set_that_is_only_a_name_needs_its_rows(alpaca: Path) -> None:
    page = write(alpaca.parent / "f.yaml", FACTORY)
    with pytest.raises(RecipeError, match="tunesmith init ROWS --from"):
        convert(page)
    assert convert(page, data=str(alpaca)).recipe.data.train == str(alpaca)


def test_a_yaml_of_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a configuration of axolotl or LLaMA-Factory"):
        convert(write(tmp_path / "x.yaml", {"model": "x"}))


@pytest.mark.parametrize("value", [{"stage": "teleport"}, {"finetuning_type": "freeze"}])
def test_what_cannot_be_done_here_is_refused(value: dict[str, Any], alpaca: Path) -> None:
    with pytest.raises(RecipeError, match="unknown kind"):
        convert(write(alpaca.parent / "f.yaml", FACTORY | value), data=str(alpaca))


def test_marks_on_answers_end_in_a_question_and_never_in_a_guess(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [
        {"instruction": "Do it.", "input": f"to the text {n}", "output": f"done {n}", "was it right": n % 2 == 0}
        for n in range(24)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"^a\.jsonl: was it right may rate the answers"):
        draft(str(file))


def test_where_every_row_fails_nobody_is_told_to_drop_them_all(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "chosen": "a", "rejected": "a"} for i in range(20)]
    with pytest.raises(DataError, match="are the same answer") as error:
        draft(str(write_rows(tmp_path / "r.jsonl", rows)))
    assert "to drop such rows" not in str(error.value)


def test_a_disk_without_room_leaves_no_half_recipe(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, out = draft(str(rows)), rows.parent / "recipe.yaml"

    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\); free some space$"):
        made.write(out)
    assert not [*rows.parent.glob("*recipe*")]


def test_documents_are_counted_in_windows_and_few_are_told_how_to_be_cut(tmp_path: Path) -> None:
    books = write_rows(tmp_path / "books.jsonl", [{"text": f"book {i}. " + "word " * 4000} for i in range(20)])
    made = draft(str(books), changes=["objective=domain"])
    assert "rank 8 is enough for 280 rows" in made.reasons["technique"]
    few = write_rows(tmp_path / "few.jsonl", [{"text": f"book {i}. " + "word " * 4000} for i in range(3)])
    with pytest.raises(DataError, match=r"3 rows are too few .* split them: `tunesmith collect .* --as domain --out"):
        draft(str(few), changes=["objective=domain"])


def test_many_labels_are_counted_in_max_tokens_and_a_recipe_without_room_for_a_text_is_refused(
    tmp_path: Path, tiny_llama: Path
) -> None:
    lines = [{"text": f"text number {i} is about something", "label": f"some_intent_{i % 90}"} for i in range(900)]
    rows = str(write_rows(tmp_path / "r.jsonl", lines))
    made = draft(rows, changes=[f"model={tiny_llama}"]).recipe
    assert made.data.max_tokens >= 90 * len("some_intent_10, ") / 2
    raw = {"data": {"train": rows, "max_tokens": 64}, "model": str(tiny_llama), "objective": {"kind": "classify"}}
    short, _ = make_recipe(raw, place="r.yaml")
    with pytest.raises(Refused, match=r"its 90 labels and the answer take \d+ of data\.max_tokens 64"):
        prepare(short, on_event=lambda event: None, offline=True)


def test_a_share_may_be_a_percentage() -> None:
    data = {"train": "r.jsonl", "test": "20%", "validation": " 2.5 % "}
    made, _ = make_recipe({"data": data, "objective": {"kind": "classify"}}, place="r.yaml")
    assert (made.data.test, made.data.validation) == (0.2, 0.025)


@pytest.mark.parametrize(
    ("stage", "columns", "named", "left"),
    [
        ("sft", {"prompt": "instruction", "response": "long"}, {"prompt": "instruction", "answer": "long"}, set()),
        ("sft", {"prompt": "q", "query": "about", "response": "a"}, {}, {"prompt: q", "query: about", "response: a"}),
        ("sft", {"prompt": "instruction", "query": "input", "response": "output"}, {}, set()),
        ("pt", {"prompt": "body"}, {"text": "body"}, set()),
        ("dpo", {"prompt": "q", "chosen": "c", "system": "s"}, {"prompt": "q", "chosen": "c"}, {"system: s"}),
    ],
)
def test_llama_factorys_columns_are_named_or_told(
    tmp_path: Path, stage: str, columns: dict[str, str], named: dict[str, str], left: set[str]
) -> None:
    (tmp_path / "data").mkdir()
    listed = {"mine": {"file_name": "rows.jsonl", "columns": columns}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(listed))
    made = convert(write(tmp_path / "f.yaml", FACTORY | {"stage": stage, "dataset": "mine"}))
    ours = ("prompt", "answer", "text", "chosen", "rejected")
    told = {key: value for key in ours if (value := made.recipe.objective.model_dump().get(key))}
    assert told == named
    assert {name.removeprefix("columns.") for name in made.dropped if name.startswith("columns.")} == left


def test_what_llama_factory_says_of_a_data_set_is_read_or_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    told = {"hf_hub_url": "a/adgen", "split": "train", "subset": "en", "num_samples": 500, "tags": {"role_tag": "r"}}
    listed = {"mine": told, "held": {"hf_hub_url": "a/adgen", "split": "validation"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(listed))
    made = convert(write(tmp_path / "f.yaml", FACTORY | {"dataset": "mine", "eval_dataset": "held"}))
    assert (made.recipe.data.train, made.recipe.data.validation) == ("a/adgen:train", "a/adgen:validation")
    assert {"mine: subset", "mine: num_samples", "mine: tags"} <= set(made.dropped)
    assert made.dropped["mine: num_samples"] == "use data.rows"


def test_files_beyond_the_first_are_told(tmp_path: Path) -> None:
    sets = {"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "alpaca"}
    held = [{"path": "json", "data_files": ["v.jsonl"], "split": "train"}, {"path": "w.jsonl"}]
    made = convert(write(tmp_path / "x.yaml", AXOLOTL | {"datasets": [sets], "test_datasets": held}))
    assert (made.recipe.data.train, made.recipe.data.validation) == ("a.jsonl", "v.jsonl")
    assert {"datasets: b.jsonl", "test_datasets: w.jsonl"} <= set(made.dropped)


def test_axolotls_gamma_of_simpo_is_carried_over_and_a_fault_names_the_file(tmp_path: Path) -> None:
    made = convert(write(tmp_path / "x.yaml", AXOLOTL | {"rl": "simpo", "simpo_gamma": 1.2}))
    assert made.recipe.objective.model_dump()["gamma"] == 1.2
    page = write(tmp_path / "y.yaml", AXOLOTL | {"batch_size": 4, "micro_batch_size": 2})
    with pytest.raises(RecipeError, match=r"y\.yaml: .*the same setting with different values"):
        convert(page)
