"""Tool calls on real rows: the rows of `examples/tools.jsonl`, and the server's calls against Python's.

    python -m bench.tools rows FOLDER   # build examples/tools.jsonl and tools.test.jsonl from the facts in FOLDER
    python -m bench.tools same RUN      # ask a server for all test rows of RUN, and compare its calls with Python's

FOLDER is the data set `f3_debian_package_qa`: one record of Debian's package index per package. Questions come from
templates; the calls, their arguments and their results follow from the question and the record by rule. Packages and
wordings of the test rows are in no training row.
"""

from __future__ import annotations

import json
import random
import re
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SEED = 35
RECORD = re.compile(r"^(Package|Section|Version|Homepage|Synopsis): (.+)$", re.MULTILINE)
NO_VALUE = "(none)"
# Field of a record -> its name in a question.
FIELDS = {
    "section": "section",
    "version": "version",
    "homepage": "home page",
    "synopsis": "one-line description",
}
# Sections with enough packages in both halves of the data.
SECTIONS = ("admin", "devel", "games", "graphics", "java", "libs", "net", "perl", "science", "sound", "text", "utils")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _function(name: str, about: str, properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


FIELD = {"type": "string", "enum": list(FIELDS)}
FACT = _function(
    "package_fact",
    "Look up one field of a Debian package.",
    {"name": {"type": "string"}, "field": FIELD},
    ["name", "field"],
)
COMPARE = _function(
    "compare_packages",
    "Compare a field of several Debian packages.",
    {"names": {"type": "array", "items": {"type": "string"}, "minItems": 2}, "field": FIELD},
    ["names", "field"],
)
LIST = _function(
    "list_packages",
    "List the packages of an archive section.",
    {
        "section": {"type": "string", "enum": list(SECTIONS)},
        "limit": {"type": "integer", "description": "as many at most; all if omitted"},
        "filter": {
            "type": "object",
            "properties": {
                "word": {"type": "string", "description": "in the description"},
                "has_homepage": {"type": "boolean"},
            },
        },
    },
    ["section"],
)
TOOLS = (FACT, COMPARE, LIST)

# Wordings: (of training rows, of test rows).
Wordings = tuple[tuple[str, ...], tuple[str, ...]]
ASK_FACT: Mapping[str, Wordings] = {
    "section": (
        ("In which section of the archive is {a}?", "Which section does {a} belong to?", "What section is {a} in?"),
        ("Tell me the archive section of {a}.", "{a}: which section is it filed under?"),
    ),
    "version": (
        ("Which version of {a} is in Debian 13?", "What is the version of {a}?", "What version does {a} have?"),
        ("I need to know the version of {a}.", "Give me the version number of {a}, please."),
    ),
    "homepage": (
        ("What is the home page of {a}?", "Where is the web site of {a}?", "Which home page does {a} have?"),
        ("I am looking for the upstream home page of {a}.", "Give me the web address of {a}, please."),
    ),
    "synopsis": (
        ("What is {a}?", "What does the package {a} do?", "Describe {a} in one line."),
        ("What is {a} good for?", "Summarise the package {a} for me."),
    ),
}
ASK_TWO: Wordings = (
    ("What is the {f} of {a}, and what is the {g} of {b}?", "I need the {f} of {a} and the {g} of {b}."),
    ("Look up two things: the {f} of {a} and the {g} of {b}.",),
)
ASK_BOTH: Wordings = (
    ("What are the {f} and the {g} of {a}?", "I need the {f} of {a}, and its {g}."),
    ("For {a}, look up the {f} and the {g}.",),
)
ASK_COMPARE: Wordings = (
    ("Do {all} have the same {f}?", "Compare the {f} of {all}.", "What is the {f} of each of {all}? Compare them."),
    ("Is the {f} of {all} the same?", "How do {all} differ in their {f}?"),
)
ASK_LIST: Wordings = (
    ("List {n} packages of the section {s}{if_}.", "Which {n} packages of the section {s} can you name{if_}?"),
    ("Show me {n} packages filed under {s}{if_}.", "I would like to see {n} packages from {s}{if_}."),
)
ASK_ALL: Wordings = (
    ("List the packages of the section {s}{if_}.", "Which packages are in the section {s}{if_}?"),
    ("Show me everything filed under {s}{if_}.", "I would like to see the packages from {s}{if_}."),
)
WITH_HOME: Mapping[bool, Wordings] = {
    True: ((" that have a home page", " with a home page"), (" for which a home page is known",)),
    False: ((" that have no home page", " without a home page"), (" for which no home page is known",)),
}
WITH_WORD: Wordings = (
    (' whose description mentions "{w}"', ' described with the word "{w}"'),
    (' with "{w}" in the description',),
)
FOLLOW_UP: Wordings = (("And its {f}?", "And the {f}?"), ("What about its {f}?",))
OTHER_NAME: Wordings = (("And {b}?", "And for {b}?"), ("What about {b}?",))
READ_RECORD: Wordings = (
    ("{record}\n\nAccording to this record, what is the {f}?", "What is the {f} in this record?\n\n{record}"),
    ("Read this and tell me the {f}:\n\n{record}",),
)
# What no function does, and the answer.
WITHOUT: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        ("Install {a} for me.", "Please install the package {a}."),
        ("Put {a} on my computer.",),
        "I cannot install packages. I can only look up facts about them.",
    ),
    (
        ("Who maintains {a}?", "Which person maintains the package {a}?"),
        ("I want the name of the maintainer of {a}.",),
        "I cannot look up maintainers.",
    ),
    (
        ("Hello!", "Good morning.", "Hi there."),
        ("Good evening!", "Hello, can you help me?"),
        "Hello! Which package are you interested in?",
    ),
    (
        ("Thank you.", "Thanks, that is all.", "That was helpful."),
        ("Many thanks for your help.", "Great, thanks!"),
        "You are welcome.",
    ),
)
NO_LIST = "I have no function that lists packages."
NO_FACT = "I have no function that looks up a single package."


@dataclass(frozen=True, slots=True)
class Package:
    """One record of the package index."""

    name: str
    fields: Mapping[str, str]

    def value(self, field: str) -> str | None:
        """Return a field; None if the record has none."""
        value = self.fields[field]
        return None if value == NO_VALUE else value

    @property
    def record(self) -> str:
        """Return the record as text, as a person would paste it."""
        return "\n".join(f"{field.title()}: {value}" for field, value in self.fields.items())


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with the calls that answer it, or with an answer in text."""

    kind: str
    question: str
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    answer: str = ""
    tools: tuple[dict[str, Any], ...] = TOOLS
    before: tuple[Asked, ...] = ()  # an earlier exchange of the same chat
    package: str = ""  # the first package that is named


class Writer:
    """Writes questions about packages in the wordings of one half of the data.

    Args:
        packages: the packages of this half.
        test: use the wordings of the test rows.
    """

    def __init__(self, packages: Sequence[Package], *, test: bool) -> None:
        self._chance = random.Random(f"{SEED}/{test}")
        self._test = test
        self._order = self._chance.sample(list(packages), len(packages))
        self._by_name = {package.name: package for package in packages}
        self._kinds: tuple[tuple[int, Callable[[], Asked]], ...] = (
            (25, self.fact),
            (9, self.two_facts),
            (6, self.both_fields),
            (15, self.compare),
            (20, self.list),
            (7, self.follow_up),
            (8, self.record),
            (6, self.without),
            (4, self.not_offered),
        )

    def rows(self, count: int) -> Iterator[dict[str, Any]]:
        """Yield `count` rows, of each kind its share."""
        total = sum(share for share, _ in self._kinds)
        for share, write in self._kinds:
            for _ in range(round(count * share / total)):
                yield self._row(write())

    def fact(self) -> Asked:
        """Ask for one field."""
        package, field = self._package(), self._field()
        question = self._pick(ASK_FACT[field]).format(a=package.name)
        return Asked("fact", question, (_fact(package.name, field),), package=package.name)

    def two_facts(self) -> Asked:
        """Ask for fields of two packages: two calls."""
        a, b, f, g = self._package(), self._package(), self._field(), self._field()
        question = self._pick(ASK_TWO).format(a=a.name, b=b.name, f=FIELDS[f], g=FIELDS[g])
        return Asked("two calls", question, (_fact(a.name, f), _fact(b.name, g)), package=a.name)

    def both_fields(self) -> Asked:
        """Ask for two fields of one package: two calls."""
        package = self._package()
        f, g = self._chance.sample(list(FIELDS), 2)
        question = self._pick(ASK_BOTH).format(a=package.name, f=FIELDS[f], g=FIELDS[g])
        calls = (_fact(package.name, f), _fact(package.name, g))
        return Asked("two calls", question, calls, package=package.name)

    def compare(self) -> Asked:
        """Ask to compare two or three packages."""
        names = [self._package().name for _ in range(self._chance.choice((2, 2, 3)))]
        field = self._field()
        listed = " and ".join([", ".join(names[:-1]), names[-1]])
        question = self._pick(ASK_COMPARE).format(all=listed, f=FIELDS[field])
        call = ("compare_packages", {"names": names, "field": field})
        return Asked("compare", question, (call,), package=names[0])

    def list(self) -> Asked:
        """Ask for the packages of a section, perhaps with a number and conditions."""
        section = self._chance.choice(SECTIONS)
        arguments: dict[str, Any] = {"section": section}
        number = self._chance.choice((None, *range(2, 11)))
        conditions: dict[str, Any] = {}
        if_ = ""
        if self._chance.random() < 0.35:
            conditions["word"] = self._word(section)
            if_ += self._pick(WITH_WORD).format(w=conditions["word"])
        if self._chance.random() < 0.4:
            conditions["has_homepage"] = self._chance.random() < 0.6
            if_ += " and" * bool(if_) + self._pick(WITH_HOME[conditions["has_homepage"]])
        if number is not None:
            arguments["limit"] = number
        if conditions:
            arguments["filter"] = conditions
        wordings = ASK_ALL if number is None else ASK_LIST
        spelt = "" if number is None else self._chance.choice((NUMBERS[number - 2], str(number)))
        question = self._pick(wordings).format(n=spelt, s=section, if_=if_)
        return Asked("list", question, (("list_packages", arguments),))

    def follow_up(self) -> Asked:
        """Ask a second question that is understood only with the first."""
        a, b = self._package(), self._package()
        f, g = self._chance.sample(list(FIELDS), 2)
        first = Asked("fact", self._pick(ASK_FACT[f]).format(a=a.name), (_fact(a.name, f),))
        if self._chance.random() < 0.5:
            question, call = self._pick(FOLLOW_UP).format(f=FIELDS[g]), _fact(a.name, g)
        else:
            question, call = self._pick(OTHER_NAME).format(b=b.name), _fact(b.name, f)
        return Asked("follow-up", question, (call,), before=(first,), package=a.name)

    def record(self) -> Asked:
        """Ask for a field of a record that is in the question, so that no call is due."""
        package = self._package()
        field = self._chance.choice([field for field in FIELDS if package.value(field)])
        question = self._pick(READ_RECORD).format(record=package.record, f=FIELDS[field])
        return Asked("no call: in the question", question, answer=str(package.value(field)), package=package.name)

    def without(self) -> Asked:
        """Ask for something that no function does."""
        train, test, answer = self._chance.choice(WITHOUT)
        wording, name = self._pick((train, test)), self._package().name
        return Asked(
            "no call: no function", wording.format(a=name), answer=answer, package=name if "{a}" in wording else ""
        )

    def not_offered(self) -> Asked:
        """Ask for something that only a function does which is not offered."""
        if self._chance.random() < 0.5:
            question = self.list().question
            return Asked("no call: not offered", question, answer=NO_LIST, tools=(FACT, COMPARE))
        fact = self.fact()
        return replace(fact, kind="no call: not offered", calls=(), answer=NO_FACT, tools=(LIST,))

    def _row(self, asked: Asked) -> dict[str, Any]:
        """Return a chat in OpenAI's format, with the results of the calls and the final answer."""
        messages: list[dict[str, Any]] = []
        for part in (*asked.before, asked):
            messages.append({"role": "user", "content": part.question})
            if part.calls:
                messages += self._called(part.calls, first=len(messages))
            else:
                messages.append({"role": "assistant", "content": part.answer})
        return {"kind": asked.kind, "package": asked.package, "messages": messages, "tools": list(asked.tools)}

    def _called(self, calls: Sequence[tuple[str, dict[str, Any]]], *, first: int) -> list[dict[str, Any]]:
        """Return the turn that calls, the results, and the answer that repeats them."""
        listed = [
            {
                "id": f"call_{first + number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(calls)
        ]
        results = [self._result(name, arguments) for name, arguments in calls]
        turns: list[dict[str, Any]] = [{"role": "assistant", "content": None, "tool_calls": listed}]
        turns += [
            {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result, ensure_ascii=False)}
            for call, result in zip(listed, results, strict=True)
        ]
        said = [_sentence(name, arguments, result) for (name, arguments), result in zip(calls, results, strict=True)]
        return [*turns, {"role": "assistant", "content": " ".join(said)}]

    def _result(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return what the function finds in the records of this half."""
        if name == "package_fact":
            return {arguments["field"]: self._by_name[arguments["name"]].value(arguments["field"])}
        if name == "compare_packages":
            return {one: self._by_name[one].value(arguments["field"]) for one in arguments["names"]}
        conditions = arguments.get("filter", {})
        found = [
            package.name
            for package in self._by_name.values()
            if package.value("section") == arguments["section"]
            and conditions.get("word", "").lower() in package.fields["synopsis"].lower()
            and conditions.get("has_homepage") in (None, package.value("homepage") is not None)
        ]
        return sorted(found)[: min(arguments.get("limit", 10), 10)]

    def _package(self) -> Package:
        """Return the next package; each is used once before any is used again."""
        self._order.append(self._order.pop(0))
        return self._order[-1]

    def _field(self) -> str:
        return self._chance.choice(list(FIELDS))

    def _pick(self, wordings: Wordings) -> str:
        return self._chance.choice(wordings[self._test])

    def _word(self, section: str) -> str:
        """Return a word of a description in this section."""
        texts = [p.fields["synopsis"] for p in self._by_name.values() if p.value("section") == section]
        words = sorted({word for text in texts for word in re.findall(r"\b[a-z]{5,10}\b", text)})
        return self._chance.choice(words)


def _fact(name: str, field: str) -> tuple[str, dict[str, Any]]:
    return "package_fact", {"name": name, "field": field}


def _sentence(name: str, arguments: Mapping[str, Any], result: Any) -> str:
    """Return the result of a call as a sentence."""
    if name == "package_fact":
        value = result[arguments["field"]]
        noun = FIELDS[arguments["field"]]
        return f"The {noun} of {arguments['name']} is {value}." if value else f"{arguments['name']} has no {noun}."
    if name == "compare_packages":
        values = [str(value) for value in result.values()]
        if len(set(values)) == 1:
            return f"The {FIELDS[arguments['field']]} is the same: {values[0]}."
        return "; ".join(f"{package}: {value}" for package, value in zip(result, values, strict=True)) + "."
    return ", ".join(result) + "." if result else "I found none."


def build(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Build the training and the test rows from the records of a folder.

    Args:
        folder: the data set `f3_debian_package_qa`.

    Returns:
        The rows of each half, in random order, with ids.
    """
    test_names = {
        json.loads(line)["doc_id"]
        for line in (folder / "f3_debian_package_qa.jsonl").read_text(encoding="utf-8").splitlines()
        if json.loads(line)["split"] == "valid"
    }
    halves: dict[bool, list[Package]] = {False: [], True: []}
    for line in (folder / "docs.jsonl").read_text(encoding="utf-8").splitlines():
        fields = {key.lower(): value for key, value in RECORD.findall(json.loads(line)["text"])}
        if set(fields) == {"package", *FIELDS}:
            halves[fields["package"] in test_names].append(Package(fields["package"], fields))
    built = {}
    for half, test, count in (("train", False, 280), ("test", True, 120)):
        rows = list(Writer(halves[test], test=test).rows(count))
        random.Random(f"{SEED}/{half}").shuffle(rows)
        built[half] = [{"id": f"{half}/{number}", **row} for number, row in enumerate(rows, 1)]
    return built


def write(folder: Path) -> None:
    """Write examples/tools.jsonl and tools.test.jsonl."""
    built = build(folder)
    for half, name in (("train", "tools.jsonl"), ("test", "tools.test.jsonl")):
        lines = [json.dumps(row, ensure_ascii=False) for row in built[half]]
        (EXAMPLES / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} rows, {dict(Counter(row['kind'] for row in built[half]))}")


@dataclass(frozen=True, slots=True)
class Answered:
    """What the server answered to one row: the text and the calls, as (name, arguments as a JSON value)."""

    text: str
    calls: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Answered:
        """Return a message of the API, or the joined deltas of a stream."""
        calls = [call["function"] for call in message.get("tool_calls") or []]
        return cls(message.get("content") or "", tuple((one["name"], json.loads(one["arguments"])) for one in calls))


def asked_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the turns before the last call of a row, or before its answer if nothing is called."""
    turns = row["messages"]
    called = [i for i, turn in enumerate(turns) if turn.get("tool_calls")]
    return list(turns[: called[-1] if called else -1])


def ask(url: str, name: str, row: Mapping[str, Any], *, stream: bool) -> Answered:
    """Ask the server for the answer to a row.

    Args:
        url: address of the server.
        name: name of the model.
        row: a row of the test file.
        stream: join the deltas of a stream instead of reading one body.
    """
    body = {"model": name, "messages": asked_of(row), "tools": row["tools"], "stream": stream}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=3600) as answer:
        if not stream:
            return Answered.of(json.load(answer)["choices"][0]["message"])
        events = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events if event != "[DONE]"]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == list(range(len(calls)))
    return Answered.of({"content": "".join(delta.get("content") or "" for delta in deltas), "tool_calls": calls})


def same(run: Path, *, clients: int = 16) -> dict[str, int]:
    """Ask a server over a run for all test rows, and count the rows on which it agrees with Python and the report.

    Args:
        run: a run folder of `examples/tools.yaml`.
        clients: requests at a time; each row is asked for twice, as one body and as a stream.
    """
    import tunesmith
    from bench.serve.clients import free_port, started
    from tunesmith.data.readers.row import Row
    from tunesmith.data.tokenization.tool_calls import calls_in
    from tunesmith.objectives.instruct import Instruct, asked

    rows = [json.loads(line) for line in (EXAMPLES / "tools.test.jsonl").read_text(encoding="utf-8").splitlines()]
    reported = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [_offered(calls_in(line["tuned"]), row) for line, row in zip(reported, rows, strict=True)]
    command = [sys.executable, "-m", "tunesmith", "serve", str(run), "--port", str(port := free_port()), "--offline"]
    command += ["--seconds", "3600"]  # a busy machine is no error
    with started(command, port, "/health") as url, ThreadPoolExecutor(clients) as pool:
        asks = [(row, stream) for row in rows for stream in (False, True)]
        answers = []
        for answer in pool.map(lambda one: ask(url, run.name, one[0], stream=one[1]), asks):
            answers.append(answer)
            if len(answers) % 20 == 0:
                equal = sum(a.calls == b for a, b in zip(answers[::2], told, strict=False))
                print(
                    f"{len(answers)} of {len(asks)} answers; {equal} of {len(answers) // 2} rows as reported",
                    flush=True,
                )
    whole, streamed = answers[::2], answers[1::2]
    counts = {
        "rows": len(rows),
        "streamed tool_calls equal to the body's": sum(
            a.calls == b.calls for a, b in zip(whole, streamed, strict=True)
        ),
        "streamed text equal to the body's": sum(a.text == b.text for a, b in zip(whole, streamed, strict=True)),
        "server's tool_calls equal to those of predictions.jsonl": sum(
            a.calls == b for a, b in zip(whole, told, strict=True)
        ),
    }
    for name, count in counts.items():
        print(f"{name}: {count}", flush=True)
    chats = Instruct(messages="messages", metric="tool_calls").examples(
        [Row(f"tools.test.jsonl:{i}", row) for i, row in enumerate(rows, 1)], group=""
    )
    replies = tunesmith.load(run).replies([asked(chat) for chat in chats])
    python = [_offered(reply.calls, row) for reply, row in zip(replies, rows, strict=True)]
    counts |= {
        "rows with calls in Python": sum(map(bool, python)),
        "Python's text equal to predictions.jsonl": sum(
            reply.text == line["tuned"] for reply, line in zip(replies, reported, strict=True)
        ),
        "server's tool_calls equal to Python's": sum(a.calls == b for a, b in zip(whole, python, strict=True)),
        "streamed tool_calls equal to Python's": sum(a.calls == b for a, b in zip(streamed, python, strict=True)),
    }
    for name, count in list(counts.items())[4:]:
        print(f"{name}: {count}", flush=True)
    return counts


def _offered(calls: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the calls of functions that the row offers, as the server does."""
    names = {tool["function"]["name"] for tool in row["tools"]}
    return tuple((call["name"], call["arguments"]) for call in calls if call["name"] in names)


def main() -> None:
    """Run the command of the command line."""
    match sys.argv[1:]:
        case ["rows", folder]:
            write(Path(folder))
        case ["same", run]:
            same(Path(run))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
