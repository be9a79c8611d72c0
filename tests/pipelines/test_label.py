"""Who gets which row, what exists already, and what is written out."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tunesmith.annotation.assignment import Overlap
from tunesmith.annotation.label_rows import Columns, LabelItem
from tunesmith.annotation.labelling import LabelSession
from tunesmith.annotation.vote_store import Who
from tunesmith.data.examples.parsers import labelled
from tunesmith.data.readers.read import read_rows
from tunesmith.errors import DataError, Refused
from tunesmith.pipelines.label import export_labels, open_labelling
from tunesmith.pipelines.requests import LabelRequest

ANA, BO = Who("Ana", "tab-a"), Who("Bo", "tab-b")


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve sentences."""
    return write(
        tmp_path / "rows.jsonl", [{"text": f"sentence {n} of {'good' if n % 2 else 'bad'} news"} for n in range(12)]
    )


def opened(data: Path, **wish: object) -> LabelSession:
    return open_labelling(LabelRequest(str(data), **wish), log=lambda line: None)  # type: ignore[arg-type]


def next_row(work: LabelSession, who: Who, *, skipped: bool = False) -> LabelItem | None:
    """The row that this tab gets."""
    key = work.assignment.next(who, skipped=skipped)
    return work.item(key) if key else None


def undone(work: LabelSession, who: Who) -> LabelItem | None:
    """The row that an undo brings back."""
    key = work.assignment.undo(who)
    return work.item(key) if key else None


def label_all(work: LabelSession, who: Who, label: str) -> list[str]:
    """Texts in the order in which a person got them, all with one label."""
    got = []
    while (item := next_row(work, who)) is not None:
        got.append(item.text)
        work.vote(who, item.key, label)
    return got


def test_every_row_comes_once_and_then_there_are_none(data: Path):
    work = opened(data)
    got = label_all(work, ANA, "a")
    assert len(got) == len(set(got)) == 12
    assert next_row(work, BO) is None


def test_many_tabs_at_once_never_get_the_same_row(data: Path):
    work, got = opened(data), list[str]()

    def take(n: int) -> None:
        item = next_row(work, Who("Ana", f"tab-{n}"))
        if item is not None:
            got.append(item.key)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 12


def test_a_tab_that_asks_again_before_it_answers_gets_the_same_row(data: Path):
    work = opened(data)
    assert next_row(work, ANA) == next_row(work, ANA)


def test_a_row_of_a_closed_tab_goes_to_the_next_who_asks(data: Path):
    work = opened(data)
    item = next_row(work, ANA)
    work.assignment.release(ANA)
    assert next_row(work, BO) == item


def test_overlap_gives_every_row_to_two_people_and_no_third(data: Path):
    work = opened(data, overlap=Overlap(1.0, 2))
    assert sorted(label_all(work, ANA, "a")) == sorted(label_all(work, BO, "a"))
    assert next_row(work, Who("Cy", "tab-c")) is None
    assert work.progress().agreement.items == 12


def test_overlap_is_about_the_asked_share_and_the_same_rows_every_time(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": f"sentence number {n}"} for n in range(400)])
    half = Overlap(0.5)
    keys = [item.key for item in opened(data).rows.items]
    twice = [key for key in keys if half.wanted(key) == 2]
    assert 160 < len(twice) < 240
    assert [key for key in keys if Overlap(0.0).wanted(key) == 2] == []
    assert [key for key in keys if Overlap(1.0).wanted(key) == 2] == keys


def test_a_skipped_row_comes_back_to_its_person_only_when_asked_for(data: Path):
    work = opened(data)
    first = next_row(work, ANA)
    assert first is not None
    work.assignment.skip(ANA, first.key)
    got = label_all(work, ANA, "a")
    assert first.text not in got
    assert len(got) == 11
    assert next_row(work, ANA, skipped=True) == first


def test_undo_brings_back_rows_one_by_one_across_a_restart(data: Path):
    work = opened(data)
    first = next_row(work, ANA)
    assert first is not None
    work.vote(ANA, first.key, "a")
    second = next_row(work, ANA)
    assert second is not None
    work.vote(ANA, second.key, "b")
    work.store.close()
    again = opened(data)
    assert again.progress("Ana").mine == 2
    assert undone(again, ANA) == second
    assert undone(again, ANA) == first
    assert undone(again, ANA) is None
    assert again.progress().labelled == 0
    assert next_row(again, BO) != first  # Ana's tab has it


def test_copies_are_labelled_once_and_all_written(tmp_path: Path):
    data = write(
        tmp_path / "rows.jsonl", [{"text": "Same thing", "id": 1}, {"text": "other"}, {"text": "same  thing", "id": 3}]
    )
    work = opened(data)
    assert work.progress().items == 2
    label_all(work, ANA, "a")
    assert [json.loads(line) for line in work.lines()] == [
        {"text": "Same thing", "id": 1, "label": "a"},
        {"text": "other", "label": "a"},
        {"text": "same  thing", "id": 3, "label": "a"},
    ]


def test_rows_without_a_text_are_left_out_and_half_an_emoji_is_written_as_json_has_it(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": " "}, {"text": "one", "note": "cut \ud83d"}, {"text": None}])
    work = opened(data)
    assert work.progress().items == 1
    label_all(work, ANA, "a")
    assert export_labels(LabelRequest(str(data)), tmp_path / "out.jsonl", log=print).rows == 1
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["note"] == "cut \ud83d"


def test_labels_outlive_rows_that_are_added_and_moved(data: Path):
    work = opened(data)
    item = next_row(work, ANA)
    assert item is not None
    work.vote(ANA, item.key, "a")
    work.store.close()
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    write(data, [{"text": "a new one"}, *reversed(rows)])
    (line,) = opened(data).lines()
    assert json.loads(line)["text"] == item.text


def test_rows_that_are_deleted_from_the_file_count_in_no_progress(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": text} for text in ("one", "two", "three")])
    work, ann = opened(data), Who("ann", "first tab")
    _, voted, skipped = (item.key for item in work.rows.items)
    for who in (ann, Who("ben", "second tab")):
        work.assignment.vote(who, voted, {"label": "x"}, late=True)
    work.assignment.skip(ann, skipped)
    before = work.progress("ann")
    assert (before.mine, before.skipped, before.agreement.items) == (1, 1, 1)
    work.store.close()
    after = opened(write(data, [{"text": "one"}])).progress("ann")
    assert (after.items, after.labelled, after.mine, after.skipped, after.people) == (1, 0, 0, 0, {})
    assert after.agreement.items == 0


def test_labels_that_stand_in_the_file_count_and_are_not_asked_again(tmp_path: Path):
    data = write(
        tmp_path / "rows.jsonl", [{"text": "one", "label": "a"}, {"text": "two", "label": None}, {"text": "three"}]
    )
    for _ in range(2):  # a second start adds nothing
        work = opened(data)
        assert (work.progress().labelled, work.labels(), len(work.store.since())) == (1, ["a"], 1)
        work.store.close()
    assert sorted(label_all(opened(data), ANA, "b")) == ["three", "two"]


def test_labels_of_another_file_are_taken_over_by_text_and_person(tmp_path: Path, data: Path):
    other = write(
        tmp_path / "old.jsonl",
        [
            {"text": "sentence 1 of good news", "label": "g", "rater": "Cy"},
            {"text": "SENTENCE 2 of  bad news", "label": 1},
            {"text": "a stranger", "label": "g"},
        ],
    )
    said: list[str] = []
    work = open_labelling(LabelRequest(str(data), brought=str(other)), log=said.append)
    assert work.progress().people == {"Cy": 1, "old.jsonl": 1}
    assert work.labels() == ["g", "1"]
    assert [line for line in said if line == "old.jsonl: 1 rows left out because their text is not in the data"]


def test_a_file_that_is_read_again_overrules_no_newer_vote_and_none_that_was_taken_back(tmp_path: Path):
    rows: list[dict[str, object]] = [{"text": "one", "label": "a", "rater": "Ana"}, {"text": "two"}]
    data = write(tmp_path / "rows.jsonl", rows)
    work = opened(data)
    key = work.rows.items[0].key
    work.vote(ANA, key, "b")
    work.store.close()
    write(data, [{"text": "zero"}, *rows])  # the row has moved
    export_labels(LabelRequest(str(data)), tmp_path / "out.jsonl", log=lambda line: None)
    work = opened(data)
    assert work.votes.on(key) == {"Ana": "b"}
    work.store.close()
    write(data, [{**rows[0], "label": "c"}])  # a new word of the file counts
    work = opened(data)
    assert work.votes.on(key) == {"Ana": "c"}
    undone(work, ANA)
    work.store.close()
    assert opened(data).votes.on(key) == {"Ana": "b"}
    work = opened(data)
    work.store.close()
    for said in ("d", "a"):  # and one that it takes back
        write(data, [{**rows[0], "label": said}])
        work = opened(data)
        assert work.votes.on(key) == {"Ana": said}
        work.store.close()


def test_of_labels_that_contradict_each_other_the_first_counts_at_every_start_and_it_is_told(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": "one", "label": "a"}, {"text": "ONE", "label": "b"}])
    for _ in range(2):
        said: list[str] = []
        work = open_labelling(LabelRequest(str(data)), log=said.append)
        assert work.votes.on(work.rows.items[0].key) == {"rows.jsonl": "a"}
        assert "rows.jsonl: 1 rows contradict the label of the first row with their text; ignored" in said
        work.store.close()


def test_an_export_leaves_ties_out_says_so_and_is_read_by_tune(tmp_path: Path, data: Path):
    work = opened(data, overlap=Overlap(1.0, 2))
    label_all(work, ANA, "a")
    item = next_row(work, BO)
    assert item is not None
    work.vote(BO, item.key, "b")
    said: list[str] = []
    done = export_labels(LabelRequest(str(data)), tmp_path / "out.jsonl", log=said.append)
    assert (done.rows, done.tied) == (11, 1)
    assert "1 rows left out" in said[0]
    found = labelled(read_rows(tmp_path / "out.jsonl"), text="text", label="label")
    assert {example.labels for example in found} == {("a",)}
    assert item.text not in {example.text for example in found}


def test_where_all_disagree_there_is_no_label_and_the_cure_is_said(data: Path, tmp_path: Path):
    work = opened(data, overlap=Overlap(1.0, 2))
    label_all(work, ANA, "a")
    item = next_row(work, BO)
    assert item is not None
    assert work.progress().tied == 0  # a second vote is due
    work.vote(BO, item.key, "b")
    assert work.progress().tied == 1
    label_all(work, BO, "b")
    found = work.progress()
    assert (found.items, found.labelled, found.tied, sum(found.labels.values())) == (12, 0, 12, 0)
    with pytest.raises(Refused, match="every labelled row has a tie between two labels; let one more rater label them"):
        export_labels(LabelRequest(str(data)), tmp_path / "out.jsonl", log=print)


def test_an_export_without_a_label_is_refused(data: Path, tmp_path: Path):
    with pytest.raises(Refused, match="no row has a label yet"):
        export_labels(LabelRequest(str(data)), tmp_path / "out.jsonl", log=print)


def test_a_text_or_a_label_that_is_missing_in_a_table_is_blank(tmp_path: Path):
    nan = float("nan")
    rows = [{"text": "one", "label": "a"}, {"text": "two", "label": nan}, {"text": nan, "label": "b"}]
    work = opened(write(tmp_path / "rows.jsonl", rows), columns=Columns(beside=("label",)))
    assert [(item.text, dict(item.beside)["label"]) for item in work.rows.items] == [("one", "a"), ("two", "")]
    assert (work.rows.blank, work.progress().labelled) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "columns", "finding"),
    [
        ([{"txt": "one"}], Columns(), "--text COLUMN"),
        ([{"text": "one"}], Columns(text="txt"), "did you mean 'text'"),
        ([{"text": "one"}], Columns(beside=("subject",)), "no column 'subject'"),
        ([{"text": ""}], Columns(), "rows.jsonl: column 'text' is blank in every row; name another"),
        ([{"text": "one", "label": 0.5}], Columns(), "rows.jsonl:1: column 'label': expected one label, got 0.5"),
        ([{"text": "one", "label": ["a", "b"]}], Columns(), "expected one label"),
        ([{"text": "one", "label": "x" * 61}], Columns(), "characters, got 61"),
    ],
)
def test_rows_that_cannot_be_labelled_are_refused(
    tmp_path: Path, rows: list[dict[str, object]], columns: Columns, finding: str
):
    with pytest.raises(DataError, match=finding.replace("'", ".")):
        opened(write(tmp_path / "rows.jsonl", rows), columns=columns)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]  # nothing was begun


@pytest.mark.parametrize("overlap", [Overlap(-0.1), Overlap(1.5), Overlap(0.5, 1)])
def test_an_overlap_that_makes_no_sense_is_refused(data: Path, overlap: Overlap):
    with pytest.raises(DataError, match=r"--overlap|--raters"):
        opened(data, overlap=overlap)


def test_an_encoder_reads_the_texts_once_unless_it_has_changed_and_a_decoder_is_refused(
    data: Path, tmp_path: Path, tiny_bert: Path, tiny_llama: Path
):
    said: list[str] = []
    model = shutil.copytree(tiny_bert, tmp_path / "encoder")
    for count in (1, 1, 2):
        if count == 2:  # as after the run that is the encoder was tuned again
            weights = load_file(model / "model.safetensors")
            save_file(
                {name: 2 * tensor for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"}
            )
        work = open_labelling(LabelRequest(str(data), features=str(model), offline=True), log=said.append)
        work.store.close()
        assert len(said) == count
    assert (data.parent / "rows.labels.vectors.safetensors").is_file()
    with pytest.raises(DataError, match="a decoder"):
        opened(data, features=str(tiny_llama), offline=True)
