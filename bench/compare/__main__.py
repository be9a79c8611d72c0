"""`python -m bench.compare rows | retrieval [all | factbook] | store`: the rows, recall among documents, two stores.

The rows come from ../shared/data and go to bench/.compare, where the recipes of this folder are copied to as well. Then
`tunesmith compare bench/.compare/CASE.yaml` runs a case: factbook, mail, synopsis, enough or search.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.compare import store
from tunesmith.cli.progress import Lines
from tunesmith.config import Documents
from tunesmith.data.documents.cache import CollectStore
from tunesmith.retrieval.chunks import cut, read_pages
from tunesmith.retrieval.index import CHUNKS, Index, open_index
from tunesmith.retrieval.recall import Origin, Recall, recall, right_chunks

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "f2_factbook_qa"
PLACE = ROOT / "bench" / ".compare"
# Countries to learn from, beside all that the test asks about: their documents fit into a quarter of an hour.
COUNTRIES = 48
FEW = 12  # countries to learn from, and as many to be asked about, of the case search
CHAPTERS = ("Geography", "People and Society")  # that its questions are about
# Characters of a mail: whole ones with examples above them take a decoder on this machine an hour and a half.
MAIL = 600
WORDINGS = ("question", "question_alt")


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def write(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    PLACE.mkdir(exist_ok=True)
    (PLACE / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def asked(row: Mapping[str, Any], wording: str) -> dict[str, Any]:
    kept = {name: row[name] for name in ("id", "country", "evidence", "doc_id")}
    return {**kept, "question": row[wording], "answer": row["answers"][0]}


def with_field(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question with the field that answers it above it, under its name: what a plain prompt can copy."""
    made = asked(row, "question_alt" if row["split"] == "valid" else "question")
    field = made["id"].split("/")[1].replace("_", " ")
    return {**made, "question": f"{made['country']}, {field}: {made['evidence']}\n\n{made['question']}"}


def rows() -> None:
    """The rows of factbook, search and enough; mail and synopsis have theirs in examples/."""
    facts = read("f2_factbook_qa.jsonl")
    learn = sorted({row["country"] for row in facts if row["split"] == "train"})
    chosen = set(random.Random(0).sample(learn, COUNTRIES))
    train = [row for row in facts if row["country"] in chosen]
    test = [row for row in facts if row["split"] == "valid"]
    write("factbook.jsonl", (asked(row, "question") for row in train))
    write("factbook.test.jsonl", (asked(row, "question_alt") for row in test))
    few = {name for part in (train, test) for name in sorted({row["country"] for row in part})[:FEW]}
    search = [
        [row for row in part if row["country"] in few and row["doc_id"].endswith(CHAPTERS)] for part in (train, test)
    ]
    write("search.jsonl", (asked(row, "question") for row in search[0]))
    write("search.test.jsonl", (asked(row, "question_alt") for row in search[1]))
    about = {row["doc_id"] for part in search for row in part}
    named = {row["doc_id"] for row in (*train, *test)}
    pages = [{"doc_id": page["doc_id"], "text": page["text"]} for page in read("docs.jsonl")]
    write("factbook.documents.jsonl", (page for page in pages if page["doc_id"] in named))
    write("all.documents.jsonl", pages)
    write("search.documents.jsonl", (page for page in pages if page["doc_id"] in about))
    write("enough.jsonl", (with_field(row) for row in train))
    write("enough.test.jsonl", (with_field(row) for row in test))
    for recipe in Path(__file__).parent.glob("*.yaml"):
        shutil.copy(recipe, PLACE)
    shutil.copy(ROOT / "examples" / "synopsis.jsonl", PLACE)
    mails = map(json.loads, (ROOT / "examples" / "mail.jsonl").read_text(encoding="utf-8").splitlines())
    write("mail.jsonl", ({**mail, "text": mail["text"][:MAIL]} for mail in mails))
    print(f"{len(train)} and {len(test)} questions, {len(named)} of {len(pages)} documents in {PLACE}")


def retrieval() -> None:
    """Recall on the test questions in both wordings, each search apart, among all documents or those of the case."""
    which = sys.argv[2] if len(sys.argv) > 2 else "all"
    began = time.perf_counter()
    settings = Documents(source=str(PLACE / f"{which}.documents.jsonl"), origin="doc_id", evidence="evidence")
    folder = PLACE / f"index-{which}"
    chunks = cut(read_pages(settings.source, store=CollectStore(folder / CHUNKS)).pages, settings.size)
    index = open_index(folder, chunks, settings=settings, on_event=Lines())
    print(f"{len(chunks)} chunks, {index.embedded} new ones, {time.perf_counter() - began:.0f} s")
    test = [row for row in read("f2_factbook_qa.jsonl") if row["split"] == "valid"]
    right = right_chunks(chunks, [Origin(row["evidence"], row["doc_id"]) for row in test])
    for wording in WORDINGS:
        for search in ("words", "vectors", "fused"):
            print(wording, line(looked(index, [row[wording] for row in test], right, search)))


def looked(index: Index, questions: list[str], right: list[set[str]], search: str) -> Recall:
    return recall(search, index.find(questions, shown=10, search=search), right)


def line(found: Recall) -> str:
    cuts = " ".join(f"@{cut} {share:.3f}" for cut, share in found.recall.items())
    return f"{found.search}: recall {cuts} MRR {found.mrr:.3f} ({found.n} rows)"


if __name__ == "__main__":
    {"rows": rows, "retrieval": retrieval, "store": store.measure}[sys.argv[1]]()
