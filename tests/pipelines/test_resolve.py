from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config import Recipe, load_recipe, make_recipe
from tunesmith.config.resolve import as_changes, resolve_recipe
from tunesmith.errors import DataError, RecipeError
from tunesmith.objectives import Classify
from tunesmith.techniques import Lora, Prefix, Prompt, PTuning


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Forty labelled sentences, two to a thread."""
    rows: list[dict[str, object]] = [
        {"text": f"sentence {i}", "label": ("good", "bad")[i % 2], "thread": i // 2} for i in range(40)
    ]
    return write(tmp_path / "reviews.jsonl", rows)


def test_rows_alone_become_the_default_recipe_and_what_was_found_is_told(reviews: Path):
    asked = resolve_recipe(reviews)
    recipe = asked.recipe
    assert (recipe.model, recipe.objective.kind, recipe.technique.kind) == ("minilm-l6", "classify", "full")
    assert (recipe.data.train, recipe.data.group) == (str(reviews), "thread")
    assert asked.notes == (
        "detected text_label: text -> input text, label -> target",
        "rows with the same 'thread' stay in one split (--set data.group= for no groups)",
        "model: minilm-l6: for labels the encoder is expected to do as well in a tenth of the time; "
        "--model smollm2-135m tunes the decoder instead",
        "epochs: 5, about 9 steps (change with --set schedule.epochs=N)",
    )
    assert resolve_recipe(reviews, changes=["schedule.epochs=2"]).recipe.schedule.epochs == 2
    whole = resolve_recipe(reviews, changes=["schedule={epochs: 2}"])
    assert whole.recipe.schedule.epochs == 2
    assert not any("passes over" in note for note in whole.notes)
    assert (
        resolve_recipe(reviews, changes=["schedule.batch_rows=8"]).recipe.schedule.epochs == 1
    )  # who sets one sets all


def test_chats_that_call_tools_are_compared_by_their_calls_and_are_not_cut():
    asked = resolve_recipe("examples/tools.jsonl")
    assert asked.recipe.objective.metric == "tool_calls"
    assert asked.recipe.data.max_tokens == 704
    assert "metric: tool_calls: 166 of 200 rows call a tool" in " ".join(asked.notes)
    named = resolve_recipe("examples/tools.jsonl", changes=["objective.metric=rouge_l", "data.max_tokens=256"])
    assert (named.recipe.objective.metric, named.recipe.data.max_tokens) == ("rouge_l", 256)


def test_a_key_of_another_kind_names_that_kind(reviews: Path):
    with pytest.raises(RecipeError, match="'technique.rank', it belongs to technique lora; known keys: kind"):
        resolve_recipe(reviews, changes=["technique=full", "lora_r=8"])
    with pytest.raises(RecipeError, match="'objective.thinking', it belongs to objective instruct; known keys"):
        resolve_recipe(reviews, changes=["objective.thinking=learn"])


def test_a_named_model_a_recipe_file_and_decoder_settings_keep_the_decoder_with_lora(reviews: Path):
    file = reviews.with_name("r.yaml")
    file.write_text("data: {train: reviews.jsonl}\nobjective: classify\n")
    words = "objective={kind: classify, output: words}"
    asked = [
        resolve_recipe(reviews, changes=["model=smollm2-135m"]),
        resolve_recipe(reviews, changes=["objective.instruction=Good?"]),
        resolve_recipe(reviews, changes=[words]),
        resolve_recipe(file),
    ]
    assert {(one.recipe.model, one.recipe.technique.kind) for one in asked} == {("smollm2-135m", "lora")}
    encoder = resolve_recipe(reviews, changes=["technique.rank=4"]).recipe
    assert (encoder.model, encoder.technique.kind, encoder.compare.model) == ("minilm-l6", "lora", "smollm2-135m")


def test_prompts_and_answers_become_an_instruct_recipe(tmp_path: Path):
    path = write(tmp_path / "qa.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(20)])
    assert resolve_recipe(path).recipe.objective.kind == "instruct"


def test_the_group_can_be_refused_and_chosen(reviews: Path):
    for change, column in (("data.group=", ""), ("data.group=label", "label")):
        asked = resolve_recipe(reviews, changes=[change])
        assert asked.recipe.data.group == column
        assert not any("one side of the split" in note for note in asked.notes)


def test_a_group_column_with_few_groups_or_with_gaps_is_left_alone(tmp_path: Path):
    few: list[dict[str, object]] = [{"text": f"t{i}", "label": i % 2, "group": i % 3} for i in range(40)]
    gaps = [row | {"group": "" if i == 5 else f"g{i // 2}"} for i, row in enumerate(few)]
    every = [row | {"group": i} for i, row in enumerate(few)]
    for rows in (few, gaps, every):
        assert resolve_recipe(write(tmp_path / "x.jsonl", rows)).recipe.data.group == ""


def test_changes_are_applied_with_other_tools_names_translated_and_told(reviews: Path):
    asked = resolve_recipe(reviews, changes=["lora_r=4", "schedule.epochs=3", "objective.instruction=Good?"])
    assert asked.recipe.technique.model_dump()["rank"] == 4
    assert asked.recipe.schedule.epochs == 3
    assert asked.recipe.objective.instruction == "Good?"
    assert "lora_r -> technique.rank: 4" in asked.notes
    from_python = resolve_recipe(reviews, changes=as_changes({"lora_target": "all", "objective": "classify"}))
    assert from_python.recipe.technique.model_dump()["targets"] == "all-linear"


def test_values_of_other_tools_are_translated_wherever_a_change_is_read():
    raw = {"data": "x.jsonl", "objective": {"kind": "rl", "num_generations": 4, "reward": "rules:score"}}
    recipe, notes = make_recipe(raw, place="r", changes=["peft_type=PROMPT_TUNING", "data.group="])
    assert (recipe.technique.kind, recipe.data.group, recipe.objective.model_dump()["group"]) == ("prompt", "", 4)
    inside, _ = make_recipe(raw, place="r", changes=["technique={kind: lora, lora_r: 4}", "technique.lora_alpha=2"])
    assert inside.technique.model_dump(include={"rank", "alpha"}) == {"rank": 4, "alpha": 2}
    assert notes == ["objective.num_generations -> objective.group: 4", "peft_type -> technique.kind: prompt"]


@pytest.mark.parametrize(
    "words",
    [
        {"lora_r": 32, "adapter": "qlora"},
        {"num_virtual_tokens": 8, "peft_type": "PROMPT_TUNING"},
        {"target_modules": ["q_proj"], "peft_type": "IA3"},
    ],
)
def test_a_technique_may_be_named_behind_its_settings(words: dict[str, Any]):
    raw = {"data": "x.jsonl", "objective": "instruct"}
    before, behind = (
        make_recipe({**raw, **dict(order)}, place="r")[0] for order in (words.items(), reversed(words.items()))
    )
    assert before.technique == behind.technique != make_recipe(raw, place="r")[0].technique


def test_gradient_accumulation_that_nothing_is_multiplied_by_is_told_and_not_lost():
    raw = {"data": "x.jsonl", "objective": "classify", "gradient_accumulation_steps": 4}
    assert make_recipe(raw, place="r")[1] == [
        "gradient_accumulation_steps is ignored: schedule.batch_rows is the number of rows per optimizer step"
    ]
    assert (
        "is ignored"
        in make_recipe({**raw, "micro_batch_size": 2, "gradient_accumulation_steps": "auto"}, place="r")[1][0]
    )
    (note,) = make_recipe({**raw, "micro_batch_size": 2}, place="r")[1]
    assert note == "micro_batch_size x gradient_accumulation_steps -> schedule.batch_rows: 8"


def test_an_objective_that_is_named_is_not_detected(tmp_path: Path):
    path = write(tmp_path / "odd.jsonl", [{"body_of_it": f"t{i}", "verdict": i % 2} for i in range(20)])
    with pytest.raises(DataError, match="no known format"):
        resolve_recipe(path)
    asked = resolve_recipe(path, changes=["objective={kind: classify, text: body_of_it, label: verdict}"])
    assert asked.recipe.objective.kind == "classify"
    assert not any("detected" in note for note in asked.notes)


def test_a_recipe_file_is_read_and_its_detected_columns_are_told(reviews: Path):
    path = reviews.with_name("recipe.yaml")
    path.write_text("data: reviews.jsonl\nobjective: classify\ntechnique: {kind: lora, rank: 4}\n")
    asked = resolve_recipe(path, changes=["technique=full"])
    assert asked.recipe.technique.kind == "full"
    assert asked.recipe.data.train == str(reviews)
    assert asked.notes == ("detected text_label: text -> input text, label -> target",)


@pytest.mark.parametrize("column", ["prompt", "question", "text"])
def test_a_file_of_prompts_alone_is_one_for_rl(column: str, tmp_path: Path):
    rows = write(tmp_path / "prompts.jsonl", [{column: f"what is {i}"} for i in range(20)])
    changes = ["objective.kind=rl", "objective.reward=rules:short"]
    assert resolve_recipe(rows, changes=changes).notes[0] == f"detected prompts: {column} -> user turn"


def test_a_recipe_that_names_its_columns_has_nothing_to_tell(reviews: Path):
    path = reviews.with_name("recipe.yml")
    path.write_text("data: reviews.jsonl\nobjective: {kind: classify, text: text, label: label}\n")
    assert resolve_recipe(path).notes == ()


def test_a_recipe_in_memory_is_taken_and_changed(reviews: Path):
    recipe = resolve_recipe(reviews).recipe
    changed = resolve_recipe(recipe, changes=["seed=7"]).recipe
    assert isinstance(changed, Recipe)
    assert changed == recipe.model_copy(update={"seed": 7})


def test_a_file_that_is_not_there_is_an_error_with_its_name(tmp_path: Path):
    with pytest.raises(DataError, match="nothing.csv: no such file"):
        resolve_recipe(tmp_path / "nothing.csv")
    with pytest.raises(RecipeError, match="nothing.yaml: no such file"):
        resolve_recipe(tmp_path / "nothing.yaml")


def test_settings_become_changes_with_sections_opened_and_kinds_kept_whole():
    settings = {
        "model": None,
        "technique": {"kind": "lora", "rank": 8},
        "schedule": {"epochs": 2},
        "data": {"where": {"label": ["a"]}},
        "style": {"most.words": 3},
        "reward": {"rules.py:score": 1.0},
        "out": Path("x"),
    }
    assert as_changes(settings) == [
        'technique={"kind": "lora", "rank": 8}',
        "schedule.epochs=2",
        'data.where={"label": ["a"]}',
        'style={"most.words": 3}',
        'reward={"rules.py:score": 1.0}',
        'out="x"',
    ]


def test_words_of_ours_are_read_before_files_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("votes", "page", "self"):
        (tmp_path / name).mkdir()
    page = tmp_path / "recipe.yaml"
    text = "data: rows.jsonl\nobjective: {kind: rl, reward: REWARD}\nloop: {judge: page}\nreplay: {share: 0.1}\n"
    page.write_text(text.replace("REWARD", "votes"))
    recipe, _ = load_recipe(page)
    assert (recipe.objective.reward, recipe.loop.judge, recipe.replay.source) == ("votes", "page", "self")  # type: ignore[union-attr]
    page.write_text(text.replace("REWARD", "{votes: 1.0, ./votes: 0.5}"))
    recipe, _ = load_recipe(page)
    assert recipe.objective.reward == {"votes": 1.0, str(tmp_path / "votes"): 0.5}  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path)
    recipe, _ = load_recipe("recipe.yaml")
    assert recipe.objective.reward == {"votes": 1.0, "./votes": 0.5}  # type: ignore[union-attr]
    page.write_text(text.replace("REWARD", "./votes"))
    recipe, _ = load_recipe("recipe.yaml", changes=["replay.source=./self"])
    assert (recipe.objective.reward, recipe.replay.source) == ("./votes", "./self")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("objective: domain\nobjective: instruct\n", r"recipe.yaml:2: invalid YAML .duplicate key 'objective'"),
        ("objective: {kind: multitask, tasks: {true: {}}}\n", r"the key 'true' is a boolean, quote it"),
        ("objective: domain\nreplay: 0.1\n", r"replay: expected a mapping of keys, got 0.1; "),
        ("objective: {kind: domain, terms: pump}\n", r"objective\.terms: expected a list"),
        (
            "objective: {kind: multitask, tasks: {my task: {}}}\n",
            r"objective\.tasks\.my task: expected a name",
        ),
        (
            "objective: {kind: multitask, tasks: {a: {data: {train: x, max_tokens: 9}, objective: domain}}}\n",
            r"tasks\.a\.data\.max_tokens', data\.max_tokens applies to all tasks; known keys: group, rows, split, test",
        ),
    ],
)
def test_a_recipe_that_says_two_things_or_the_wrong_kind_is_refused_in_words(text: str, finding: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=finding):
        resolve_recipe(tmp_path / "recipe.yaml")


def test_a_file_that_is_missed_is_sought_beside_the_recipe(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("data: {train: rows.jsonl}\nobjective: domain\n")
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / 'rows.jsonl'))}: no such file"):
        resolve_recipe(tmp_path / "recipe.yaml")


def test_what_a_recipe_writes_beside_a_shorthand_is_kept():
    technique = {"kind": "dora", "rank": 4, "dora": False}
    recipe, _ = make_recipe({"technique": technique, "data": "a.jsonl", "objective": "domain"}, place="r")
    assert recipe.technique == Lora(rank=4, dora=False)


@pytest.mark.parametrize(
    ("written", "change", "section"),
    [
        ({"teacher": "runs/big"}, "teacher.rows=more.jsonl", {"model": "runs/big", "rows": "more.jsonl"}),
        ({"documents": "docs"}, "documents.size=80", {"source": "docs", "size": 80}),
        ({"retention": False}, "retention.texts=4", {"questions": 0, "texts": 4}),
        ({"retention": True}, "retention.texts=4", {"questions": 400, "texts": 4}),
        ({"ledger": False}, "ledger.max_new_tokens=9", {"rows": 0, "max_new_tokens": 9}),
        ({"technique": "dora"}, "technique.rank=4", {"kind": "lora", "dora": True, "rank": 4}),
        ({}, "technique.rank=4", {"kind": "lora", "rank": 4}),
    ],
)
def test_a_change_inside_a_section_keeps_its_shorthand(written: dict[str, Any], change: str, section: dict[str, Any]):
    name = change.partition(".")[0]
    raw = {"data": "a.jsonl", "objective": "domain", **written}
    for found, _ in (
        make_recipe(raw, place="r", changes=[change]),
        make_recipe(
            {"data": "a.jsonl", "objective": "domain"},
            place="r",
            changes=[*(f"{key}={json.dumps(value)}" for key, value in written.items()), change],
        ),
    ):
        assert section.items() <= getattr(found, name).model_dump().items()


def test_minutes_of_a_verdict_may_be_changed_where_they_were_written_alone():
    raw = {"data": "a.jsonl", "objective": "domain", "verdict": 5}
    assert make_recipe(raw, place="r")[0].verdict.minutes == 5
    assert make_recipe(raw, place="r", changes=["verdict.minutes=all"])[0].verdict.minutes == "all"


@pytest.mark.parametrize(
    ("more", "finding"),
    [
        ("seed: -1", "r.yaml:4: seed: expected a number >= 0, got -1; use 0, the default"),
        ("seed: 20261126154500", "seed: expected a number < 2147483648, got 20261126154500"),
        ("seed: 2024-13-45", "invalid YAML .month must be in 1..12.; fix this line"),
        ("style: " + "[" * 3000, "invalid YAML .*; fix this line"),
        ("schedule: {epochs: .inf}", "schedule.epochs: .* finite number"),
        ("gates: {min_delta: .nan}", "gates.min_delta: .* finite number"),
        ("schedule: {eval_steps: -1}", "schedule.eval_steps: expected a number >= 0 or auto, got -1"),
        ("schedule: fast\nepochs: 2", "unknown key 'epochs'|schedule: expected a mapping"),
        (
            "technique: [lora]\nlora_r: 8",
            r"technique: expected a mapping of keys, got \['lora'\]; write lora_r",
        ),
        ("schedule: {epochs: 3}\nnum_train_epochs: 1", "num_train_epochs and schedule.epochs are the same setting"),
        ("base_model: smollm2-135m", "base_model and model are the same setting with different values; remove one"),
        ("schedule: {epochs: 3, num_train_epochs: 1}", "num_train_epochs and schedule.epochs are the same setting"),
    ],
)
def test_a_recipe_with_nonsense_or_two_values_for_one_setting_is_refused_before_anything_runs(
    tmp_path: Path, more: str, finding: str
):
    place = tmp_path / "r.yaml"
    place.write_text(f"model: minilm-l6\ndata: m.jsonl\nobjective: classify\n{more}\n")
    with pytest.raises(RecipeError, match=finding):
        load_recipe(place)
    with pytest.raises(RecipeError, match=f"{tmp_path.name}: is a folder; name the recipe in it"):
        load_recipe(tmp_path)


def test_yes_and_no_are_words_in_a_recipe_and_true_and_false_alone_are_truth_values(tmp_path: Path):
    place = tmp_path / "r.yaml"
    rows = "data: {train: m.jsonl, where: {lang: [no, da, on]}}"
    place.write_text(f"model: minilm-l6\n{rows}\nobjective: {{kind: classify, labels: [yes, no]}}\ncontrols: true\n")
    found, _ = load_recipe(place, changes=["data.where.on=[off, y]", "gates.min_delta=0"])
    assert found.data.where == {"lang": ["no", "da", "on"], "on": ["off", "y"]}
    assert isinstance(found.objective, Classify)
    assert (found.objective.labels, found.controls) == (("yes", "no"), True)
    place.write_text(f"model: minilm-l6\n{rows}\nobjective: classify\ncontrols: no\n")
    assert load_recipe(place)[0].controls is False


def test_two_spellings_of_one_value_are_one_and_data_may_be_changed_to_a_file():
    wanted = {"model": "minilm-l6", "data": "m.jsonl", "objective": "classify", "technique": "lora", "adapter": "lora"}
    recipe, _ = make_recipe(wanted, place="r.yaml", changes=["data=p.jsonl"])
    assert (recipe.technique.kind, recipe.data.train) == ("lora", "p.jsonl")


@pytest.mark.parametrize(
    ("word", "technique"),
    [
        ("LoRA", Lora()),
        ("QLORA", Lora(quantize="nf4")),
        ("PREFIX_TUNING", Prefix()),
        ("prefix_tuning", Prefix()),
        ("prompt_tuning", Prompt()),
        ("prompt-tuning", Prompt()),
        ("p_tuning", PTuning()),
    ],
)
def test_a_technique_may_be_called_as_in_peft_and_in_any_case(word: str, technique: object):
    raw = {"data": "a.jsonl", "objective": "domain"}
    assert make_recipe(raw | {"technique": {"kind": word}}, place="r")[0].technique == technique
    assert make_recipe(raw, place="r", changes=[f"technique={word}"])[0].technique == technique


def test_pefts_r_is_the_rank_and_a_blank_section_is_none():
    raw = {"data": "a.jsonl", "objective": "domain", "technique": {"kind": "lora", "r": 4}, "gates": None}
    recipe, notes = make_recipe(raw, place="r")
    assert (recipe.technique, recipe.gates.min_delta) == (Lora(rank=4), None)
    assert notes == ["technique.r -> technique.rank: 4"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("bf16=true", "bf16: not supported: chosen automatically by a measurement; remove it"),
        ("schedule.steps=9", "schedule.steps: not supported: the length of training is set in epochs: schedule.epochs"),
        ("max_steps=9", "max_steps: not supported: the length of training is set in epochs: schedule.epochs"),
        ("load_in_4bit=true", "load_in_4bit: not supported: use technique: qlora"),
        ("technique.modules_to_save=[x]", "technique.modules_to_save: not supported: only the adapter and the head"),
        ("technique.tokens=9", "unknown key 'technique.tokens'"),  # another technique has it
    ],
)
def test_keys_of_other_trainers_are_refused_with_why_none_is_needed(change: str, finding: str):
    with pytest.raises(RecipeError, match=re.escape(finding)):
        make_recipe({"data": "a.jsonl", "objective": "domain"}, place="r", changes=[change])


@pytest.mark.parametrize(
    ("file", "change", "place"),
    [
        ({}, "technique=lorra", "technique=lorra: unknown kind"),
        ({}, "objective.kind=clasify", "objective.kind=clasify: objective: unknown kind"),
        ({}, "lora_r=0", "lora_r=0: technique.rank: "),
        ({}, "schedul.epochs=1", "schedul.epochs=1: unknown key 'schedul'"),
        ({"technique": {"kind": "lora", "rank": 8}}, "technique.kind=ia3", "technique.kind=ia3: unknown key"),
        ({"technique": "lorra"}, "technique.rank=8", "r.yaml: technique: unknown kind"),
        ({"seed": -1}, "technique.rank=8", "r.yaml: seed: "),
    ],
)
def test_a_fault_is_told_with_the_place_that_it_stands_in(file: dict[str, Any], change: str, place: str):
    with pytest.raises(RecipeError, match=rf"^{re.escape(place)}"):
        make_recipe({"data": "a.jsonl", "objective": "domain"} | file, place="r.yaml", changes=[change])


def test_a_recipe_in_json_is_told_from_rows(reviews: Path):
    made, rows = reviews.with_name("r.json"), reviews.with_name("rows.json")
    made.write_text(json.dumps({"data": {"train": "reviews.jsonl"}, "objective": "classify", "seed": 3}))
    assert resolve_recipe(made).recipe.seed == 3
    rows.write_text(
        json.dumps({"objective": "x", "data": [{"text": f"a {i}", "label": "pn"[i % 2]} for i in range(9)]})
    )
    assert resolve_recipe(rows).recipe.data.train == str(rows)


def test_a_recipe_with_a_byte_order_mark_is_read_as_one(reviews: Path):
    raw = json.dumps({"data": {"train": "reviews.jsonl"}, "objective": "classify", "seed": 3}, indent="\t")
    for name, text in (("r.json", raw), ("r.yaml", "data: reviews.jsonl\nobjective: classify\nseed: 3\n")):
        page = reviews.with_name(name)
        page.write_text(text, encoding="utf-8-sig")
        assert resolve_recipe(page).recipe.seed == 3


def test_passes_over_documents_are_counted_in_windows(tmp_path: Path):
    write(tmp_path / "books.jsonl", [{"text": "word " * 3072} for _ in range(32)])
    # 15,360 bytes are about 5,120 tokens, 10 windows of 512: 320 of all, of which 0.7 are trained on.
    (told,) = [note for note in resolve_recipe(tmp_path / "books.jsonl").notes if note.startswith("epochs")]
    assert told.startswith("epochs: 5, about 70 steps")


def test_places_that_no_disk_can_hold_and_pages_in_utf16_are_one_line(reviews: Path, tmp_path: Path):
    for place in (reviews / "x.yaml", tmp_path / f"{'n' * 300}.yaml"):
        with pytest.raises(RecipeError, match=r"\.yaml: cannot be read \(.*\); check the path$"):
            resolve_recipe(place)
    for source in (f"{'n' * 300}.jsonl", f"{'n' * 300}/x.jsonl"):
        with pytest.raises(DataError, match="no such file"):
            resolve_recipe(source)
        page = tmp_path / "recipe.yaml"
        page.write_text(f"data: {source}\nobjective: domain\n")
        with pytest.raises(DataError, match="no such file"):
            resolve_recipe(page)
    page.write_text("objective: domain\n", encoding="utf-16")
    with pytest.raises(RecipeError, match="not UTF-8; save the file as UTF-8"):
        resolve_recipe(page)


def test_a_technique_in_capitals_with_a_slip_is_told_the_nearest(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("data: {train: x.jsonl}\nobjective: domain\ntechnique: PREFX\n")
    with pytest.raises(RecipeError, match="unknown kind 'PREFX', did you mean 'prefix'"):
        resolve_recipe(tmp_path / "recipe.yaml")


def test_letters_beyond_two_bytes_come_through_changes_and_json(reviews: Path, tmp_path: Path):
    said = "Be kind 😀"
    assert resolve_recipe(reviews, changes=as_changes({"objective": {"kind": "classify", "instruction": said}})).recipe
    page = tmp_path / "recipe.json"
    raw = {"data": reviews.name, "objective": {"kind": "classify", "instruction": said}}
    page.write_text(json.dumps(raw, indent="\t"))
    for found in (
        resolve_recipe(reviews, changes=as_changes({"objective": {"kind": "classify", "instruction": said}})).recipe,
        load_recipe(page)[0],
    ):
        assert found.objective.instruction == said
    page.write_text('{"data": "a.jsonl", "data": "b.jsonl"}')
    with pytest.raises(RecipeError, match="duplicate key 'data'"):
        load_recipe(page)


def test_a_number_sign_in_a_sentence_begins_no_comment(reviews: Path):
    for sentence in ("Answer question #3 briefly", "Issue #3: answer"):
        found = resolve_recipe(reviews, changes=[f"objective.instruction={sentence}"]).recipe
        assert found.objective.instruction == sentence
    assert (
        resolve_recipe(reviews, changes=["objective.instruction='Answer' # so"]).recipe.objective.instruction
        == "Answer"
    )


def test_every_model_that_a_recipe_names_is_sought_beside_it(tmp_path: Path):
    (tmp_path / "m").mkdir()
    page = tmp_path / "recipe.yaml"
    page.write_text(
        "data: rows.jsonl\nmodel: ./m\nobjective: instruct\ncompare: {model: ./m}\ndocuments: {encoder: ./m}\n"
    )
    recipe, _ = load_recipe(page)
    assert {recipe.model, recipe.compare.model, recipe.documents.encoder} == {str(tmp_path / "m")}
