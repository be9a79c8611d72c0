"""Chunks know their origin, are found by words and by meaning, and only new ones are embedded."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.bases import folder
from tunesmith.config import Documents
from tunesmith.data.documents.cache import CollectStore
from tunesmith.data.examples.parsers import chats
from tunesmith.data.examples.types import Chat
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import Call
from tunesmith.errors import DataError
from tunesmith.objectives import Instruct
from tunesmith.pipelines.compare.changed_facts import OtherAnswers, change
from tunesmith.pipelines.compare.tuned_arms import PASSAGES, as_row, passages_of
from tunesmith.retrieval.chunks import Chunk, cut, page_of_text, read_pages
from tunesmith.retrieval.index import CHUNKS, RANK, Hit, Index, fused, open_index
from tunesmith.retrieval.prompts import FORMS, Nearest, cited, with_passages, with_shots
from tunesmith.retrieval.recall import Origin, origins_of, recall, right_chunks

PAGES = [
    page_of_text("arda", "Arda\n\nHeight:\n107 m\n\nPlants:\nmostly ardawort grows there"),
    page_of_text("brin", "Brin\n\nHeight:\n114 m\n\nPlants:\nmostly brinwort grows there"),
]


def hit(name: str, text: str = "some text") -> Hit:
    return Hit(Chunk(name, name.partition("#")[0], "", "", text), 1.0)


def index(place: Path, pages: list = PAGES, search: str = "fused") -> Index:
    settings = Documents(source="here", size=80, search=search, encoder=str(folder("bert")))
    return open_index(place, cut(pages, 80), settings=settings, on_event=lambda event: None, offline=True)


def test_a_chunk_begins_with_the_title_of_its_document_and_names_it():
    chunks = cut(PAGES, 80)
    assert [chunk.id for chunk in chunks] == ["arda#1", "brin#1"]
    assert chunks[0].text == "Arda\n\nHeight: 107 m\n\nPlants: mostly ardawort grows there"
    assert chunks[0].section == "Arda"


def test_documents_in_rows_need_a_name_and_a_text(tmp_path: Path):
    file = tmp_path / "pages.jsonl"
    file.write_text('{"doc_id": "a", "body": "x"}\n')
    with pytest.raises(DataError, match="expected the columns doc_id and text"):
        read_pages(str(file), store=CollectStore(tmp_path / CHUNKS))


def test_a_folder_of_documents_is_read_and_kept_for_the_next_time(tmp_path: Path):
    place = tmp_path / "manual"
    place.mkdir()
    (place / "a.txt").write_text("First page about pumps and their valves.")
    store = CollectStore(tmp_path / "index" / CHUNKS)
    (page,) = read_pages(str(place), store=store).pages
    assert page.doc_id == "manual/a.txt"
    assert store.document(f"{page.digest}.txt") == page.document
    (place / "a.txt").write_text("# Pumps\n\nFirst page.")
    (text,) = read_pages(str(place), store=store).pages
    (place / "a.txt").rename(place / "a.md")  # the same bytes, which another reader reads
    (marked,) = read_pages(str(place), store=store).pages
    assert ([one.kind for one in text.document.blocks], marked.document.blocks[0].kind) == (
        ["paragraph"] * 2,
        "heading",
    )


def test_an_empty_document_is_skipped_and_named(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n\nSome text.\n")
    (tmp_path / "docs" / "empty.md").write_text("\n")
    found = read_pages(str(tmp_path / "docs"), store=CollectStore(tmp_path))
    assert [page.doc_id for page in found.pages] == ["docs/a.md"]
    assert found.notes == ["skipped docs/empty.md: empty; give a file with text, or remove it"]


def test_ranks_are_fused_by_their_weighted_reciprocals():
    found = dict(fused([(0.5, [7, 8]), (1.0, [8, 9])]))
    assert found == {
        8: pytest.approx(0.5 / (RANK + 2) + 1 / (RANK + 1)),
        9: pytest.approx(1 / (RANK + 2)),
        7: pytest.approx(0.5 / (RANK + 1)),
    }
    assert list(found) == [8, 9, 7]


def test_words_find_the_chunk_that_has_them(tmp_path: Path):
    found = index(tmp_path).find(["Where does brinwort grow?"], shown=1, search="words")
    assert [hit.chunk.doc_id for hit in found[0]] == ["brin"]


def test_vectors_find_a_chunk_by_its_own_text(tmp_path: Path):
    made = index(tmp_path)
    found = made.find([chunk.text for chunk in made.chunks], shown=2, search="vectors")
    assert [hits[0].chunk.id for hits in found] == ["arda#1", "brin#1"]
    assert {len(hits) for hits in found} == {2}


def test_after_a_change_only_the_new_chunk_gets_a_vector_and_the_old_text_is_gone(tmp_path: Path):
    assert index(tmp_path).embedded == 2
    assert index(tmp_path).embedded == 0
    changed = [PAGES[0], page_of_text("brin", "Brin\n\nHeight:\n999 m\n\nPlants:\nmostly brinwort grows there")]
    again = index(tmp_path, changed)
    assert again.embedded == 1
    assert again.find(["114"], shown=2, search="words") == [[]]
    assert again.find(["999"], shown=2, search="words")[0][0].chunk.id == "brin#1"
    assert "114" not in (tmp_path / CHUNKS).read_text()


def test_a_right_chunk_is_of_the_named_document_and_has_the_words_whole():
    chunks = [hit("a#1", "it is 18 years").chunk, hit("a#2", "it is 180 years").chunk, hit("b#1", "18 years").chunk]
    assert right_chunks(chunks, [Origin("18", "a"), Origin("18"), Origin("18", "c")]) == [
        {"a#1"},
        {"a#1", "b#1"},
        set(),
    ]


def test_recall_counts_rows_whose_chunk_is_known():
    hits = [[hit("a"), hit("b")], [hit("a"), hit("b")], [hit("a")], [hit("a")]]
    found = recall("fused", hits, [{"a"}, {"b"}, {"z"}, set()])
    assert found.n == 3
    assert found.recall == {
        1: pytest.approx(1 / 3),
        3: pytest.approx(2 / 3),
        5: pytest.approx(2 / 3),
        10: pytest.approx(2 / 3),
    }
    assert found.mrr == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_the_best_passage_stands_next_to_the_question_and_cannot_take_its_place():
    asked = [Message("user", "How high?")]
    (turn,) = with_passages(asked, [hit("a", "best {question}"), hit("b", "second")], FORMS[0])
    assert turn.content == "second\n\nbest {question}\n\nHow high?"
    assert with_passages(asked, []) == asked


def test_what_the_system_says_stays_above_the_examples_and_a_wording_below_a_long_one():
    def row(text: str) -> Chat:
        turns = (Message("system", "Be brief."), Message("user", text), Message("assistant", "yes"))
        return Chat("rows:1", turns, "")

    question = Instruct().prompt_messages(row("Is it?"), "In one word.")
    asked = with_shots(Instruct(), question, [row("long " * 400)], "In one word.")
    assert [turn.role for turn in asked] == ["system", "user", "assistant", "user"]
    assert all(turn.content.endswith("In one word.") for turn in asked if turn.role == "user")
    assert len(asked[1].content) < 1000


def test_documents_that_share_a_name_are_refused(tmp_path: Path):
    pages = [{"doc_id": "m", "text": "page one"}, {"doc_id": "n", "text": "other"}, {"doc_id": "m", "text": "page two"}]
    file = tmp_path / "pages.jsonl"
    file.write_text("".join(json.dumps(page) + "\n" for page in pages))
    with pytest.raises(DataError, match=r"pages.jsonl:3: document 'm' also appears in pages.jsonl:1; give each row"):
        read_pages(str(file), store=CollectStore(tmp_path / "store"))


def test_an_answer_cites_the_chunk_that_holds_it_and_none_that_does_not():
    hits = [hit("a", "nothing here"), hit("b", "it is 114 m high")]
    assert cited("114 m", hits) == "b"
    assert cited("It is 114 m tall", hits) == "b"
    assert cited("no idea", hits) == ""
    assert cited("", hits) == ""


def test_a_figure_gets_other_digits_and_a_word_the_answer_of_a_like_question():
    questions = ["Capital of Arda?", "Capital of Brin?", "Height of Arda?"]
    others = OtherAnswers(questions, ["Ardaton", "Brinton", "1,907"])
    assert [others.of(row) for row in range(3)] == ["Brinton", "Ardaton", "5,442"]
    assert OtherAnswers(["Capital of Arda?"], ["Ardaton"]).of(0) == ""
    alike = OtherAnswers(["Lid?", "Lids?", "Base?"], ["blue", "dark blue", "red"])
    assert [alike.of(row) for row in range(2)] == ["red", "red"]  # who says "dark blue" says "blue" too


def test_a_fact_is_changed_in_the_words_that_say_it_and_nowhere_else():
    pages = [page_of_text("arda", "Arda\n\nHeight:\n107 m\n\nRoads:\n107 km of 1,107 km")]
    (page,), (fact,) = change(pages, ["How high?"], ["107"], [Origin("107 m", "arda")], most=5)
    assert (fact.old, fact.new) == ("107", "542")
    assert [block.text for block in page.document.blocks] == ["Height: 542 m", "Roads: 107 km of 1,107 km"]


def test_a_fact_is_changed_in_a_script_that_parts_no_words():
    pages = [page_of_text("firms", "公司\n\n手机小米很好。手表华为很好。")]
    origins = [Origin("手机小米很好", "firms"), Origin("手表华为很好", "firms")]
    (page,), facts = change(pages, ["手机?", "手表?"], ["小米", "华为"], origins, most=1)
    assert len(facts) == 0  # either would stand there twice
    pages = [page_of_text("one", "公司\n\n手机小米很好。"), page_of_text("two", "公司\n\n手表华为很好。")]
    origins = [Origin("手机小米很好", "one"), Origin("手表华为很好", "two")]
    _, (fact,) = change(pages, ["手机?", "手表?"], ["小米", "华为"], origins, most=1)
    assert {fact.old, fact.new} == {"小米", "华为"}
    pages = [page_of_text("one", "公司\n\n费用为30元，共130天，十三天。")]
    (page,), facts = change(
        pages, ["费用?", "几天?"], ["30", "三天"], [Origin("费用为30元", "one"), Origin("十三天", "one")], most=2
    )
    assert [fact.old for fact in facts] == ["30"]
    assert "费用为74元，共130天，十三天" in page.document.blocks[-1].text


def test_a_fact_whose_new_words_stand_there_already_is_left_as_it_is():
    """The next change would take them for the old ones, and change both."""
    pages = [page_of_text("people", "People\n\nAlice lives in Oslo. Bob lives in Bergen.")]
    asked, answers = ["Where does Alice live?", "Where does Bob live?"], ["Oslo", "Bergen"]
    origins = [Origin("Alice lives in Oslo", "people"), Origin("Bob lives in Bergen", "people")]
    assert change(pages, asked, answers, origins, most=5) == (pages, [])
    pages = [page_of_text("kettle", "Kettle\n\nWait 90 days for the refund.\n\nThe battery lasts 44 hours.")]
    origins = [Origin("90", "kettle"), Origin("44", "kettle")]
    (page,), facts = change(pages, ["Refund?", "Battery?"], ["90", "44"], origins, most=5)
    assert [(fact.old, fact.new) for fact in facts] == [("44", "88")]  # 90 would become 44, which stands there
    assert any(block.text == "Wait 90 days for the refund." for block in page.document.blocks)


def test_texts_of_marks_alone_are_shown_in_their_order():
    assert Nearest(["\U0001f642", "!", "?"]).to(["hello", "!"], 2) == [[0, 1], [0, 1]]


def test_documents_without_a_word_to_search_by_are_refused_with_the_cure(tmp_path: Path):
    with pytest.raises(DataError, match="no words to search by; use documents.search: vectors"):
        index(tmp_path, [page_of_text("a", "\U0001f642"), page_of_text("b", "the")])


def test_a_document_called_0_is_a_document():
    rows = [{"doc": 0, "says": 0}, {"doc": None}, {}]
    assert origins_of(rows, ["7", "8", "9"], evidence="says", document="doc") == [
        Origin("0", "0"),
        Origin("8", stated=False),
        Origin("9", stated=False),
    ]


def test_raft_shows_a_right_chunk_in_four_of_five_rows():
    hits, right = [hit(name) for name in ("a", "b", "c", "d")], [hit("r").chunk]
    shown = [[one.chunk.id for one in passages_of(hits, right, random.Random(seed))] for seed in range(500)]
    assert {len(names) for names in shown} == {PASSAGES}
    assert sum("r" in names for names in shown) / 500 == pytest.approx(0.8, abs=0.05)
    found = passages_of([hit("r"), *hits], right, random.Random(1))
    assert [one.chunk.id for one in found] == ["r", "a", "b"]


def test_a_chat_row_stays_a_chat_with_its_answer():
    from tunesmith.retrieval.prompts import raft_example

    row = Chat("rows:1", (Message("user", "How high?"), Message("assistant", "107 m")), "arda")
    made = raft_example(row, [hit("a", "107 m")], Instruct())
    assert made.messages == (Message("user", "107 m\n\nHow high?"), Message("assistant", "107 m"))
    assert made.group == "arda"


@pytest.mark.long
@pytest.mark.real
def test_on_real_questions_the_mixture_finds_more_than_words_alone(tmp_path: Path):
    examples = Path(__file__).parents[2] / "examples"
    rows = [json.loads(line) for line in (examples / "factbook.test.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["country"] in ("Cameroon", "Aruba")]
    pages = read_pages(str(examples / "factbook.documents.jsonl"), store=CollectStore(tmp_path / CHUNKS)).pages
    chunks = cut([page for page in pages if page.doc_id in {row["doc_id"] for row in rows}], 400)
    made = open_index(tmp_path, chunks, settings=Documents(source="here"), on_event=lambda event: None, offline=True)
    right = right_chunks(chunks, [Origin(row["evidence"], row["doc_id"]) for row in rows])
    assert all(right)
    found = {
        search: recall(search, made.find([row["question"] for row in rows], shown=10, search=search), right).recall[5]
        for search in ("words", "fused")
    }
    assert found["fused"] >= 0.85
    assert found["fused"] > found["words"]


def test_tools_stay_with_the_question_under_passages_and_behind_examples():
    tools = json.dumps([{"name": "look", "parameters": {}}])
    chat = [Message("user", "How high?", tools=tools)]
    assert with_passages(chat, [hit("a#1")])[0].tools == tools
    shot = Chat("r:1", (Message("user", "What?"), Message("assistant", "That.")))
    shown = with_shots(Instruct(), chat, [shot])
    assert [turn.tools for turn in shown] == [tools, "", ""]
    called = Message("assistant", "", (Call("look", "{}"),))
    row = as_row(Chat("r:2", (*chat, called)))
    assert chats([Row("r:3", row)], columns={"messages": "messages", "tools": "tools"})[0].messages == (*chat, called)


def test_passages_of_one_document_are_that_document(tmp_path: Path):
    rows = [{"id": f"a.md#{i}", "doc_id": "a.md", "text": f"Passage {i} of it."} for i in (1, 2)]
    file = tmp_path / "rag.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"doc_id": "b.md", "text": "Another."}]))
    pages = read_pages(str(file), store=CollectStore(tmp_path / "store")).pages
    assert [page.doc_id for page in pages] == ["a.md", "b.md"]
    assert any("Passage 2 of it." in chunk.text for chunk in cut(pages, 400))
