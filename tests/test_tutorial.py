"""The commands of docs/tutorial.md, in its order and as printed, on fewer rows and with a smaller budget."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
STEPS = PAGE.split("\n## The demo")[0]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", STEPS, re.MULTILINE | re.DOTALL)
LINES = [line for language, block in BLOCKS if not language for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("tunesmith ")]
ROWS = 240
# What takes minutes on the rows of the page: printed -> run here, without the decoder and for one epoch.
ONE_EPOCH = "--set schedule.epochs=1"
SMALLER = {
    "--set compare.model=smollm2-135m --budget 15": f"--set 'arms=[tf-idf, tuned]' {ONE_EPOCH}",
    "tunesmith tune recipe.yaml": f"tunesmith tune recipe.yaml {ONE_EPOCH}",
}

pytestmark = [pytest.mark.real, pytest.mark.whole, pytest.mark.long, pytest.mark.timeout(1200)]


class Reader:
    """A reader of the tutorial in a folder of its own: the rows, and NAME as the run is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        rows = (ROOT / "tunesmith" / "shipped_data" / "reviews.jsonl").read_text("utf-8").splitlines(keepends=True)
        (folder / "reviews.jsonl").write_text("".join(rows[:ROWS]), "utf-8")

    @property
    def run(self) -> Path:
        """The folder that `tune` made."""
        (made,) = (self.folder / "runs").iterdir()
        return made

    def words(self, line: str) -> list[str]:
        """The words of a printed line."""
        for printed, run in SMALLER.items():
            line = line.replace(printed, run)
        return shlex.split(line.replace("NAME", self.run.name) if "NAME" in line else line)

    def types(self, line: str) -> str:
        """What a command of the page prints; it must end with 0."""
        command = [sys.executable, "-m", "tunesmith", *self.words(line)[1:]]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("tutorial"))


@pytest.fixture(scope="module")
def printed(reader: Reader) -> dict[str, str]:
    """What each command but the server prints, by its verb."""
    return {line.split()[1]: reader.types(line) for line in COMMANDS if " serve " not in line}


def test_the_page_leads_from_a_file_to_a_server():
    verbs = [line.split()[1] for line in COMMANDS]
    assert verbs == ["init", "audit", "compare", "tune", "ask", "serve"]
    assert all(part in PAGE for part in SMALLER)


def test_the_recipe_has_the_line_that_the_page_shows(reader: Reader, printed: dict[str, str]):
    recipe = (reader.folder / "recipe.yaml").read_text("utf-8")
    assert "minilm-l6" in printed["init"]
    assert "  group: group\n" in recipe
    assert "rows with the same group stay in one split" in recipe


def test_nothing_blocks_the_shipped_rows(printed: dict[str, str]):
    assert "no blocking findings" in printed["audit"]
    shown = next(line for line in LINES if "severity" in line)
    assert shown.split() == next(line for line in printed["audit"].splitlines() if "severity" in line).split()


def test_the_comparison_recommends_something(reader: Reader, printed: dict[str, str]):
    (comparison,) = (reader.folder / "comparisons").rglob("comparison.json")
    assert json.loads(comparison.read_text("utf-8"))["verdict"]["arm"]
    assert "tf-idf" in printed["compare"]


def test_the_run_has_a_verdict_and_a_model_that_answers(reader: Reader, printed: dict[str, str]):
    report = json.loads((reader.run / "report.json").read_text("utf-8"))
    assert report["task"]["metric"] == "accuracy"
    assert {arm["name"] for arm in report["baselines"]} >= {"most frequent label", "TF-IDF + logistic regression"}
    assert (reader.run / "report.html").exists()
    label, heading = printed["ask"].splitlines()[:2]
    assert label in ("negative", "positive")
    assert heading.split() == ["label", "probability"]


def test_the_python_of_the_page_gives_the_same_label(reader: Reader, printed: dict[str, str]):
    (source,) = [block for language, block in BLOCKS if language == "python"]
    command = [sys.executable, "-c", source.replace("NAME", reader.run.name)]
    done = subprocess.run(
        command, cwd=reader.folder, env=reader.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == printed["ask"].split()[:1]


def test_the_server_answers_the_request_of_the_page(reader: Reader, printed: dict[str, str]):
    line = next(line for line in COMMANDS if " serve " in line)
    asked = shlex.split(next(line for line in LINES if line.startswith("curl ")))
    command = [sys.executable, "-m", "tunesmith", *reader.words(line)[1:], "--port", str(free_port()), "--json"]
    with subprocess.Popen(
        command, cwd=reader.folder, env=reader.environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = next(found[0] for line in server.stdout if (found := re.search(r"http://127[.\d]+:\d+", line)))
            body = json.loads(asked[-1].replace("NAME", reader.run.name))
            answer = httpx2.post(f"{url}/classify", json=body, timeout=120).json()
        finally:
            server.terminate()
    assert "http://127.0.0.1:8378/classify" in asked
    assert "negative" in json.dumps(answer)
