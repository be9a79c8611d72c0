import json
from collections import Counter
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "tunesmith" / "shipped_data" / "probe.jsonl"
FIELDS = ("science", "geography", "history", "everyday", "arithmetic", "language", "social", "reading")


@pytest.fixture(scope="module")
def items() -> list[dict]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def test_the_probe_has_400_items_and_50_in_each_field(items):
    assert len(items) == 400
    assert Counter(item["field"] for item in items) == dict.fromkeys(FIELDS, 50)


def test_an_item_has_exactly_the_agreed_keys(items):
    assert all(set(item) == {"id", "field", "question", "options", "answer"} for item in items)


def test_ids_are_unique_and_begin_with_their_field(items):
    expected = [f"{field}-{number:03d}" for field in FIELDS for number in range(1, 51)]
    assert sorted(item["id"] for item in items) == sorted(expected)
    assert all(item["id"].rsplit("-", 1)[0] == item["field"] for item in items)


def test_no_question_is_asked_twice(items):
    asked = Counter(item["question"].strip().casefold() for item in items)
    assert [question for question, times in asked.items() if times > 1] == []


def test_an_item_has_four_different_options_of_one_to_six_words(items):
    for item in items:
        options = item["options"]
        assert len({option.strip().casefold() for option in options}) == 4, item["id"]
        assert all(option == option.strip() and 1 <= len(option.split()) <= 6 for option in options), item["id"]


@pytest.mark.parametrize("field", FIELDS)
def test_the_right_answer_stands_in_every_place_about_equally_often(items, field):
    places = Counter(item["answer"] for item in items if item["field"] == field)
    assert set(places) == {0, 1, 2, 3}
    assert all(8 <= times <= 17 for times in places.values())


def test_a_question_ends_where_an_option_can_follow_after_one_space(items):
    assert all(item["question"] == item["question"].strip() for item in items)
