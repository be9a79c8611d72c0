"""Screen "Data": files and folders of documents, dropped or found, and rows made of documents."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.documents.convert import READERS as DOCUMENTS
from tunesmith.data.documents.find_files import sorted_out
from tunesmith.data.documents.to_rows import SHAPES
from tunesmith.data.readers.read import READERS
from tunesmith.web.studio.screen import Route, Screen, redirect
from tunesmith.web.studio.workspace import WorkspaceError

UPLOADS = "uploads"  # folder of dropped files
UNSAFE = re.compile(r"[^\w.-]+")


class Data(Screen):
    """The screen."""

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
        paths = [Path(entry.path).parts for entry in self.workspace.data(tuple(DOCUMENTS))]
        counts = Counter("/".join(path[: 1 + (path[0] == UPLOADS)]) for path in paths)
        folders = {name: count for name, count in counts.items() if (self.workspace.folder / name).is_dir()}
        values = {"files": self.workspace.data(), "folders": folders, "rows": READERS, "documents": list(DOCUMENTS)}
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
        parts = [UNSAFE.sub("-", part).strip(".-_") or "file" for part in name.split("/")]
        target = self._dropped(upload).joinpath(*map(self.workspace.new_name, parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        body = await request.body()
        with target.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.write(body)
        return JSONResponse({"size": start + len(body)})

    def _dropped(self, upload: str) -> Path:
        return self.workspace.kept / UPLOADS / self.workspace.new_name(upload)

    def _uploaded(self, fields: dict[str, str]) -> Any:
        """Move what was dropped to its place; an earlier file of that name is kept."""
        from fastapi.responses import JSONResponse

        folder = self._dropped(fields["upload"])
        address = "/data"
        for part in sorted(folder.iterdir()):
            target = self.workspace.folder / UPLOADS / part.name
            target.parent.mkdir(exist_ok=True)
            names = (target.with_name(f"{part.stem}-{number}{part.suffix}") for number in itertools.count(2))
            place = next(path for path in itertools.chain([target], names) if not path.exists())
            shutil.move(part, place)
            page = "file" if place.is_file() and place.suffix.lower() in READERS else "documents"
            address = f"/data/{page}?path={UPLOADS}/{place.name}"
        several = sum(1 for _ in folder.iterdir())
        folder.rmdir()
        return JSONResponse({"open": "/data" if several else address})

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
        words = ["collect", path, "--as", "instruct" if writer else fields["shape"], *options, "--out", str(out)]
        return self.follow(self.studio.start(*words, subject=path, queued=bool(writer)))
