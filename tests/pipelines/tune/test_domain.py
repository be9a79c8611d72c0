"""Runs on texts without labels, from documents to a measured run folder, with tiny models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.bases import folder, template
from tests.drafts import draft
from tests.pipelines.conftest import answers, recipe, tune
from tests.pipelines.tune.test_tune import digests, stop_after
from tunesmith.config.resolve import resolve_recipe
from tunesmith.errors import DataError, RecipeError, Refused
from tunesmith.inference.saved_model import load
from tunesmith.models.loading.checkpoint import write_folder
from tunesmith.pipelines.evaluate import Compared, evaluate
from tunesmith.pipelines.requests import EvaluateRequest
from tunesmith.pipelines.tune.preview import preview
from tunesmith.report.html import write_reports
from tunesmith.report.run_diff import diff_runs
from tunesmith.report.terminal import render
from tunesmith.training import mlm_head as frozen_head
from tunesmith.training import replay
from tunesmith.training.batches import batches_of
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.prepare import prepare
from tunesmith.training.replay import lost_too_much

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

WORDS = ("server", "table", "index", "vacuum", "query", "planner")


def pages(count: int = 30) -> list[dict[str, Any]]:
    """Texts in which the same few words come again, in any order."""
    chance = random.Random(0)
    texts = [" ".join(chance.choice(WORDS) for _ in range(14)) for _ in range(count)]
    return [{"id": i, "text": f"{text} {i}.", "doc": f"d{i}"} for i, text in enumerate(texts)]


def on_texts(place: Path, kind: str, **parts: Any) -> Any:
    data = {"max_tokens": 48, "group": "doc", "test": 0.3, **parts.pop("data", {})}
    return recipe(place, pages(), kind, objective="domain", data=data, **parts)


def test_a_decoder_learns_texts_and_everything_about_the_run_is_written(tmp_path: Path):
    run = tune(on_texts(tmp_path, "llama", replay={"share": 0.2}), tmp_path / "run")
    report = run.report
    assert [task.metric for task in report.tasks] == ["perplexity", "nats_per_token", "bits_per_byte", "term_accuracy"]
    assert report.task.tuned < 0.6 * report.task.base
    assert (report.task.verdict, report.task.n, report.task.clusters) == ("better", 9, 9)
    assert report.verdict.startswith("better: ")
    assert report.retention is not None
    general = len((run.folder / "replay.jsonl").read_text().splitlines())
    assert f"{general // 2} general rows mixed in" in report.data.notes[-1]
    assert f"{general} different ones over 2 epochs" in report.data.notes[-1]
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 9
    assert all(line["score_tuned"] > line["score_base"] for line in lines)
    total, tokens = (sum(line["counts"]["tuned"][key] for line in lines) for key in ("nats", "tokens"))
    assert report.tasks[1].tuned == pytest.approx(total / tokens)
    write_reports(run.folder)
    page, card = (run.folder / "report.html").read_text(), (run.folder / "README.md").read_text()
    assert "perplexity" in page
    assert "Most improved" in page
    assert 'tokenizer("your text", return_tensors="pt")' in card
    assert "pipeline_tag: text-generation" in card
    assert render(report, run.folder)
    assert "9 answers differ" not in diff_runs(run.folder, run.folder).sentence


def test_a_tuned_decoder_goes_on_with_a_text_and_opens_in_plain_peft(tmp_path: Path):
    run = tune(on_texts(tmp_path, "llama", schedule={"epochs": 1, "probe": False}), tmp_path / "run")
    model = load(run.folder)
    assert model.generate(["server table"]) == [model.complete(["server table"])[0].text]
    ids = torch.tensor([model.template.tokenizer("server table", add_special_tokens=False)["input_ids"]])
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder("llama")), run.folder / "model")
    theirs = opened.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    from tunesmith.models.generation.sampling import Sampling

    ours = model.complete(["server table"], sampling=Sampling(max_new_tokens=6))[0].text
    assert ours == model.template.decode(theirs[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("technique", ["full", {"kind": "lora", "rank": 4}], ids=["full", "lora"])
def test_an_encoder_learns_hidden_words_and_is_compared_with_a_head_on_the_frozen_one(
    technique: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(frozen_head, "FEWEST_STEPS", 20)
    run = tune(on_texts(tmp_path, "bert", technique=technique, schedule={"epochs": 8}), tmp_path / "run")
    report = run.report
    assert [task.metric for task in report.tasks] == ["masked_loss", "masked_accuracy", "term_accuracy"]
    assert report.task.tuned < report.task.base
    assert report.baselines[0].detail == "a masked-language head trained on the frozen encoder"
    assert report.retention is None
    assert not list(run.folder.rglob("*checkpoints"))
    words = load(run.folder).fill(["server [MASK] index"])[0]
    likely = [p for _, p in words]
    assert len(words) == 5
    assert likely == sorted(likely, reverse=True)
    assert 0 < sum(likely) < 1
    with pytest.raises(RecipeError, match=r"fill: no \[MASK\] in the text"):
        load(run.folder).fill(["server"])
    done = evaluate(EvaluateRequest(str(run.folder), str(tmp_path / "rows.jsonl"), "base"), on_event=lambda event: None)
    assert isinstance(done.page, Compared)
    assert done.page.tuned < done.page.base
    assert 'model.fill(["your text [MASK]"])' in (write_reports(run.folder), (run.folder / "README.md").read_text())[1]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_run_on_texts_that_was_stopped_gives_the_weights_of_one_that_was_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(frozen_head, "FEWEST_STEPS", 6)
    general = {"share": 0.2} if kind == "llama" else {}
    made = on_texts(tmp_path, kind, replay=general, schedule={"patience": 99, "epochs": 3, "probe": False})
    whole = tune(made, tmp_path / "whole")
    for count in (2, 4, 3):
        with pytest.raises(Interrupted):
            tune(made, tmp_path / "cut", stop=stop_after(count))
    cut = tune(made, tmp_path / "cut")
    assert digests(cut.folder) == digests(whole.folder)
    assert cut.report.task == whole.report.task.model_copy(update={"name": "cut"})


def test_a_run_that_was_killed_right_after_its_head_was_kept_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frozen_head, "FEWEST_STEPS", 6)
    made = on_texts(tmp_path, "bert", schedule={"epochs": 1, "probe": False})

    def killed(place: Path, fill: Callable[[Path], None]) -> None:
        write_folder(place, fill)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(frozen_head, "write_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(made, tmp_path / "run")
    assert tune(made, tmp_path / "run").report.baselines[0].detail == frozen_head.TRAINED


def test_evaluate_scores_a_run_a_base_and_both_on_texts(tmp_path: Path):
    run = tune(on_texts(tmp_path, "llama", schedule={"epochs": 1, "probe": False}), tmp_path / "run")
    rows = str(tmp_path / "rows.jsonl")
    alone = evaluate(EvaluateRequest(str(run.folder), rows), on_event=lambda event: None)
    assert [task.metric for task in alone.page.tasks][:3] == ["perplexity", "nats_per_token", "bits_per_byte"]
    against = evaluate(EvaluateRequest(str(run.folder), rows, "base"), on_event=lambda event: None)
    same = EvaluateRequest(
        str(folder("llama")), rows, objective="domain", changes=("data.max_tokens=48", "data.group=doc")
    )
    plain = evaluate(same, on_event=lambda event: None)
    assert against.page.base == pytest.approx(plain.page.score, rel=1e-3)
    assert against.page.tuned == pytest.approx(alone.page.score, rel=1e-6)
    line, pair = alone.answers[0], against.answers[0]
    assert set(line) == {"where", "group", "question", "gold", "answer", "score_answer", "counts"}
    assert set(line["counts"]) == {"answer"}
    assert set(pair) == set(line) | {"against", "score_against"}
    assert pair["score_answer"] == pytest.approx(line["score_answer"], rel=1e-6)
    for side, nats in (("answer", against.page.tasks[1].tuned), ("against", against.page.tasks[1].base)):
        counts = [one["counts"][side] for one in against.answers]
        assert sum(one["nats"] for one in counts) / sum(one["tokens"] for one in counts) == pytest.approx(nats)
        assert pair[f"score_{side}"] == pytest.approx(-counts[0]["nats"] / counts[0]["tokens"])
    other = EvaluateRequest(str(run.folder), rows, str(folder("qwen3")))
    with pytest.raises(RecipeError, match="uses another tokenizer .* compare bits_per_byte"):
        evaluate(other, on_event=lambda event: None)


def test_general_rows_that_were_written_before_a_stop_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = on_texts(tmp_path, "llama", replay={"share": 0.6}, schedule={"probe": False, "epochs": 0.1})
    whole = tune(made, tmp_path / "whole").folder
    assert len((whole / "replay.jsonl").read_text().splitlines()) > replay.BATCH_SIZE
    assert not (whole / "replay.part.jsonl").exists()
    asked: list[list[list[int]]] = []
    draw = replay.generate

    def broken(made: Any, prompts: list[list[int]], **more: Any) -> Any:
        asked.append(prompts)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return draw(made, prompts, **more)

    monkeypatch.setattr(replay, "generate", broken)
    with pytest.raises(KeyboardInterrupt):
        tune(made, tmp_path / "cut")
    with (tmp_path / "cut" / "replay.part.jsonl").open("a") as file:
        file.write('["cut')
    cut = tune(made, tmp_path / "cut").folder
    assert (cut / "replay.jsonl").read_text() == (whole / "replay.jsonl").read_text()
    assert asked[2] == asked[1] != asked[0]
    end = template("llama").tokenizer.eos_token_id
    assert {ids[0] for prompts in asked for ids in prompts} == {end}  # and not the beginning of a turn


def test_rows_of_which_none_is_held_out_are_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(Refused, match=r"no held-out rows to score; set data.test or data.validation"):
        tune(on_texts(tmp_path, "llama", data={"test": 0, "validation": 0}), tmp_path / "run")


def test_a_base_that_writes_nothing_is_told_to_take_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replay, "SHORTEST", 999)
    with pytest.raises(
        DataError, match=r"^replay\.source: the base model generated no text of 999 tokens in \d+ samples; name"
    ):
        tune(on_texts(tmp_path, "llama", replay={"share": 0.1}), tmp_path / "run")


def test_each_pass_over_the_rows_has_general_rows_of_its_own(tmp_path: Path):
    wanted = on_texts(tmp_path, "llama", replay={"share": 0.2}, schedule={"epochs": 3})
    prepared = prepare(wanted, on_event=lambda event: None)
    (tmp_path / "run").mkdir()
    mixed = replay.with_replay(prepared, tmp_path / "run", on_event=lambda event: None, offline=True)
    each, own = len(mixed.general[0]), len(prepared.train)
    assert len(mixed.general) == 3
    batches = batches_of(mixed)
    for turn, rows in enumerate(mixed.general):
        steps = range(turn * batches.steps_per_epoch, (turn + 1) * batches.steps_per_epoch)
        seen = [place for step in steps for batch in batches.window(step) for place in batch.locations]
        assert len(seen) == own + each
        assert {place for place in seen if place.startswith("replay:")} == {row.where for row in rows}
    assert len({row.where for rows in mixed.general for row in rows}) == 3 * each


def test_replay_from_a_file_leaves_out_what_is_near_to_test_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.training.replay.SPARE", 100)  # all of the file
    general = [{"text": f"{row['text']} {row['text']}"} for row in pages()]
    general += [{"text": " ".join(f"tale{i}{j}" for j in range(30))} for i in range(30)]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in general))
    replay = {"share": 0.3, "source": str(tmp_path / "general.jsonl")}
    run = tune(on_texts(tmp_path, "bert", replay=replay, schedule={"probe": False, "epochs": 0.1}), tmp_path / "run")
    kept = (run.folder / "replay.jsonl").read_text()
    held = run.report.data.test + run.report.data.validation
    assert len(kept.splitlines()) == 60 - held
    with pytest.raises(DataError, match=r"windows of text, but replay\.share needs \d+; add more text"):
        tune(on_texts(tmp_path, "bert", replay=replay | {"share": 0.95}), tmp_path / "more")


def test_of_many_general_texts_some_are_read(tmp_path: Path):
    general = [{"text": " ".join(f"tale{i}{j}" for j in range(30))} for i in range(500)]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in general))
    replay = {"share": 0.1, "source": str(tmp_path / "general.jsonl")}
    run = tune(on_texts(tmp_path, "bert", replay=replay, schedule={"probe": False, "epochs": 0.1}), tmp_path / "run")
    kept = (run.folder / "replay.jsonl").read_text().splitlines()
    assert 3 <= len(kept) < 100


def test_a_file_of_general_texts_that_no_row_comes_from_is_told(tmp_path: Path):
    replay = {"share": 0, "source": str(tmp_path / "general.jsonl")}
    run = tune(on_texts(tmp_path, "bert", replay=replay, schedule={"probe": False, "epochs": 0.1}), tmp_path / "run")
    assert "no rows of general.jsonl are mixed in: replay.share is 0" in run.report.data.notes


@pytest.mark.parametrize(
    ("kind", "parts", "finding"),
    [
        ("bert", {"replay": {"share": 0.1}}, "replay.source: an encoder does not generate text"),
        ("llama", {"controls": True}, "controls: texts have no labels to shuffle"),
        ("llama", {"style": {"short": {"max_chars": 9}}}, "style: not supported for texts without prompts"),
    ],
)
def test_what_texts_cannot_have_is_refused(kind: str, parts: dict[str, Any], finding: str, tmp_path: Path):
    with pytest.raises(RecipeError, match=finding):
        tune(on_texts(tmp_path, kind, **parts), tmp_path / "run")


def test_replay_belongs_to_texts(tmp_path: Path):
    with pytest.raises(RecipeError, match="replay: not supported for instruct; nearest that works: objective: domain"):
        tune(recipe(tmp_path, answers(), "llama", objective="instruct", replay={"share": 0.1}), tmp_path / "run")


@pytest.mark.parametrize(
    ("rise", "share", "asked"),
    [(0.1, 0.0, "0.1"), (0.5, 0.1, "0.33")],
)
def test_a_run_that_lost_much_is_told_how_many_general_rows_to_mix_in(
    rise: float, share: float, asked: str, tmp_path: Path
):
    (alarm,) = lost_too_much(on_texts(tmp_path, "llama", replay={"share": share}), rise)
    assert alarm.endswith(
        f": set replay.share={asked} to mix in general rows; a file of texts as replay.source works better than samples"
    )


@pytest.mark.parametrize(("rise", "share"), [(0.051, 0.1), (0.2, 0.1), (0.9, 0.33)])
def test_a_run_that_lost_much_though_general_rows_are_mixed_in_is_told_what_else_helps(
    rise: float, share: float, tmp_path: Path
):
    (alarm,) = lost_too_much(on_texts(tmp_path, "llama", replay={"share": share}), rise)
    assert "already; a lower schedule.learning_rate" in alarm
    (alarm,) = lost_too_much(on_texts(tmp_path, "llama", technique="full", replay={"share": share}), rise)
    assert "already; technique=lora, a lower" in alarm


@pytest.mark.parametrize("rise", [-0.1, 0.05])
def test_a_run_that_lost_little_or_learns_no_texts_raises_no_alarm(rise: float, tmp_path: Path):
    assert lost_too_much(on_texts(tmp_path, "llama"), rise) == ()
    assert lost_too_much(recipe(tmp_path, answers(), "llama", objective="instruct"), 1.0) == ()


def test_a_gate_on_the_gain_knows_that_less_perplexity_is_more(tmp_path: Path):
    gates = {"min_delta": 1e6}
    run = tune(on_texts(tmp_path, "llama", gates=gates, schedule={"epochs": 1, "probe": False}), tmp_path / "run")
    assert run.report.task.delta < 0
    assert run.report.broken_gates[0].startswith("min_delta: perplexity changed by -")
    easy = on_texts(tmp_path, "llama", gates={"min_delta": 0.0}, schedule={"epochs": 1, "probe": False})
    assert tune(easy, tmp_path / "easy").report.broken_gates == []


def test_a_preview_shows_what_is_hidden_and_asks_for_no_end(tmp_path: Path):
    shown = preview(on_texts(tmp_path, "bert"))
    learned = "".join(piece.text for piece in shown.rows[0].pieces if piece.learned)
    assert "[MASK]" in learned
    assert shown.problems == ()
    assert shown.facts.learned_share == pytest.approx(0.15, abs=0.05)
    assert preview(on_texts(tmp_path, "llama")).facts.learned_share == 1.0


def test_texts_and_folders_get_a_recipe_of_their_own(tmp_path: Path):
    manual = tmp_path / "manual"
    manual.mkdir()
    for row in pages():
        (manual / f"{row['id']}.txt").write_text(row["text"])
    made = draft(str(manual))
    assert made.recipe.objective.kind == "domain"
    assert "objective: {kind: domain" in made.text(tmp_path) or "kind: domain" in made.text(tmp_path)
    assert resolve_recipe(str(manual)).recipe.objective.kind == "domain"
    assert made.recipe.replay.share == 0.1
    assert draft(str(manual), changes=["technique=full"]).recipe.replay.share == 0.33
    assert draft(str(manual), changes=["model=minilm-l6"]).recipe.replay.share == 0


def test_held_out_documents_of_one_token_are_refused(tmp_path: Path):
    held_out = tmp_path / "lone.jsonl"
    held_out.write_text("".join(json.dumps({"text": text, "doc": text}) + "\n" for text in "abc"))
    with pytest.raises(DataError, match=r"data\.test: no document has a token to predict; hold out longer documents"):
        tune(on_texts(tmp_path, "llama", data={"test": str(held_out)}), tmp_path / "run")
