"""Rows that a model writes: what it is asked, what of its replies is kept, and a real server that answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config.resolve import resolve_recipe
from tunesmith.data.documents.document import Block, Document, Tool
from tunesmith.data.documents.grounding import checked_call, numbers, pair_problem, support, text_problem
from tunesmith.data.documents.synthetic_prompts import (
    CALLS,
    PARAPHRASES,
    QUESTIONS,
    messages,
    pairs_of,
    template,
)
from tunesmith.data.documents.synthetic_rows import (
    Answer,
    WritingOptions,
    answered,
    linked,
    named,
    requests,
    written_rows,
)
from tunesmith.data.documents.to_rows import DocumentPart, domain_rows
from tunesmith.data.splits.load import Sources, load
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.inference.openai_client import Endpoint, ask_endpoint, check
from tunesmith.objectives import Domain
from tunesmith.pipelines.collect import _seeds

PASSAGE = (
    "The Nordwind X200 pump was built in Bremen from 1998 to 2004. It moves 1,250 litres a minute and must not run "
    "without water, because its seal then melts within 3 minutes."
)
GOOD = "Between 1998 and 2004 Bremen built the Nordwind X200 pump, which moves 1,250 litres a minute; its seal melts "
GOOD += "within 3 minutes when it runs with no water, so that must never happen."


# ------------------------------------------------------------------ checks


@pytest.mark.parametrize(
    ("question", "answer", "fault"),
    [
        ("How much does the Nordwind X200 move?", "It moves 1250 litres a minute.", ""),
        ("Where was the Nordwind X200 built?", "Bremen", ""),
        ("How much does the Nordwind X200 move?", "It moves 1,520 litres a minute.", "number not in the passage"),
        ("Where was the Nordwind X200 built?", "It was built in Hamburg.", "name not in the passage"),
        ("Why is the pump popular?", "Customers love reliable excellent machines.", "words not in the passage"),
        ("What does the passage say of water?", "It must not run without water.", "speaks of the passage"),
        ("Where was the X200 built?", "In Bremen, according to the text.", "speaks of the passage"),
        ("Where was the pump built?", "", "empty"),
    ],
)
def test_a_pair_is_held_against_its_passage(question: str, answer: str, fault: str):
    assert pair_problem(question, answer, PASSAGE) == fault


def test_an_answer_that_denies_needs_a_passage_that_does():
    calm = "The pump runs at night and moves water."
    assert pair_problem("Does the pump run at night?", "The pump does not run at night.", calm) != ""
    assert pair_problem("Does the pump run at night?", "The pump runs at night.", calm) == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, ""),
        (PASSAGE, "copy of the passage"),
        (GOOD.replace("1,250", "1,500"), "number lost"),
        (GOOD + " It weighs 80 kilograms.", "number not in the passage"),
        (GOOD.replace("Bremen", "Hamburg"), "name not in the passage"),
        (GOOD.replace("with no water, so that must never happen", "dry"), "negation added or lost"),
        ("Pumps exist.", "too short or too long"),
        ("", "empty"),
    ],
)
def test_a_paraphrase_keeps_numbers_names_and_nots(text: str, fault: str):
    assert text_problem(text, PASSAGE) == fault


def test_numbers_are_equal_in_any_writing_and_words_in_any_ending():
    assert numbers("1,250 and 1.250 and 3.5 and 10:30") == {"1250", "3.5", "10:30"}
    assert support("builders building", "It was build by a builder.") == 1.0
    assert support("北京大学", "他在北京大学学习") == 1.0
    assert support("上海", "他在北京大学学习") == 0.0


TOOL = Tool("book", "Books a room.", {"type": "object", "required": ["room"], "properties": {
    "room": {"type": "string"}, "nights": {"type": "integer", "default": 1}}})  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ('{"name": "book", "arguments": {"room": "Blue"}}', ""),
        ('```json\n{"name": "book", "arguments": {"room": "blue", "nights": 1}}\n```', ""),
        ('{"name": "cancel", "arguments": {}}', "no call of this name"),
        ('{"name": "book", "arguments": {"nights": 2}}', "call is wrong: room is missing"),
        ('{"name": "book", "arguments": {"room": "Red"}}', "value not in the request"),
        ("book(Blue)", "no call of this name"),
    ],
)
def test_a_written_call_must_fit_its_schema_and_its_request(answer: str, fault: str):
    call, why = checked_call("Please book the Blue room for me.", answer, TOOL)
    assert why == fault
    assert bool(call) == (not fault)


# ------------------------------------------------------------------ asking


def test_a_reply_is_taken_apart_in_the_ways_that_models_write():
    reply = "<think>hm\nQ: no?\nA: no</think>Here are 2 questions:\n"
    reply += "Q: One?\nA: First.\n\n**Q2:** Two?\n**A2:** Second\nline"
    assert pairs_of(reply) == [
        ("One?", "First."), ("Two?", "Second\nline"),
    ]  # fmt: skip
    assert pairs_of("1. Q: One?\n   A: First.\nQ: without answer") == [("One?", "First.")]
    assert pairs_of("I cannot help with that.") == []


def test_a_passage_with_braces_changes_nothing_else_in_the_prompt():
    passage = "use {count} and {title}"
    text = messages(QUESTIONS, passage=passage, title="T", count=3, style="s", examples="")[1].content
    assert text.endswith("Passage from T:\n\nuse {count} and {title}")
    assert text.startswith("Write 3 questions")


def test_a_template_of_ones_own_is_read_or_refused(tmp_path: Path):
    own = tmp_path / "mine.yaml"
    own.write_text("form: pairs\nprompt: 'Ask about {passage}'\n")
    assert (template(str(own)).name, template(str(own)).form) == ("mine", "pairs")
    own.write_text("form: poem\nprompt: '{passage}'\n")
    with pytest.raises(DataError, match="is missing; add it"):
        template(str(own))
    with pytest.raises(DataError, match="unknown template; use questions, paraphrases, calls"):
        template("question")


def part(*texts: str, tools: tuple[Tool, ...] = ()) -> DocumentPart:
    blocks = [
        block for n, text in enumerate(texts) for block in (Block("heading", f"Part {n}", 1), Block("paragraph", text))
    ]
    return DocumentPart("a.md", "00", Document(tuple(blocks), "Pumps", tools=tools), blocks)


def wanted(*templates: Any, **changes: Any) -> WritingOptions:
    given = {"count": 2, "seeds": (), "size": 1000, "limit": 0, "seed": 0} | changes
    return WritingOptions(templates, **given)


def test_each_template_asks_about_what_it_is_for():
    source = part(PASSAGE, PASSAGE + " It is blue.", tools=(TOOL,))
    found = requests([source], wanted(QUESTIONS, PARAPHRASES, CALLS))
    assert [request.template.name for request in found] == ["questions"] * 2 + ["paraphrases"] * 4 + ["calls"]
    assert len({request.messages for request in found}) == 7
    assert "| room | string | yes |" in found[-1].messages[1].content


def test_passages_are_drawn_by_the_seed_and_seed_rows_are_shown():
    source = part(*(f"{PASSAGE} Number {n} of these." for n in range(20)))
    first = requests([source], wanted(QUESTIONS, limit=5, seeds=(("Why so?", "Because."),)))
    assert len(first) == 5
    assert "For example:\nQ: Why so?\nA: Because." in first[0].messages[1].content
    assert first == requests([source], wanted(QUESTIONS, limit=5, seeds=(("Why so?", "Because."),)))
    assert [r.passage for r in first] != [r.passage for r in requests([source], wanted(QUESTIONS, limit=5, seed=1))]


def test_answers_that_are_there_are_not_asked_for_again(tmp_path: Path):
    kept, asked = tmp_path / "x" / "replies.jsonl", []

    def ask(questions: Sequence[Sequence[Message]]) -> Iterator[tuple[int, Answer]]:
        for place in reversed(range(len(questions))):
            asked.append(questions[place])
            if len(asked) == 3:
                raise KeyboardInterrupt
            yield place, Answer(questions[place][1].content[-9:])

    todo = requests([part(*(f"{PASSAGE} Number {n}." for n in range(4)))], wanted(QUESTIONS))
    with pytest.raises(KeyboardInterrupt):
        answered(todo, ask, kept, "writer")
    with kept.open("a") as file:
        file.write('{"key": "cut off')
    found = answered(todo, ask, kept, "writer")
    assert [answer.text for answer in found] == [f"Number {n}." for n in range(4)]
    assert len(asked) == 5
    answered(todo, ask, kept, "writer")
    assert len(asked) == 5


def test_where_answers_cannot_be_kept_nobody_is_asked(tmp_path: Path):
    (tmp_path / "collected").write_text("a file, no folder")

    def ask(questions: Sequence[Sequence[Message]]) -> Iterator[tuple[int, Answer]]:
        raise AssertionError("asked, and perhaps paid for")

    todo = requests([part(PASSAGE)], wanted(QUESTIONS))
    with pytest.raises(DataError, match=r"replies\.jsonl: cannot be written \(.+\); move what is"):
        answered(todo, ask, tmp_path / "collected" / "replies.jsonl", "writer")
    with pytest.raises(DataError, match="cannot be read"):
        answered(todo, ask, tmp_path, "writer")


def test_written_rows_are_marked_and_bad_ones_counted_by_reason():
    todo = requests([part(PASSAGE, PASSAGE + " It is blue.")], wanted(QUESTIONS))
    good = "Q: Where was the Nordwind X200 built?\nA: In Bremen.\n"
    replies = [
        Answer(good + "Q: How heavy is the pump?\nA: 80 kilograms.\nQ: What colour has the pump?\nA: It is"),
        Answer(good.replace("was the", "was that") + "Q: What is its colour?\nA: blue\nQ: cut", finished=False),
    ]
    rows, left_out = written_rows(todo, replies)
    assert [(row["question"], row["answer"], row["origin"]) for row in rows] == [
        ("Where was the Nordwind X200 built?", "In Bremen.", "synthetic")
    ]
    assert rows[0]["doc_id"] == "a.md"
    assert left_out == {"number not in the passage": 1, "words not in the passage": 1, "copy of another row": 1}


def test_a_question_that_two_passages_answer_differently_is_dropped_for_both():
    todo = requests([part("The pump is blue and small.", "The fan is green and small.")], wanted(QUESTIONS))
    rows, left_out = written_rows(
        todo, [Answer("Q: What colour is it?\nA: blue"), Answer("Q: What colour is it?\nA: green")]
    )
    assert (rows, left_out) == ([], {"asked twice with other answers": 2})


def test_paraphrases_become_texts():
    todo = requests([part(PASSAGE)], wanted(PARAPHRASES))
    rows, left_out = written_rows(todo, [Answer(f"Sure, here is the text:\n{GOOD}"), Answer(GOOD, finished=False)])
    assert [row["text"] for row in rows] == [GOOD]
    assert left_out == {"cut at the longest answer": 1}


# ------------------------------------------------------------------ kin


def test_what_is_written_from_few_documents_stays_with_its_passage_on_one_side_of_the_split(tmp_path: Path):
    def page(name: str) -> DocumentPart:
        said = [" ".join(f"{name}{n}word{i} is here" for i in range(30)) + "." for n in range(5)]
        return replace(part(*said), doc_id=f"{name}.md")

    documents = [page(name) for name in "abc"]
    rows = named([row for one in documents for row in domain_rows(one, 600)])
    todo = linked(requests(documents, wanted(PARAPHRASES, size=600)), rows)
    holding = {str(row["source_id"]): str(row["text"]) for row in rows}
    assert len(holding) == 15
    assert all(request.passage.rpartition("\n\n")[2] in holding[request.source] for request in todo)
    again = [{"text": r.passage.upper() + f" {i}", "doc_id": r.part.doc_id} for i, r in enumerate(todo)]
    whole = [*rows, *(row | {"source_id": r.source} for row, r in zip(again, todo, strict=True))]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in whole))
    data = resolve_recipe(file).recipe.data
    assert data.group == "source_id"
    cut = load(Sources(str(file), group=data.group), lambda rows: Domain().examples(rows, group=data.group), seed=0)
    train, held = ({example.group for example in side} for side in (cut.split.train, cut.split.test))
    assert len(held) == 3
    assert not train & held


def test_a_passage_that_is_in_no_row_is_a_source_of_its_own():
    first, second = linked(requests([part(PASSAGE, f"{PASSAGE} It is blue.")], wanted(QUESTIONS)), [])
    assert first.source != second.source
    rows, _ = written_rows([first], [Answer("Q: Where was the Nordwind X200 built?\nA: In Bremen.")])
    assert rows[0]["source_id"] == first.source


# ------------------------------------------------------------------ a server


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server with a plan of (status, body) for its next answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[tuple[int, str]] = []
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models = ["tiny"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        if self.server.plan:
            self._send(*self.server.plan.pop(0))
            return
        said = {"message": {"content": "echo " + body["messages"][-1]["content"]}, "finish_reason": "stop"}
        self._send(200, json.dumps({"choices": [said]}))

    def _send(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "7")
        self.send_header("Location", "http://127.0.0.1:1/v1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def ask(endpoint: Endpoint, *texts: str) -> list[str]:
    questions = [[Message("system", "s"), Message("user", text)] for text in texts]
    return [answer.text for _, answer in sorted(ask_endpoint(endpoint, questions), key=lambda found: found[0])]


def test_a_server_is_asked_in_the_common_format_and_answers_keep_their_place(server: Server):
    assert ask(Endpoint(server.url, key="sk-1", temperature=0.5, max_tokens=9, seed=4), *"abcdefgh") == [
        f"echo {c}" for c in "abcdefgh"
    ]
    first = next(body for body in server.seen if body["messages"][1]["content"] == "a")
    assert first == {
        "model": "tiny", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        "temperature": 0.5, "max_tokens": 9, "seed": 4, "stream": False,
    }  # fmt: skip
    assert set(server.keys) == {"Bearer sk-1"}


def test_a_busy_server_is_asked_again_after_the_time_it_names(server: Server):
    pauses: list[float] = []
    server.plan = [(429, "slow down"), (503, "")]
    assert ask(Endpoint(server.url, "m", pause=pauses.append), "a") == ["echo a"]
    assert pauses == [7.0, 7.0]


def test_an_overloaded_gateway_is_asked_again_whatever_its_status(server: Server):
    pauses: list[float] = []
    parts = json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "Oslo"}]}}]})
    server.plan = [(529, "overloaded"), (200, '{"error": {"code": 429}}'), (200, parts)]
    assert ask(Endpoint(server.url, "m", pause=pauses.append), "a") == ["Oslo"]
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "bad key", "refused with 401 (bad key); set the key in TUNESMITH_API_KEY"),
        (404, "", "refused with 404; check that the address ends in /v1"),
        (302, "", "refused with 302"),
        (200, "<html>", "not a JSON object"),
        (200, "{}", "response without choices"),
        (200, '{"error": {"code": 400}}', "response without choices"),
        (200, '{"choices": [{"message": {"content": 7}}]}', "expected text as content, got int"),
    ],
)
def test_a_server_that_answers_something_else_is_one_line(server: Server, status: int, body: str, said: str):
    server.plan = [(status, body)]
    with pytest.raises(DataError) as error:
        ask(Endpoint(server.url, "m", key="sk-secret"), "a")
    assert said in str(error.value)
    assert str(error.value).startswith(server.url)
    assert "sk-secret" not in str(error.value) + repr(Endpoint(server.url, key="sk-secret"))
    assert len(server.seen) == 1


def test_a_server_with_several_models_needs_a_name(server: Server):
    server.models = ["a", "b"]
    with pytest.raises(DataError, match="expected one model, found a, b; name one with --writer-name"):
        ask(Endpoint(server.url), "x")


def test_nobody_at_the_address_is_said_at_once(server: Server):
    pauses: list[float] = []
    with pytest.raises(DataError, match="cannot be reached"):
        ask(Endpoint("http://127.0.0.1:9/v1", "m", pause=pauses.append), "x")
    assert pauses == []


@pytest.mark.parametrize(
    ("url", "key", "offline", "said"),
    [
        ("ftp://x/v1", "", False, "invalid server address"),
        ("http://localhost:abc/v1", "", False, "invalid server address"),
        ("http://[::1/v1", "", False, "invalid server address"),
        ("http://me:pw@x.test/v1", "", False, "the address contains a password"),
        ("http://x.test/v1", "sk-1", False, "the key would be sent unencrypted over http"),
        ("https://x.test/v1", "sk-1", True, "--offline forbids network access"),
        ("https://x.test/v1", "sk-1", False, ""),
        ("http://localhost:8000/v1", "sk-1", True, ""),
        ("http://[::1]:8000/v1", "", True, ""),
    ],
)
def test_addresses_are_judged_before_anything_is_sent(url: str, key: str, offline: bool, said: str):
    if not said:
        check(Endpoint(url, key=key), offline=offline)
        return
    with pytest.raises(DataError, match=said) as error:
        check(Endpoint(url, key=key), offline=offline)
    assert "pw" not in str(error.value).replace("password", "")


@pytest.mark.parametrize(
    ("answer", "passage"),
    [
        ("สองชั่วโมง", "แบตเตอรี่ใช้เวลาชาร์จสองชั่วโมงก่อนใช้งาน"),
        ("ឧបករណ៍នៅកន្លែងស្ងួត", "រក្សាទុកឧបករណ៍នៅកន្លែងស្ងួតជានិច្ច"),
        ("重置密码", "用户可以在设置里重置密码。"),
    ],
)
def test_an_answer_that_stands_in_the_passage_is_supported_in_scripts_without_spaces(answer: str, passage: str):
    assert support(answer, passage) == 1.0


def test_a_row_that_shows_what_is_wanted_is_its_last_question_and_answer(tmp_path: Path):
    turns = [
        ("system", "You help."),
        ("user", "hi"),
        ("assistant", "Hello."),
        ("user", "Reset?"),
        ("assistant", "Hold 0."),
    ]
    row = {"messages": [{"role": role, "content": said} for role, said in turns]}
    file = tmp_path / "seeds.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert _seeds(str(file)) == (("Reset?", "Hold 0."),)
