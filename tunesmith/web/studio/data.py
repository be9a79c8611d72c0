"""Screen "Data": files and folders of documents, dropped or found, and rows made of documents."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.documents.convert import READERS as DOCUMENTS
from tunesmith.data.documents.find_files import sorted_out
from tunesmith.data.documents.to_rows import SHAPES
from tunesmith.data.readers.read import READERS
from tunesmith.web.studio.screen import Route, Screen, Studio, redirect
from tunesmith.web.studio.workspace import RECIPES, WorkspaceError, clean_name

UPLOADS = "uploads"  # folder of dropped files


class Data(Screen):
    """The screen.

    Args:
        studio: what the screens share.
    """

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio)
        shutil.rmtree(self.workspace.kept / UPLOADS, ignore_errors=True)  # of pages that were closed meanwhile

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/", self._home),
            ("GET", "/data", self._files),
            ("POST", "/demo", self._demo),
            ("POST", "/data/upload", self._upload),
            ("POST", "/data/uploaded", self._uploaded),
            ("GET", "/data/documents", self._documents),
            ("POST", "/data/collect", self._collect),
        )

    def _home(self) -> Any:
        from fastapi.responses import RedirectResponse

        return RedirectResponse("/data")

    def _demo(self) -> Any:
        job = self.studio.start("demo", "--out", "runs", subject="demo")
        return redirect(f"/jobs/{job.name}")

    def _files(self) -> Any:
        files = self.workspace.data()
        groups: Counter[str] = Counter()  # folders of documents, and single ones
        for entry in self.workspace.data(tuple(DOCUMENTS)):
            top, *inner = Path(entry.path).parts
            if top == UPLOADS or not entry.path.endswith(RECIPES):
                groups["/".join([top, *inner[: top == UPLOADS]])] += 1
        for entry in files:  # of rows
            groups.pop(entry.path, None)
        values = {"files": files, "groups": groups, "rows": READERS, "documents": list(DOCUMENTS)}
        return self.studio.render("data", here="data", **values)

    async def _upload(self, request: Any, upload: str, name: str, start: int = 0) -> Any:
        """Append one chunk of a dropped file; the browser sends them one after another.

        Args:
            request: its body is the chunk.
            upload: name of the upload, which no other has.
            name: of the file, with the folders around it.
            start: place of the chunk in the file, in bytes.
        """
        from fastapi.responses import JSONResponse

        if Path(name).suffix.lower() not in (*READERS, *DOCUMENTS):
            raise WorkspaceError(f"{name}: unknown kind of file; drop {', '.join({*READERS, *DOCUMENTS})}")
        target = self._dropped(upload).joinpath(*map(clean_name, name.split("/")))
        body = await request.body()
        await asyncio.to_thread(write_at, target, start, body)
        return JSONResponse({"size": start + len(body)})

    def _dropped(self, upload: str) -> Path:
        return self.workspace.kept / UPLOADS / self.workspace.new_name(upload)

    def _uploaded(self, fields: dict[str, str]) -> Any:
        """Move what was dropped to its place; an earlier file of that name is kept."""
        from fastapi.responses import JSONResponse

        folder = self._dropped(fields["upload"])
        address = "/data"
        parts = sorted(folder.iterdir())
        for part in parts:
            target = self.workspace.folder / UPLOADS / part.name
            target.parent.mkdir(exist_ok=True)
            names = (target.with_name(f"{part.stem}-{number}{part.suffix}") for number in itertools.count(2))
            place = next(path for path in itertools.chain([target], names) if not path.exists())
            shutil.move(part, place)
            page = "file" if place.is_file() and place.suffix.lower() in READERS else "documents"
            address = f"/data/{page}?path={UPLOADS}/{place.name}"
        folder.rmdir()
        return JSONResponse({"open": address if len(parts) == 1 else "/data"})

    def _documents(self, path: str) -> Any:
        found, skipped = sorted_out([self.workspace.path(path)])
        kinds = Counter(place.suffix.lower() for place in found.values())
        values = {"kinds": kinds.most_common(), "skipped": skipped.most_common(), "shapes": SHAPES}
        job = self.jobs.about(path, "collect")
        return self.studio.render("data_documents", here="data", path=path, job=job, total=len(found), **values)

    def _collect(self, fields: dict[str, str]) -> Any:
        path = fields["path"]
        out = self.workspace.path(path).with_suffix(".jsonl").relative_to(self.workspace.folder)
        writer = fields.get("writer", "").strip()
        options = ["--write", "questions", "--writer", writer] if writer else []
        words = ["collect", path, "--as", "instruct" if writer else fields["shape"], *options, "--out", out.as_posix()]
        return self.follow(self.studio.start(*words, subject=path, queued=bool(writer)))


def write_at(path: Path, start: int, chunk: bytes) -> None:
    """Write a chunk of a file at its place. Raises FileExistsError if another file was cleaned to the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if start else "xb") as file:
        file.seek(start)
        file.write(chunk)
