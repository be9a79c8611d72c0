"""Run folders in remote places: a copy in the cache is worked in, and copied to the place after each checkpoint.

In the place, `.unfinished/` holds the files of an unfinished run by their SHA-256, and `manifest.json`, which names the
files of the newest whole copy and is replaced last: a process that is killed leaves the copy before. A finished run has
its files under their own names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tunesmith.data.files import sha256_of_file, write_whole
from tunesmith.data.remote import reaching, remote_url
from tunesmith.data.user_cache import cache_dir
from tunesmith.events import Event, Note
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.run_folder import exclusive_lock

UNFINISHED = ".unfinished"
MANIFEST = "manifest.json"
FINISHED = "report.json"


def local_run(out: Path | None) -> Path | None:
    """Return the folder to work in: of a remote place a fresh copy in the cache, any other unchanged.

    Args:
        out: folder, or URL of a run folder.

    Raises:
        DataError: the place cannot be reached.
        RunLockedError: another process of this machine works in the copy.
    """
    if out is None or not (url := remote_url(out)):
        return out
    url = url.rstrip("/")
    folder = cache_dir() / "runs" / hashlib.sha256(url.encode()).hexdigest()[:32] / url.rpartition("/")[2]
    with exclusive_lock(folder), reaching(url) as (place, root):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_whole(_url_file(folder), url)
        place.invalidate_cache()
        unfinished = f"{root}/{UNFINISHED}"
        if place.exists(f"{unfinished}/{MANIFEST}"):
            files = {
                name: f"{unfinished}/{digest}"
                for name, digest in json.loads(place.cat_file(f"{unfinished}/{MANIFEST}")).items()
            }
        elif place.exists(f"{root}/{FINISHED}"):
            files = {name.removeprefix(root).lstrip("/"): name for name in place.find(root)}
        else:
            files = {}
        for name, remote in files.items():
            local = (folder / name).resolve()
            if not local.is_relative_to(folder.resolve()):  # a name that another program wrote
                raise ValueError(f"{name}: not a file of a run")
            local.parent.mkdir(parents=True, exist_ok=True)
            place.get_file(remote, str(local))
    return folder


@contextmanager
def copied(folder: Path | None, callbacks: Callbacks) -> Iterator[Callbacks]:
    """Yield callbacks that copy a run to its remote place after each checkpoint; copy it again at the end.

    Args:
        folder: what `local_run` has returned.
        callbacks: those of the caller.

    Raises:
        DataError: the place cannot be reached.
    """
    if folder is None or not _url_file(folder).exists():
        yield callbacks
        return
    url = _url_file(folder).read_text(encoding="utf-8")
    saved = _checkpoint(folder)

    def on_event(event: Event) -> None:
        nonlocal saved
        callbacks.on_event(event)
        if (now := _checkpoint(folder)) != saved:
            _copy(folder, url)
            saved = now

    try:
        yield replace(callbacks, on_event=on_event)
    finally:
        _copy(folder, url)
    callbacks.on_event(Note(f"run folder copied to {url}"))


def _url_file(folder: Path) -> Path:
    return folder.parent / "url"


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
        digests = {name: sha256_of_file(file) for name, file in files.items()}
        there = {name.rpartition("/")[2] for name in place.find(unfinished)}
        for name, digest in digests.items():
            if digest not in there:
                place.put_file(str(files[name]), f"{unfinished}/{digest}")
        place.pipe_file(f"{unfinished}/{MANIFEST}", json.dumps(digests).encode())
        for old in there - {MANIFEST, *digests.values()}:
            place.rm_file(f"{unfinished}/{old}")
