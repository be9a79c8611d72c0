"""The grid over tiny models: which cells there are, what they share, and what is read off finished ones."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from bench.technique_grid import cells as grid
from bench.technique_grid.cells import Cell, Setting, cells, recipe_of
from bench.technique_grid.report import Grid, RowScores, RunResult, page
from bench.technique_grid.run import (
    FAILED,
    REFUSED,
    _pair,
    _pairs,
    _probe_change,
    _verdict,
    begin_with_known_base,
    fill,
    load_results,
    read,
    save_result,
)
from tests.bases import folder
from tests.bench.technique_grid.test_report import cell as line
from tests.bench.technique_grid.test_report import pair
from tests.pipelines.conftest import reviews
from tests.techniques import test_grid as tiny_grid
from tunesmith.config import load_recipe
from tunesmith.data.files import write_whole
from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.evaluation.results import Retention
from tunesmith.events import Event
from tunesmith.metrics.task_scores import ArmScore
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.run_folder import open_run

LORA, IA3 = Cell("classify", "lora", "decoder"), Cell("classify", "ia3", "decoder")


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """An example of 48 short reviews, and tiny models."""
    rows = "".join(f"{row}\n".replace("'", '"') for row in reviews())
    write_whole(tmp_path / "rows.jsonl", rows)
    for name in ("reviews.yaml", "synopsis.yaml", "domain.yaml"):
        objective = {"r": "classify", "s": "instruct", "d": "{kind: domain, text: text}"}[name[0]]
        machine = "machine: {device: cpu, dtype: float32, threads: 1}\nschedule: {probe: false, learning_rate: 0.02}\n"
        write_whole(tmp_path / name, f"data: {{train: rows.jsonl, test: 0.3}}\nobjective: {objective}\n{machine}")
    monkeypatch.setattr(grid, "MODELS", {"decoder": str(folder("llama")), "encoder": str(folder("bert"))})
    return Setting(tmp_path, tmp_path / "runs", tmp_path / "results.jsonl", rows=20)


def test_every_objective_meets_every_technique_on_both_families():
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names) == 14 * 8 + 2  # and two that begin with random numbers
    assert names[:2] == ["classify/lora/decoder", "classify/full/decoder"]


def test_the_tests_on_tiny_models_run_the_same_techniques():
    assert set(tiny_grid.TECHNIQUES) == set(grid.TECHNIQUES)


def test_a_part_of_the_grid_is_chosen_by_pattern_and_a_wrong_one_is_refused():
    assert [cell.name for cell in cells(["*/lora/encoder"])] == [
        "classify/lora/encoder",
        "domain/lora/encoder",
        "instruct/lora/encoder",
        "preference/lora/encoder",
        "reward/lora/encoder",
        "rl/lora/encoder",
        "multitask/lora/encoder",
    ]
    with pytest.raises(RecipeError, match=r"^--only classify/lara/\*: no such cell; write for example "):
        cells(["classify/lara/*"])


def test_a_cell_is_a_recipe_with_controls_but_for_texts_that_have_no_answers(setting: Setting):
    made = recipe_of(Cell("classify", "prefix-random", "decoder"), setting, 3)
    assert (made.technique.kind, made.data.rows, made.seed, made.controls) == ("prefix", 20, 3, True)
    assert made.model == str(folder("llama"))
    assert not recipe_of(Cell("domain", "lora", "encoder"), setting, 0).controls


@pytest.mark.usefixtures("small_world")
def test_cells_are_run_once_share_what_is_known_of_the_base_and_are_compared_row_by_row(setting: Setting):
    said: list[str] = []
    ran: list[str] = []

    def on_event(event: Event) -> None:
        said.append(str(getattr(event, "text", "")))

    def tune(recipe: Path, out: Path) -> tuple[str, str]:
        ran.append(out.name)
        tune_recipe(load_recipe(recipe)[0], out=out, callbacks=Callbacks(on_event))
        return "", ""

    for _ in range(2):
        fill([LORA, IA3], setting, tune=tune, on_event=on_event, stop=lambda: False)
    assert ran == ["classify-lora-decoder-20-0", "classify-ia3-decoder-20-0"]
    assert sum(text.startswith("evaluating the base model") for text in said) == 1
    shutil.rmtree(setting.out)
    found = read(setting)
    one, two = found.cells
    assert (one.technique, two.technique, one.base) == ("lora", "ia3", two.base)
    assert one.trainable > two.trainable > 0
    assert one.head_only is not None
    assert one.shuffled is not None
    (pair,) = found.pairs
    assert (pair.technique, pair.against, pair.n) == ("ia3", "lora", one.test_rows)
    assert pair.delta == pytest.approx(two.tuned - one.tuned)
    assert setting.results.read_text().count("\n") == 2
    assert "domain/lora/decoder" in found.missing
    assert "| ia3 | lora | 0 | " in page(found)


@pytest.mark.usefixtures("small_world")
def test_texts_are_read_without_controls_and_share_the_head_that_the_base_lacks(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.training.mlm_head.FEWEST_STEPS", 2)
    monkeypatch.setitem(grid.TASKS, "domain", replace(grid.TASKS["domain"], row_cost=1))
    said: list[str] = []

    def tune(recipe: Path, out: Path) -> tuple[str, str]:
        callbacks = Callbacks(lambda event: said.append(str(getattr(event, "text", ""))))
        tune_recipe(load_recipe(recipe)[0], out=out, callbacks=callbacks)
        return "", ""

    some = [Cell("domain", name, "encoder") for name in ("lora", "ia3")]
    fill(some, setting, tune=tune, on_event=lambda event: None, stop=lambda: False)
    assert said.count("training a masked-LM head on the frozen encoder") == 1
    one, two = read(setting).cells
    assert (one.head_only, one.shuffled) == (None, None)
    assert one.base == two.base


@pytest.mark.usefixtures("small_world")
def test_a_model_of_several_tasks_has_a_table_for_each(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(
        grid.TASKS, "multitask", replace(grid.TASKS["multitask"], changes=(), tasks=("sentiment", "words"))
    )
    own = "data: {train: rows.jsonl, test: 0.3}"
    write_whole(
        setting.examples / "multitask.yaml",
        "objective:\n  kind: multitask\n  tasks:\n"
        f"    sentiment: {{{own}, objective: classify}}\n"
        f"    words: {{{own}, objective: {{kind: instruct, prompt: text, answer: label}}}}\n"
        "machine: {device: cpu, dtype: float32, threads: 1}\nschedule: {learning_rate: 0.02}\n",
    )

    baselines = "tunesmith.evaluation.evaluators.answers.baselines"
    monkeypatch.setattr(
        baselines,
        lambda prepared, test: (
            {} if prepared.recipe.objective.kind == "instruct" else {"guess": ["neither"] * len(test)}
        ),
    )

    def tune(recipe: Path, out: Path) -> tuple[str, str]:
        tune_recipe(load_recipe(recipe)[0], out=out, callbacks=Callbacks(print))
        return "", ""

    cell = Cell("multitask", "lora", "decoder")
    fill([cell], setting, tune=tune, on_event=print, stop=lambda: False)
    found = read(setting)
    assert [(line.task, line.metric) for line in found.cells] == [("sentiment", "accuracy"), ("words", "rouge_l")]
    assert [line.baseline for line in found.cells] == [("guess", 0.0), None]
    told = page(found)
    assert "## multitask, sentiment, decoder" in told
    assert told.index("## multitask, sentiment") < told.index("## multitask, words")


def result(scores: str = "0001", identity: str = "i", **changes: Any) -> RunResult:
    """A run with one row per group; the base is wrong on all."""
    groups = tuple((f"group {n}", 1) for n in range(len(scores)))
    rows = RowScores(metric="accuracy", digest="d", groups=groups, base="0" * len(scores), tuned=scores)
    run = {
        "rows": 20,
        "controls": True,
        "identity": identity,
        "base_fingerprint": "b",
        "machine": {},
        "row_scores": rows,
    }
    return RunResult(cells=(line(**changes),), **run)


def test_a_row_in_the_test_set_of_several_seeds_counts_once():
    runs = [result(scores="1" * 8 + "0" * 50, seed=seed) for seed in range(3)]
    compared = _pair(runs)
    assert (compared.against, compared.n, compared.seeds) == ("base", 174, (0, 1, 2))
    assert compared.p_value == pytest.approx(_pair(runs[:1]).p_value) == pytest.approx(2 / 256)


def test_runs_on_other_test_rows_are_not_compared():
    one, two = result(), result(technique="full")
    assert two.row_scores is not None
    two = two.model_copy(update={"row_scores": two.row_scores.model_copy(update={"digest": "other"})})
    with pytest.raises(CheckpointError, match="tested on other rows than"):
        _pair([two], [one])


def test_the_p_values_of_the_pairs_of_one_table_are_adjusted_for_each_other(monkeypatch: pytest.MonkeyPatch):
    p_values = {"full": 0.02, "prompt": 0.03, "dora": 0.5}
    made = Mock(side_effect=[pair(technique=name, p_value=value) for name, value in p_values.items()])
    monkeypatch.setattr("bench.technique_grid.run._pair", made)
    found = list(_pairs([result(), *(result(technique=name) for name in p_values)]))
    assert [(one.technique, one.p_adjusted) for one in found] == [("full", 0.06), ("prompt", 0.06), ("dora", 0.5)]


def test_techniques_of_several_seeds_are_compared_with_their_base_too():
    found = list(_pairs([result(), result(seed=1), result(family="encoder")]))
    assert [(one.technique, one.against) for one in found] == [("lora", "base")]
    assert "\nEach technique against its base model, on the test rows of all seeds. " in page(
        Grid(cells=(line(),), pairs=tuple(found), refused={}, missing=())
    )


def test_results_are_stored_once_per_key_and_read_back(tmp_path: Path):
    path = tmp_path / "new" / "results.jsonl"
    assert load_results(path) == {}
    runs = [result(), result(seed=1, scores="0110"), result(identity="j")]
    for run in runs:
        save_result(path, run)
    assert list(load_results(path).values()) == [runs[2], runs[1]]
    path.write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"results.jsonl:1: rows: Field required; delete the line"):
        load_results(path)


def test_a_base_without_a_right_probe_answer_has_a_change_too():
    kept = Retention(general_nll_base=1.0, general_nll_tuned=1.0, probe_base=0.0, probe_tuned=0.25)
    assert _probe_change(kept) == 0.25
    assert _probe_change(kept.model_copy(update={"probe_tuned": None})) is None


def test_a_run_folder_of_another_recipe_is_skipped_and_lends_no_base(setting: Setting):
    old = setting.folder(LORA, 0)
    open_run(recipe_of(LORA, replace(setting, rows=10), 0), old).begin({})
    for name in ("report.json", "before.json"):
        write_whole(old / name, "{}")
    logged: list[str] = []
    ran: list[str] = []

    def tune(recipe: Path, out: Path) -> tuple[str, str]:
        ran.append(out.name)
        return "", ""

    fill([LORA, IA3], setting, tune=tune, on_event=lambda event: logged.append(event.text), stop=lambda: False)
    assert ran == ["classify-ia3-decoder-20-0"]
    assert logged[0].startswith(f"{old}: ")
    assert not setting.folder(IA3, 0).exists()
    assert LORA.name in read(setting).missing


def test_a_result_of_another_recipe_is_not_shown_and_is_run_again(setting: Setting):
    save_result(setting.results, result())
    found = read(setting)
    assert (found.cells, found.stale) == ((), (LORA.name,))
    assert LORA.name not in found.missing
    assert "a new run replaces them.\n\n- classify, decoder: lora\n" in page(found)
    ran: list[Path] = []

    def tune(recipe: Path, out: Path) -> tuple[str, str]:
        ran.append(out)
        return "", ""

    fill([LORA], setting, tune=tune, on_event=print, stop=lambda: False)
    assert len(ran) == 1


def test_a_base_that_was_half_copied_is_copied_anew(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    known, recipe = setting.folder(LORA, 0), recipe_of(IA3, setting, 0)
    open_run(recipe_of(LORA, setting, 0), known).begin({"base": "b"})
    (known / "base_head").mkdir()
    for name in ("before.json", "base_head/w"):
        write_whole(known / name, "{}")
    relatives = [(recipe_of(LORA, setting, 0), known)]
    folder = open_run(recipe, setting.folder(IA3, 0))
    with monkeypatch.context() as disk:
        disk.setattr("shutil.copytree", Mock(side_effect=OSError("full")))
        with pytest.raises(OSError, match="full"):
            begin_with_known_base(folder, recipe, iter(relatives))
    assert not open_run(recipe, folder.path).started
    begin_with_known_base(folder, recipe, iter(relatives))
    assert folder.page() == {"identity": folder.identity, "base": "b"}
    assert (folder.path / "base_head" / "w").exists()
    assert sorted(path.name for path in setting.out.iterdir()) == [folder.path.name, known.name]


def test_a_pair_that_cannot_work_is_told_with_the_nearest_that_can_and_never_run(setting: Setting):
    cell = Cell("instruct", "lora", "encoder")
    fill([cell], setting, tune=lambda recipe, out: pytest.fail("it ran"), on_event=print, stop=lambda: False)
    assert "nearest that works:" in read(setting).refused[cell.name]


def test_what_only_the_network_can_refuse_is_kept_and_told(setting: Setting):
    why = "technique prefix: a bert takes no keys; nearest that works: prompt"
    fill([LORA], setting, tune=lambda recipe, out: (REFUSED, why), on_event=print, stop=lambda: False)
    assert read(setting).refused == {**read(setting).refused, LORA.name: why}


def test_what_broke_is_not_run_yet_with_its_reason_until_it_is_run_again(setting: Setting):
    why = "smollm2-135m: no such folder, and offline; connect once"
    fill([LORA], setting, tune=lambda recipe, out: (FAILED, why), on_event=print, stop=lambda: False)
    found = read(setting)
    assert LORA.name in found.missing
    assert LORA.name not in found.refused
    assert f"Started, and failed:\n\n- {why} (`{LORA.name}`)" in page(found)
    fill([LORA], setting, tune=lambda recipe, out: ("", ""), on_event=print, stop=lambda: False)
    assert read(setting).failed == {}


def test_a_gain_that_no_control_saw_says_so():
    task = SimpleNamespace(verdict="better")
    assert _verdict(SimpleNamespace(task=task, controls=[])) == "better, no control run"  # type: ignore[arg-type]
    worse = SimpleNamespace(task=SimpleNamespace(verdict="worse"), controls=[])
    assert _verdict(worse) == "worse"  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", ["better", "inconclusive", "no effect"])
def test_what_does_not_surely_beat_a_control_is_no_effect_whatever_it_gained(verdict: str):
    level = ArmScore(name="shuffled labels", metric="accuracy", score=0.7, ci95=(0.6, 0.8), n=9, p_adjusted=0.4)
    beaten = level.model_copy(update={"score": 0.5, "p_adjusted": 0.001})
    task = SimpleNamespace(verdict=verdict, metric="accuracy", tuned=0.75)
    assert _verdict(SimpleNamespace(task=task, controls=[beaten, level])) == "no effect"  # type: ignore[arg-type]
    assert _verdict(SimpleNamespace(task=task, controls=[beaten])) == verdict  # type: ignore[arg-type]


def test_nothing_more_is_begun_once_it_is_to_stop(setting: Setting):
    asked = iter([False, True])
    ran: list[Path] = []

    def tune(recipe: Path, out: Path) -> tuple[str, str]:
        ran.append(out)
        return "", ""

    fill([LORA, IA3], setting, tune=tune, on_event=print, stop=lambda: next(asked))
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("classify/lora/decoder", 10),
        ("classify/prompt/decoder", 15),
        ("multitask/lora/decoder", 7),
        ("rl/lora/decoder", 5),
    ],
)
def test_a_cell_is_validated_twice_as_its_own_rows_ask(name: str, steps: int):
    made = recipe_of(Cell(*name.split("/")), Setting(rows=160), 0).schedule
    assert (made.eval_steps, made.save_steps) == (steps, steps)


def test_controls_can_be_left_out_of_every_cell_and_the_page_says_by_which_command():
    cell, setting = Cell("classify", "lora", "decoder"), Setting(rows=160, seeds=3, controls=False)
    assert (recipe_of(cell, setting, 0).controls, recipe_of(cell, Setting(), 0).controls) == (False, True)
    assert setting.options == "--rows 160 --seeds 3 --no-controls"
