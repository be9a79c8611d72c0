"""The studio in a real Chromium: one flow over all screens, and what happens when its server is killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.tiny import tiny_decoder
from tests.web.conftest import Serve, Served
from tunesmith.web.studio.jobs import Jobs
from tunesmith.web.studio.runs import framed, new_records
from tunesmith.web.studio.yaml_edit import set_value

# Milliseconds for a command in a process of its own: it imports torch, and the machine may be busy.
COMMAND = 300_000
RECIPE = """\
model: tiny  # beside the recipe
data: {train: talk.jsonl, test: 10, validation: 8}
objective: instruct
technique: lora
schedule: {epochs: 2, probe: false}
retention: false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a tiny model, rows of questions and answers, and a recipe."""
    tiny_decoder(tmp_path / "tiny")
    rows = [{"prompt": f"question {n}", "completion": f"answer {n % 3}"} for n in range(60)]
    tmp_path.joinpath("talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tmp_path.joinpath("talk.yaml").write_text(RECIPE, "utf-8")
    return tmp_path


@pytest.fixture
def studio(folder: Path, serve: Serve) -> Served:
    return serve("studio", str(folder), "--offline")


def set_field(page: Page, key: str, value: str) -> None:
    page.locator(f"[name='{key}']").fill(value)
    page.locator(f"[name='{key}']").press("Tab")


@pytest.mark.long
@pytest.mark.browser
def test_a_dropped_file_becomes_a_tuned_model_that_people_judge(
    page: Page, browser: Browser, studio: Served, folder: Path
):
    rows = folder.parent / "drop" / "talk two.jsonl"
    rows.parent.mkdir()
    lines = folder.joinpath("talk.jsonl").read_text("utf-8").splitlines()
    rows.write_text("\n".join([*lines, lines[0]]) + "\n", "utf-8")  # one row twice
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(studio.url)

    page.locator("#file").set_input_files(rows)  # dropped
    expect(page.get_by_role("heading", level=1)).to_have_text("uploads/talk-two.jsonl")
    expect(page.locator(".rows")).to_contain_text("question 0")
    page.get_by_role("button", name="Check the data").click()
    expect(page.locator("#audit")).to_contain_text("61 rows", timeout=COMMAND)
    page.get_by_role("button", name="Show what fixes would change").click()
    page.get_by_role("button", name="Keep the fixed copy").click(timeout=COMMAND)
    expect(page.get_by_role("heading", level=1)).to_have_text("uploads/talk-two.clean.jsonl")

    page.goto(f"{studio.url}tune?recipe=talk.yaml")
    set_field(page, "data.train", "uploads/talk-two.clean.jsonl")
    set_field(page, "technique.rank", "4")
    expect(page.locator("#yaml")).to_have_value(re.compile(r"technique: \{kind: lora, rank: 4\}"))
    expect(page.locator("#yaml")).to_have_value(re.compile("# beside the recipe"))  # comments stay
    page.get_by_role("button", name="See the rows as the model does").click()
    expect(page.locator("#preview mark").nth(1)).to_be_visible(timeout=COMMAND)  # learned tokens
    page.get_by_role("button", name="Start tuning").click()
    expect(page.locator("#live .uplot").first).to_be_visible(timeout=COMMAND)
    expect(page.locator("iframe.report")).to_be_visible(timeout=COMMAND)
    expect(page.frame_locator("iframe.report").get_by_role("heading", level=1)).to_contain_text("instruct with lora")

    page.get_by_role("link", name="Try it").click()
    page.get_by_role("button", name="Load").click()
    page.get_by_label("Your text").fill("question 1", timeout=COMMAND)
    page.get_by_label("Tokens at most").fill("8")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="good answer").first.click()
    expect(page.get_by_text("saved as a good answer")).to_be_visible()
    page.get_by_role("button", name="Unload").click()
    rows_of_thumbs = folder / "thumbs.jsonl"
    store = folder / "runs" / "talk" / "thumbs.db"
    subprocess.run([sys.executable, "-m", "tunesmith", "votes", "export", store, rows_of_thumbs], check=True)
    assert len(rows_of_thumbs.read_text("utf-8").splitlines()) == 1

    page.goto(f"{studio.url}people")
    page.get_by_label("Prompts").fill("4")
    page.get_by_role("button", name="Open a session").first.click()
    link = page.get_by_role("link", name="Open the page")
    expect(link).to_be_visible(timeout=COMMAND)
    other = browser.new_context().new_page()
    other.goto(str(link.get_attribute("href")))
    other.get_by_label("Your name").fill("ann")
    other.keyboard.press("Enter")
    expect(other.locator("#turns")).not_to_be_empty()
    other.keyboard.press("1")
    expect(other.locator("#done")).to_contain_text("1")
    other.context.close()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".state.stopped, .state.finished").first).to_be_visible()
    assert {url.split("/")[2] for url in requested if url.startswith("http")} == {studio.url.split("/")[2]}


@pytest.mark.long
@pytest.mark.browser
def test_a_run_outlives_the_studio_that_started_it(page: Page, folder: Path, serve: Serve):
    studio = serve("studio", str(folder), "--offline")
    page.goto(f"{studio.url}tune?recipe=talk.yaml")
    page.get_by_role("button", name="Start tuning").click()
    expect(page.locator("#state")).to_have_text("running", timeout=COMMAND)
    studio.kill(signal.SIGKILL)
    studio.start()
    page.goto(f"{studio.url}runs/talk")
    expect(page.locator("iframe.report")).to_be_visible(timeout=COMMAND)


def test_a_second_studio_in_a_folder_names_the_address_of_the_first(folder: Path, studio: Served):
    command = [sys.executable, "-m", "tunesmith", "studio", str(folder), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {folder}: a studio is open here at {studio.url}; use it, or stop it first\n"


@pytest.mark.long
def test_jobs_wait_for_earlier_ones_and_the_lost_are_found(tmp_path: Path):
    jobs = Jobs(tmp_path / "jobs", tmp_path)
    first, second = jobs.start(["doctor", "--json", "--offline"]), jobs.start(["runs", "--json"])
    assert [job.name for job in jobs.active()] == [first.name, second.name]
    second.stop()
    until(lambda: second.state().name == "stopped")  # before its turn
    until(lambda: not first.is_active)
    assert first.state().name == "finished"
    assert first.output()["checks"]
    dead = jobs.start(["doctor", "--json"])
    until(lambda: dead.state().runner[0] > 0)
    import psutil

    runner = psutil.Process(dead.state().runner[0])
    for process in [*runner.children(recursive=True), runner]:
        process.kill()
    until(lambda: dead.state().name == "lost")


def test_files_in_the_folder_of_a_job_do_not_shadow_libraries(tmp_path: Path):
    for name in ("yaml", "numpy", "pydantic"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n", "utf-8")
    job = Jobs(tmp_path / "jobs", tmp_path).start(["runs", "--json"])
    until(lambda: not job.is_active)
    assert job.output() == {"runs": []}


def until(is_true: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("text", "key", "value", "expected"),
    [
        ("a: 1 # why\n", "a", 2, "a: 2 # why\n"),
        ("technique: lora # why\n", "technique.rank", 4, "technique: {kind: lora, rank: 4} # why\n"),
        ("retention: false\n", "retention.texts", 4, "retention: {questions: 0, texts: 4}\n"),
        ("teacher: runs/big\n", "teacher.beta", 0.1, "teacher: {model: runs/big, beta: 0.1}\n"),
        ("s: {e: 4}\n", "s.f", 1, "s: {e: 4, f: 1}\n"),
        ("d:\n  t: x # why\n\n# next\nseed: 1\n", "d.r", 5, "d:\n  t: x # why\n  r: 5\n\n# next\nseed: 1\n"),
        ("d:\n  t: x\n  r: 5\nseed: 1\n", "d.r", None, "d:\n  t: x\nseed: 1\n"),
        ("l:\n  - a\n  - b\nm: 1\n", "l", ["c"], "l: [c]\nm: 1\n"),
        ("", "d.r", "a: b", "d: {r: 'a: b'}\n"),
        ("a:\nb: 1\n", "a", 1, "a: 1\nb: 1\n"),
        ("d:\n  t: |+\n    x\n\nb: 1\n", "d.r", 5, "d:\n  t: |+\n    x\n\n  r: 5\nb: 1\n"),
    ],
)
def test_one_value_of_a_recipe_changes_and_the_text_around_it_stays(text: str, key: str, value: object, expected: str):
    assert set_value(text, key, value) == expected


@pytest.mark.parametrize("style", ["|", ">", "|-"])
@pytest.mark.parametrize("comment", ["", "\n# why\n", "  # why\n"])
def test_a_value_of_several_lines_ends_with_its_last_one(style: str, comment: str):
    start, rest = "objective:\n  kind: classify\n", f"{comment}technique: lora\n"
    block = f"  instruction: {style}\n    Is it good?\n\n    Or not?\n"
    text = f"{start}{block}{rest}"
    assert set_value(text, "objective.instruction", None) == f"{start}{rest}"
    assert set_value(text, "objective.instruction", "new") == f"{start}  instruction: new\n{rest}"
    assert set_value(text, "objective.metric", "macro_f1") == f"{start}{block}  metric: macro_f1\n{rest}"
    at_the_end = (start + block).rstrip()
    assert set_value(at_the_end, "objective.instruction", None) == start
    assert set_value(at_the_end, "objective.metric", "macro_f1") == f"{start}{block}  metric: macro_f1\n"


def test_a_journal_is_read_on_by_whole_lines(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    records, at = new_records(path, 0)
    assert [record["step"] for record in records] == [1]
    with path.open("ab") as file:
        file.write(b'ss": 1.0}\nnot json\n')
    records, at = new_records(path, at)
    assert records == [{"step": 2, "loss": 1.0}]
    assert new_records(path, at) == ([], at)


def test_styles_of_a_framed_report_are_allowed_by_hash_only():
    page, policy = framed('<html><head><style>p{}</style></head><p style="color:red">x</p></html>')
    assert 'style="' not in page.replace("data-style", "")
    assert "color:red !important" in page
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
