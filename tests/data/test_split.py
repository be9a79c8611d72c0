import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.data.examples.parsers import labelled, question, texts
from tunesmith.data.examples.types import Chat, Example, LabelledText, Pair, Text, UnpairedPreference
from tunesmith.data.readers.row import Row
from tunesmith.data.splits.load import Sources, check_names, load
from tunesmith.data.splits.split import Split, separate, split
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, Refused


def documents(count: int, *, per_group: int = 0, name: str = "a.jsonl", start: int = 0) -> list[Example]:
    numbers = range(start, start + count)
    return [Text(f"{name}:{n + 1}", f"text {n}", str(n // per_group) if per_group else "") for n in numbers]


def sizes(found: Split) -> tuple[int, int, int]:
    return len(found.train), len(found.validation), len(found.test)


def groups(examples: list[Example]) -> set[str]:
    return {example.group for example in examples}


def test_rows_are_cut_to_the_shares_and_none_is_lost():
    examples = documents(100)
    found = split(examples, validation=0.1, test=0.2, seed=0)
    assert sizes(found) == (70, 10, 20)
    assert found.removed == 0
    assert {e.where for e in [*found.train, *found.validation, *found.test]} == {e.where for e in examples}


def test_the_seed_alone_decides_the_split():
    first, again, other = (split(documents(100), validation=0.1, test=0.2, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.test != other.test


def test_the_test_part_does_not_depend_on_the_validation_share():
    one = split(documents(100), validation=0.1, test=0.2, seed=0)
    two = split(documents(100), validation=0.3, test=0.2, seed=0)
    assert one.test == two.test


def test_appended_rows_leave_most_of_the_test_part_where_it_was():
    before = split(documents(1000), validation=0, test=0.2, seed=0)
    after = split(documents(1010), validation=0, test=0.2, seed=0)
    # 202 rows are drawn instead of 200, from 10 more: at most 10 of the old ones can be pushed out.
    assert len({e.where for e in before.test} - {e.where for e in after.test}) <= 10


def test_parts_keep_the_order_of_the_file():
    found = split(documents(50), validation=0.2, test=0.2, seed=0)
    for part in (found.train, found.validation, found.test):
        numbers = [int(e.where.split(":")[1]) for e in part]
        assert numbers == sorted(numbers)


def test_a_group_stands_in_one_part_only():
    found = split(documents(100, per_group=5), validation=0.1, test=0.2, seed=3)
    assert sizes(found) == (70, 10, 20)
    assert not groups(found.train) & groups(found.test)
    assert not groups(found.train) & groups(found.validation)
    assert not groups(found.validation) & groups(found.test)


def judged(prompts: int, each: int) -> list[Example]:
    asked = [(Message("user", f"question {n // each}"),) for n in range(prompts * each)]
    return [Pair(f"p.jsonl:{n + 1}", turns, f"good {n}", f"bad {n}") for n, turns in enumerate(asked)]


def test_judged_answers_to_one_prompt_stand_in_one_part_only():
    found = split(judged(20, 5), validation=0.1, test=0.2, seed=0)
    asked = [{example.prompt for example in part} for part in (found.train, found.validation, found.test)]
    assert sizes(found) == (70, 10, 20)
    assert sum(map(len, asked)) == len(set().union(*asked)) == 20
    assert "20 prompts, none in two parts" in found.notes[0]
    thumbs = [UnpairedPreference(pair.where, pair.prompt, pair.chosen, True) for pair in judged(20, 2)]
    assert "20 prompts, none in two parts" in split(thumbs, validation=0.1, test=0.2, seed=0).notes[0]
    named = [replace(pair, group=f"g{n % 10}") for n, pair in enumerate(judged(20, 5))]
    assert "10 groups" in split(named, validation=0.1, test=0.2, seed=0).notes[0]
    for rows in (judged(20, 1), judged(2, 10)):  # each its own prompt; too few to be cut by them
        assert "by row, without groups" in split(rows, validation=0.1, test=0.2, seed=0).notes[0]


def test_groups_are_taken_as_long_as_they_bring_the_part_nearer():
    # 10 groups of 7, test wants 21 of 70: three groups hit it, validation wants 7: one group.
    assert sizes(split(documents(70, per_group=7), validation=0.1, test=0.3, seed=0)) == (42, 7, 21)
    # One of two groups of 50 is no nearer to 20 than none.
    with pytest.raises(DataError, match=r"^a\.jsonl: 100 rows in 2 groups leave test empty at test: 0\.2; give more"):
        split(documents(100, per_group=50), validation=0, test=0.2, seed=0)


def test_rows_without_a_group_are_cut_alone():
    found = split([*documents(90, per_group=9), *documents(10, start=90)], validation=0, test=0.2, seed=0)
    assert "10 rows have no group" in found.notes[0]
    assert not groups(found.train) & groups(found.test) - {""}


def labels(examples: list[Example]) -> Counter[str]:
    return Counter(label for e in examples if isinstance(e, LabelledText) for label in e.labels)


def marked(counts: dict[str, int]) -> list[Example]:
    names = [name for name, count in counts.items() for _ in range(count)]
    return [LabelledText(f"a.jsonl:{n}", f"text {n}", (name,)) for n, name in enumerate(names, 1)]


def test_each_label_gives_its_share():
    found = split(marked({"a": 60, "b": 30, "c": 10}), validation=0.1, test=0.2, seed=0)
    assert labels(found.test) == {"a": 12, "b": 6, "c": 2}
    assert labels(found.validation) == {"a": 6, "b": 3, "c": 1}


def test_the_last_row_of_a_label_stays_in_train():
    found = split(marked({"a": 9, "b": 1}), validation=0.2, test=0.4, seed=0)
    assert labels(found.test) == {"a": 4}
    assert labels(found.train)["b"] == 1


def test_rows_with_many_labels_are_cut_also_when_no_two_are_alike():
    rows = [LabelledText(f"a.jsonl:{n}", f"text {n}", (f"l{n}", "x"), multi=True) for n in range(20)]
    assert sizes(split(rows, validation=0.1, test=0.2, seed=0)) == (14, 2, 4)


def test_labels_that_are_only_held_out_are_noted():
    common = [LabelledText(f"a.jsonl:{n}", f"text {n}", ("a",), f"g{n}") for n in range(12)]
    rare = [LabelledText(f"a.jsonl:{n}", f"text {n}", ("b",), "rare") for n in range(12, 15)]
    note = "label 'b' occurs in test (3 rows) but not in train: it cannot be learned"
    for seed in range(20):
        found = split([*common, *rare], validation=0, test=0.2, seed=seed)
        assert (note in found.notes) == ("rare" in groups(found.test))


def test_copies_of_held_out_questions_leave_train_and_are_counted():
    # Two groups of ten hold the same ten texts: whichever is drawn, the other loses all ten.
    twins = [
        Text(f"a.jsonl:{g}{n}", f"Text {n}" if g else f"text  {n}", f"twin{g}") for g in range(2) for n in range(10)
    ]
    for seed in range(20):
        found = split([*twins, *documents(20, per_group=10, start=100)], validation=0, test=0.25, seed=seed)
        held = "twin0" in groups(found.test) or "twin1" in groups(found.test)
        assert found.removed == (10 if held else 0)
        assert sizes(found) == (20 if held else 30, 0, 10)
        assert not {question(e) for e in found.train} & {question(e) for e in found.test}


def test_copies_of_rows_without_groups_fall_together():
    rows = [Text(f"a.jsonl:{n}", f"text {n // 10}") for n in range(1000)]
    found = split(rows, validation=0.1, test=0.2, seed=0)
    assert found.removed == 0
    assert sizes(found) == (700, 100, 200)


@pytest.mark.parametrize(
    ("count", "validation", "test", "fault"),
    [
        (
            4,
            0.1,
            0.3,
            r"4 rows leave validation empty at validation: 0\.1; give more rows, .*, raise the fraction, or write",
        ),
        (4, 0, 0.1, r"4 rows leave test empty at test: 0\.1"),
        (4, 0.2, 0.5, "4 rows leave 1 for training; give more rows"),
        (9, -0.1, 0, r"validation: expected a fraction in \[0, 1\), a whole number of rows or a file, got -0\.1"),
        (9, 0, float("nan"), r"test: expected a fraction in \[0, 1\), a whole number of rows or a file, got nan"),
        (9, 0.5, 0.5, "leave no training rows"),
    ],
)
def test_splits_that_leave_a_part_empty_are_refused(count, validation, test, fault):
    with pytest.raises(DataError, match=fault):
        split(documents(count), validation=validation, test=test, seed=0)


def test_separate_drops_the_same_questions_whatever_their_answers():
    def chat(n: int, answer: str, name: str) -> Chat:
        return Chat(f"{name}:{n}", (Message("user", f"Q {n}"), Message("assistant", answer)))

    train = [chat(n, "yes", "train.jsonl") for n in range(10)]
    kept, count = separate(train, [chat(n, "no", "test.jsonl") for n in range(8, 28)])
    assert ([e.where for e in kept], count) == ([f"train.jsonl:{n}" for n in range(8)], 2)


def test_a_test_file_that_is_the_train_file_is_refused():
    train, held = documents(100, name="train.jsonl"), documents(20, name="test.jsonl")
    with pytest.raises(Refused) as caught:
        separate(train, held)
    assert str(caught.value) == ("test.jsonl: 20 of 20 test rows also appear in train.jsonl; give another test file")
    # 18 of 20 is below 95 %: the copies are dropped and the test stands.
    kept, count = separate(train, [*held[:18], *documents(2, name="test.jsonl", start=500)])
    assert (len(kept), count) == (82, 18)


def test_a_hundred_thousand_rows_are_split():
    found = split(documents(100_000, per_group=3), validation=0.1, test=0.2, seed=0)
    assert sum(sizes(found)) == 100_000


def jsonl(folder: Path, name: str, numbers: range, **more: object) -> str:
    path = folder / name
    rows = ({"text": f"text {n}", "label": "ab"[n % 2], "group": f"g{n // 4}", **more} for n in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parse(rows: list[Row]) -> list[Example]:
    return list(texts(rows, text="text"))


def test_load_reads_keeps_parses_and_splits(tmp_path):
    source = jsonl(tmp_path, "a.jsonl", range(200))
    loaded = load(
        Sources(source, where={"label": ["a"]}),
        lambda rows: labelled(rows, text="text", label="label"),
        seed=0,
    )
    assert loaded.rows == 100
    assert sizes(loaded.split) == (70, 10, 20)
    assert labels(loaded.split.train) == {"a": 70}
    assert set(loaded.sha256) == {"train", "validation", "test"}


def test_answers_to_one_prompt_stand_on_one_side_also_where_files_are_given(tmp_path):
    def write(name: str, prompts: range) -> str:
        said = [(n, f"{name} {n} {k}") for n in prompts for k in range(3)]  # other answers in each file
        rows = [{"p": f"question {n}", "c": f"good {text}", "r": f"bad {text}"} for n, text in said]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    def parsed(rows: list[Row]) -> list[Example]:
        turns = [(Message("user", str(row.fields["p"])),) for row in rows]
        return [
            Pair(row.where, asked, str(row.fields["c"]), str(row.fields["r"]))
            for row, asked in zip(rows, turns, strict=True)
        ]

    def prompts(part: list[Example]) -> set[str]:
        return {example.prompt[0].content for example in part if isinstance(example, Pair)}

    # Questions 20 to 22 stand in both files.
    found = load(Sources(write("a.jsonl", range(23)), 0.1, write("b.jsonl", range(20, 40))), parsed, seed=0).split
    assert len(groups(found.test)) == 20
    assert not prompts(found.train) & (prompts(found.test) | prompts(found.validation))
    assert len(prompts(found.train) | prompts(found.validation)) == 20
    # Three prompts are too few to be cut by them, and the rows of train are cut as they come.
    few = load(Sources(write("c.jsonl", range(3)), 0.3, write("d.jsonl", range(20, 40))), parsed, seed=0).split
    assert (groups(few.train), len(groups(few.test))) == ({""}, 20)


def test_load_gives_the_groups_that_the_parser_left_out(tmp_path):
    found = load(Sources(jsonl(tmp_path, "a.jsonl", range(100)), group="group"), parse, seed=0).split
    assert "" not in groups(found.train)
    assert not groups(found.train) & groups(found.test)
    with pytest.raises(DataError, match=r"^b\.jsonl: the group column 'group' is blank in every row"):
        load(Sources(jsonl(tmp_path, "b.jsonl", range(100), group=None), group="group"), parse, seed=0)


def test_a_given_test_file_takes_its_copies_and_groups_out_of_train(tmp_path):
    # Rows 78-79 are copies of train rows, and their group g19 has the rows 76-79.
    sources = Sources(
        jsonl(tmp_path, "train.jsonl", range(80)),
        0.1,
        jsonl(tmp_path, "test.jsonl", range(78, 120)),
        group="group",
    )
    loaded = load(sources, parse, seed=0)
    assert loaded.rows == 122
    assert len(loaded.split.test) == 42
    assert loaded.split.removed == 4
    assert sizes(loaded.split)[:2] == (68, 8)
    assert loaded.split.notes[:2] == (
        "2 rows of train.jsonl removed: test.jsonl contains the same prompt",
        "2 rows of train.jsonl removed: their group also appears in test.jsonl",
    )


def test_two_given_files_are_kept_apart_from_each_other_too(tmp_path):
    train, validation, test = (
        jsonl(tmp_path, f"{name}.jsonl", numbers)
        for name, numbers in (("train", range(60)), ("validation", range(50, 75)), ("test", range(70, 100)))
    )
    loaded = load(Sources(train, validation, test), parse, seed=0)
    assert sizes(loaded.split) == (50, 20, 30)
    assert loaded.split.removed == 15


def test_the_train_file_given_as_test_is_refused_before_its_groups_are_looked_at(tmp_path):
    source = jsonl(tmp_path, "a.jsonl", range(40))
    with pytest.raises(
        Refused, match=r"test rows also appear in a\.jsonl; give another test file, or remove data\.test$"
    ):
        load(Sources(source, 0.1, source, group="group"), parse, seed=0)


def test_two_files_of_one_name_are_told_apart_by_nothing_that_looks_a_row_up_by_its_place(tmp_path):
    (tmp_path / "more").mkdir()
    train, other = jsonl(tmp_path, "rows.jsonl", range(20)), jsonl(tmp_path / "more", "rows.jsonl", range(20, 40))
    check_names((train, 0.1, train, "owner/name:train", "owner/name:test"))
    with pytest.raises(DataError, match=r"^rows\.jsonl: two files have this name, .*; rename one of them$"):
        check_names((train, 0.1, other))
    place = pytest.importorskip("fsspec").filesystem("memory")
    for name, file in (("a", train), ("b", other)):
        place.pipe_file(f"/{tmp_path.name}/{name}/rows.jsonl", Path(file).read_bytes())
    with pytest.raises(DataError, match=r"^rows\.jsonl: two files have this name"):
        check_names((f"memory://{tmp_path.name}/a/rows.jsonl", 0.1, f"memory://{tmp_path.name}/b/rows.jsonl"))
    assert len(load(Sources(train, 0.1, other), parse, seed=0).split.test) == 20  # what does not may be trained


def test_rows_of_two_parts_of_one_file_have_different_locations(tmp_path):
    path = tmp_path / "d.json"
    parts = {"train": [{"text": f"text {n}"} for n in range(9)], "test": [{"text": f"other {n}"} for n in range(9)]}
    path.write_text(json.dumps(parts))
    check_names((train := f"{path}#train", 0.1, test := f"{path}#test"))
    found = load(Sources(train, 0.0, test), parse, seed=0).split
    assert [part[0].where for part in (found.train, found.test)] == ["d.json#train:1", "d.json#test:1"]


def test_a_train_file_of_the_test_files_groups_only_is_refused(tmp_path):
    train, test = (
        jsonl(tmp_path, "a.jsonl", range(8), group="g"),
        jsonl(tmp_path, "b.jsonl", range(8, 16), group="g"),
    )
    with pytest.raises(DataError, match=r"^a\.jsonl: every row or its group also appears in b\.jsonl"):
        load(Sources(train, 0.1, test, group="group"), parse, seed=0)


def test_labels_that_may_mean_the_same_are_noted_once():
    notes = split(marked({"0": 20, "False": 20, "1": 20}), validation=0.1, test=0.2, seed=0).notes
    note = "the labels '0' and 'False' may mean the same, but count as 2 labels; write only one of them"
    assert [one for one in notes if "mean the same" in one] == [note]


def test_the_digest_of_a_part_names_its_contents_in_any_order(tmp_path):
    test = jsonl(tmp_path, "test.jsonl", range(50, 60))
    backwards = jsonl(tmp_path, "backwards.jsonl", range(59, 49, -1))
    train = jsonl(tmp_path, "train.jsonl", range(50))
    one, two = (load(Sources(train, 0.1, held), parse, seed=0) for held in (test, backwards))
    assert one.sha256 == two.sha256
    assert one.sha256["test"] != one.sha256["validation"]


def test_a_document_alone_is_told_to_be_cut_into_passages_and_a_folder_is_called_by_its_name():
    one = [Text("ok/cjk.txt", "a long book")]
    told = (
        r"^ok: 1 rows leave 1 for training; give more rows, split documents into passages \(`tunesmith collect FOLDER"
    )
    with pytest.raises(DataError, match=told):
        split(one, validation=0, test=0, seed=0)
    many = [Text(f"ok/{i}.txt", f"text {i}") for i in range(20)]
    assert split(many, validation=0.1, test=0.2, seed=0).notes[0].startswith("ok: split into train 14, ")


def test_labels_of_one_row_draw_no_more_than_their_share_from_the_others():
    found = split(marked({"a": 60} | {f"one{i}": 1 for i in range(200)}), validation=0.1, test=0.2, seed=0)
    assert labels(found.test) == {"a": 13}
    assert labels(found.validation) == {"a": 7}
    assert labels(found.train)["a"] == 40


def written(folder: Path, parts: dict[str, range], column: str = "split") -> str:
    """Write rows with a split column; the texts are unique over all parts."""
    lines = [json.dumps({"text": f"text {n}", column: part}) + "\n" for part, span in parts.items() for n in span]
    (folder / "a.jsonl").write_text("".join(lines))
    return str(folder / "a.jsonl")


def test_a_split_column_decides_the_parts_and_is_named_in_a_note(tmp_path):
    source = written(tmp_path, {"train": range(40), "valid": range(40, 46), "test": range(46, 56)})
    loaded = load(Sources(source, split="split"), parse, seed=0)
    assert sizes(loaded.split) == (40, 6, 10)
    assert [example.text for example in loaded.split.test] == [f"text {n}" for n in range(46, 56)]
    assert loaded.split.notes[0] == (
        "a.jsonl: split by the column 'split': train 40, validation 6, test 10 rows (data.split: \"\" to ignore it)"
    )


def test_a_part_that_the_split_column_lacks_is_taken_from_train(tmp_path):
    source = written(tmp_path, {"train": range(40), "test": range(40, 50)})
    assert sizes(load(Sources(source, split="split"), parse, seed=0).split) == (36, 4, 10)
    source = written(tmp_path, {"training": range(40), "dev": range(40, 50)})
    assert sizes(load(Sources(source, split="split"), parse, seed=0).split) == (32, 10, 8)
    source = written(tmp_path, {"train_sft": range(40), "": range(40, 50), "test_sft": range(50, 60)})
    assert sizes(load(Sources(source, validation=5, split="split"), parse, seed=0).split) == (45, 5, 10)


def test_a_split_column_that_is_not_used_is_named_with_the_reason(tmp_path):
    source = written(tmp_path, {"train": range(40), "test": range(40, 50)})
    unused = load(Sources(source), parse, seed=0).split
    assert sizes(unused) == (35, 5, 10)
    assert unused.notes[0] == (
        "a.jsonl: column 'split' (train 40, test 10) is not used; set data.split: split to use it"
    )
    source = written(tmp_path, {"north": range(30), "south": range(30, 50)})
    other = load(Sources(source, split="split"), parse, seed=0).split
    assert other.notes[0] == (
        "a.jsonl: column 'split' contains north, south, which hold out no rows or all; not used for the split"
    )
    source = written(tmp_path, {"train": range(50)})
    only = load(Sources(source, split="split"), parse, seed=0).split
    assert (sizes(only), "hold out no rows" in only.notes[0]) == ((35, 5, 10), True)
    source = written(tmp_path, {"test": range(50)})
    all_of_test = load(Sources(source, split="split"), parse, seed=0).split
    assert (sizes(all_of_test), "no rows or all" in all_of_test.notes[0]) == ((35, 5, 10), True)


def test_a_split_column_with_held_out_rows_and_an_unknown_value_is_an_error(tmp_path):
    source = written(tmp_path, {"train": range(40), "evaluation": range(40, 45), "holdout": range(45, 50)})
    assert sizes(load(Sources(source, split="split"), parse, seed=0).split) == (40, 5, 5)
    source = written(tmp_path, {"train": range(40), "test": range(40, 45), "spare": range(45, 50)})
    problem = r"column 'split' contains train, test, spare; 'spare' names no split; .* data.split: \"\" to ignore"
    with pytest.raises(DataError, match=problem):
        load(Sources(source, split="split"), parse, seed=0)
    assert sizes(load(Sources(source, split=""), parse, seed=0).split) == (35, 5, 10)


def test_a_named_split_column_must_exist_and_name_parts(tmp_path):
    source = written(tmp_path, {"a": range(30), "b": range(30, 50)}, column="fold")
    with pytest.raises(DataError, match=r"^a\.jsonl: column 'fold' contains a, b; data\.split needs train, validation"):
        load(Sources(source, split="fold"), parse, seed=0)
    with pytest.raises(DataError, match=r"^data\.split: a\.jsonl: no column 'folds'; did you mean 'fold'\?"):
        load(Sources(source, split="folds"), parse, seed=0)
    source = written(tmp_path, {"train": range(30), "test": range(30, 50)}, column="fold")
    assert sizes(load(Sources(source, split="fold"), parse, seed=0).split) == (27, 3, 20)


def test_rows_of_a_split_column_never_leak_into_train(tmp_path):
    source = written(tmp_path, {"train": range(40), "test": range(38, 50)})
    loaded = load(Sources(source, split="split"), parse, seed=0)
    assert sizes(loaded.split) == (34, 4, 12)
    assert "2 rows of a.jsonl (train) removed: its test part contains the same prompt" in loaded.split.notes
    source = written(tmp_path, {"train": range(40), "test": range(20)})
    with pytest.raises(Refused, match=r'20 of 20 test rows also appear in a\.jsonl; set data\.split: "" to split'):
        load(Sources(source, split="split"), parse, seed=0)


def test_a_test_file_replaces_the_test_rows_of_the_split_column(tmp_path):
    source = written(tmp_path, {"train": range(40), "valid": range(40, 45), "test": range(45, 50)})
    test = jsonl(tmp_path, "test.jsonl", range(100, 110))
    loaded = load(Sources(source, test=test, split="split"), parse, seed=0)
    assert sizes(loaded.split) == (40, 5, 10)
    assert loaded.split.notes[0].endswith("; its 5 test rows are left out, because data.test is a file")


def test_held_out_parts_are_given_as_numbers_of_rows():
    found = split(documents(100), validation=12, test=30, seed=0)
    assert sizes(found) == (58, 12, 30)
    with pytest.raises(DataError, match=r"100 rows, so test 60 and validation 40 leave no training rows; lower them"):
        split(documents(100), validation=40, test=60, seed=0)
    with pytest.raises(DataError, match=r"^test: expected a fraction in \[0, 1\), a whole number of rows or a file"):
        split(documents(100), validation=0.1, test=1.0, seed=0)
