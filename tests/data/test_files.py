"""Files that are whole or as they were."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.config import load_recipe
from tunesmith.data.files import (
    DIGESTS,
    begin_digests,
    check_writable,
    holds_files,
    sha256_of_file,
    storage_error,
    was_changed,
    write_whole,
)
from tunesmith.errors import DataError, RecipeError, StorageError


def test_the_digest_is_that_of_the_bytes(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"word")
    # sha256sum of "word"
    assert sha256_of_file(tmp_path / "a") == "98c1eb4ee93476743763878fcb96a25fbc9a175074d64004779ecb5242f645e6"


def test_a_file_that_cannot_be_finished_stays_as_it_was(tmp_path: Path):
    file = tmp_path / "a.json"
    write_whole(file, "old")

    def full() -> Iterator[str]:
        yield "n"
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"a\.json: cannot be written \(No space left on device\); free some space$"):
        write_whole(file, full())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left", "a"), "a: cannot be written (No space left); free some space"),
        (OSError(28, "No space left"), "a file: cannot be written (No space left); free some space"),
        (
            PermissionError(13, "Denied", "a"),
            "a: cannot be opened or written (Denied); give a path in an exist",
        ),
        (
            OSError(36, "Name too long", "a" * 5000),
            f"{'a' * 200}: cannot be opened or written (Name too long); use a s",
        ),
        # Of tokenizers and safetensors, which have no OSError.
        (Exception("Read-only file system (os error 30)"), "a file: cannot be written (Read-only file system); give"),
        # Of a folder that is copied.
        (
            shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
            "b: cannot be written (No space left on device); free some space",
        ),
        (ConnectionRefusedError(111, "Connection refused"), None),
        (FileNotFoundError(2, "No such file or directory", "a"), None),
        (NotADirectoryError(20, "Not a directory", "a"), None),
        (ValueError("no file"), None),
        (DataError("a (os error 30)"), None),
    ],
)
def test_an_error_of_the_operating_system_about_a_file_is_one_line(error: Exception, message: str | None):
    found = storage_error(error)
    assert found is None if message is None else str(found).startswith(message), found


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path):
    with pytest.raises(DataError, match=r"none/a\.json: cannot be written \(No such file or directory\)"):
        write_whole(tmp_path / "none" / "a.json", "x")
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_whole(tmp_path / "pipe", "through")
    reader.join(10)
    assert heard == ["through"]
    assert (tmp_path / "pipe").is_fifo()


def test_two_programs_that_write_one_file_leave_one_of_theirs(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from tunesmith.data.files import write_whole\n"
        "for _ in range(200): write_whole(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    file = tmp_path / "a.json"
    running = [subprocess.Popen([sys.executable, "-c", code, str(file), letter]) for letter in "ab"]
    assert [one.wait(60) for one in running] == [0, 0]
    assert file.read_text() in ("a" * 100_000, "b" * 100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_list_of_digests_that_is_the_users_is_neither_read_nor_written(tmp_path: Path):
    own, run = tmp_path / DIGESTS, tmp_path / "runs" / "a"
    own.write_text(f"{'0' * 64}  runs/a/page.json\n")
    run.mkdir(parents=True)
    write_whole(run / "page.json", "1")
    assert not was_changed(run / "page.json")
    begin_digests(run)
    write_whole(run / "page.json", "2")
    assert not was_changed(run / "page.json")
    (run / "page.json").write_text("3")
    assert was_changed(run / "page.json")
    assert own.read_text() == f"{'0' * 64}  runs/a/page.json\n"
    assert holds_files(tmp_path)


def test_a_list_without_a_header_is_read_beside_a_page_of_ours(tmp_path: Path):
    (tmp_path / DIGESTS).write_text(f"{'0' * 64}  run.json\n")
    (tmp_path / "run.json").write_text("{}")
    begin_digests(tmp_path)
    assert was_changed(tmp_path / "run.json")
    assert (tmp_path / DIGESTS).read_text() == f"{'0' * 64}  run.json\n"


@pytest.mark.parametrize("left", [None, ""])
def test_a_folder_with_a_list_that_was_begun_alone_counts_as_empty(left: str | None, tmp_path: Path):
    if left is None:
        begin_digests(tmp_path)
    else:
        (tmp_path / DIGESTS).write_text(left)
    (tmp_path / ".run.json.7.half").write_text("{")
    assert not holds_files(tmp_path)
    begin_digests(tmp_path)
    write_whole(tmp_path / "run.json", "{}")
    assert holds_files(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    assert was_changed(tmp_path / "run.json")


def test_a_list_that_cannot_be_read_is_an_error_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("tunesmith.config.load.report_edit", denied)
    with pytest.raises(RecipeError, match=r"recipe\.yaml: cannot be read \(Permission denied\)"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_read_only_file_and_a_drive_that_is_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.json").write_text("kept")
    check_writable(tmp_path / "a.json")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)  # root may write every file
        check_writable(tmp_path)
        with pytest.raises(StorageError, match=r"a\.json: cannot be written \(Permission denied\)"):
            check_writable(tmp_path / "a.json")
    monkeypatch.setattr("tunesmith.data.files.is_there", lambda path: False)
    with pytest.raises(StorageError, match=r"b\.json: cannot be written \(No such file or directory\)"):
        check_writable(tmp_path / "b.json")
