"""`python -m bench.audit planted [WORD] | read | untouched`: the tables of bench/AUDIT.md, to be put there.

Faults are planted by bench/plant.py with the seeds below into rows of ../shared/data. A row counts as found if it is
listed under its kind; a listed row counts as right if it was planted or is the row a planted one was made from.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import plant
from bench.plant import Chance, Row
from tunesmith.data.audit.findings import Audit
from tunesmith.data.audit.options import AuditSource, Read, Tools
from tunesmith.data.audit.run import audit
from tunesmith.pipelines.audit import model_tools

ALONE = Tools()
PLANTED, SEEDS = 500, (0, 1, 2)
TEXT, PAIR = {"text": "text", "label": "label"}, {"prompt": "en", "answer": "target"}
UNTOUCHED = {
    "a1_vader_amazon": TEXT,
    "a2_vader_movie": TEXT,
    "b2_support_mail_routing": TEXT,
    "b7_debian_section": TEXT,
    "c1_ddtp_en_de": PAIR,
    "c1_ddtp_en_fr": PAIR,
    "c2_django_en_fr": PAIR,
    "d1_debian_synopsis": {"prompt": "document", "answer": "summary"},
    "e1_cpt_postgresql": {"text": "text"},
    "f5_foldoc_terms": {"prompt": "term", "answer": "definition"},
    "g1_pandalm_human": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "g4_debian_revisions": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
}


@dataclass(frozen=True)
class Planted:
    """A file with faults: `must` are the lines that were planted, `may` those they were made from."""

    kind: str
    rows: list[Row]
    must: set[int]
    may: set[int]
    columns: dict[str, str]
    test: list[Row] | None = None


def shuffled(rows: list[Row], planted: list[tuple[Row, int]], chance: Chance) -> tuple[list[Row], set[int], set[int]]:
    """All rows in any order, the lines of the planted ones, and of those that they were made from (-1: none)."""
    whole = [(row, -1, i) for i, row in enumerate(rows)] + [(row, source, -1) for row, source in planted]
    chance.shuffle(whole)
    sources = {source for _, source in planted}
    must = {line for line, (_, _, own) in enumerate(whole, 1) if own < 0}
    may = {line for line, (_, _, own) in enumerate(whole, 1) if own in sources and own >= 0}
    return [row for row, _, _ in whole], must, may


def near_duplicates(name: str, chance: Chance) -> Planted:
    """Copies of rows with about one edit in ten words."""
    rows = plant.rows_of(name)
    words = [word for row in rows for word in str(row["text"]).split()]
    long = [i for i, row in enumerate(rows) if len(str(row["text"]).split()) >= 6]
    made = [
        ({**rows[i], "text": plant.edited(str(rows[i]["text"]), words, chance)}, i)
        for i in chance.sample(long, PLANTED)
    ]
    return Planted("near_duplicate", *shuffled(rows, made, chance), columns=TEXT)


def leaks(name: str, chance: Chance) -> Planted:
    """Test rows in the training file: as they are, edited, or with a sentence of another row around them."""
    rows = plant.rows_of(name)
    chance.shuffle(rows)
    test, train = rows[:1000], rows[1000:]
    words = [word for row in train for word in str(row["text"]).split()]
    made: list[tuple[Row, int]] = []
    for turn, i in enumerate(chance.sample(range(len(test)), PLANTED)):
        text = str(test[i]["text"])
        if turn % 3 == 1:
            text = plant.edited(text, words, chance)
        elif turn % 3 == 2 and len(text.split()) >= 16:
            text = f"{' '.join(str(chance.choice(train)['text']).split()[:8])} {text}"
        made.append(({**test[i], "text": text}, -1))
    return Planted("leak", *shuffled(train, made, chance), columns=TEXT, test=test)


def flipped(name: str, chance: Chance) -> Planted:
    """A tenth of the labels changed to another one."""
    rows = plant.rows_of(name)
    if name.startswith("a"):
        rows = [row for row in rows if row["label"] != "neutral"]
    labels = sorted({str(row["label"]) for row in rows})
    lines = set(chance.sample(range(1, len(rows) + 1), len(rows) // 10))
    for line in lines:
        other = chance.choice([label for label in labels if label != rows[line - 1]["label"]])
        rows[line - 1] = {**rows[line - 1], "label": other}
    return Planted("label_noise", rows, lines, set(), TEXT)


def inserted(kind: str, say: Callable[[Chance], str]) -> Callable[[str, Chance], Planted]:
    """A sentence put into rows, and harmless look-alikes into as many others."""

    def make(name: str, chance: Chance) -> Planted:
        rows = plant.rows_of(name)
        places = chance.sample(range(len(rows)), 2 * PLANTED)
        for turn, i in enumerate(places):
            words = str(rows[i]["text"]).split(" ")
            at = chance.randrange(len(words) + 1)
            sentence = say(chance) if turn < PLANTED else plant.harmless(chance)
            rows[i] = {**rows[i], "text": " ".join([*words[:at], sentence, *words[at:]])}
        return Planted(kind, rows, {i + 1 for i in places[:PLANTED]}, set(), TEXT)

    return make


def encoding(name: str, chance: Chance) -> Planted:
    """Translations whose letters beyond ASCII were read in the wrong encoding."""
    rows = plant.rows_of(name)
    foreign = [i for i, row in enumerate(rows) if not str(row["target"]).isascii()]
    places = chance.sample(foreign, PLANTED)
    for i in places:
        rows[i] = {**rows[i], "target": plant.broken(str(rows[i]["target"]), chance)}
    return Planted("encoding_damage", rows, {i + 1 for i in places}, set(), PAIR)


def contradictions(name: str, chance: Chance) -> Planted:
    """Copies of rows with another label, half of them in other case or spacing."""
    rows = plant.rows_of(name)
    labels = sorted({str(row["label"]) for row in rows})
    made: list[tuple[Row, int]] = []
    for i in chance.sample(range(len(rows)), PLANTED):
        text = str(rows[i]["text"])
        text = text if chance.random() < 0.5 else f" {text.upper()}"
        other = chance.choice([label for label in labels if label != rows[i]["label"]])
        made.append(({**rows[i], "text": text, "label": other}, i))
    return Planted("contradiction", *shuffled(rows, made, chance), columns=TEXT)


FAULTS: tuple[tuple[str, str, Callable[[str, Chance], Planted]], ...] = (
    ("near-duplicates with edits", "a1_vader_amazon", near_duplicates),
    ("near-duplicates with edits", "b7_debian_section", near_duplicates),
    ("leaked rows", "a2_vader_movie", leaks),
    ("leaked rows", "b7_debian_section", leaks),
    ("mails, phones, cards, accounts, IPs", "a2_vader_movie", inserted("personal_data", plant.personal)),
    ("mails, phones, cards, accounts, IPs", "b7_debian_section", inserted("personal_data", plant.personal)),
    ("keys and passwords", "a2_vader_movie", inserted("secret", plant.secret)),
    ("keys and passwords", "b7_debian_section", inserted("secret", plant.secret)),
    ("encoding damage", "c1_ddtp_en_fr", encoding),
    ("encoding damage", "c1_ddtp_en_de", encoding),
    ("contradictions", "a2_vader_movie", contradictions),
    ("contradictions", "b7_debian_section", contradictions),
    ("labels flipped at 10 %", "b2_support_mail_routing", flipped),
    ("labels flipped at 10 %", "b7_debian_section", flipped),
    ("labels flipped at 10 %", "a1_vader_amazon", flipped),
)
# What of the same is found where the audit is given a model.
READ_BY = "smollm2-135m"
READ = (("labels flipped at 10 %", "a1_vader_amazon", flipped),)


def audited(rows: list[Row], columns: dict[str, str], test: list[Row] | None = None, *, tools: Tools = ALONE) -> Audit:
    """The audit of rows that lie nowhere yet."""
    with tempfile.TemporaryDirectory() as folder:
        source = plant.write(Path(folder) / "train.jsonl", rows)
        against = () if test is None else (str(plant.write(Path(folder) / "test.jsonl", test)),)
        return audit(AuditSource(str(source), columns, against), tools)[0]


def listed(found: Audit, kind: str) -> set[int]:
    """The lines listed under a kind."""
    return {int(row.rpartition(":")[2]) for f in found.findings if f.kind == kind for row in f.rows}


def score(name: str, make: Callable[[str, Chance], Planted], tools: Tools = ALONE) -> tuple[float, float, int]:
    """Recall, precision and the mean number of planted rows over the seeds."""
    hits = wanted = right = told = 0
    for seed in SEEDS:
        planted = make(name, random.Random(seed))
        lines = listed(audited(planted.rows, planted.columns, planted.test, tools=tools), planted.kind)
        hits, wanted = hits + len(lines & planted.must), wanted + len(planted.must)
        right, told = right + len(lines & (planted.must | planted.may)), told + len(lines)
    return hits / wanted, right / max(1, told), wanted // len(SEEDS)


def planted_table(wanted: str = "") -> Iterator[str]:
    """Lines of the table of planted faults."""
    yield "| fault | set | rows planted | recall | precision |"
    yield "|---|---|---|---|---|"
    for what, name, make in FAULTS:
        if wanted in what:
            recall, precision, count = score(name, make)
            yield f"| {what} | {name} | {count} | {recall:.3f} | {precision:.3f} |"


def read_table() -> Iterator[str]:
    """Lines of the table of planted faults that are found with a model's help."""
    yield f"| fault, read by {READ_BY} too | set | rows planted | recall | precision |"
    yield "|---|---|---|---|---|"
    tools = Tools(read=cache_of(model_tools(READ_BY, limit=0, offline=True)["read"]))
    for what, name, make in READ:
        recall, precision, count = score(name, make, tools)
        yield f"| {what} | {name} | {count} | {recall:.3f} | {precision:.3f} |"


def cache_of(read: Read) -> Read:
    """The same, each list of texts read once: the seeds flip labels and leave the texts as they are."""
    known: dict[tuple[str, ...], NDArray[np.float32]] = {}

    def once(texts: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
        key = (*texts, *labels)
        if key not in known:
            known[key] = read(texts, labels)
        return known[key]

    return once


def untouched_table() -> Iterator[str]:
    """Lines of the table of untouched rows."""
    yield "| set | rows | seconds | rows under blocking kinds | share | other findings |"
    yield "|---|---|---|---|---|---|"
    for name, columns in UNTOUCHED.items():
        began = time.perf_counter()
        found = audited(plant.rows_of(name), columns)
        blocked = {row for finding in found.blocking for row in finding.rows}
        other = ", ".join(f"{f.kind} {f.count}" for f in found.findings if f.severity != "blocking")
        kinds = ", ".join(f"{f.kind} {f.count}" for f in found.blocking) or "none"
        share, seconds = 100 * len(blocked) / found.rows, time.perf_counter() - began
        yield f"| {name} | {found.rows} | {seconds:.1f} | {kinds} | {share:.2f} % | {other} |"


TABLES = {"planted": planted_table, "read": read_table, "untouched": untouched_table}

if __name__ == "__main__":
    for row in TABLES[sys.argv[1]](*sys.argv[2:]):
        print(row, flush=True)
