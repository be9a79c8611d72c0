from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

import pytest

from tunesmith.cli.signals import ASKED, Interruption, caught


def test_in_a_patient_time_the_first_signal_asks_and_the_second_stops(capfd: pytest.CaptureFixture[str]):
    with caught() as signals:
        signals.patient = True
        assert not signals.stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop()
        with pytest.raises(Interruption) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert capfd.readouterr().err == ASKED.decode()


def test_at_any_other_time_the_first_signal_stops():
    with caught(), pytest.raises(Interruption) as stopped:
        os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.exit_code == 130


def test_outside_the_main_thread_nothing_is_caught_and_nothing_breaks():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with caught() as signals:
            seen.append((signals.stop(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize("last", [False, True])
def test_only_the_end_of_the_process_ignores_signals_after_an_interruption(last: bool):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        with suppress(Interruption), caught(last=last) as signals:
            signals.over = True
            os.kill(os.getpid(), signal.SIGINT)
        after = [signal.getsignal(number) for number in numbers]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert after == ([signal.SIG_IGN] * 2 if last else before)
