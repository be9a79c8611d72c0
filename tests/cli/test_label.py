"""`tunesmith label` without its page; the page itself is tested in tests/web."""

from __future__ import annotations

import json
import socket
import stat
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command, write_rows
from tunesmith.web.server import Address, ServeError, listen, need_libraries, stored_token, url


def test_labels_in_the_file_are_exported_with_the_rows_they_stand_on(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "one", "label": "a"}, {"text": "two"}])
    out = tmp_path / "out.jsonl"
    done = command("label", rows, "--export", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"file": str(out), "rows": 1, "tied": 0}
    assert json.loads(out.read_text()) == {"text": "one", "label": "a"}


def test_an_export_over_the_data_is_refused(command: Command, review_file: Path) -> None:
    before = review_file.read_text()
    done = command("label", review_file, "--export", review_file)
    assert (done.code, review_file.read_text()) == (2, before)
    assert "is the data file itself" in done.err


def test_an_export_that_tune_could_not_read_is_refused(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "one", "label": "a"}])
    done = command("label", rows, "--export", tmp_path / "out.txt")
    assert (done.code, done.out) == (2, "")
    assert "expected a file name ending in .jsonl" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert command("label", rows, "--export", tmp_path / "out.ndjson").code == 0


def test_an_export_of_nothing_exits_with_1(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "one"}])
    assert command("label", rows, "--export", tmp_path / "out.jsonl").code == 1


def test_a_port_in_use_is_told_in_one_line(command: Command, review_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("label", review_file, "--port", port)
    assert done.code == 2
    assert f"127.0.0.1:{port}: cannot listen" in done.err
    assert not review_file.with_suffix(".labels.db").exists()


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        (Address("127.0.0.1", 70000), "--port"),
        (Address("no.such.host.invalid", 0), "--host"),
        (Address("a..b", 0), "--host"),
        (Address("192.0.2.1", 0), "--host"),  # an address of documentation, which no machine has
    ],
)
def test_an_address_that_is_none_is_refused(address: Address, cure: str) -> None:
    with pytest.raises(ServeError, match=f"cannot listen .*; give another {cure}"):
        listen(address)


def test_loopback_needs_no_token_and_elsewhere_it_is_kept_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "rows.labels.token"
    assert stored_token(Address("127.0.0.1"), path) == ""
    assert not path.exists()
    token = stored_token(Address("0.0.0.0"), path)
    assert len(token) >= 32
    assert stored_token(Address("0.0.0.0"), path) == token  # the address that people have still works
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_address_holds_the_token_only_where_there_is_one() -> None:
    with listen(Address("127.0.0.1")) as sock:
        port = sock.getsockname()[1]
        assert url(sock, Address("127.0.0.1")) == f"http://127.0.0.1:{port}/"
        assert url(sock, Address("127.0.0.1"), "abc") == f"http://127.0.0.1:{port}/?token=abc"


def test_without_the_extra_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ServeError, match=r"tunesmith\[studio\]"):
        need_libraries()
