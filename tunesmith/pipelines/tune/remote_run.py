"""Run folders in remote places: a copy in the cache is worked in, and copied to the place after each checkpoint.

In the place, `.unfinished/` holds the files of an unfinished run by their SHA-256, and `manifest.json`, which names the
files of the newest whole copy and is replaced last: a process that is killed leaves the copy before. A finished run has
its files under their own names. While the copy in the cache may be newer than the place, the file `pending` next to it
holds the states of the place that it follows.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.data.files import write_whole
from tunesmith.data.remote import reaching, remote_url
from tunesmith.data.user_cache import cache_dir
from tunesmith.errors import DataError
from tunesmith.events import Event, Note
from tunesmith.models.loading.checkpoint import file_digest
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.run_folder import exclusive_lock

UNFINISHED = ".unfinished"
MANIFEST = f"{UNFINISHED}/manifest.json"
FINISHED = "report.json"


def local_run(out: Path | None) -> Path | None:
    """Return the folder to work in: of a remote place a copy in the cache, any other unchanged.

    The copy is a fresh one, unless the last one here has work that could not be copied to the place.

    Args:
        out: folder, or URL of a run folder.

    Raises:
        DataError: the URL names no place; the place cannot be reached, is damaged, or changed while work here was not
            copied.
        RunLockedError: another process of this machine works in the copy.
    """
    if out is not None and re.fullmatch("[a-z][a-z0-9+.-]+:/*", str(out)):
        raise DataError(f"--out {out}: names no folder; add one, such as s3://bucket/run")
    if out is None or not (url := remote_url(out)):
        return out
    url = url.rstrip("/")
    folder = cache_dir() / "runs" / hashlib.sha256(url.encode()).hexdigest()[:32] / url.rpartition("/")[2]
    with exclusive_lock(folder), reaching(url) as (place, root):
        place.invalidate_cache()
        if (pending := folder.parent / "pending").exists() and any(folder.glob("*")):
            if _state(place, root) in pending.read_text(encoding="utf-8").split("\n"):
                return folder
            raise DataError(
                f"{url}: has changed since {folder}, whose last steps were not copied; delete that folder or the place"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_whole(folder.parent / "url", url)
        digests = _manifest(place, root, url)
        files = {name: f"{root}/{UNFINISHED}/{digest}" for name, digest in digests.items()}
        if not digests and place.exists(f"{root}/{FINISHED}"):
            files = {name.removeprefix(root).lstrip("/"): name for name in place.find(root)}
        for name, remote in files.items():
            local = (folder / name).resolve()
            if not local.is_relative_to(folder.resolve()):  # a name that another program wrote
                raise DataError(f"{url}: {name!r} in its manifest is not a file of a run; delete the place")
            local.parent.mkdir(parents=True, exist_ok=True)
            place.get_file(remote, str(local))
            if name in digests and file_digest(local) != digests[name]:
                raise DataError(f"{url}: {name} is damaged; delete {UNFINISHED} there to begin again")
    return folder


def _manifest(place: Any, root: str, url: str) -> dict[str, str]:
    """Return the digest of each file of an unfinished run; raise DataError if another program wrote the manifest."""
    try:
        digests = dict(json.loads(place.cat_file(f"{root}/{MANIFEST}"))) if place.exists(f"{root}/{MANIFEST}") else {}
    except (ValueError, TypeError):
        digests = {"": ""}
    if not all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values()):
        raise DataError(f"{url}: {MANIFEST} is not the manifest of a run; delete the place")
    return digests


@contextmanager
def copied(folder: Path | None, callbacks: Callbacks) -> Iterator[Callbacks]:
    """Yield callbacks that copy a run to its remote place after each checkpoint; copy it again at the end.

    Args:
        folder: what `local_run` has returned.
        callbacks: those of the caller.

    Raises:
        DataError: the place cannot be reached at the end; the next start copies the run.
    """
    if folder is None or not folder.is_relative_to(cache_dir() / "runs") or not (folder.parent / "url").exists():
        yield callbacks
        return
    url = (folder.parent / "url").read_text(encoding="utf-8")
    if not (pending := folder.parent / "pending").exists():
        with reaching(url) as (place, root):
            write_whole(pending, _state(place, root))
    saved = _checkpoint(folder)

    def on_event(event: Event) -> None:
        nonlocal saved
        callbacks.on_event(event)
        if (now := _checkpoint(folder)) != saved:
            try:
                _copy(folder, url)
                saved = now
            except DataError as error:
                callbacks.on_event(Note(f"not copied, which is tried again with the next event: {error}"))

    try:
        yield replace(callbacks, on_event=on_event)
    finally:
        _copy(folder, url)
        pending.unlink(missing_ok=True)
    callbacks.on_event(Note(f"run folder copied to {url}"))


def _state(place: Any, root: str) -> str:
    """Return the digest of the manifest in a place; empty if there is none."""
    manifest = f"{root}/{MANIFEST}"
    return hashlib.sha256(place.cat_file(manifest)).hexdigest() if place.exists(manifest) else ""


def _checkpoint(folder: Path) -> list[int]:
    """Return a value that changes with each checkpoint."""
    return [file.stat().st_mtime_ns for file in sorted(folder.glob("**/checkpoints/last/state.json"))]


def _copy(folder: Path, url: str) -> None:
    """Copy a run to its place: all files of a finished one by name, else those that are not there by digest."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    with reaching(url) as (place, root):
        unfinished = f"{root}/{UNFINISHED}"
        if FINISHED in files:
            for name in sorted(files, key=lambda name: name == FINISHED):  # the report last
                place.put_file(str(files[name]), f"{root}/{name}")
            if place.exists(unfinished):
                place.rm(unfinished, recursive=True)
            return
        digests = {name: file_digest(file) for name, file in files.items()}
        there = {name.rpartition("/")[2] for name in place.find(unfinished)} - {"manifest.json"}
        for name, digest in digests.items():
            if digest not in there:
                place.put_file(str(files[name]), f"{unfinished}/{digest}")
        manifest = json.dumps(digests).encode()
        pending, state = folder.parent / "pending", hashlib.sha256(manifest).hexdigest()
        write_whole(pending, f"{_state(place, root)}\n{state}")  # which of the two, if this process is killed here
        place.pipe_file(f"{root}/{MANIFEST}", manifest)
        write_whole(pending, state)
        for old in there - set(digests.values()):
            place.rm_file(f"{unfinished}/{old}")
