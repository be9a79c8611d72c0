"""Files that are whole or as they were."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.data.files import sha256_of_file, storage_error, write_whole
from tunesmith.errors import DataError


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
        (ConnectionRefusedError(111, "Connection refused"), None),
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
