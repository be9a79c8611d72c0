"""`make reports`: pages copied, runs listed from their own facts, and nothing hidden when tuning fails."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import reports
from tests.glance import only_a_glance
from tests.report.conftest import everything, write_run
from tunesmith.config import load_recipe, save_recipe


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A repository with two finished runs, where tuning only writes down what it was called with."""
    only_a_glance(monkeypatch)
    for name in ("reviews", "mail"):
        write_run(tmp_path / "runs" / name, **everything())
    pages = tmp_path / "docs" / "reports"
    pages.mkdir(parents=True)
    monkeypatch.setattr(reports, "ROOT", tmp_path)
    monkeypatch.setattr(reports, "PAGES", pages)
    called: list[list[str]] = []

    def tune(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(command[3:])
        return subprocess.CompletedProcess(command, 2 if "synopsis" in command[4] else 0)

    monkeypatch.setattr("bench.reports.subprocess.run", tune)
    return called


def test_the_pages_of_the_runs_named_are_copied_and_listed(world: list[list[str]], tmp_path: Path):
    before = "# Reports\n\nWritten by hand.\n\n- [mail.html](mail.html): old.\n- [three](three.html): kept.\n"
    (tmp_path / "docs" / "reports" / "README.md").write_text(before)
    reports.main(["mail", "--set", "seed=1"])
    assert world == [["tune", "examples/mail.yaml", "--out", "runs/mail", "--set", "seed=1"]]
    pages = tmp_path / "docs" / "reports"
    assert sorted(page.name for page in pages.iterdir()) == ["README.md", "mail.html"]
    assert "<h1><bdi>reviews.jsonl: classify with lora on smollm2-135m</bdi></h1>" in (pages / "mail.html").read_text()
    listed = (pages / "README.md").read_text()
    assert "[mail.html](mail.html)" in listed
    assert "accuracy 0.600 to 0.800" in listed
    assert "reference answers 0.970 to 0.610" in listed
    assert "`tunesmith tune examples/mail.yaml --set seed=1`" in listed
    assert ": old." not in listed
    assert "Written by hand." in listed
    assert "- [three](three.html): kept." in listed


@pytest.mark.parametrize(
    ("metric", "shares", "said"), [("macro_f1", (), True), ("macro_f1", (0.75, 0.25), False), ("accuracy", (), False)]
)
def test_a_head_that_was_not_balanced_is_said_in_its_line(
    world: list[list[str]], tmp_path: Path, metric: str, shares: tuple[float, ...], said: bool
):
    run = tmp_path / "runs" / "mail"
    recipe, _ = load_recipe(run / "recipe.yaml")
    made = {"output": "linear", "metric": metric, "shares": shares}
    save_recipe(recipe.model_copy(update={"objective": recipe.objective.model_copy(update=made)}), run / "recipe.yaml")
    assert reports.line("mail", run).endswith(" was not balanced (today: `objective.balance: false`).") == said


def test_an_example_that_cannot_be_tuned_ends_it_with_its_exit_code(world: list[list[str]], tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        reports.main([])
    assert ended.value.code == 2
    assert [words[1] for words in world] == ["examples/reviews.yaml", "examples/synopsis.yaml"]
    assert world[0][-2:] == ["--set", "controls=true"]
    assert not (tmp_path / "docs" / "reports" / "README.md").exists()
