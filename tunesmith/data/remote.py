"""Files in remote places, such as `s3://bucket/rows.jsonl`: everything that fsspec reaches."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tunesmith.data.files import quoted, write_whole
from tunesmith.errors import DataError, suggestion

# A `Path` of s3://bucket has lost a slash. One letter is a drive of Windows.
URL = re.compile(r"([a-z][a-z0-9+.-]+):(/+)(.+)", re.DOTALL)
LINES = (".jsonl", ".ndjson")
HERE = ("file", "local", "memory")  # schemes that need no network
_OFFLINE = ContextVar("offline", default=False)


def remote_url(name: str | Path) -> str:
    """Return the URL that a name is; empty if it is a local path or the name of a dataset."""
    found = URL.fullmatch(str(name))
    if not found:
        return ""
    # The path of file:///folder begins with its third slash, unless a drive of Windows follows; a `Path` of it has one.
    absolute = found[1] in ("file", "local") and len(found[2]) != 2 and not re.match("[A-Za-z]:", found[3])
    return f"{found[1]}://{'/' if absolute else ''}{found[3]}"


def local_path(url: str) -> str:
    """Return the path that a `file:` URL names, as `Path.as_uri` writes it; empty for any other URL."""
    return unquote(url.removeprefix("file://")) if url.startswith("file://") else ""


def last_part(source: str) -> str:
    """Return the last part of a path or URL, without what follows a `?` in a URL, which may be a password."""
    return re.split(r"[\\/]", (remote_url(source).partition("?")[0] or source).rstrip("\\/"))[-1]


@contextmanager
def without_network(offline: bool) -> Iterator[None]:
    """Enter a context in which remote places are not asked, if `offline`: their files come from the cache."""
    token = _OFFLINE.set(offline or _OFFLINE.get())
    try:
        yield
    finally:
        _OFFLINE.reset(token)


@contextmanager
def reaching(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the fsspec file system of a URL and the path in it.

    Raises:
        DataError: in the block, the place could not be reached; the message names the fix.
    """
    try:
        fsspec, scheme = import_module("fsspec"), url.partition(":")[0]
        if scheme not in (known := fsspec.available_protocols()):
            fix = suggestion(scheme, known) or "use one of fsspec's, such as s3, gs or https"
            raise DataError(f"{_shown(url)}: unknown scheme {scheme}; {fix}")
        if _OFFLINE.get() and not _is_here(url):
            raise DataError(
                f"{_shown(url)}: cannot be reached offline; omit --offline, or use a folder of this machine"
            )
        path = local_path(url)
        yield fsspec.url_to_fs(f"file://{path}" if path else url)
    except DataError:
        raise
    except ImportError as error:
        package = error.name or getattr(error.__cause__, "name", None)  # fsspec raises one without a name from another
        install = package if package not in ("fsspec", "s3fs", None) else quoted("tunesmith[remote]")
        raise DataError(f"{_shown(url)}: requires a package ({error}); pip install {install}") from error
    except FileNotFoundError as error:
        raise DataError(f"{_shown(url)}: no such file; check the name") from error
    except Exception as error:  # every place has errors of another library
        problem = " ".join(str(error).split())
        fix = "check the network, and the credentials in the environment or, for S3, in ~/.aws/credentials"
        raise DataError(f"{_shown(url)}: cannot be reached ({type(error).__name__}: {problem}); {fix}") from error


def fetched(url: str) -> Path:
    """Download a file, or the files of a pattern as one, unless the cache has it in its present state.

    Offline, the file that was downloaded last.

    Args:
        url: a URL; `*`, `?` and `[...]` match the names of several files with JSON lines.

    Raises:
        DataError: the place cannot be reached, or there is no such file.
    """
    return next(_kept(_newest("file", url), url).iterdir()) if _OFFLINE.get() and not _is_here(url) else _fetched(url)


@lru_cache
def _fetched(url: str) -> Path:
    from tunesmith.data.stored import build_once, cached_folder  # imports numpy, which local names need not wait for

    with reaching(url) as (place, path):
        names = sorted(place.glob(path)) if set("*?[") & set(path) else [path]
        if not names:
            raise FileNotFoundError(url)
        if len(names) > 1 and not path.endswith(LINES):
            raise DataError(f"{_shown(url)}: {len(names)} files; only JSON lines are read together, name one")
        folder = cached_folder("remote", [(name, place.ukey(name), _version(place.info(name))) for name in names])
    file = re.sub(r"[*?\[\]]+", "_", path.rpartition("/")[2])
    build_once(folder, lambda partial: _download(url, names, partial / file))
    write_whole(_newest("file", url), folder.name)
    return folder / file


@lru_cache
def fetched_folder(url: str, *, suffixes: tuple[str, ...], offline: bool = False) -> Path:
    """Download the model folder of a run, or any other folder, without its subfolders, unless the cache has it.

    Args:
        url: URL of the folder.
        suffixes: endings of the files that are downloaded.
        offline: return what was downloaded last, without asking whether it has changed.

    Raises:
        DataError: the place cannot be reached, or has no such files.
    """
    from tunesmith.data.stored import build_once, cached_folder

    if offline and not _is_here(url):
        return _kept(_newest("folder", url), url)
    with reaching(url) as (place, path):
        root = path.rstrip("/")
        root = f"{root}/model" if place.isdir(f"{root}/model") else root
        names = sorted(str(name) for name in place.ls(root, detail=False) if str(name).endswith(suffixes))
        if not names:
            raise FileNotFoundError(url)
        folder = cached_folder("remote", [(name, place.ukey(name), _version(place.info(name))) for name in names])

    def fill(partial: Path) -> None:
        with reaching(url) as (place, _):
            for name in names:
                place.get_file(name, str(partial / name.rpartition("/")[2]))

    build_once(folder, fill)
    write_whole(_newest("folder", url), folder.name)
    return folder


def _is_here(url: str) -> bool:
    """Return whether a URL needs no network."""
    return url.partition(":")[0] in HERE


def _newest(kind: str, url: str) -> Path:
    """Return the file with the name of the folder that was downloaded last from a URL."""
    from tunesmith.data.stored import cached_folder

    return cached_folder("remote", [kind, url]).with_suffix(".newest")


def _kept(newest: Path, url: str) -> Path:
    folder = newest.with_name(newest.read_text(encoding="utf-8")) if newest.exists() else newest
    if not folder.is_dir():
        raise DataError(f"{_shown(url)}: not in the cache, and offline; connect once, or copy it here")
    return folder


def _version(info: Mapping[str, Any]) -> str:
    """Return what changes with a file, as its place names it; the key that fsspec makes of a web address never does."""
    names = ("size", "ETag", "LastModified", "Content-MD5", "Digest")
    return " ".join(str(info[name]) for name in names if name in info)


def _shown(url: str) -> str:
    """Return a URL without passwords: those before the host, and the signature behind a web address."""
    url = re.sub(r"//[^/@]*@", "//", url)
    return url.partition("?")[0] if url.startswith("http") else url


def _download(url: str, names: Sequence[str], file: Path) -> None:
    with reaching(url) as (place, _), file.open("wb") as out:
        for name in names:
            if out.tell():
                out.write(b"\n")  # the last line of a file may have no end; blank lines are skipped
            with place.open(name, "rb") as remote:
                shutil.copyfileobj(remote, out, 2**20)
