"""The example rows are what their README says they are, and each recipe names columns that are there."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bases import folder, template
from tunesmith.config import load_recipe
from tunesmith.data.audit.row_view import view
from tunesmith.data.documents.document import plain
from tunesmith.data.examples.prompts import Completion, RLPrompt
from tunesmith.data.examples.types import Chat
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import calls_in
from tunesmith.metrics.scores import call_outcome
from tunesmith.objectives import Instruct
from tunesmith.objectives.instruct import asked, reference
from tunesmith.pipelines.tune.preview import preview
from tunesmith.training.rewards import scorer

ROOT = Path(__file__).parents[1]
EXAMPLES, SHIPPED = ROOT / "examples", ROOT / "tunesmith" / "shipped_data"
FACTS = ["id", "country", "question", "answer", "evidence", "doc_id"]
SEARCHED = ["id", "query", "passage", "evidence", "country"]
CALLS = ["id", "kind", "package", "messages", "tools"]
RECIPES = sorted(EXAMPLES.glob("*.yaml"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("path", "columns", "count"),
    [
        (SHIPPED / "reviews.jsonl", ["id", "text", "label", "group"], 2679),
        (SHIPPED / "general.jsonl", ["id", "text"], 21),
        (EXAMPLES / "synopsis.jsonl", ["id", "document", "summary", "source", "split"], 2600),
        (EXAMPLES / "spans.jsonl", ["id", "text", "spans", "package"], 500),
        (EXAMPLES / "en-fr.jsonl", ["id", "en", "fr", "package", "split"], 600),
        (EXAMPLES / "postgresql.jsonl", ["id", "chapter", "text"], 132),
        (EXAMPLES / "factbook.jsonl", FACTS, 264),
        (EXAMPLES / "factbook.test.jsonl", FACTS, 142),
        (EXAMPLES / "search.jsonl", SEARCHED, 264),
        (EXAMPLES / "search.test.jsonl", SEARCHED, 142),
        (EXAMPLES / "pairs.jsonl", ["id", "prompt", "chosen", "rejected", "p_chosen", "group"], 1334),
        (EXAMPLES / "tools.jsonl", CALLS, 280),
        (EXAMPLES / "tools.test.jsonl", CALLS, 120),
        (EXAMPLES / "mail.jsonl", ["id", "subject", "text", "label", "thread"], 2394),
    ],
)
def test_a_set_has_its_rows_and_columns_and_no_id_twice(path: Path, columns: list[str], count: int):
    read = rows(path)
    assert len(read) == len({row["id"] for row in read}) == count
    assert {tuple(row) for row in read} == {tuple(columns)}


def test_the_reviews_are_a_third_negative_and_come_from_many_sources():
    read = rows(SHIPPED / "reviews.jsonl")
    assert Counter(row["label"] for row in read) == {"positive": 1441 + 133, "negative": 918 + 187}
    assert len({row["group"] for row in read}) > 200


def test_the_synopses_are_short_documents_and_keep_the_split_they_came_with():
    read = rows(EXAMPLES / "synopsis.jsonl")
    assert max(len(row["document"]) for row in read) <= 1200
    assert Counter(row["split"] for row in read) == {"train": 2200, "valid": 400}


def test_each_question_of_the_factbook_names_a_document_that_says_the_answer():
    pages = {row["doc_id"]: " ".join(row["text"].split()) for row in rows(EXAMPLES / "factbook.documents.jsonl")}
    for name in ("factbook.jsonl", "factbook.test.jsonl"):
        for row in rows(EXAMPLES / name):
            assert row["answer"] in row["evidence"]
            assert " ".join(row["evidence"].split()) in pages[row["doc_id"]]
    both = [{row["country"] for row in rows(EXAMPLES / name)} for name in ("factbook.jsonl", "factbook.test.jsonl")]
    assert not both[0] & both[1]


def test_no_call_of_the_examples_is_lost_in_words_and_none_breaks_its_schema():
    form, columns = template("llama"), {"messages": "messages", "tools": "tools"}
    for name in ("tools.jsonl", "tools.test.jsonl"):
        read = [Row(f"{name}:{i}", row) for i, row in enumerate(rows(EXAMPLES / name), 1)]
        assert {kind for row in read for kind in view(row, columns).calls} == set()
        chats = Instruct(messages="messages", metric="tool_calls").examples(read, group="package")
        for row, chat in zip(read, chats, strict=True):
            assert isinstance(chat, Chat)
            prompt = form.prompt(asked(chat))
            whole = form.chat(chat.messages[: chat.reference_index + 1 or None])
            completion = form.decode(
                [i for i, learn in zip(whole.ids, whole.learn, strict=True) if learn][-len(whole.ids) + len(prompt) :]
            )
            assert call_outcome(reference(chat), completion) == "exact"
            due = not str(row.fields["kind"]).startswith("no call")
            assert bool(calls_in(completion)) == due


def test_packages_and_wordings_of_the_tool_calls_are_in_one_half_only():
    train, test = (rows(EXAMPLES / name) for name in ("tools.jsonl", "tools.test.jsonl"))
    assert not {row["package"] for row in train} & {row["package"] for row in test} - {""}
    greetings = {"no call: no function"}
    said = [{row["messages"][0]["content"] for row in half if row["kind"] not in greetings} for half in (train, test)]
    assert not said[0] & said[1]


def test_most_people_agree_which_sentence_of_a_pair_is_better_news_and_length_does_not_tell():
    read = rows(EXAMPLES / "pairs.jsonl")
    assert min(float(row["p_chosen"]) for row in read) == 0.85
    assert sum(len(row["chosen"]) > len(row["rejected"]) for row in read) == 632


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_a_file_and_columns_that_are_there(path: Path):
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    for one in recipe["objective"].get("tasks", {"": recipe}).values():
        columns, objective = set(rows(path.parent / one["data"]["train"])[0]), one["objective"]
        keys = ("text", "label", "prompt", "answer", "chosen", "rejected", "query", "passage", "evidence")
        assert {one["data"]["group"], *(objective[key] for key in keys if key in objective)} <= columns


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_without_a_note(path: Path):
    recipe, notes = load_recipe(path)
    assert notes == []
    assert all(Path(one.data.train).exists() for one in recipe.parts.values() or [recipe])


@pytest.mark.parametrize("name", ["search", "rerank"])
def test_queries_of_the_factbook_are_encoded_with_the_passages_that_answer_them(name: str):
    for row in (*rows(EXAMPLES / "search.jsonl"), *rows(EXAMPLES / "search.test.jsonl")):
        assert plain(row["evidence"]) in plain(row["passage"])
    changes = [f"model={folder('bert')}", *([f"objective.encoder={folder('bert')}"] if name == "rerank" else [])]
    recipe, _ = load_recipe(EXAMPLES / f"{name}.yaml", changes=changes)
    shown = preview(recipe, offline=True)
    first = "query and passage" if name == "rerank" else "query"
    assert {row.pieces[0].side for row in shown.rows} == {first}
    assert "search.jsonl" in shown.rows[0].where


@pytest.mark.real
def test_the_judge_of_meaning_in_the_example_asks_no_word_to_be_the_same():
    fields = {"id": "2vcard", "document": "Converts address books into the vCard format.", "summary": "vCard converter"}
    row = RLPrompt("rows:1", (Message("user", "?"),), row=fields)
    meaning = scorer(f"{EXAMPLES}/synopsis_rules.py:meaning", key="judge")
    near, far, none = meaning(
        [Completion(row, text, True) for text in ("turns contacts to vcf", "a game of chess", "")]
    )
    assert near > far
    assert near > none
