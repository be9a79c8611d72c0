import random

import pytest

from tunesmith.errors import DataError, RecipeError
from tunesmith.metrics.style import StyleRule, discriminator_auc, habits, rule_rates, rules_of

NOUNS = ["driver", "library", "server", "editor", "parser", "compiler", "daemon", "viewer", "plugin", "toolkit"]
VERBS = ["copies", "reads", "writes", "plays", "shows", "sorts", "prints", "checks", "sends", "finds"]


def plain(count: int, seed: int) -> list[str]:
    """Short lines about software."""
    rng = random.Random(seed)
    return [f"{rng.choice(NOUNS)} that {rng.choice(VERBS)} {rng.choice(NOUNS)} files" for _ in range(count)]


def test_rules_give_the_share_of_texts_that_keep_them():
    recipe = {
        "no_leading_article": {"not_match": r"^(a|an|the)\b"},
        "short": {"max_chars": 12},
        "few_words": {"max_words": 2},
        "ends": {"match": r"\.$"},
    }
    rates = rule_rates(["a tool", "tool for apes.", "anvil"], rules_of(recipe))
    assert rates == pytest.approx({"no_leading_article": 2 / 3, "short": 2 / 3, "few_words": 2 / 3, "ends": 1 / 3})


def test_patterns_mind_case_unless_told():
    strict, loose = rules_of({"s": {"match": "^tool"}, "l": {"match": "(?i)^tool"}})
    assert not strict.holds("Tool")
    assert loose.holds("Tool")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"match": "(a"}, r"style\.r\.match: invalid regular expression '\(a'"),
        ({"match": 3}, "give a regular expression"),
        ({"max_chars": "80"}, "expected an integer >= 1"),
        ({"max_words": True}, "expected an integer >= 1"),
        ({"min_chars": 3}, "unknown rule 'min_chars'; use one of match"),
        ({}, "give one of match"),
        ("short", "give one of match"),
    ],
)
def test_a_rule_that_cannot_be_checked_is_refused(entry, message):
    with pytest.raises(RecipeError, match=message):
        rules_of({"r": entry})


def test_rules_need_texts():
    with pytest.raises(DataError, match="no answers"):
        rule_rates([], [StyleRule("short", "max_chars", limit=3)])


def test_texts_of_one_style_cannot_be_told_apart():
    scores = [discriminator_auc(plain(100, seed), plain(100, seed + 50), seed=seed) for seed in range(4)]
    assert sum(scores) / 4 == pytest.approx(0.5, abs=0.06)


def test_a_leading_article_gives_the_style_away():
    answers = [f"This is a {line}." for line in plain(60, 1)]
    assert discriminator_auc(answers, plain(60, 2)) > 0.99


def test_answers_of_one_letter_have_no_style_to_tell_them_by():
    assert discriminator_auc(list("1234" * 10), list("2341" * 10)) == 0.5


def test_answers_equal_to_their_references_are_at_one_half():
    texts = plain(40, 3)
    assert discriminator_auc(texts, texts) == 0.5


def test_a_style_needs_twenty_rows():
    with pytest.raises(DataError, match="expected at least 20 answers, got 19"):
        discriminator_auc(["a"] * 19, ["b"] * 19)


def test_habits_count_words_loops_cuts_and_evasions():
    found = habits(
        ["It is blue.", "the end of the " * 20, "As an AI language model I cannot help.", "I don’t know"],
        finished=[True, False, True, True],
    )
    assert found.mean_words == pytest.approx((3 + 80 + 8 + 4) / 4)
    assert (found.repeated_share, found.never_ending_share, found.vague_share) == (0.25, 0.25, 0.5)


def test_distinct_2_counts_word_pairs_over_all_texts():
    # red car, car red, red car: two different pairs of three
    assert habits(["red car red", "red car"]).distinct_2 == pytest.approx(2 / 3)


def test_a_phrase_used_twice_in_prose_is_no_loop():
    text = "The tool reads the list of files and, at the end of the run, prints the list of files it could not open."
    assert habits([text]).repeated_share == 0


def test_unfinished_answers_are_unknown_where_nobody_told():
    assert habits(["one"]).never_ending_share is None
    assert habits([""]).mean_words == 0


def test_a_rule_can_look_into_a_column_of_the_row():
    rules = rules_of({"no_name": {"not_column": "id"}})
    rows = [{"id": "fox"}, {"id": "fox"}, {"id": "c++"}, {"id": ""}, {}]
    texts = ["A Fox in a box", "the foxes", "a c++ compiler", "anything", "anything"]
    assert [rules[0].holds(text, row) for text, row in zip(texts, rows, strict=True)] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert rule_rates(texts, rules, rows) == {"no_name": 0.6}


def test_rules_know_scripts_without_spaces_and_accents_that_are_written_apart():
    (named,), (short,) = rules_of({"no_name": {"not_column": "id"}}), rules_of({"short": {"max_words": 4}})
    assert not named.holds("手机小米很好", {"id": "小米"})
    assert not named.holds("I met Zo\u00e9 today", {"id": "Zoe\u0301"})
    assert [short.holds(text) for text in ("手机很好", "手机小米很好", "a state-of-the-art thing here")] == [
        True,
        False,
        True,
    ]


def test_a_rule_about_a_column_needs_its_name():
    with pytest.raises(RecipeError, match="style.x.not_column: got 3; give the name of a column"):
        rules_of({"x": {"not_column": 3}})
