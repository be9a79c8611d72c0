"""Commands that are killed at any moment, and started again."""

from __future__ import annotations

import pytest

from bench.kill_drills import drill
from tests.drills.commands import Lab


@pytest.mark.slow
def test_killed_commands_end_as_undisturbed_ones(lab: Lab):
    counts, problems = drill(lab, ["rlhf", "learning-curve", "export merged", "feedback"], kills=4, seed=1)
    assert not problems
    assert sum(count["kills"] for count in counts.values()) == 4
