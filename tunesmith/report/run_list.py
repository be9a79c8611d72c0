"""The runs of a folder, as `tunesmith runs` lists them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tunesmith.data.bounded_yaml import parse_yaml
from tunesmith.data.files import report_edit
from tunesmith.errors import CheckpointError
from tunesmith.report.schema import read_report
from tunesmith.techniques import SHORTHANDS
from tunesmith.training.journal import Journal
from tunesmith.training.run_folder import PAGE

# Files that an entry is read from.
SOURCES = ("report.json", "journal.jsonl", PAGE, "recipe.yaml", "digests.txt")
TECHNIQUE = re.compile(r"^technique:.*\n(?:[ \t].*\n)*", re.MULTILINE)
Entry = dict[str, Any]
Describe = Callable[[Path, Callable[[str], None]], Entry]


class KnownRuns:
    """Describes runs, and each again only when a file that its entry is read from has changed.

    list_runs(folder, describe=KnownRuns())
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[list[tuple[int, ...]], Entry]] = {}

    def __call__(self, path: Path, on_problem: Callable[[str], None]) -> Entry:
        """Describe a run; a problem is only reported when the run is read."""
        stats = [file.stat() if (file := path / name).exists() else None for name in SOURCES]
        state: list[tuple[int, ...]] = [(s.st_ino, s.st_mtime_ns, s.st_size) if s else () for s in stats]
        known = self._known.get(path)
        if known is None or known[0] != state:
            self._known[path] = known = (state, describe_run(path, on_problem))
        return known[1]


def list_runs(
    folder: Path, *, on_problem: Callable[[str], None] = lambda _: None, describe: Describe | None = None
) -> list[Entry]:
    """Return the runs in a folder, newest last; a run folder is its only run.

    Args:
        folder: holds run folders, or is one.
        on_problem: receives a message about each run whose report or journal cannot be read.
        describe: makes the entry of a run, see `KnownRuns`; None reads every run.

    Returns:
        An entry per run: `run` (its folder), `when`, `state`, `step`, and `report` with `what` and `task`, or None.
    """
    paths = [folder, *(sorted(folder.iterdir()) if folder.is_dir() else [])]
    paths = [path for path in paths if any((path / name).is_file() for name in (PAGE, "report.json"))]
    runs = [(describe or describe_run)(path, on_problem) for path in ([folder] if folder in paths else paths)]
    return sorted(runs, key=lambda run: str(run["when"]))


def describe_run(path: Path, on_problem: Callable[[str], None]) -> Entry:
    """Read the entry of a run from its files; arguments as in `list_runs`."""
    page = next(p for p in (path / "report.json", path / "journal.jsonl", path / "run.json") if p.exists())
    when = datetime.fromtimestamp(page.stat().st_mtime).isoformat(sep=" ", timespec="minutes")
    entry: Entry = {"run": path, "when": when, "state": "finished", "step": None, "report": None}
    try:
        if not (path / "report.json").exists():
            steps = [record for record in Journal(path / "journal.jsonl").read() if "steps" in record]
            if not steps:
                return entry | {"state": "unfinished", "step": 0}
            step = steps[-1]["step"]
            return entry | {"state": f"unfinished, step {step} of {steps[-1]['steps']}", "step": step}
        report = read_report(path)
    except CheckpointError as error:
        on_problem(str(error))
        return entry | {"state": "unreadable"}
    what = f"{report.objective}, {_technique_name(path, report.technique)}, {report.model}"
    return entry | {
        "step": report.training.steps,
        "report": {"what": what, "task": report.task.model_dump(mode="json")},
    }


def _technique_name(path: Path, kind: str) -> str:
    """Return the usual name of a technique: some options of LoRA have names, such as `qlora`."""
    try:
        report_edit(path / "recipe.yaml")
        text = (path / "recipe.yaml").read_text(encoding="utf-8")
        section = TECHNIQUE.search(text)  # parsing the whole recipe takes ten times longer
        recipe = parse_yaml(section[0] if section else text)
        options = recipe["technique"].items()
    except (OSError, yaml.YAMLError, UnicodeError, KeyError, TypeError, AttributeError):  # missing or edited by hand
        return kind
    return "+".join(name for name, short in SHORTHANDS.items() if len(short) > 1 and short.items() <= options) or kind
