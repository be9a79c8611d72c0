"""`python -m bench.objectives`: the rows of the cases of this folder, from ../shared/data into bench/.objectives.

The recipes are copied there as well; `tunesmith tune bench/.objectives/CASE.yaml` runs one. README.md lists them all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
PLACE = ROOT / "bench" / ".objectives"
# Characters to learn from, about 300,000 tokens of the manual and 20,000 of the licences, and held-out documents.
MANUAL, LICENCES = (1_200_000, 40), (80_000, 16)
PAIRS, TESTED = 4_000, 300
GENERAL = 30  # conversations, and passages of a novel
PASSAGE, PASSAGES, CHAPTERS = 500, 4, 8  # characters, passages of a page, and chapters that are told apart


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a set, in the order of a hash of their id."""
    rows = [json.loads(line) for line in (DATA / name / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).hexdigest())


def write(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as a file of the place."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (PLACE / name).write_text(text, encoding="utf-8")


def of(rows: Iterable[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The rows of one side."""
    return [row for row in rows if row["split"] == split]


def texts(name: str, rows: list[dict[str, Any]], size: tuple[int, int]) -> set[str]:
    """The ids of documents to learn from, as many as hold so many characters; they and held-out ones are written."""
    characters, held_out = size
    train, taken = [], 0
    for row in of(rows, "train"):
        if taken < characters:
            train.append({"id": row["id"], "text": row["text"]})
            taken += len(row["text"])
    write(f"{name}.jsonl", train)
    write(f"{name}.test.jsonl", ({"id": r["id"], "text": r["text"]} for r in of(rows, "valid")[:held_out]))
    return {row["id"] for row in train}


def chapters(rows: list[dict[str, Any]]) -> None:
    """Passages of pages whose language was not learned, and the chapter that each is from: what may come after."""
    known = Counter(map(_chapter, rows))
    kept = {name for name, _ in known.most_common(CHAPTERS)}
    pages = [row for row in rows if _chapter(row) in kept]
    cut = len(pages) // 3
    for file, part in (("chapters.test.jsonl", pages[:cut]), ("chapters.jsonl", pages[cut:])):
        write(file, (one for row in part for one in _passages(row)))


def _chapter(row: dict[str, Any]) -> str:
    return str(row["id"]).removeprefix("pg/").partition("-")[0]


def _passages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Passages behind the page's title, which would give the chapter away."""
    body = row["text"].partition("\n\n")[2]
    starts = range(0, min(len(body) - PASSAGE, PASSAGES * PASSAGE), PASSAGE)
    return [{"page": row["id"], "text": body[at : at + PASSAGE], "chapter": _chapter(row)} for at in starts]


def pairs() -> None:
    """English and French, test rows of other packages than those to learn from."""
    rows = [row for row in read("c1_ddtp_en_fr") if 20 <= len(row["en"]) <= 300 and len(row["target"]) <= 400]
    for split, file, count in (("train", "en-fr.jsonl", PAIRS), ("valid", "en-fr.test.jsonl", TESTED)):
        some = of(rows, split)[:count]
        write(file, ({"en": row["en"], "fr": row["target"], "package": row["package"]} for row in some))


def general() -> None:
    """People's conversations, and passages of the novel by which general text is measured, but for those measured."""
    shipped = (ROOT / "tunesmith" / "shipped_data" / "general.jsonl").read_text(encoding="utf-8").splitlines()
    measured = {json.loads(line)["id"] for line in shipped}
    talks = ["\n".join(turn["text"] for turn in row["turns"]) for row in read("n1_chitchat_dialogues")[:GENERAL]]
    novel = [row["text"] for row in read("e5_general_austen") if row["id"] not in measured][:GENERAL]
    write("general.jsonl", ({"text": text} for text in (*talks, *novel)))


def main() -> None:
    """All rows and recipes."""
    PLACE.mkdir(exist_ok=True)
    manual = read("e1_cpt_postgresql")
    learned = texts("manual", manual, MANUAL)
    texts("licences", read("e4_cpt_legal_licences"), LICENCES)
    chapters([row for row in manual if row["id"] not in learned])
    pairs()
    general()
    for file in (ROOT / "examples" / "synopsis.jsonl", ROOT / "tunesmith" / "shipped_data" / "reviews.jsonl"):
        shutil.copy(file, PLACE)
    for recipe in Path(__file__).parent.glob("*.yaml"):
        shutil.copy(recipe, PLACE)
    print(f"rows and recipes are in {PLACE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
