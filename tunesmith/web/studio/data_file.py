"""Screen "Data", one file: its rows, the meaning of its columns, its findings and their fixes, and what comes next."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.data.audit.fix import log_of
from tunesmith.data.audit.row_index import IndexedRow, RowIndex
from tunesmith.data.files import move
from tunesmith.data.readers.read import LARGE_BYTES
from tunesmith.data.readers.row import Row, columns_of
from tunesmith.data.schema.formats import Format, detect_or_guess
from tunesmith.data.schema.guess import Guess
from tunesmith.errors import DataError
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.web.studio import recipe_form
from tunesmith.web.studio.jobs import Job
from tunesmith.web.studio.screen import Route, Screen, Studio, redirect
from tunesmith.web.studio.workspace import WorkspaceError, clean_name

LOOKED_AT = 200  # rows from which columns are detected
MOST_ROWS = 200  # of one request
CELL_CHARS = 300  # in the list
MOST_CHARS = 20_000  # of a value shown whole
CHANGES = 20  # shown at a time
CHANGED = "not in the file any more; check the data again"
MOST_FILES = 8  # whose indices are kept
PARTS = ("group", "validation", "test")  # keys of the section `data` in the form
SET = re.compile(r"--set=(?:objective|data)\.(\w+)=(.*)", re.DOTALL)


class DataFile(Screen):
    """The screen.

    Args:
        studio: what the screens share.
    """

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio)
        self._indices: dict[Path, tuple[tuple[int, float], RowIndex]] = {}
        self._lock = threading.Lock()  # of both dicts
        self._opening: dict[Path, threading.Lock] = {}

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/data/file", self._file),
            ("GET", "/data/rows", self._rows),
            ("GET", "/data/row", self._row),
            ("GET", "/data/roles", self._roles),
            ("POST", "/data/audit", self._audit),
            ("POST", "/data/fix", self._fix),
            ("GET", "/data/changes", self._changes),
            ("POST", "/data/keep", self._keep),
            ("POST", "/data/preview", self._preview),
            ("POST", "/data/init", self._init),
        )

    def _index(self, path: Path) -> RowIndex:
        facts = path.stat()
        mark = (facts.st_size, facts.st_mtime)
        with self._lock:
            opening = self._opening.setdefault(path, threading.Lock())
        with opening:  # which takes seconds for a long file; others are read meanwhile
            with self._lock:
                seen, index = self._indices.pop(path, (None, None))
            index = index if index and seen == mark else RowIndex(path)
            with self._lock:
                self._indices[path] = (mark, index)
                while len(self._indices) > MOST_FILES or (len(self._indices) > 1 and self._held() > LARGE_BYTES):
                    self._indices.pop(next(iter(self._indices)))
        return index

    def _held(self) -> int:
        return sum(index.held_bytes for _, index in self._indices.values())

    def _file(self, path: str, finding: str = "") -> Any:
        source = self.workspace.path(path)
        about = {
            "audit": self.jobs.about(path, "audit"),
            "fixes": self.jobs.about(f"fixes of {path}", "audit"),
            "preview": self.jobs.about(f"preview of {path}", "tune"),
            "written": self.jobs.about(path, "init"),
        }
        found = (about["audit"].output() or {}).get("findings", ()) if about["audit"] else ()
        title = next((entry["about"] for entry in found if entry["kind"] == finding), "")
        folders = (place.parent.name for place in self.workspace.folder.glob("*/config.json"))
        values = {"facts": source.stat(), "finding": finding, "title": title, "models": [*BUNDLED_MODELS, *folders]}
        values["recipe_name"] = recipe_name(path)
        return self.studio.render("data_file", here="data", path=path, **values, **about, **self._mapping(path))

    def _roles(self, path: str, kind: str = "") -> Any:
        return self.studio.render("roles", path=path, **self._mapping(path, kind))

    def _detected(self, path: str) -> tuple[Format | Guess | None, list[Row], str]:
        """Return the format of the first rows, these rows, and why no format is detected."""
        rows: list[Row] = []
        try:
            first = self._index(self.workspace.path(path)).read(0, LOOKED_AT)
            rows = [Row(f"{path}:{row.line}", row.fields) for row in first if not isinstance(row.fields, str)]
            return (detect_or_guess(rows), rows, "") if rows else (None, [], f"{path}: no line is a row")
        except DataError as error:
            return None, rows, str(error)

    def _mapping(self, path: str, kind: str = "") -> dict[str, Any]:
        """Return what a recipe would read from a file: the objective, and the column of each of its roles.

        Args:
            path: the file.
            kind: the objective; empty: that of the last command about this file, else the detected one.
        """
        found, rows, problem = self._detected(path)
        note = self._index(self.workspace.path(path)).note if rows else ""
        chosen = {} if kind else chosen_in(self.jobs.about(path, "init", "audit"))
        kind = kind or chosen.get("kind", "") or (found.objective if found else "")
        detected = found.columns if found and found.objective == kind else {}
        columns = chosen if "kind" in chosen else detected
        names = columns_of(rows)
        return {
            "kinds": list(recipe_form.kinds()),
            "kind": kind,
            "detected": found.explain() if found else "",
            "note": note,
            "problem": problem,
            "columns": names,
            "shown": list(dict.fromkeys([*(name for name in columns.values() if name in names), *names])),
            "roles": [(role, about, columns.get(role, "")) for role, about in recipe_form.roles(kind).items()],
            "parts": {part: chosen.get(part, "") for part in PARTS},
        }

    def _rows(self, path: str, start: int = 0, count: int = 50, finding: str = "") -> Any:
        """Return rows for the list, of the file or of a finding of its last audit."""
        from fastapi.responses import JSONResponse

        index, end = self._index(self.workspace.path(path)), start + min(count, MOST_ROWS)
        lines = lines_of(self._audit_of(path).folder, finding) if finding else ()
        found = [index.at_line(line) for line in lines[start:end]] if finding else index.read(start, end - start)
        if index.whole:  # a line without a row is one of a file that has changed
            found = [row or IndexedRow(lines[start + n] - 1, 0, CHANGED) for n, row in enumerate(found)]
        rows = [{"n": row.number, "fields": shortened(row.fields)} for row in found if row]
        total, whole = (len(lines), len(rows) == len(found)) if finding else (index.rows, index.whole)
        return JSONResponse({"rows": rows, "total": total, "whole": whole, "problem": index.problem})

    def _row(self, path: str, number: int = 0) -> Any:
        found = self._index(self.workspace.path(path)).read(number, 1)
        row = found[0] if found else IndexedRow(number, 0, "there is no such row")
        fields = {} if isinstance(row.fields, str) else {name: as_text(value, 1) for name, value in row.fields.items()}
        return self.studio.render("row", row=row, fields=fields, most=MOST_CHARS)

    def _audit_of(self, path: str) -> Job:
        if (job := self.jobs.about(path, "audit")) is None:
            raise WorkspaceError(f"{path}: not checked yet; check the data first")
        return job

    def _start(self, fields: Mapping[str, str], *words: str, subject: str = "", kind: str = "--objective=") -> Any:
        """Start a command about the file with what the form says; what is detected beyond doubt is not repeated.

        Args:
            fields: the form.
            words: the command and its own options.
            subject: what the job is about; empty: the file.
            kind: the option that sets the objective, before its value.
        """
        path, objective = fields["path"], fields.get("kind", "")
        found, *_ = self._detected(path)
        keys = recipe_form.roles(objective)
        roles = {key: fields[key] for key in keys if fields.get(key)}
        detected = {} if found is None else {key: found.columns[key] for key in keys if key in found.columns}
        options = [f"--set=data.{part}={fields[part].strip()}" for part in PARTS if fields.get(part, "").strip()]
        if objective and (not isinstance(found, Format) or (objective, roles) != (found.objective, detected)):
            options += [f"{kind}{objective}", *(f"--set=objective.{key}={column}" for key, column in roles.items())]
        command, *own = words
        return self.follow(self.studio.start(command, path, *own, *options, subject=subject or path, queued=False))

    def _audit(self, fields: dict[str, str]) -> Any:
        return self._start(fields, "audit", kind="--set=objective.kind=")

    def _preview(self, fields: dict[str, str]) -> Any:
        model = [f"--model={fields['model'].strip()}"] if fields.get("model", "").strip() else []
        return self._start(fields, "tune", "--dry-run", *model, subject=f"preview of {fields['path']}")

    def _init(self, fields: dict[str, str]) -> Any:
        name = self.workspace.new_name(fields.get("name") or recipe_name(fields["path"]))
        if (self.workspace.folder / name).exists():
            raise WorkspaceError(f"{name}: exists already; choose another name for the recipe")
        return self._start(fields, "init", "--out", name)

    def _copy_of(self, path: str) -> Path:
        """Return where the fixed copy of a file is until it is kept."""
        place = self.workspace.path(path).relative_to(self.workspace.folder.resolve())
        return self.workspace.kept / "fixes" / f"{place.as_posix()}.jsonl"

    def _fix(self, fields: dict[str, str]) -> Any:
        """Write a fixed copy aside, so that its changes can be seen before it is kept."""
        path = fields["path"]
        words, copy = self._audit_of(path).command.words, self._copy_of(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        for old in (copy, log_of(copy)):
            old.unlink(missing_ok=True)
        options = [word for word in words if word.startswith("--set=")]
        options += ["--fix", copy.relative_to(self.workspace.folder).as_posix()]
        return self.follow(self.studio.start("audit", path, *options, subject=f"fixes of {path}", queued=False))

    def _changes(self, path: str, start: int = 0) -> Any:
        """Return some changes of the fixed copy: each text before and after, each dropped row with the reason."""
        source, copy = self.workspace.path(path), self._copy_of(path)
        rows, changes = self._index(source), []
        for entry in self._index(log_of(copy)).read(start, CHANGES) if log_of(copy).exists() else ():
            change: dict[str, Any] = dict(entry.fields) if isinstance(entry.fields, Mapping) else {}
            row = rows.at_line(int(change["where"].rpartition(":")[2]), wait=True)
            old = row.fields if row else CHANGED
            if "row" in change and isinstance(old, Mapping):
                after, column = self._index(copy).read(change["row"] - 1, 1, wait=True), change["column"]
                new = after[0].fields if after else CHANGED
                if isinstance(new, Mapping):
                    change["marks"] = marked(as_text(old.get(column)), as_text(new.get(column)))
            changes.append({**change, "old": shortened(old)})
        values = {"more": CHANGES, "kept": not copy.exists(), "name": clean_name(f"{source.stem}.clean.jsonl")}
        return self.studio.render("changes", path=path, start=start, changes=changes, **values)

    def _keep(self, fields: dict[str, str]) -> Any:
        """Move the fixed copy and its log next to the file."""
        copy, place = self._copy_of(fields["path"]), self.workspace.path(fields["path"])
        place = place.with_name(self.workspace.new_name(fields["name"]))
        if place.suffix != ".jsonl" or place.exists() or log_of(place).exists():
            raise WorkspaceError(f"{place.name}: exists, or does not end in .jsonl; choose another name for the copy")
        move(log_of(copy), log_of(place))
        move(copy, place)
        return redirect("/data/file", path=place.relative_to(self.workspace.folder).as_posix())


@lru_cache(maxsize=4)
def lines_of(job: Path, kind: str) -> tuple[int, ...]:
    """Return the lines of all rows of a finding of an audit. Raises WorkspaceError while it runs."""
    if (output := Job(job).output()) is None:
        state = Job(job).state().name
        if state in ("waiting", "running"):
            raise WorkspaceError("the data is being checked; open the rows when the check has finished")
        raise WorkspaceError(f"the check is {state} and has found nothing; check the data again")
    rows = next((finding["rows"] for finding in output.get("findings", ()) if finding["kind"] == kind), ())
    return tuple(int(where.rpartition(":")[2]) for where in rows)


def recipe_name(path: str) -> str:
    """Return the name that is proposed for the recipe of a file."""
    return clean_name(f"{Path(path).stem}.yaml")


def chosen_in(job: Job | None) -> dict[str, str]:
    """Return the objective (as `kind`), the columns and the parts that the options of a job's command set."""
    words = [re.sub("^--objective=", "--set=objective.kind=", word) for word in (job.command.words if job else ())]
    return {found[1]: found[2] for word in words if (found := SET.fullmatch(word))}


def as_text(value: object, indent: int | None = None) -> str:
    """Return a value as text: JSON, unless it is one."""
    text = json.dumps(value, ensure_ascii=False, default=str, indent=indent)
    return value if isinstance(value, str) else "" if value is None else text


def shortened(fields: Mapping[str, object] | str) -> dict[str, str] | str:
    """Return the beginning of each value, or why a line is not a row."""
    if isinstance(fields, str):
        return fields
    return {column: as_text(value)[:CELL_CHARS] for column, value in fields.items()}


def marked(before: str, after: str) -> tuple[str, str, str, str]:
    """Return what two texts have in common at the start, what differs before and after, and the common end."""
    start = len(os.path.commonprefix([before, after]))
    end = len(os.path.commonprefix([before[start:][::-1], after[start:][::-1]]))
    old, new = (text[start : len(text) - end] for text in (before, after))
    return before[:start], old, new, before[len(before) - end :]
