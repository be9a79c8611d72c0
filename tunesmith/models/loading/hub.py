"""The Hugging Face Hub: the files of a model at one commit, and its errors with their fixes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.data.files import storage_error
from tunesmith.errors import ModelError, briefly

# A name, and behind an @ the branch, tag or commit.
HUB_ID = re.compile(r"(?!.*\.\.)[\w-][\w.-]*(/[\w-][\w.-]*)?(@\w[\w./-]*)?")
_COMMIT = re.compile("[0-9a-f]{40}")


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form `owner/name` or `owner/name@revision`."""
    return "/" in name.partition("@")[0] and HUB_ID.fullmatch(name) is not None


def from_hub(name: str, *, offline: bool, files: Sequence[str], otherwise: str) -> Path:
    """Return the local folder of a model with the files of one commit, after downloading those that are missing.

    Args:
        name: `owner/name`, or `owner/name@revision`.
        offline: use only the local cache of the Hub.
        files: patterns of the files.
        otherwise: end of the messages: what to do instead.

    Raises:
        ModelError: there is no such model, or it cannot be downloaded.
        StorageError: the disk is full.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    absent = "no such folder, not in the Hub's local cache, and "
    with reaching_hub(name, offline=offline, absent=absent, otherwise=otherwise):
        # Of subfolders only `1_Pooling` and the like, which are read to embed: others have other formats (onnx/,
        # original/), which can be gigabytes.
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=list(files),
            ignore_patterns=["[!0-9]*/*"],
            local_files_only=offline,
        )
    return Path(folder)


def pinned(name: str, folder: Path | None) -> str:
    """Return a Hub id with the commit whose files are in its folder of the cache; any other name unchanged."""
    if folder is None or folder.parent.name != "snapshots" or not (found := HUB_ID.fullmatch(name)):
        return name
    return f"{found[0].partition('@')[0]}@{folder.name}" if _COMMIT.fullmatch(folder.name) else name


@contextmanager
def reaching_hub(name: str, *, offline: bool = False, absent: str = "", otherwise: str = "") -> Iterator[None]:
    """Enter a context that asks the Hub about a repository; its errors become one line with the fix.

    Args:
        name: of the repository.
        offline: whether only the local cache may be used.
        absent: beginning of the message if the Hub cannot be reached: what else was looked at.
        otherwise: end of the messages: what to do instead.

    Raises:
        ModelError: the Hub cannot be reached, or refuses; the message has the fix and never a token.
        StorageError: the disk is full.
    """
    from httpx2 import HTTPError

    try:
        yield
    except (OSError, HTTPError, ValueError, RuntimeError) as error:
        # The client wraps what happened to one of several files.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(cause, OSError) and (full := storage_error(cause)) is not None:
            raise full from error
        if (known := _refusal(cause, otherwise=otherwise)) is None:
            state = "offline" if offline else f"the Hub cannot be reached ({type(cause).__name__})"
            fix = f"connect once, or {otherwise}" if absent else otherwise or "check the network"
            known = f"{absent}{state}; {fix}"
        raise ModelError(f"{name}: {known}") from error


def _refusal(error: BaseException, *, otherwise: str) -> str | None:
    """Return problem and fix of an answer of the Hub; None if there was no answer."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, GatedRepoError):
        return "asks for consent first; accept its terms on the Hub, then hf auth login"
    if isinstance(error, RevisionNotFoundError):
        return "the Hub has no such revision; check what is behind the @"
    if isinstance(error, RepositoryNotFoundError):
        private = "if it is private, log in with hf auth login"
        return f"the Hub has no such model that you may read; check the name, {private}, or {otherwise}"
    if status in (401, 403):
        problem = "the Hub does not accept your token" if status == 401 else "your token may not do that there"
        return f"{problem}; log in with hf auth login, with a token that may{' write' * (status == 403)} there"
    if status == 409:
        return "the name is taken by a repository that you may not read; choose another name"
    if status:
        return f"the Hub answers {status} ({briefly(getattr(error, 'server_message', '') or error)}); try again later"
    return None
