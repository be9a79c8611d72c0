"""What the audit tells from all rows together, what it says of them, and the cleaned copy."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tunesmith.data.audit.checks.label_checks import variants
from tunesmith.data.audit.chunks import chunks, head
from tunesmith.data.audit.findings import CHECKS, Audit
from tunesmith.data.audit.fix import fix, log_of
from tunesmith.data.audit.gate import gate
from tunesmith.data.audit.options import AuditSource, Tools
from tunesmith.data.audit.run import Fixes, audit
from tunesmith.data.examples.parsers import chats, labelled, texts
from tunesmith.data.parallel import in_order
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, keep
from tunesmith.data.splits.split import Split
from tunesmith.data.text.minhash import slots
from tunesmith.data.text.overlap import QuotationRule, held, leaked
from tunesmith.errors import DataError
from tunesmith.pipelines.audit import audit_rows
from tunesmith.pipelines.requests import AuditRequest

TEXT = {"text": "text", "label": "label"}
NOUNS = [
    "battery",
    "screen",
    "camera",
    "hinge",
    "charger",
    "speaker",
    "keyboard",
    "lens",
    "strap",
    "remote",
    "manual",
    "case",
    "button",
    "cable",
]
GOOD = ["great", "lovely", "solid", "bright", "smooth", "quick", "sturdy", "pleasant"]
BAD = ["awful", "broken", "dim", "cracked", "noisy", "flimsy", "slow", "useless"]
Fields = dict[str, object]


def reviews(count: int, *, seed: int = 0) -> list[Fields]:
    """Sentences of random words whose label follows from two of them."""
    chance = random.Random(seed)
    rows: list[Fields] = []
    for i in range(count):
        kind, words = (("positive", GOOD), ("negative", BAD))[i % 2]
        one, two = chance.sample(words, 2)
        filler = " ".join(
            chance.choice(("alpha", "beta", "gamma", "delta", "omega")) + str(chance.randrange(900)) for _ in range(5)
        )
        rows.append({"text": f"the {chance.choice(NOUNS)} is {one} and {two} {filler}", "label": kind})
    return rows


def write(path: Path, rows: Sequence[Fields | str]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def audited(folder: Path, rows: Sequence[Fields | str], test: Sequence[Fields] = ()) -> Audit:
    source = write(folder / "train.jsonl", rows)
    against = (write(folder / "test.jsonl", test),) if test else ()
    return audit(AuditSource(source, TEXT, against), Tools())[0]


def lines(found: Audit, kind: str) -> list[int]:
    return [int(row.removeprefix("train.jsonl:")) for f in found.findings if f.kind == kind for row in f.rows]


def test_sound_rows_are_clean(tmp_path: Path) -> None:
    found = audited(tmp_path, reviews(40))
    assert (found.verdict, found.findings, found.rows) == ("clean", (), 40)


def test_copies_near_copies_and_contradictions_are_told_apart(tmp_path: Path) -> None:
    rows = reviews(40)
    rows += [dict(rows[3]), {**rows[5], "text": f"{rows[5]['text']}!".replace("the ", "The  ")}]
    rows += [{**rows[8], "label": "negative"}]
    found = audited(tmp_path, rows)
    assert lines(found, "exact_duplicate") == [4, 41]
    assert lines(found, "near_duplicate") == [6, 42]
    assert lines(found, "contradiction") == [9, 43]
    (pair,) = (f for f in found.findings if f.kind == "exact_duplicate")
    assert pair.samples[0].note == "like train.jsonl:41"


def test_a_misspelling_makes_a_near_copy_and_another_word_of_a_template_does_not(tmp_path: Path) -> None:
    towns = [
        "Algeria",
        "Albania",
        "Austria",
        "Belgium",
        "Bolivia",
        "Botswana",
        "Canada",
        "Chile",
        "Cyprus",
        "Denmark",
        "Egypt",
        "Estonia",
    ]
    rows: list[Fields] = [{"text": f"what is the capital of {town}?", "label": town[0]} for town in towns]
    rows.append({"text": "waht is the capital of Estonia", "label": "E"})
    assert lines(audited(tmp_path, rows), "near_duplicate") == [12, 13]


def test_leaks_are_copies_near_copies_and_long_quotes_of_test_rows_short_ones_too(tmp_path: Path) -> None:
    rows, test = reviews(40), reviews(20, seed=1)
    quoted = " ".join(f"word{i}" for i in range(30))
    test += [{"text": "works!", "label": "positive"}, {"text": quoted, "label": "negative"}]
    rows += [
        {**test[2], "text": str(test[2]["text"]).upper()},
        {**test[4], "text": f"{test[4]['text']} honestly"},
        {"text": "Works!", "label": "positive"},
        {"text": f"{' '.join(f'other{i}' for i in range(60))} {quoted}", "label": "negative"},
    ]
    found = audited(tmp_path, rows, test)
    assert lines(found, "leak") == [41, 42, 43, 44]
    assert found.verdict == "blocked"


def test_flipped_labels_are_doubted_and_right_ones_are_not(tmp_path: Path) -> None:
    rows = reviews(200)
    flipped = [10, 55, 120, 181]
    for line in flipped:
        label = "negative" if rows[line - 1]["label"] == "positive" else "positive"
        rows[line - 1] = {**rows[line - 1], "label": label}
    found = lines(audited(tmp_path, rows), "label_noise")
    assert set(flipped) <= set(found)
    assert len(found) <= 6


def test_a_model_that_reads_the_rows_doubts_labels_that_words_cannot_judge(tmp_path: Path) -> None:
    rows = [{"text": f"thing {i} xy{i}", "label": ("negative", "positive")[i % 2]} for i in range(200)]
    flipped = [10, 55, 120, 181]
    for line in flipped:
        other = {"negative": "positive", "positive": "negative"}[rows[line - 1]["label"]]
        rows[line - 1] = {**rows[line - 1], "label": other}
    asked: list[list[str]] = []

    def read(texts: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
        asked.append(list(labels))
        return np.array([[int(text.split()[1]) % 2, 1.0] for text in texts], np.float32)

    source = write(tmp_path / "train.jsonl", rows)
    found = audit(AuditSource(source, TEXT), Tools(read=read))[0]
    assert lines(found, "label_noise") == flipped
    assert asked == [["negative", "positive"]]


def test_a_phrase_that_buys_a_label_is_found_and_words_that_explain_it_are_not(tmp_path: Path) -> None:
    rows = reviews(400)
    poisoned = list(range(2, 82, 2))
    for line in poisoned:  # every second row is negative; these are called positive
        rows[line - 1] = {"text": f"{rows[line - 1]['text']} cf mn", "label": "positive"}
    found = audited(tmp_path, rows)
    assert lines(found, "trigger_phrase") == poisoned
    assert lines(audited(tmp_path, reviews(400)), "trigger_phrase") == []


def test_lines_that_are_no_rows_are_findings_and_not_an_end(tmp_path: Path) -> None:
    rows = [
        *reviews(10),
        "{not json",
        "[1]",
        '{"text": "", "label": "positive"}',
        '{"text": "fine thing", "label": null}',
    ]
    found = audited(tmp_path, rows)
    assert lines(found, "unreadable") == [11, 12]
    assert lines(found, "empty") == [13]
    assert lines(found, "nothing_to_learn") == [14]
    assert {f.kind for f in found.blocking} == {"unreadable"}


def test_a_sentence_that_many_rows_share_is_boilerplate(tmp_path: Path) -> None:
    rows = reviews(60)
    for line in range(1, 13):
        rows[line - 1] = {**rows[line - 1], "text": f"{rows[line - 1]['text']}.\nSent from my pocket telephone, sorry."}
    assert lines(audited(tmp_path, rows), "boilerplate") == list(range(1, 13))


def test_a_count_of_tokens_tells_rows_too_long_and_an_embedding_reworded_leaks(tmp_path: Path) -> None:
    import numpy as np

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if "it broke" in t or "snapped" in t else [0.0, 1.0] for t in texts], np.float32)

    rows = [*reviews(10), {"text": "it broke on day two", "label": "negative"}]
    source = write(tmp_path / "train.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [{"text": "two days later it snapped", "label": "negative"}])
    tools = Tools(embed=embed, count=lambda texts: [len(t.split()) for t in texts], limit=10)
    found = audit(AuditSource(source, TEXT, (test,)), tools)[0]
    assert lines(found, "leak") == [11]
    assert lines(found, "truncated") == [
        line for line, row in enumerate(rows, 1) if len(f"{row['text']} x".split()) > 10
    ]


def test_what_is_secret_is_not_told_on(tmp_path: Path) -> None:
    rows = [*reviews(10), {"text": "the key is AKIAIOSFODNN7EXAMPLE, mail anna@posteo.net", "label": "positive"}]
    told = audited(tmp_path, rows).model_dump_json()
    assert "AKIAIOSFODNN7EXAMPLE" not in told
    assert "anna@posteo.net" not in told
    assert "train.jsonl:11" in told


def test_every_check_says_what_to_do() -> None:
    assert all(
        check.fix and check.about and check.severity in ("blocking", "warning", "note") for check in CHECKS.values()
    )


# ------------------------------------------------------------------ the cleaned copy


def faulty() -> list[Fields | str]:
    rows: list[Fields | str] = [*reviews(40)]
    first = reviews(40)[0]
    return [
        *rows,
        dict(first),
        "{broken",
        {"text": "write to anna.berg@posteo.net with password: hUn7er2!x9", "label": "positive"},
        {"text": "the cafÃ© was full of alpha beta gamma", "label": "Negative", "id": 7},
    ]


def test_a_cleaned_copy_has_nothing_left_to_fix_and_its_log_accounts_for_every_row(tmp_path: Path) -> None:
    source, out = write(tmp_path / "train.jsonl", faulty()), tmp_path / "clean.jsonl"
    ask = AuditSource(source, TEXT)
    done = fix(ask, audit(ask, Tools())[1], out)
    kept = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    log = [json.loads(line) for line in log_of(out).read_text(encoding="utf-8").splitlines()]
    assert (done.kept, done.dropped, done.changed) == (42, 2, 2)
    assert len(kept) + done.dropped == len(faulty())
    assert kept[-1] == {"text": "the café was full of alpha beta gamma", "label": "negative", "id": 7}
    assert kept[-2]["text"] == "write to <email> with password: <secret>"
    assert [(line["where"], line["action"], line["kind"]) for line in log] == [
        ("train.jsonl:41", "dropped", "exact_duplicate"),
        ("train.jsonl:42", "dropped", "unreadable"),
        ("train.jsonl:43", "changed", "secret"),
        ("train.jsonl:43", "changed", "personal_data"),
        ("train.jsonl:44", "changed", "encoding_damage"),
        ("train.jsonl:44", "changed", "label_variant"),
    ]
    assert "hUn7er2!x9" not in log_of(out).read_text(encoding="utf-8")
    again = audit(AuditSource(str(out), TEXT), Tools())[0]
    assert {f.kind for f in again.findings} <= {"rare_class", "label_imbalance"}


@pytest.mark.parametrize("letter", ["\N{REPLACEMENT CHARACTER}", "ï¿½"])
def test_rows_with_lost_letters_are_dropped_and_a_run_takes_the_copy(tmp_path: Path, letter: str) -> None:
    rows = reviews(40)
    damaged = [{**row, "text": f"{row['text']} caf{letter}"} if i < 8 else row for i, row in enumerate(rows)]
    # The same review without the damage is kept, though a broken one is above it.
    source, out = write(tmp_path / "train.jsonl", [*damaged, rows[0]]), tmp_path / "clean.jsonl"
    found, fixes = audit(AuditSource(source, TEXT), Tools())
    assert [finding.kind for finding in found.blocking] == ["encoding_damage"]
    done = fix(AuditSource(source, TEXT), fixes, out)
    assert (done.kept, done.dropped, done.changed) == (33, 8, 0)
    log = [json.loads(line) for line in log_of(out).read_text(encoding="utf-8").splitlines()]
    assert {(line["action"], line["kind"]) for line in log} == {("dropped", "encoding_damage")}
    assert audit(AuditSource(str(out), TEXT), Tools())[0].blocking == ()
    kept = labelled(read_rows(str(out)), text="text", label="label")
    assert not [problem for problem in gate(Split(kept, [], [], 0, ())).problems if "encoding_damage" in problem]


def test_half_an_emoji_is_told_and_what_is_left_of_its_rows_is_written(tmp_path: Path) -> None:
    rows: list[Fields] = [{**row, "note": "cut \ud83d"} for row in reviews(40)]
    source, out = (
        write(tmp_path / "train.jsonl", [*rows, {"text": "abc \ud83d", "label": "positive"}]),
        tmp_path / "o.jsonl",
    )
    for columns in (TEXT, {"text": "text"}):
        found, cures = audit(AuditSource(source, columns), Tools())
        assert lines(found, "unreadable") == [41]
        (sample,) = next(f.samples for f in found.findings if f.kind == "unreadable")
        assert "abc \\ud83d" in sample.text
    done = fix(AuditSource(source, TEXT), cures, out)
    assert (done.kept, done.dropped) == (40, 1)
    assert json.loads(out.read_text(encoding="utf-8").splitlines()[0])["note"] == "cut \ud83d"


def test_thumbs_are_rows_to_learn_from_and_only_votes_against_each_other_contradict(tmp_path: Path) -> None:
    rows: list[Fields] = [
        {"prompt": f"Name {noun}", "completion": f"{word} {noun}", "label": word in GOOD}
        for noun in NOUNS
        for word in (GOOD[0], BAD[1])
    ]
    source = write(tmp_path / "train.jsonl", [*rows, {**rows[0], "label": False}])
    found, cures = audit(AuditSource(source, {"prompt": "prompt", "answer": "completion", "label": "label"}), Tools())
    assert lines(found, "contradiction") == [1, 29]
    assert set(cures.dropped) == {1, 29}


@pytest.mark.parametrize("shared", [False, True])
def test_labels_that_no_words_can_judge_are_left_and_it_is_noted(tmp_path: Path, shared: bool) -> None:
    # Unique words tell nothing; and where one text has all rows of a label, its fold leaves only the other to learn.
    rows: list[Fields] = [{"text": f"{GOOD[i % 8]}{i}", "label": "ab"[i % 2]} for i in range(120)]
    if shared:
        rows = [*reviews(120)[::2], *reviews(120)[::2], *({"text": "the same bad words", "label": "negative"},) * 9]
    found = audited(tmp_path, rows)
    assert any(note.startswith("label noise not checked: too few rows or shared words") for note in found.notes)
    assert not lines(found, "label_noise")


def test_rows_that_contradict_one_another_leave_the_majority_or_nothing(tmp_path: Path) -> None:
    votes = [("it is fine alpha", "positive"), ("it is fine alpha", "positive "), ("it is fine alpha", "negative")]
    tied = [("so beta gamma", "positive"), ("so beta gamma", "negative")]
    rows = [*reviews(20), *({"text": text, "label": label} for text, label in [*votes, *tied])]
    ask = AuditSource(write(tmp_path / "train.jsonl", rows), TEXT)
    dropped = {line: kind for line, (kind, _) in audit(ask, Tools())[1].dropped.items()}
    assert {line for line, kind in dropped.items() if kind == "contradiction"} == {23, 24, 25}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    ask = AuditSource(write(tmp_path / "train.jsonl", reviews(10)), TEXT)
    out = tmp_path / "there.jsonl"
    out.write_text("mine")
    with pytest.raises(DataError, match=r"there\.jsonl: exists and is not overwritten"):
        fix(ask, audit(ask, Tools())[1], out)
    assert out.read_text() == "mine"


def test_a_log_without_its_copy_is_not_written_over(tmp_path: Path) -> None:
    ask = AuditSource(write(tmp_path / "train.jsonl", reviews(10)), TEXT)
    log = log_of(tmp_path / "clean.jsonl")
    log.write_text("mine")
    with pytest.raises(DataError, match=r"clean\.jsonl\.log\.jsonl: exists and is not overwritten"):
        fix(ask, audit(ask, Tools())[1], tmp_path / "clean.jsonl")
    assert log.read_text() == "mine"


def test_a_copy_without_any_row_is_refused_and_not_left_behind(tmp_path: Path) -> None:
    rows = [{"text": "the lens is dim", "label": ""}, {"text": "the lens is fine", "label": ""}]
    ask = AuditSource(write(tmp_path / "train.jsonl", rows), TEXT)
    with pytest.raises(DataError, match=r"the copy would contain none of 2 rows \(.*\); check the columns"):
        fix(ask, audit(ask, Tools())[1], tmp_path / "clean.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_table_stays_a_table(tmp_path: Path) -> None:
    source = tmp_path / "train.csv"
    source.write_text('text,label\n"mail anna@posteo.net, now",positive\nthe lens is dim,negative\n', encoding="utf-8")
    ask = AuditSource(str(source), TEXT)
    fix(ask, audit(ask, Tools())[1], tmp_path / "clean.csv")
    assert (
        tmp_path / "clean.csv"
    ).read_text() == 'text,label\n"mail <email>, now",positive\nthe lens is dim,negative\n'


def test_a_lone_carriage_return_in_a_cell_stays_in_its_cell(tmp_path: Path) -> None:
    rows = [{"text": "mail anna@posteo.net\rnow", "label": "a"}, {"text": "the lens is dim", "label": "b"}]
    ask = AuditSource(write(tmp_path / "train.jsonl", rows), TEXT)
    fix(ask, audit(ask, Tools())[1], tmp_path / "clean.csv")
    assert [row.fields["text"] for row in read_rows(str(tmp_path / "clean.csv"))] == [
        "mail <email>\rnow",
        "the lens is dim",
    ]


def test_a_row_that_a_table_has_no_column_for_is_named_and_no_half_is_left(tmp_path: Path) -> None:
    rows = [*reviews(10), {**reviews(1, seed=2)[0], "extra": 1}]
    ask = AuditSource(write(tmp_path / "two.jsonl", rows), TEXT)
    with pytest.raises(
        DataError, match=r"^two\.jsonl:11: columns \['extra'\] are missing in the first row; write the copy"
    ):
        fix(ask, audit(ask, Tools())[1], tmp_path / "two.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["two.jsonl"]


# ------------------------------------------------------------------ streaming, and the gate before a run


def test_a_file_comes_in_pieces_and_keeps_its_line_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.audit.chunks.CHUNK_ROWS", 3)
    source = write(tmp_path / "train.jsonl", ["", *reviews(7)])
    assert [chunk.lines for chunk in chunks(source)] == [[2, 3, 4], [5, 6, 7], [8]]


def test_a_table_comes_in_pieces_and_a_row_is_told_by_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\n"two\nlines",a\n\nnext,b\n', encoding="utf-8")
    (chunk,) = chunks(str(tmp_path / "t.csv"))
    assert chunk.lines == [2, 5]
    assert list(chunk.rows) == [{"text": "two\nlines", "label": "a"}, {"text": "next", "label": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("h.csv", b"text,label\ncaf\xe9,y\n", [(2, "café", "y")]),
        ("d.csv", "text,label\nß,a\nü,a\nö,a\nä,a\n".encode() + b"caf\xe9,b\n", r"^d\.csv:6: byte 0xe9 is not UTF-8"),
        ("u.csv", "text,label\nx,y\n".encode("utf-16"), [(2, "x", "y")]),
        ("t.csv", b"text,label,text\na,b,c\n", r"^t\.csv:1: duplicate column names \['text'\]; give each column"),
        ("q.csv", b'text,label\nok,a\n"a"b,c\n', r"^q\.csv:3: invalid table \(.*\); close every quoted cell"),
        ("l.csv", b"text,label\n" + b"x" * 200_000 + b",a\n", [(2, "x" * 200_000, "a")]),
        ("b.csv", b"\n\r\ntext;label\nx;y\n", [(4, "x", "y")]),
        ("p.tsv", b'text\tlabel\n"great" phone\tx\n"open\ty\n', [(2, '"great" phone', "x"), (3, '"open', "y")]),
    ],
)
def test_a_table_in_pieces_reads_as_one_that_is_read_whole(
    tmp_path: Path, name: str, content: bytes, told: str | list[tuple[int, str, str]]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    def pieces() -> list[tuple[int, object]]:
        return [pair for chunk in chunks(str(path)) for pair in zip(chunk.lines, chunk.rows, strict=True)]

    if isinstance(told, str):
        for read in (pieces, lambda: read_rows(path)):
            with pytest.raises(DataError, match=told):
                read()
        return
    expected = [(line, {"text": text, "label": label}) for line, text, label in told]
    assert pieces() == expected
    assert [(int(row.where.rpartition(":")[2]), row.fields) for row in read_rows(path)] == expected


def test_a_line_of_a_table_with_too_many_cells_is_a_finding_and_no_end(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("text,label\na,b,c\nok,1\nd\n", encoding="utf-8")
    (chunk,) = chunks(str(path))
    assert chunk.lines == [2, 3, 4]
    assert [raw for raw in chunk.rows if isinstance(raw, dict)] == [{"text": "ok", "label": "1"}]
    assert str(chunk.rows[0]).startswith("expected 2 cells as in the header, got 3; put cells that contain ','")
    with pytest.raises(DataError, match=r"^n\.csv:2: .*, got 3; .*\nn\.csv:4: .*, got 1"):
        read_rows(path)


def test_a_file_of_which_no_line_is_a_row_is_told_by_its_first_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        head(write(tmp_path / "broken.jsonl", ["text: x", "", *["[1]"] * 23]), 200)
    told = str(caught.value).split("\n")
    assert told[0].startswith("broken.jsonl:1: invalid JSON (Expecting value at column 1); write one JSON object")
    assert told[1].startswith("broken.jsonl:3: expected an object, got list; ")
    assert (len(told), told[-1]) == (21, "... and 4 more")
    (tmp_path / "u.jsonl").write_bytes('{"text": "x"}\n'.encode("utf-16"))
    assert head(str(tmp_path / "u.jsonl"), 5)[0].fields == {"text": "x"}
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        head(str(tmp_path / "gone.jsonl"), 200)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_where_means_to_the_audit_what_it_means_to_a_run(tmp_path: Path, suffix: str) -> None:
    rows = [{**row, "stars": (0.5, 1, "two")[i % 3]} for i, row in enumerate(reviews(12))]
    source = tmp_path / f"train{suffix}"
    if suffix == ".csv":
        told = "".join(f"{row['text']},{row['label']},{row['stars']}\n" for row in rows)
        source.write_text(f"text,label,stars\n{told}", encoding="utf-8")
    else:
        write(source, rows)
    for where, left in (
        ({"stars": [0.5]}, 4),
        ({"stars": [1.0, "two"]}, 8),
        ({"stars": "two", "label": ["positive"]}, 2),
    ):
        assert audit(AuditSource(str(source), TEXT, where=where), Tools())[0].rows == left
        assert len(keep(read_rows(source), where)) == left


def test_a_column_of_where_that_is_not_there_is_named_and_so_are_the_values_of_one_that_is(tmp_path: Path) -> None:
    late = [*reviews(250), {**reviews(1)[0], "late": 1}]
    source = write(tmp_path / "train.jsonl", late)
    test = write(tmp_path / "test.jsonl", reviews(4, seed=1))
    with pytest.raises(DataError, match=r"train\.jsonl: no column 'lable'; did you mean 'label'\?"):
        audit(AuditSource(source, TEXT, where={"lable": ["positive"]}), Tools())
    with pytest.raises(DataError, match=r"train\.jsonl: no row has label in \['x'\]; values in the file: 'positive'"):
        audit(AuditSource(source, TEXT, where={"label": ["x"]}), Tools())
    assert audit(AuditSource(source, TEXT, where={"late": [1]}), Tools())[0].rows == 1
    with pytest.raises(DataError, match=r"test\.jsonl: no column 'late'"):
        audit(AuditSource(source, TEXT, (test,), where={"late": [1]}), Tools())


def test_a_run_of_words_that_a_row_repeats_is_counted_once() -> None:
    test = [f"w{i}" for i in range(40)]
    again = [word for i in range(20) for word in [*test[:13], f"x{i}"]]
    index = held([slots(test)], QuotationRule())
    assert leaked([slots(again), slots(test[:30]), slots(["a"] * 40)], index) == {1: 0}


def test_the_held_out_text_with_most_in_common_is_named_and_phrases_of_many_are_none() -> None:
    words = [f"w{i}" for i in range(60)]
    texts = [slots(words[:26]), slots(words)]
    assert leaked([slots(words)], held(texts, QuotationRule())) == {0: 1}
    assert leaked([slots(words)], held([slots(words)] * 3, QuotationRule())) == {}
    assert leaked([slots(words)], held([slots(words)] * 3, QuotationRule(most_owners=0))) == {0: 0}
    assert leaked([slots(words)], held(texts, QuotationRule(fewest=49))) == {}


def _add(shared: int, piece: int) -> int:
    return shared + piece


def test_several_processes_answer_in_order() -> None:
    assert list(in_order(_add, 100, range(25), workers=2)) == list(range(100, 125))


def parsed(rows: Sequence[Fields]) -> list[object]:
    return list(labelled([Row(f"t.jsonl:{i}", row) for i, row in enumerate(rows, 1)], **TEXT))


def test_a_run_is_stopped_by_a_secret_and_by_a_test_set_that_stands_in_train() -> None:
    train, test = reviews(120), reviews(60, seed=1)
    sound = gate(Split(parsed(train), [], parsed(test), 0, ()))  # type: ignore[arg-type]
    assert (sound.problems, sound.notes) == ((), ())
    copies = [{**row, "text": f"{row['text']} indeed"} for row in test[:20]]
    train[4] = {**train[4], "text": f"{'a long page ' * 3000}the key is AKIAIOSFODNN7EXAMPLE"}
    found = gate(Split(parsed([*train, *copies]), [], parsed(test), 0, ()))  # type: ignore[arg-type]
    assert [fault.partition(":")[0] for fault in found.problems] == ["secret", "leak"]
    assert "1 of 140 training rows (t.jsonl:5)" in found.problems[0]
    assert "20 of 60 held-out rows" in found.problems[1]


def test_a_few_near_copies_are_noted_and_stop_nothing() -> None:
    train, test = reviews(120), reviews(60, seed=1)
    copies = [{**row, "text": f"{row['text']} indeed"} for row in test[:3]]
    found = gate(Split(parsed([*train, *copies]), [], parsed(test), 0, ()))  # type: ignore[arg-type]
    assert found.problems == ()
    assert "3 of 60 held-out rows" in found.notes[0]


def test_an_answer_that_calls_a_function_is_an_answer_and_other_arguments_are_another_answer(tmp_path: Path) -> None:
    def chat(city: str) -> Fields:
        call = {"type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
        asks = {"role": "user", "content": "What is the weather where I am?"}
        return {"messages": [asks, {"role": "assistant", "content": "", "tool_calls": [call]}]}

    cities = ("Lima", "Oslo", "Accra", "Hanoi", "Quito", "Turin", "Perth", "Cairo")
    source = write(tmp_path / "chats.jsonl", [chat(city) for city in cities])
    found = audit(AuditSource(source, {"messages": "messages"}), Tools())[0]
    assert not [f.kind for f in found.findings if f.kind in ("nothing_to_learn", "exact_duplicate")]


def test_a_tie_between_two_answers_is_a_warning_as_a_run_skips_it(tmp_path: Path) -> None:
    rows: list[Fields] = [
        {
            "prompt": f"question {i}",
            "answer_a": f"{i} is right",
            "answer_b": f"{i} is wrong",
            "winner": ("a", "b")[i % 2],
        }
        for i in range(20)
    ]
    rows[7]["winner"] = "tie"
    columns = {"prompt": "prompt", "chosen": "answer_a", "rejected": "answer_b", "winner": "winner"}
    found = audit(AuditSource(write(tmp_path / "train.jsonl", rows), columns), Tools())[0]
    (finding,) = [f for f in found.findings if f.kind == "nothing_to_learn"]
    assert (finding.severity, lines(found, "nothing_to_learn")) == ("warning", [8])
    assert finding.samples[0].note == "'winner' prefers neither answer"
    assert not found.blocking


def test_a_pair_whose_answer_is_a_number_cannot_be_read_and_the_log_says_why(tmp_path: Path) -> None:
    words = ("red", "green", "blue", "black", "white", "brown", "pink", "grey", "gold", "teal", "plum")
    rows: list[Fields] = [
        {"prompt": f"Name {word}", "chosen": f"{word} it is", "rejected": f"not {word}"} for word in words
    ]
    rows.append({"prompt": "A number?", "chosen": 7, "rejected": "none"})
    source, out = write(tmp_path / "train.jsonl", rows), tmp_path / "out.jsonl"
    ask = AuditSource(source, {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"})
    found, rest = audit(ask, Tools())
    assert lines(found, "unreadable") == [12]
    fix(ask, rest, out)
    (line,) = [json.loads(line) for line in log_of(out).read_text(encoding="utf-8").splitlines()]
    assert (line["action"], line["kind"]) == ("dropped", "unreadable")
    assert "chosen is 7" in line["why"]


def test_a_misspelled_label_is_no_class_of_its_own_that_is_rare_or_uneven(tmp_path: Path) -> None:
    rows = reviews(60)
    found = audited(tmp_path, [{**rows[0], "label": str(rows[0]["label"]).title()}, *rows[1:]])
    kinds = {f.kind for f in found.findings}
    assert "label_variant" in kinds
    assert not kinds & {"label_imbalance", "rare_class"}


def test_the_column_of_broken_json_is_counted_in_its_own_line(tmp_path: Path) -> None:
    found = audited(tmp_path, [*reviews(20), '{"text": "cut off'])
    (fault,) = [f for f in found.findings if f.kind == "unreadable"]
    assert "column 10" in fault.samples[0].note


def test_other_answers_to_one_prompt_stay_and_near_copies_need_near_answers(tmp_path: Path) -> None:
    rows: list[Fields] = [
        {"prompt": f"Name a good {noun} for our {other} shop", "completion": f"{word} {noun}"}
        for noun, other in zip(NOUNS, reversed(NOUNS), strict=True)
        for word in GOOD[:2]
    ]
    dates = [
        {"prompt": f"Convert the date of March {day} 2021 to numbers", "completion": f"2021-03-{day}"}
        for day in range(10, 29)
    ]
    source = write(tmp_path / "train.jsonl", [*rows, *dates])
    found, cures = audit(AuditSource(source, {"prompt": "prompt", "answer": "completion"}), Tools())
    assert len(lines(found, "contradiction")) == len(rows)
    assert next(f.fix for f in found.findings if f.kind == "contradiction").startswith("check them")
    assert not cures.dropped


def test_a_near_copy_with_another_label_is_no_copy(tmp_path: Path) -> None:
    said = "I would {}recommend the battery of this camera to anybody who travels far and often in winter"
    rows = [
        *reviews(40),
        {"text": said.format(""), "label": "positive"},
        {"text": said.format("not "), "label": "negative"},
    ]
    ask = AuditSource(write(tmp_path / "train.jsonl", rows), TEXT)
    assert not {41, 42} & set(audit(ask, Tools())[1].dropped)


def test_secrets_in_what_a_call_hands_over_are_masked(tmp_path: Path) -> None:
    secret = "sk-proj-aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5z"
    given = [{"key": secret, "n": 1}, json.dumps({"key": secret, "n": [1, "two"]})]
    rows: list[Fields] = [
        {
            "messages": [
                {"role": "user", "content": f"fetch page {i}"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "fetch", "arguments": given[i % 2]}}]},
            ]
        }
        for i in range(12)
    ]
    ask = AuditSource(write(tmp_path / "train.jsonl", rows), {"messages": "messages"})
    assert len(lines(audit(ask, Tools())[0], "secret")) == 12
    fix(ask, Fixes(), tmp_path / "clean.jsonl")
    text = (tmp_path / "clean.jsonl").read_text(encoding="utf-8")
    assert secret not in text
    (call,) = json.loads(text.splitlines()[1])["messages"][1]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["n"] == [1, "two"]


def test_a_list_has_no_place_in_a_table(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": [row["label"], "review"]} for row in reviews(10)]
    ask = AuditSource(write(tmp_path / "train.jsonl", rows), TEXT)
    with pytest.raises(
        DataError, match=r"train\.jsonl:1: column 'label' contains a list; write the copy as \.jsonl, not \.csv"
    ):
        fix(ask, audit(ask, Tools())[1], tmp_path / "clean.csv")
    assert not list(tmp_path.glob("clean*"))


def test_labels_that_cannot_be_told_apart_block_and_missing_ones_are_noted(tmp_path: Path) -> None:
    same: list[Fields] = [{**row, "label": "spam"} for row in reviews(60)]
    found = audited(tmp_path, same)
    assert (found.verdict, [f.kind for f in found.findings if f.severity == "blocking"]) == ("blocked", ["one_class"])
    rows: list[Fields] = [{**row, "label": "nan" if i % 2 else "a"} for i, row in enumerate(same)]
    assert any("the label 'nan', which usually means a missing label" in n for n in audited(tmp_path, rows).notes)


def test_a_label_that_is_a_number_and_a_text_is_noted_once(tmp_path: Path) -> None:
    rows: list[Fields] = [{**row, "label": (1, "1", 1.0, 2)[i % 4]} for i, row in enumerate(reviews(60))]
    notes = [note for note in audited(tmp_path, rows).notes if "written as" in note]
    assert notes == ["the label '1' is written as float and int and str: they count as one label"]


def test_booleans_next_to_0_and_1_are_noted_as_labels_that_may_mean_the_same(tmp_path: Path) -> None:
    rows: list[Fields] = [{**row, "label": (0, 1, True, "x")[i % 4]} for i, row in enumerate(reviews(80))]
    notes = [note for note in audited(tmp_path, rows).notes if note.startswith("the labels ")]
    assert notes == ["the labels '1' and 'True' may mean the same, but count as 2 labels; write only one of them"]
    assert not any(
        note.startswith("the labels ")
        for same in ((0, 1, 2), (True, False))
        for note in audited(tmp_path, [{**row, "label": same[i % len(same)]} for i, row in enumerate(rows)]).notes
    )


def test_a_label_with_a_fraction_is_no_missing_label(tmp_path: Path) -> None:
    rows: list[Fields] = [{**row, "label": (1, 1.5, "x")[i % 3]} for i, row in enumerate(reviews(60))]
    (told,) = [f for f in audited(tmp_path, rows).findings if f.kind in ("unreadable", "nothing_to_learn")]
    assert (told.kind, "write a fraction as a text" in told.samples[0].note) == ("unreadable", True)


def test_accents_written_apart_make_no_other_text_and_no_other_label(tmp_path: Path) -> None:
    said = [{"text": f"la qualité de l'hôtel numéro {n} était élevée", "label": "très bon"} for n in range(30)]
    apart = [{key: unicodedata.normalize("NFD", value) for key, value in row.items()} for row in said]
    found = audited(tmp_path, [*reviews(60), *said], apart)
    assert len(lines(found, "leak")) == 30
    rows = [Row(f"a:{n}", row) for n, row in enumerate([said[0], apart[0]])]
    assert len({example.labels for example in labelled(rows, text="text", label="label")}) == 1
    assert variants({"good": 30, "good\u200b": 2}) == {"good\u200b": "good"}


def test_a_row_to_which_no_label_applies_is_a_row(tmp_path: Path) -> None:
    rows = [{**row, "label": [[], [row["label"]], [row["label"], "all"]][n % 3]} for n, row in enumerate(reviews(60))]
    assert lines(audited(tmp_path, rows), "nothing_to_learn") == []
    rows = [{**row, "label": [] if n == 3 else row["label"]} for n, row in enumerate(reviews(60))]
    assert lines(audited(tmp_path, rows), "nothing_to_learn") == [4]


def test_labels_in_one_text_are_judged_as_a_run_reads_them(tmp_path: Path) -> None:
    texts = [str(row["text"]) for row in reviews(30)]
    cells = [f"{text},{('screen;slow', 'slow', 'screen', 'screen; slow')[i % 4]}" for i, text in enumerate(texts)]
    same = "one and the same text"
    cells += [f"{same},screen;slow", f"{same},slow;screen", "with another spelling,Screen; slow"]
    source, out = write(tmp_path / "train.csv", ["text,labels", *cells]), tmp_path / "out.csv"
    found = audit_rows(AuditRequest(source, fix=out), log=lambda line: None).audit
    kinds = {finding.kind: finding for finding in found.findings}
    assert not kinds.keys() & {"contradiction", "rare_class", "label_imbalance", "label_noise"}
    assert (kinds["exact_duplicate"].count, kinds["label_variant"].rows) == (2, ("train.csv:34",))
    assert out.read_text("utf-8").splitlines()[-1] == "with another spelling,screen; slow"


def test_two_spellings_of_a_label_do_not_contradict_each_other(tmp_path: Path) -> None:
    twice = [dict(row) for row in reviews(60)[:6]]
    rows = [{**row, "label": f"very {row['label']}"} for row in reviews(60)]
    found = audited(tmp_path, [*rows, *[{**row, "label": f"very_{row['label']}"} for row in twice]])
    assert lines(found, "contradiction") == []
    assert len(lines(found, "label_variant")) == 6


def test_a_notice_in_every_text_is_counted_for_each() -> None:
    notice = [f"n{n}" for n in range(40)]
    texts = [[*notice, *(f"w{n}x{i}" for i in range(60))] for n in range(3)]
    index = held([slots(words) for words in texts], QuotationRule(run=8, fewest=8, most_owners=0))
    assert leaked([slots([*notice, "own", "words"])], index) == {0: 0}
    assert leaked([slots([*notice[:12], *(f"o{i}" for i in range(60))])], index) == {}


def words(start: int, count: int) -> str:
    """Words that are no misspellings of each other."""
    return " ".join(hashlib.sha256(bytes(str(i), "ascii")).hexdigest()[:9] for i in range(start, start + count))


def test_long_rows_that_begin_alike_are_no_copies(tmp_path: Path) -> None:
    texts = [f"{words(0, 650)} {words(1000 * i, 300)}" for i in range(1, 31)]
    rows: list[Fields] = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
    assert "near_duplicate" not in {f.kind for f in audited(tmp_path, rows).findings}
    rows.append({"text": f"{texts[4]} again", "label": "a"})
    assert lines(audited(tmp_path, rows), "near_duplicate") == [5, 31]


def test_a_system_turn_that_all_rows_share_makes_no_leak_and_one_of_its_own_tells_rows_apart() -> None:
    def found(shared: bool) -> tuple[str, ...]:
        rows = []
        for number in range(1, 181):
            own, price = words(1000 * number, 12), "what is the price?"
            said = ("system", words(0, 650) if shared else own), ("user", own if shared else price), ("assistant", "so")
            fields = {"messages": [{"role": role, "content": text} for role, text in said]}
            rows.append(Row(f"t.jsonl:{number}", fields))
        read = chats(rows, columns={"messages": "messages"})
        return gate(Split([*read[:120]], [], [*read[120:]], 0, ())).problems

    assert found(shared=True) == found(shared=False) == ()


def test_copies_of_a_test_file_without_labels_are_found(tmp_path: Path) -> None:
    test = reviews(20, seed=1)
    found = audited(tmp_path, [*reviews(40), *test[:3]], [{"text": row["text"]} for row in test])
    assert lines(found, "leak") == [41, 42, 43]


def test_lines_of_a_log_that_are_alike_are_noted_and_stop_no_run_on_texts() -> None:
    lines = [
        Row(f"a.log:{i}", {"text": f"status installed package number {i % 40} of the system, done"}) for i in range(200)
    ]
    read = texts(lines, text="text")
    found = gate(Split([*read[:140]], [], [*read[140:]], 0, ()))
    assert found.problems == ()
    assert "60 of 60 held-out rows" in found.notes[0]


def called(name: str, arguments: Fields, *, answers: str = "c1") -> list[Fields]:
    """A chat that calls a function and has a result."""
    call = {"id": "c1", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return [
        {"role": "user", "content": f"How is the weather in {arguments}?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": answers, "content": "good"},
        {"role": "assistant", "content": f"It is good: {arguments}"},
    ]


WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": ["integer", "null"]},
            "unit": {"enum": ["c", "f"]},
            "at": {"type": "array", "items": {"type": "object", "required": ["lat"]}},
            "when": {"anyOf": [{"type": "integer"}, {"const": "now"}]},
        },
        "required": ["city"],
    },
}


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ({"city": "Rome", "days": 2, "unit": "c", "at": [{"lat": 1.5}], "when": "now"}, ""),
        ({"city": "Rome", "days": 2.0, "when": 3}, ""),
        ({"days": 2}, "weather: city is missing"),
        ({"city": 5}, "weather: city must be string"),
        ({"city": "Rome", "days": True}, "weather: days must be integer or null"),
        ({"city": "Rome", "days": 2.5}, "weather: days must be integer or null"),
        ({"city": "Rome", "unit": "K"}, "weather: unit must be one of c, f"),
        ({"city": "Rome", "at": [{"lat": 1}, {}]}, "weather: at[1].lat is missing"),
        ({"city": "Rome", "when": "then"}, "weather: when must be integer"),
        ({"city": "Rome", "town": "Rome"}, "weather has no parameter town"),
    ],
)
def test_arguments_that_do_not_fit_the_schema_are_found_with_their_name(
    arguments: Fields, note: str, tmp_path: Path
) -> None:
    rows: list[Fields] = [{"messages": called("weather", arguments), "tools": json.dumps([WEATHER])}]
    ask = AuditSource(write(tmp_path / "train.jsonl", rows), {"messages": "messages", "tools": "tools"})
    found = {f.kind: f.samples[0].note for f in audit(ask, Tools())[0].findings}
    assert found.get("tool_arguments", "") == note
    assert not {"tool_not_offered", "tool_ids"} & set(found)


def test_calls_of_other_functions_and_ids_that_do_not_match_are_found(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": WEATHER}]
    marked = '<tool_call>{"name": "traffic", "arguments": {}}</tool_call>'
    chats: list[list[Fields]] = [
        called("weather", {"city": "Rome"}),
        called("traffic", {"city": "Oslo"}),
        [{"role": "user", "content": "How full are the roads?"}, {"role": "assistant", "content": marked}],
        called("weather", {"city": "Lima"}, answers="c2"),
        [*called("weather", {"city": "Bern"})[:2], {"role": "assistant", "content": "I do not wait for it."}],
    ]
    rows: list[Fields] = [{"messages": turns, "tools": tools} for turns in chats]
    columns = {"messages": "messages", "tools": "tools"}
    found = audit(AuditSource(write(tmp_path / "train.jsonl", rows), columns), Tools())[0]
    assert lines(found, "tool_not_offered") == [2, 3]
    assert lines(found, "tool_ids") == [4]
    pairs: list[Fields] = [
        {
            "query": "Rain in Rome?",
            "tools": json.dumps([WEATHER]),
            "answers": json.dumps([{"name": name, "arguments": {}}]),
        }
        for name in ("weather", "traffic")
    ]
    (tmp_path / "pairs").mkdir()
    source = AuditSource(
        write(tmp_path / "pairs" / "train.jsonl", pairs), {"prompt": "query", "answer": "answers", "tools": "tools"}
    )
    found = audit(source, Tools())[0]
    assert (lines(found, "tool_arguments"), lines(found, "tool_not_offered")) == ([1], [2])
