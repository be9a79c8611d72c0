"""How the processes of one run end together."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tunesmith.cli import processes


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"import signal, sys, time\n{code}"], stdout=subprocess.PIPE)


def test_the_first_process_may_save_for_long_after_another_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(processes, "GRACE", 0.2)
    saving, failed = start("time.sleep(2)"), start("sys.exit(3)")
    with saving, failed:
        assert processes._first_failure([saving, failed]) == 3
    assert saving.returncode == 0
    assert "the first one has 10 minutes to save the run" in capsys.readouterr().err


def test_others_are_ended_soon_after_the_first_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "GRACE", 0.2)
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(flush=True)\ntime.sleep(100)"
    waiting, failed = start(code), start("sys.exit(3)")
    with waiting, failed:
        assert waiting.stdout is not None
        waiting.stdout.readline()
        begin = time.monotonic()
        assert processes._first_failure([failed, waiting]) == 3
    assert time.monotonic() - begin < 60
    assert waiting.returncode == -signal.SIGKILL
