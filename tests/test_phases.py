"""Phases of a run and their times."""

from __future__ import annotations

from tunesmith.phases import Phases, phase, timing


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_a_phase_within_another_is_not_counted_twice():
    clock, ended = Clock(), []
    with timing(Phases(clock, ended.append)) as phases:
        with phase("training"):
            clock.now += 5
            for _ in range(2):
                with phase("validation"):
                    assert phases.current == "validation"
                    clock.now += 1
            clock.now += 3
        clock.now += 100  # between two phases
        with phase("training"):
            clock.now += 2
    assert phases.seconds == {"training": 10.0, "validation": 2.0}
    assert phases.so_far() == phases.seconds
    assert ended == ["validation", "validation", "training", "training"]


def test_a_whole_phase_takes_the_time_of_those_within_it():
    clock = Clock()
    with timing(Phases(clock)) as phases, phase("controls", whole=True):
        clock.now += 1
        with phase("training"), phase("validation"):
            assert phases.current == "controls"
            clock.now += 4
    assert phases.seconds == {"controls": 5.0}


def test_a_phase_that_fails_is_over_and_without_a_clock_nothing_is_measured():
    with phase("training"):
        pass
    with timing(Phases()) as phases:
        try:
            with phase("training"):
                raise ValueError
        except ValueError:
            assert phases.current == ""
    assert list(phases.seconds) == ["training"]
