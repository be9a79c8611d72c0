"""Screen "Data": files dropped or found, their rows, findings and the recipe that is written from them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.readers.read import READERS, RowStream
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import Format, detect_or_guess
from tunesmith.data.schema.guess import Guess
from tunesmith.errors import DataError
from tunesmith.web.studio import recipe_form
from tunesmith.web.studio.screen import Route, Screen, Studio, redirect
from tunesmith.web.studio.workspace import WorkspaceError

LOOKED_AT = 200  # rows from which columns are detected
PAGE_ROWS = 50  # rows of one request
CELL_CHARS = 300
MOST_READERS = 8  # open files
UPLOADS = "uploads"  # folder of dropped files


class Data(Screen):
    """The screen.

    Args:
        studio: what the screens share.
    """

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio)
        self._pages = RowPages()

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/", self._home),
            ("GET", "/data", self._files),
            ("POST", "/demo", self._demo),
            ("GET", "/data/file", self._file),
            ("GET", "/data/rows", self._rows),
            ("GET", "/data/roles", self._roles),
            ("POST", "/data/upload", self._upload),
            ("POST", "/data/uploaded", self._uploaded),
            ("POST", "/data/audit", self._audit),
            ("POST", "/data/fix", self._fix),
            ("POST", "/data/init", self._init),
        )

    def _home(self) -> Any:
        from fastapi.responses import RedirectResponse

        return RedirectResponse("/data")

    def _demo(self) -> Any:
        job = self.studio.start("demo", "--out", "runs", subject="demo")
        return redirect(f"/jobs/{job.name}")

    def _files(self) -> Any:
        return self.studio.render("data", here="data", files=self.workspace.data())

    def _file(self, path: str) -> Any:
        source = self.workspace.path(path)
        audit = self.jobs.about(path, "audit")
        written = self.jobs.about(path, "init")
        values = {"path": path, "facts": source.stat(), "audit": audit, "written": written}
        return self.studio.render("data_file", here="data", **values, **self._mapping(source, ""))

    def _roles(self, path: str, kind: str = "") -> Any:
        return self.studio.render("roles", path=path, **self._mapping(self.workspace.path(path), kind))

    def _mapping(self, source: Path, kind: str) -> dict[str, Any]:
        """Return what a recipe would read from a file: the objective, and the column of each of its roles.

        Args:
            source: the file.
            kind: the objective; empty: detected.
        """
        found: Format | Guess | None = None
        problem = ""
        try:
            rows = self._pages.read(source, 0, LOOKED_AT)
            found = detect_or_guess(rows)
        except DataError as error:
            rows, problem = [], str(error)
        chosen = kind or (found.objective if found else "")
        same = found is not None and found.objective == chosen
        columns = list(dict.fromkeys(name for row in rows for name in row.fields))
        return {
            "kinds": list(recipe_form.kinds()),
            "kind": chosen,
            "detected": found.explain() if found else "",
            "problem": problem,
            "columns": columns,
            "roles": [
                (role, about, found.columns.get(role, "") if found and same else "")
                for role, about in recipe_form.roles(chosen).items()
            ],
        }

    def _rows(self, path: str, start: int = 0) -> Any:
        found = self._pages.read(self.workspace.path(path), start, PAGE_ROWS)
        return self.studio.render("rows", path=path, start=start, rows=found, page_rows=PAGE_ROWS, chars=CELL_CHARS)

    async def _upload(self, request: Any, name: str, start: int = 0) -> Any:
        """Append one chunk of a dropped file; the browser sends them one after another."""
        from fastapi.responses import JSONResponse

        suffix = Path(name).suffix.lower()
        if suffix not in READERS:
            raise WorkspaceError(f"{name}: unknown kind of file; drop {', '.join(READERS)}")
        target = self.workspace.folder / UPLOADS / self.workspace.new_name(name.replace(" ", "-"))
        target.parent.mkdir(exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        body = await request.body()
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.write(body)
        return JSONResponse({"size": start + len(body)})

    def _uploaded(self, fields: dict[str, str]) -> Any:
        """Give a dropped file its name; an earlier file of that name is kept."""
        from fastapi.responses import JSONResponse

        target = self.workspace.folder / UPLOADS / self.workspace.new_name(fields.get("name", "").replace(" ", "-"))
        part = target.with_name(f".{target.name}.part")
        for number in itertools.count(2):
            if not target.exists():
                break
            target = target.with_name(f"{part.name[1 : -len('.part')].rpartition('.')[0]}-{number}{target.suffix}")
        os.replace(part, target)
        return JSONResponse({"open": f"/data/file?path={UPLOADS}/{target.name}"})

    def _audit(self, fields: dict[str, str]) -> Any:
        path = fields["path"]
        self.workspace.path(path)
        job = self.studio.start("audit", path, subject=path, queued=False)
        return self.follow(job)

    def _fix(self, fields: dict[str, str]) -> Any:
        path = fields["path"]
        source = self.workspace.path(path)
        clean = str(Path(path).with_name(f"{source.stem}.clean.jsonl"))
        job = self.studio.start("audit", path, "--fix", clean, subject=clean, queued=False)
        return self.follow(job)

    def _init(self, fields: dict[str, str]) -> Any:
        path = fields["path"]
        name = self.workspace.new_name(fields.get("name") or f"{self.workspace.path(path).stem}.yaml")
        roles = {key: value for key, value in fields.items() if key not in ("path", "name", "kind") and value}
        found = self._mapping(self.workspace.path(path), "")
        options: list[str] = []
        if (fields.get("kind", ""), roles) != (
            found["kind"],
            {key: column for key, _, column in found["roles"] if column},
        ):
            options += ["--objective", fields["kind"]] if fields.get("kind") else []
            options += [f"--set=objective.{key}={value}" for key, value in roles.items()]
        if (self.workspace.folder / name).exists():
            raise WorkspaceError(f"{name}: exists already; choose another name for the recipe")
        job = self.studio.start("init", path, "--out", name, *options, subject=path, queued=False)
        return self.follow(job)


class RowPages:
    """Pages of the rows of files, read in order at the cost of a page; a page far below is reached by reading on to it.

    The last reader of each file is kept where it stopped, and dropped when the file has changed.
    """

    def __init__(self) -> None:
        self._readers: dict[Path, tuple[tuple[int, float], int, Iterator[Row]]] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, start: int, count: int) -> list[Row]:
        """Return `count` rows from the row `start`, fewer at the end. Raises DataError as `read_rows` does."""
        facts = path.stat()
        mark = (facts.st_size, facts.st_mtime)
        with self._lock:
            seen, at, reader = self._readers.pop(path, (mark, start + 1, iter(())))
            if seen != mark or at > start:
                at, reader = 0, iter(RowStream(path, {}))
            rows = list(itertools.islice(reader, start - at, start - at + count))
            self._readers[path] = (mark, start + len(rows), reader)
            while len(self._readers) > MOST_READERS:
                self._readers.pop(next(iter(self._readers)))
        return rows
