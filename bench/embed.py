"""Rows and documents for `objective: embed` from questions, for the tables in bench/NOTES.md.

    python -m bench.embed DATA/f2_factbook_qa OUT --countries 60
    python -m bench.embed DATA/f3_debian_package_qa OUT --packages 1000

Queries are questions; the right passage is the chunk of 400 characters that has the evidence, as `compare` cuts and
searches documents. Training rows have one wording and test rows the other, of other countries; all chunks of all
countries that are used are searched.

Of Debian's packages the right passage is the record of the package, as far as 128 tokens go. Two of five packages have
questions, of which a third are test rows; all are searched.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from tunesmith.retrieval.chunks import Chunk, cut, page_of_text
from tunesmith.retrieval.recall import Origin, right_chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--countries", type=int, default=60)
    parser.add_argument("--packages", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.packages:
        packages(args.data, args.out, args.packages)
        return
    rows = read(args.data / "f2_factbook_qa.jsonl")
    documents = {row["doc_id"]: row["text"] for row in read(args.data / "docs.jsonl")}
    held_out = sorted({row["country"] for row in rows if row["split"] == "valid"})[: args.countries // 3]
    trained = sorted({row["country"] for row in rows if row["split"] == "train"})[: args.countries - len(held_out)]
    rows = [row for row in rows if row["country"] in {*held_out, *trained}]
    used = sorted({row["doc_id"] for row in rows})
    chunks = cut([page_of_text(name, documents[name]) for name in used], 400)
    right = passages_of(rows, chunks)
    parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for row, passage in zip(rows, right, strict=True):
        part = "test" if row["country"] in held_out else "train"
        query = row["question_alt" if part == "test" else "question"]
        if passage:
            parts[part].append(
                {"query": query, "passage": passage, "evidence": row["evidence"], "country": row["country"]}
            )
    for part, lines in parts.items():
        write(args.out / f"{part}.jsonl", lines)
    write(args.out / "documents.jsonl", [{"doc_id": chunk.id, "text": chunk.text} for chunk in chunks])
    print({part: len(lines) for part, lines in parts.items()}, f"{len(chunks)} chunks")


def packages(data: Path, out: Path, count: int) -> None:
    """Write the rows and records of so many packages, drawn by a hash of their names."""
    documents = {row["doc_id"]: row["text"] for row in read(data / "docs.jsonl")}
    used = sorted(documents, key=lambda name: sha256(name.encode()).hexdigest())[:count]
    asked = {name: "test" if number % 3 == 0 else "train" for number, name in enumerate(used[: count * 2 // 5])}
    parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for row in read(data / "f3_debian_package_qa.jsonl"):
        if part := asked.get(name := row["doc_id"]):
            parts[part].append({"query": row["question"], "passage": documents[name], "package": name})
    for part, lines in parts.items():
        write(out / f"{part}.jsonl", lines)
    write(out / "documents.jsonl", [{"doc_id": name, "text": documents[name]} for name in used])
    print({part: len(lines) for part, lines in parts.items()}, f"{count} documents")


def read(file: Path) -> list[dict[str, str]]:
    """Read rows."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write rows."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def passages_of(rows: Sequence[dict[str, str]], chunks: Sequence[Chunk]) -> list[str]:
    """Return the chunk with the evidence of each row; empty if there is none.

    Of several it is the one with the words of the field, else the first.
    """
    text = {chunk.id: chunk.text for chunk in chunks}
    found = []
    for row, ids in zip(
        rows, right_chunks(chunks, [Origin(row["evidence"], row["doc_id"]) for row in rows]), strict=True
    ):
        words = set((row.get("type") or row["id"].partition("/")[2]).split("_"))
        order = sorted(
            ids, key=lambda name: (-len(words & set(text[name].lower().split())), int(name.rpartition("#")[2]))
        )
        found.append(text[order[0]] if order else "")
    return found


if __name__ == "__main__":
    main()
