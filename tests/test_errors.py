"""What an error calls the place that it is about."""

from __future__ import annotations

import pytest

from tunesmith.errors import key_of


@pytest.mark.parametrize(
    ("place", "keys"),
    [
        (("schedule", "learning_rate", "float"), ["schedule", "learning_rate"]),
        (("stop", "list[constrained-str]", 0), ["stop", "0"]),
        (("data", "where", "text", "list[str]"), ["data", "where", "text"]),
        (("data", "where", "list", "list[str]"), ["data", "where", "list"]),
        (("tasks", "int", "data"), ["tasks", "int", "data"]),
    ],
)
def test_a_place_has_the_keys_that_were_written_and_no_members_of_unions(place: tuple[int | str, ...], keys: list[str]):
    assert key_of(place) == keys
