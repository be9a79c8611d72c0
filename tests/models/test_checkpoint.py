"""Folders that are whole or not there, whatever moment the machine stops at."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tunesmith.data.files import sha256_of_file
from tunesmith.errors import CheckpointError, StorageError
from tunesmith.models.loading import checkpoint
from tunesmith.models.loading.checkpoint import (
    MANIFEST,
    find_folder,
    load_tensors,
    save_tensors,
    verify_folder,
    write_folder,
)


class Crash(BaseException):
    """The machine stops here."""


def filler(word: str) -> Callable[[Path], None]:
    def fill(half: Path) -> None:
        (half / "inner").mkdir()
        (half / "a.txt").write_text(word)
        (half / "inner" / "b.txt").write_text(word)

    return fill


def content(folder: Path) -> str:
    """What the whole folder that is found holds; both files must be of the same writing."""
    found = find_folder(folder)
    assert found is not None
    verify_folder(found)
    words = {(found / "a.txt").read_text(), (found / "inner" / "b.txt").read_text()}
    assert len(words) == 1
    return words.pop()


def crash_at(monkeypatch: pytest.MonkeyPatch, place: object, name: str, call: int) -> None:
    """Stop instead of the call-th call of a function."""
    real, calls = getattr(place, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Crash(name)
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, counted)


# Every moment at which writing over a folder can stop, in order of time, and which writing is then found.
MOMENTS = [
    ("before anything is written", Path, "mkdir", 1, "old"),
    ("before the files are written", Path, "mkdir", 2, "old"),
    ("between two files", Path, "write_text", 2, "old"),
    ("before the manifest", Path, "write_text", 3, "old"),
    ("before the flush", checkpoint, "_flush", 1, "old"),
    ("before the first rename", checkpoint, "move", 1, "old"),
    ("between the renames", checkpoint, "move", 2, "old"),
    ("after the renames", checkpoint, "_flush", 6, "new"),
    ("before the old one is removed", shutil, "rmtree", 3, "new"),
]


@pytest.mark.parametrize(("place", "name", "call", "left"), [one[1:] for one in MOMENTS], ids=[m[0] for m in MOMENTS])
def test_a_crash_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, name: str, call: int, left: str
):
    folder = tmp_path / "last"
    write_folder(folder, filler("old"))
    with monkeypatch.context() as patch:
        crash_at(patch, place, name, call)
        with pytest.raises(Crash):
            write_folder(folder, filler("new"))
    assert content(folder) == left
    write_folder(folder, filler("newer"))
    assert content(folder) == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("call", range(1, 4))
def test_a_second_crash_after_one_between_the_renames_still_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
):
    folder = tmp_path / "last"
    write_folder(folder, filler("old"))
    with monkeypatch.context() as patch:
        crash_at(patch, checkpoint, "move", 2)
        with pytest.raises(Crash):
            write_folder(folder, filler("new"))
    assert not folder.exists()
    with monkeypatch.context() as patch:
        crash_at(patch, *[(Path, "mkdir"), (checkpoint, "_flush"), (checkpoint, "move")][call - 1], 1)
        with pytest.raises(Crash):
            write_folder(folder, filler("newer"))
    assert content(folder) == "old"


def test_a_first_folder_is_not_found_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    crash_at(monkeypatch, checkpoint, "move", 1)
    with pytest.raises(Crash):
        write_folder(tmp_path / "last", filler("new"))
    assert find_folder(tmp_path / "last") is None


def test_a_full_disk_is_an_error_for_the_user_and_the_old_folder_stays(tmp_path: Path):
    write_folder(tmp_path / "last", filler("old"))

    def full(half: Path) -> None:
        (half / "a.txt").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"last: cannot be written \(No space left on device\); free some space"):
        write_folder(tmp_path / "last", full)
    assert content(tmp_path / "last") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_disk_that_is_full_for_safetensors_is_told_alike_and_leaves_no_half_folder(tmp_path: Path):
    def full(half: Path) -> None:
        (half / "a.safetensors").write_text("x")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match=r"last: cannot be written \(No space left on device\); free some space"):
        write_folder(tmp_path / "last", full)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_kept_in_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match=r"last: cannot be written \(File exists\); .+; until then it is in "
    ) as error:
        write_folder(tmp_path / "file" / "last", filler("word"))
    (kept,) = (tmp_path / "other").glob("tunesmith-*/last")
    assert str(error.value).endswith(f" {kept}, which can be moved to {tmp_path / 'file' / 'last'}")
    assert content(kept) == "word"
    verify_folder(kept)


def test_a_folder_that_is_there_is_to_be_deleted_before_its_rescue_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, other = tmp_path / "last", tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(other))
    write_folder(folder, filler("old"))

    def full(half: Path) -> None:
        if half.is_relative_to(folder.parent / ".last.half") or full_everywhere:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        filler("new")(half)

    full_everywhere = False
    with pytest.raises(StorageError) as error:
        write_folder(folder, full)
    (kept,) = other.glob("tunesmith-*/last")
    assert str(error.value).endswith(f"until then it is in {kept}, delete {folder} and move it there")
    assert (content(folder), content(kept)) == ("old", "new")
    shutil.rmtree(kept.parent)
    full_everywhere = True
    with pytest.raises(StorageError, match=r"free some space$"):
        write_folder(folder, full)
    assert not list(other.iterdir())


def test_the_manifest_names_every_file_with_its_digest(tmp_path: Path):
    write_folder(tmp_path / "last", filler("word"))
    digest = "98c1eb4ee93476743763878fcb96a25fbc9a175074d64004779ecb5242f645e6"  # sha256sum of "word"
    assert json.loads((tmp_path / "last" / MANIFEST).read_text()) == {"a.txt": digest, "inner/b.txt": digest}
    assert sha256_of_file(tmp_path / "last" / "a.txt") == digest


def test_every_file_may_be_read_by_whom_the_manifest_may(tmp_path: Path):
    def fill(folder: Path) -> None:
        for name, mode in (("a.txt", 0o600), ("b.txt", 0o644)):
            (folder / name).write_text(name)
            (folder / name).chmod(mode)

    write_folder(tmp_path / "last", fill)
    assert len({path.stat().st_mode for path in (tmp_path / "last").iterdir()}) == 1


@pytest.mark.parametrize("damage", ["flipped", "missing", "longer"])
def test_a_file_that_changed_since_it_was_written_is_refused(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    write_folder(tmp_path / "last", filler("word"))
    file = tmp_path / "last" / "inner" / "b.txt"
    file.unlink() if damage == "missing" else file.write_text("wore" if damage == "flipped" else "words")
    with pytest.raises(CheckpointError, match=r"b\.txt: missing or changed since it was written"):
        verify_folder(tmp_path / "last")
    if damage == "missing":
        with pytest.raises(CheckpointError, match="missing"):
            verify_folder(tmp_path / "last", editable=("inner/b.txt",))
    else:
        verify_folder(tmp_path / "last", editable=("inner/b.txt",))
        assert "b.txt: edited since it was written" in caplog.text


def test_a_file_is_read_again_after_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path / "last", filler("word"))
    read: list[Path] = []
    real = checkpoint.sha256_of_file
    monkeypatch.setattr(checkpoint, "sha256_of_file", lambda path: (read.append(path), real(path))[1])
    monkeypatch.setattr(checkpoint, "CLOCK_TICK", 0)
    for _ in range(3):
        verify_folder(tmp_path / "last")
    assert len(read) == 2  # once for each file
    os.utime(tmp_path / "last" / "a.txt")
    verify_folder(tmp_path / "last")
    assert [path.name for path in read[2:]] == ["a.txt"]


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '[["a.txt", "x"]]'])
def test_a_folder_without_a_readable_manifest_is_refused(tmp_path: Path, text: str | None):
    write_folder(tmp_path / "last", filler("word"))
    file = tmp_path / "last" / MANIFEST
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(CheckpointError, match="no readable manifest"):
        verify_folder(tmp_path / "last")


def test_tensors_come_back_as_they_were_also_when_they_share_memory(tmp_path: Path):
    whole = torch.arange(6.0).reshape(2, 3)
    tensors = {"whole": whole, "turned": whole.T, "step": torch.tensor(3.0), "half": whole[1].to(torch.bfloat16)}
    tensors |= {"same": whole, "row": whole[1], "part": torch.arange(9.0)[3:5]}
    save_tensors(tensors, tmp_path / "x.safetensors")
    found = load_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("size", [0, 4, 60])
def test_a_file_of_tensors_that_was_cut_short_is_refused(tmp_path: Path, size: int):
    save_tensors({"a": torch.ones(8)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not a complete safetensors file .*; restore it"):
        load_tensors(tmp_path / "x.safetensors")
