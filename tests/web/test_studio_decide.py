"""The screen "Decide" in a real Chromium: arms and points appear as they finish, answers are found again, errors."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.tiny import tiny_decoder, tiny_encoder
from tests.web.conftest import Serve, Served
from tunesmith.config import load_recipe
from tunesmith.web.studio.decide import Decide, arms_for
from tunesmith.web.studio.measured import ABOUT, arms_of
from tunesmith.web.studio.screen import Studio

# Milliseconds for a command in a process of its own: it imports torch, and the machine may be busy.
COMMAND = 200_000
LANDS = ("Arda", "Brin", "Coll", "Dorn", "Elba", "Fell")
RECIPES = {
    "lands": """\
model: tiny
data: {train: lands.jsonl, test: 12, validation: 6, audit: note}
objective: {kind: classify, text: prompt, label: completion}
schedule: {epochs: 1, probe: false}
retention: false
documents: {size: 80, search: words}
""",
    "moods": """\
model: bert
data: {train: moods.jsonl, test: 24, validation: 8, audit: note}
objective: {kind: classify, text: text, label: label}
technique: full
schedule: {epochs: 1, probe: false}
retention: false
""",
    "broken": "model: tiny\ndata: {train: lands.jsonl}\nobjective: {kind: instruct, metric: nice}\n",
    "no-model": "model: ./nowhere\ndata: {train: lands.jsonl, test: 6, validation: 6}\nobjective: instruct\n",
    "no-test": "model: tiny\ndata: {train: lands.jsonl, test: 0, validation: 6}\nobjective: instruct\n",
    "domain": "model: tiny\ndata: {train: lands.jsonl, test: 6}\nobjective: domain\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with tiny models, rows, documents and recipes."""
    place = tmp_path_factory.mktemp("decide")
    tiny_decoder(place / "tiny")
    tiny_encoder(place / "bert")
    asked = [
        {"prompt": f"Is {land} {n} m high?", "completion": ("no", "yes")[n % 2]} for land in LANDS for n in range(8)
    ]
    moods = [{"text": f"the phone {n} is {('bad', 'good')[n % 2]}", "label": str(n % 2)} for n in range(132)]
    for name, rows in {"lands": asked, "moods": moods}.items():
        place.joinpath(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for name, text in RECIPES.items():
        place.joinpath(f"{name}.yaml").write_text(text, "utf-8")
    place.joinpath("manual").mkdir()
    for n, land in enumerate(LANDS):
        place.joinpath("manual", f"{land}.md").write_text(f"# {land}\n\n{land} is {n} m high.\n", "utf-8")
    return place


@pytest.fixture
def studio(folder: Path, serve: Serve) -> Served:
    return serve("studio", str(folder), "--offline")


@pytest.mark.long
@pytest.mark.browser
def test_three_arms_appear_one_after_another_and_end_in_a_verdict_that_is_found_again(
    page: Page, studio: Served, folder: Path
):
    page.goto(f"{studio.url}decide?recipe=lands.yaml")
    for name in ("prompt the", "rag", "tuned the"):
        page.get_by_role("checkbox", name=re.compile(f"^{name} ")).check()
    page.get_by_label("Documents for retrieval").fill("nowhere")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#problem")).to_have_text("nowhere: no such file; it may have been deleted or renamed")
    page.get_by_label("Documents for retrieval").fill("manual")
    page.evaluate("""() => {
        window.seen = [];
        new MutationObserver(() => {
            const rows = [...document.querySelectorAll("#found-compare .arms tbody tr")];
            const done = rows.filter((row) => row.querySelector(".interval")).length;
            if (rows.length && window.seen.at(-1) !== done) window.seen.push(done);
        }).observe(document.getElementById("found-compare"), { childList: true, subtree: true });
    }""")
    page.get_by_role("button", name="Compare").click()
    found = page.locator("#found-compare")
    expect(found.locator(".verdict-line")).to_be_visible(timeout=COMMAND)
    expect(found.locator(".verdict-line")).to_have_text(re.compile(r": (prompt|rag|tuned)\."))
    seen = page.evaluate("window.seen")  # the page looks once per second, in which two quick arms may finish
    assert seen == sorted({0, 3, *seen})
    assert len(seen) > 2
    for arm in ("prompt", "rag", "tuned"):
        expect(found.get_by_role("rowheader", name=re.compile(f"^{arm} "))).to_be_visible()
    expect(found.locator(".command code").last).to_contain_text(
        "compare lands.yaml --set 'arms=[prompt, rag, tuned]' --set documents.source=manual --out comparisons/lands-"
    )
    found.get_by_role("link", name="See the report").click()
    report = page.frame_locator("iframe.report")
    expect(report.get_by_role("heading", level=1)).to_have_text("Prompt, retrieve or fine-tune?")
    expect(report.get_by_text("Common beliefs about prompting, retrieval and tuning")).to_be_visible()

    page.goto(f"{studio.url}decide")  # later, from the list
    page.get_by_role("link", name="comparisons/lands-").click()
    expect(page.locator(".verdict-line")).to_be_visible()
    page.wait_for_load_state()  # the script runs after the answer is visible
    (tuned,) = folder.glob("comparisons/lands-*/tuned")
    page.evaluate(
        "(run) => htmx.ajax('POST', '/decide/keep', {values: {run}, swap: 'none'})", str(tuned.relative_to(folder))
    )
    expect(page).to_have_url(re.compile(r"/ship\?run=lands-"))
    assert len(list(folder.glob("runs/lands-*/report.json"))) == 1


def scores(found: Locator) -> int:
    """The points in the chart."""
    sizes = json.loads(str(found.locator(".learning").get_attribute("data-sizes")))
    return sum(len(size["scores"]) for size in sizes)


@pytest.mark.long
@pytest.mark.browser
def test_points_of_a_learning_curve_appear_while_its_runs_finish(page: Page, studio: Served):
    page.goto(f"{studio.url}decide?recipe=moods.yaml")
    page.get_by_role("button", name="Learning curve").click()
    found = page.locator("#found-learning-curve")
    expect(found).to_contain_text("of 15 runs have finished", timeout=COMMAND)
    expect(found.locator(".uplot")).to_be_visible(timeout=COMMAND)
    assert scores(found) < 15
    expect(found.locator(".verdict-line")).to_contain_text("More rows", timeout=COMMAND, ignore_case=True)
    assert scores(found) == 15
    expect(found.locator(".uplot")).to_be_visible()


@pytest.mark.long
@pytest.mark.browser
@pytest.mark.parametrize(
    ("recipe", "question", "message"),
    [
        ("broken", "", "broken.yaml:3: objective.metric: expected rouge_l, exact_match, contains, chrf"),
        ("no-model", "Plan", "./nowhere: no such folder; use a folder, a Hub id or a bundled model"),
        ("no-test", "Compare", "data.test: no rows, which are needed to compare the arms; give a file, or a fraction"),
        ("domain", "", "domain has no answer that every arm can give"),
    ],
)
def test_what_cannot_be_asked_is_one_line(page: Page, studio: Served, recipe: str, question: str, message: str):
    page.goto(f"{studio.url}decide?recipe={recipe}.yaml")
    if question:
        page.get_by_role("button", name=question).click()
    expect(page.get_by_text(message).first).to_be_visible(timeout=COMMAND)  # the log has it, too


def test_arms_that_have_answered_are_shown_and_those_that_were_left_out(tmp_path: Path):
    tmp_path.joinpath("recipe.yaml").write_text("arms: [prompt, rag, few-shot, tuned]\n", "utf-8")
    task = {"metric": "accuracy", "score": 0.5, "ci95": [0.4, 0.7], "n": 10}
    page = {"name": "prompt", "task": task, "latencies": [1.0, 3.0, 2.0], "build_seconds": 0.0, "detail": "as written"}
    tmp_path.joinpath("answers").mkdir()
    tmp_path.joinpath("answers", "prompt.json").write_text(json.dumps(page), "utf-8")
    tmp_path.joinpath("answers", "tuned.json").write_text("{", "utf-8")
    arms = arms_of(tmp_path, 3, "step 1/2")
    assert [arm["state"] for arm in arms] == ["finished", "left out", "running", "waiting"]
    assert (arms[0]["latency"], arms[0]["task"], arms[2]["detail"]) == ({"p50": 2.0}, task, "step 1/2")
    assert [arm["state"] for arm in arms_of(tmp_path, 0, "")][2:] == ["waiting", "waiting"]
    assert [arm["state"] for arm in arms_of(tmp_path, 3, None)][2:] == ["unanswered", "unanswered"]  # it has ended


@pytest.mark.parametrize(
    ("model", "objective", "changes", "without"),
    [
        ("decoder", "classify", [], {"raft", "tuned-retriever"}),
        ("decoder", "{kind: classify, output: linear}", [], {"raft", "tuned+rag", "tuned-retriever"}),
        ("decoder", "instruct", [], {"tf-idf"}),
        ("encoder", "classify", [], {"prompt", "few-shot", "rag", "tuned+rag", "raft", "tuned-retriever"}),
        ("encoder", "classify", ["compare.model=smollm2-135m"], {"tuned+rag", "raft", "tuned-retriever"}),
        ("decoder", "domain", [], set(ABOUT)),
    ],
)
def test_arms_that_the_model_or_the_rows_rule_out_are_not_offered(
    tmp_path: Path, model: str, objective: str, changes: list[str], without: set[str]
):
    for name, config in {
        "encoder": {"model_type": "bert"},
        "decoder": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    }.items():
        tmp_path.joinpath(name).mkdir()
        tmp_path.joinpath(name, "config.json").write_text(json.dumps(config), "utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: ./{model}\ndata: {{train: rows.jsonl}}\nobjective: {objective}\n", "utf-8")
    assert set(ABOUT) - set(arms_for(load_recipe(recipe, changes=changes)[0])) == without


def test_a_comparison_is_named_by_its_documents_and_its_winner_is_copied_once(tmp_path: Path):
    screen = Decide(Studio(tmp_path))
    tmp_path.joinpath("manual").mkdir()
    tmp_path.joinpath("recipe.yaml").write_text(
        "model: x/y\ndata: {train: rows.jsonl}\nobjective: instruct\ndocuments: manual\n", "utf-8"
    )
    recipe, page = load_recipe(tmp_path / "recipe.yaml")[0], tmp_path / "manual" / "page.md"
    page.write_text("one", "utf-8")
    os.utime(page, ns=(1, 1))
    before = screen._digest(recipe, "")
    assert screen._digest(recipe, "") == before
    os.utime(page, ns=(2, 2))
    assert screen._digest(recipe, "") != before

    run = tmp_path / "mine" / "tuned"
    run.mkdir(parents=True)
    run.joinpath("report.json").write_text("{}", "utf-8")
    for content, copies in (("{}", ["mine"]), ("{}", ["mine"]), ('{"n": 1}', ["mine", "mine-2"])):
        run.joinpath("report.json").write_text(content, "utf-8")
        screen._keep({"run": "mine/tuned"})
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == copies
    tmp_path.joinpath("mine", "comparison.json").write_text('{"verdict": {"text": "prompt", "arm": "rag"}}', "utf-8")
    assert [str(answer["folder"]) for answer in screen._answers()] == ["mine"]
