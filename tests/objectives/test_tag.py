"""Spans of texts: parsed from every format, aligned to every tokenizer, learned, saved and marked again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, pipeline

from tests.bases import policy, template
from tests.served import engine_over, save_run
from tests.tiny import SENTENCES
from tunesmith.cli import main
from tunesmith.data.examples.spans import spans_of, tagged, tags_of
from tunesmith.data.examples.types import Span, TaggedText
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import detect
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.span_tokens import TextTokens
from tunesmith.errors import DataError, RecipeError, RowError
from tunesmith.inference.export.formats import merged, write_merged
from tunesmith.inference.export.usage import Usage, read_usage, readme
from tunesmith.inference.identify import read_manifest
from tunesmith.inference.saved_model import load
from tunesmith.models.batch import collate
from tunesmith.objectives import Classify, Tag
from tunesmith.pipelines.audit import audit_rows
from tunesmith.pipelines.export.compare import as_marked
from tunesmith.pipelines.requests import AuditRequest
from tunesmith.techniques import Full, Lora

TEXT = "Ask Anna Berg  in Zürich 😀 about it."
SPANS = (Span(4, 13, "PERSON"), Span(18, 24, "PLACE"))
LABELS = ("PERSON", "PLACE")


def written(**changed: Any) -> dict[str, Any]:
    return {"start": 4, "end": 13, "label": "PERSON"} | changed


STUDIO = [
    {"value": {"start": 18, "end": 24, "text": "Zürich", "labels": ["PLACE"]}, "type": "labels", "from_name": "label"},
    {"value": {"start": 4, "end": 13, "text": "Anna Berg", "labels": ["PERSON"]}, "type": "labels"},
]
FORMATS = {
    "spans": {"text": TEXT, "spans": [written(), {"start": 18, "end": 24, "label": "PLACE"}]},
    "as JSON in a csv": {"text": TEXT, "spans": json.dumps([[4, 13, "PERSON"], [18, 24, "PLACE"]])},
    "spaCy's Doc.to_json": {
        "text": TEXT, "tokens": [{"id": 0, "start": 0, "end": 3}],
        "ents": [written(), {"start": 18, "end": 24, "label": "PLACE"}],
    },
    "spaCy's entities": {"text": TEXT, "entities": [[4, 13, "PERSON"], [18, 24, "PLACE"]]},
    "doccano": {"id": 7, "text": TEXT, "label": [[4, 13, "PERSON"], [18, 24, "PLACE"]]},
    "Label Studio": {
        "id": 1, "data": {"text": TEXT},
        "annotations": [{"id": 3, "was_cancelled": True, "result": []}, {"id": 4, "result": STUDIO}],
    },
    "Label Studio, JSON_MIN": {"text": TEXT, "id": 1, "label": [{**item["value"]} for item in STUDIO]},
    "spaces at the ends": {"text": TEXT, "spans": [written(start=3, end=15), [18, 24, "PLACE"], [18, 24, "PLACE"]]},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_spans_are_read_from_each_format_and_its_columns_are_detected(name: str):
    rows = [Row("rows.jsonl:1", FORMATS[name]), Row("rows.jsonl:2", FORMATS[name])]
    found = detect(rows)
    assert found.objective == "tag"
    assert [row.spans for row in tagged(rows, columns=found.columns)] == [SPANS, SPANS]
    assert [row.spans for row in Tag().examples(rows, group="")] == [SPANS, SPANS]


@pytest.mark.parametrize(
    "tags",
    [
        ["O", "B-P", "I-P", "O", "B-Q", "B-Q"],
        ["O", "B-P", "E-P", "O", "S-Q", "U-Q"],
        ["O", "I-P", "L-P", "O", "B-Q", "S-Q"],
    ],
)
def test_words_with_tags_are_joined_by_spaces(tags: list[str]):
    rows = [Row("rows.jsonl:1", {"tokens": ["ask", "Anna", "Berg", "in", "Bonn", "Ulm"], "ner_tags": tags})]
    (example,) = Tag().examples(rows, group="")
    assert isinstance(example, TaggedText)
    assert [(example.text[s.start : s.end], s.label) for s in example.spans] == [
        ("Anna Berg", "P"),
        ("Bonn", "Q"),
        ("Ulm", "Q"),
    ]


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([written(), [9, 13, "NAME"]], "NAME 'Berg' is inside PERSON 'Anna Berg', and a character can have one label"),
        ([written(), [10, 24, "PLACE"]], "PLACE 'erg  in Zürich' overlaps PERSON 'Anna Berg'"),
        ([written(end=99)], "span PERSON is at 4 to 99 of 36 characters; count code points from 0"),
        ([written(start=13, end=15)], "span PERSON at 13 is blank; remove it"),
        ([written(text="Anna Ber")], "the span 'Anna Ber' at 4 to 13 is 'Anna Berg' in the text; count code points"),
        ([written(label="O")], "has the label 'O', which means no span; rename it"),
        ([written(label="")], "has a span without start, end or one label"),
        ([written(start=4.5)], "has a span without start, end or one label"),
        (["Anna"], r"column 'spans' must be a list of \{start, end, label\}"),
        ("Anna", r"column 'spans' must be a list of \{start, end, label\}"),
        ("[{'start': 4, 'end': 13, 'label': 'PERSON'", r"column 'spans' must be a list of \{start, end, label\}"),
        ("[4-13:PERSON]", r"column 'spans' must be a list of \{start, end, label\}"),
        (None, r"column 'spans' has no annotation of this text; drop the row, or write \[\] if nothing"),
        ("", "column 'spans' has no annotation of this text"),
        ([{"id": 3, "was_cancelled": True, "result": []}], "column 'spans' has no annotation of this text"),
    ],
)
def test_what_is_no_span_of_the_text_is_refused_with_the_reason_and_the_row(spans: Any, problem: str):
    rows = [Row("rows.jsonl:1", {"text": TEXT, "spans": []}), Row("rows.jsonl:2", {"text": TEXT, "spans": spans})]
    with pytest.raises(RowError, match=f"^rows.jsonl:2: .*{problem}"):
        tagged(rows, columns={"text": "text", "spans": "spans"})


def test_a_key_value_beside_a_span_is_ignored_and_the_label_of_no_span_is_refused_in_every_format():
    rows = [Row("rows:1", {"text": TEXT, "spans": [written(value="Anna Berg")]})]
    assert tagged(rows, columns={"text": "text", "spans": "spans"})[0].spans == SPANS[:1]
    with pytest.raises(DataError, match="span at 0 has the label 'O', which means no span"):
        tagged([Row("rows:1", {"w": ["Anna"], "t": ["B-O"]})], columns={"words": "w", "tags": "t"})
    for labels in (("A", "A"), ("",), ("O",), (" A",)):
        with pytest.raises(ValueError, match="list each label once, without spaces around it; not 'O'"):
            Tag(labels=labels)


def test_a_task_of_label_studio_without_annotation_is_refused_and_one_without_spans_is_not():
    columns = {"text": "data.text", "spans": "annotations"}
    cells: list[Any] = [[{"result": STUDIO}], [{"result": []}], "[]", []]
    rows = [Row(f"rows:{i}", {"data.text": TEXT, "annotations": cell}) for i, cell in enumerate(cells)]
    assert [row.spans for row in tagged(rows[:2], columns=columns)] == [SPANS, ()]
    for row in rows[2:]:
        with pytest.raises(RowError, match=f"^{row.where}: column 'annotations' has no annotation of this text"):
            tagged([rows[0], row], columns=columns)
    plain = [Row("rows:1", {"text": TEXT, "spans": none}) for none in ([], "[]", " [ ] ")]
    assert [row.spans for row in tagged(plain, columns={"text": "text", "spans": "spans"})] == [(), (), ()]


@pytest.mark.parametrize(
    ("named", "columns"),
    [
        ({"spans": "mine"}, {"text": "text", "spans": "mine"}),
        ({"text": "title"}, {"text": "title", "spans": "spans"}),
        ({"words": "tokens"}, {"words": "tokens", "tags": "ner_tags"}),
        ({"tags": "bio"}, {"words": "tokens", "tags": "bio"}),
        ({"words": "w", "tags": "t"}, {"words": "w", "tags": "t"}),
        ({}, {"text": "text", "spans": "spans"}),
    ],
)
def test_a_column_that_the_recipe_names_is_read_and_the_other_one_is_detected(
    named: dict[str, str], columns: dict[str, str]
):
    fields = {"text": TEXT, "title": TEXT, "spans": [written()], "mine": [], "tokens": ["Bo"], "ner_tags": ["B-P"]}
    assert Tag(**named).columns([Row("rows:1", fields | {"bio": ["O"]})]) == columns


def test_columns_of_texts_and_of_words_are_not_named_together():
    with pytest.raises(ValueError, match="name columns of a text and its spans, or of words and their tags, not both"):
        Tag(spans="spans", tags="tags")


def test_an_audit_names_overlaps_disagreements_and_spans_that_cut_words(tmp_path: Path):
    spans = [[written()], [written(end=8)], [written(), written(start=9)], [written(start=5)]]
    texts = [TEXT, TEXT, f"{TEXT} Then", f"{TEXT} Now"]
    lines = [json.dumps({"text": text, "spans": each}) + "\n" for text, each in zip(texts, spans, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    found = audit_rows(AuditRequest(str(tmp_path / "rows.jsonl")), log=lambda line: None).audit
    at = {finding.kind: [int(row.rpartition(":")[2]) for row in finding.rows] for finding in found.findings}
    assert (at["unreadable"], at["contradiction"], at["cut_word"]) == ([3], [1, 2], [4])


def cutter(kind: str) -> Template:
    """An encoder's tokenizer of a kind, with the tokens of BERT around each text."""
    if kind in ("bert", "modernbert"):
        return template(kind)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer(lowercase=True)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    else:
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    inner.train_from_iterator([*SENTENCES, TEXT], trainer)
    roles = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return Template(PreTrainedTokenizerFast(tokenizer_object=inner, **roles), chat=False)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "wordpiece", "unigram"])
@pytest.mark.parametrize("text", [TEXT, f"  {TEXT}", f"[SEP] {TEXT}", f"日本 e\u0301\n{TEXT}\t", f"{TEXT} [MASK]"])
def test_tags_of_tokens_give_the_spans_back_in_every_tokenizer(kind: str, text: str):
    shift = text.index(TEXT)
    spans = [Span(span.start + shift, span.end + shift, span.label) for span in SPANS]
    tokens = TextTokens.of(text, cutter(kind))
    assert len(tokens.ids) == len(tokens.pieces) == len(tokens.words)
    tags = tags_of(spans, tokens.pieces, text)
    assert [span for span, _ in spans_of(tags, tokens.pieces, text)] == spans


def test_a_note_tells_that_the_tokenizer_ignores_the_case_of_spans():
    rows = [
        TaggedText(where="a", text=TEXT, spans=SPANS),
        TaggedText(where="b", text="anna", spans=(Span(0, 4, "PERSON"),)),
    ]
    told = "2 of 3 spans have capital letters, which the tokenizer of the model reads as small ones"
    assert Tag().template_notes(rows, cutter("wordpiece")) == [f"{told}; a model with case may find more of them"]
    assert Tag().template_notes(rows, cutter("modernbert")) == []
    assert Tag().template_notes(rows[1:], cutter("wordpiece")) == []


def test_each_token_is_answered_once_by_a_window_with_context_on_both_sides():
    form = template("bert")
    before, behind = form.frame
    for size in (0, 1, 20, 21, 100):
        tokens = TextTokens.of(" ".join(["fox"] * size), form)
        count = len(tokens.ids)
        rows = tokens.rows(form, "rows:1", limit=24, targets=list(range(count)))
        assert [target for row in rows for _, target in row.hidden] == list(range(count))
        assert all(len(row.sequences[0].ids) <= 24 for row in rows)
        for row in rows:
            ids = row.sequences[0].ids
            assert (ids[: len(before)], ids[len(ids) - len(behind) :]) == (before, behind)
            assert [ids[position] for position, _ in row.hidden] == [tokens.ids[target] for _, target in row.hidden]
            first, last = row.hidden[0] if row.hidden else (0, 0), row.hidden[-1] if row.hidden else (0, 0)
            assert first[1] == 0 or first[0] >= len(before) + 5
            assert last[1] >= count - 1 or last[0] < 24 - len(behind) - 5


def rows_of(count: int = 40, seed: int = 0) -> list[TaggedText]:
    chance, made = random.Random(seed), []
    for number in range(count):
        name, place = chance.choice(["Anna Berg", "Li", "Bo Ek"]), chance.choice(["Bonn", "New York", "Zürich"])
        text = f"{chance.choice(['Ask', 'Then'])} {name} in {place}, number {number}."
        start, at = text.index(name), text.index(place)
        spans = (Span(start, start + len(name), "PERSON"), Span(at, at + len(place), "PLACE"))
        made.append(TaggedText(f"rows:{number}", text, spans))
    return made


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_the_loss_is_the_cross_entropy_of_the_tags_of_all_tokens(kind: str):
    form, objective = template(kind), Tag().bind(rows_of(), "encoder")
    assert objective.all_tags == ("O", "B-PERSON", "I-PERSON", "B-PLACE", "I-PLACE")
    made = policy(kind, Full())
    made.head = objective.head(made)
    torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(0))
    encoded = [row for example in rows_of(6) for row in objective.encode_all(example, form, limit=64)]
    loss = objective.loss(collate(encoded, share=False), made)
    wanted, count = 0.0, 0
    for row in encoded:  # one by one through the network itself
        states = made.network(input_ids=torch.tensor([row.sequences[0].ids])).last_hidden_state[0]
        positions, tags = (torch.tensor(part) for part in zip(*row.hidden, strict=True))
        wanted += cross_entropy(made.head(states[positions]), tags, reduction="sum").item()
        count += len(tags)
    assert loss.units == count == sum(row.learned for row in encoded)
    assert loss.total.item() == pytest.approx(wanted, rel=1e-4)


def test_spans_of_whole_words_are_marked_by_word_and_others_by_token():
    form = Template(cutter("wordpiece").tokenizer, chat=False)
    whole, cut = rows_of(), [TaggedText("rows:1", "unhappy foxes", (Span(2, 7, "PLACE"),))]
    for rows, aggregation in ((whole, "first"), (cut * 4, "simple")):
        objective = Tag().bind(rows, "encoder")
        encoded = [row for example in rows for row in objective.encode_all(example, form, limit=64)]
        assert objective.bind_encoded(encoded).aggregation == aggregation


def test_spans_that_no_tokens_mark_are_counted():
    form = cutter("wordpiece")  # without accents
    rows = [*rows_of(2), TaggedText("rows:9", "Cafe\u0301 bar", (Span(0, 5, "PLACE"),))]
    (note,) = Tag().encoded_notes(rows, [], form, limit=64)
    assert note == "1 of 5 spans do not begin and end with tokens, first in rows:9; whole tokens are marked"
    assert Tag().encoded_notes(rows[:2], [], form, limit=64) == []


def test_labels_are_those_of_the_rows_or_of_the_recipe():
    with pytest.raises(DataError, match="rows: no span in 1 rows; tag needs rows with spans"):
        Tag().bind([TaggedText("rows:1", "a", ())], "encoder")
    with pytest.raises(DataError, match=r"rows:0: label 'PLACE' is not among \['PERSON'\]; add it"):
        Tag(labels=("PERSON",)).bind(rows_of(), "encoder")


def alike(one: Any, other: Any) -> bool:
    """Whether two answers have the same spans; scores of other batches are rounded otherwise."""
    pairs = list(zip(one["spans"], other["spans"], strict=True))
    return all(a == b | {"score": pytest.approx(b["score"], abs=1e-5)} for a, b in pairs)


@pytest.mark.parametrize("technique", [Full(), Lora(rank=4)], ids=["full", "lora"])
def test_a_saved_model_marks_the_same_spans_everywhere(
    technique: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = save_run(tmp_path / "run", technique, Tag(labels=LABELS, aggregation="first"), kind="bert")
    model = load(run)
    texts = [row.text for row in rows_of(8)] + ["", " ".join(["Anna"] * 200)]
    found = model.answers(texts)
    assert found is not None
    assert sum(len(answer["spans"]) for answer in found) > 8
    for text, answer in zip(texts, found, strict=True):
        assert all(span["text"] == text[span["start"] : span["end"]] for span in answer["spans"])
        assert all(a["end"] <= b["start"] for a, b in zip(answer["spans"], answer["spans"][1:], strict=False))
    assert alike(model.answer(texts[0]), found[0])
    for wrong in (model.classify, model.predict, model.generate):
        with pytest.raises(RecipeError):
            wrong("a text")
    assert model.answers([]) == []
    assert load(save_run(tmp_path / "labels", Full(), Classify(output="linear"), kind="bert")).answers(["a"]) is None
    assert main(["ask", str(run), texts[0], "--offline", "--json"]) == 0
    assert alike(json.loads(capsys.readouterr().out), found[0])
    marked = next(i for i, answer in enumerate(found) if answer["spans"])
    assert main(["ask", str(run), texts[marked], "--offline"]) == 0
    assert found[marked]["spans"][0]["text"] in capsys.readouterr().out
    engine, bugs = engine_over({"run": [run]})
    assert alike(engine.whole("run", "answers", texts[:1]).result(60)[0], found[0])
    engine.close(10)
    assert bugs == []


def test_a_character_of_several_tokens_has_the_answer_of_the_first_in_the_pipeline_too():
    text, places = "😀 b", [(0, 1), (0, 1), (0, 1), (0, 1), (2, 3)]
    ours = [span for span, _ in spans_of(["B-E", "I-P", "I-P", "O", "B-P"], places, text)]
    theirs = [("E", 0, 1), ("P", 0, 1), ("P", 1, 3)]  # the last one with the space before its word
    found = [{"entity_group": label, "start": a, "end": b, "score": 0.5} for label, a, b in theirs]
    assert as_marked(found, text) == dict.fromkeys(ours, 0.5)


def test_the_readme_of_an_export_says_that_long_texts_are_cut_there_only():
    text = readme(Usage("tag text", {"max_tokens": 64, "aggregation": "first"}), name="a", class_name="B", multi=False)
    assert "at most 64 tokens. This code truncates longer texts there, and marks nothing after that" in text
    assert "as in Tunesmith" not in text


@pytest.mark.long
@pytest.mark.parametrize("aggregation", ["first", "simple"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
@pytest.mark.parametrize("technique", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_transformers_pipeline_marks_the_same_spans_in_200_rows(
    technique: Any, kind: str, aggregation: Any, tmp_path: Path
):
    run = save_run(tmp_path / "run", technique, Tag(labels=LABELS, aggregation=aggregation), kind=kind)
    folder, model = run / "model", load(run)
    opened = folder
    if technique.kind != "full":  # an adapter is merged first
        opened = tmp_path / "merged"
        opened.mkdir()
        write_merged(merged(folder, read_manifest(folder), offline=True), folder, opened)
        usage = read_usage(opened)
        assert usage is not None
        assert usage.function(opened)(["Ask Anna"]) == pipeline("token-classification", str(opened))(
            ["Ask Anna"], aggregation_strategy=aggregation
        )
    tagger = pipeline("token-classification", str(opened), aggregation_strategy=aggregation)
    texts = [row.text for row in rows_of(200)]
    answers = model.answers(texts)
    assert answers is not None
    found = 0
    for text, answer, theirs in zip(texts, answers, tagger(texts), strict=True):
        ours = {Span(one["start"], one["end"], one["label"]): one["score"] for one in answer["spans"]}
        named = as_marked(theirs, text)
        assert list(ours) == list(named)
        assert ours == pytest.approx(named, abs=1e-4)
        found += len(ours)
    assert found > 200
