"""Rows and documents for `objective: embed` from the factbook questions, for the table in bench/NOTES.md.

    python -m bench.embed /work/shared/data/f2_factbook_qa OUT --countries 60

Queries are questions; the right passage is the chunk of 400 characters that has the evidence, as `compare` cuts and
searches documents. Training rows have one wording and test rows the other, of other countries; all chunks of all
countries that are used are searched.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tunesmith.retrieval.chunks import cut, page_of_text
from tunesmith.retrieval.recall import Origin, right_chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--countries", type=int, default=60)
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.data / "f2_factbook_qa.jsonl").read_text().splitlines()]
    documents = {row["doc_id"]: row["text"] for row in map(json.loads, (args.data / "docs.jsonl").open())}
    held_out = sorted({row["country"] for row in rows if row["split"] == "valid"})[: args.countries // 3]
    trained = sorted({row["country"] for row in rows if row["split"] == "train"})[: args.countries - len(held_out)]
    rows = [row for row in rows if row["country"] in {*held_out, *trained}]
    used = sorted({row["doc_id"] for row in rows})
    chunks = cut([page_of_text(name, documents[name]) for name in used], 400)
    right = right_chunks(chunks, [Origin(row["evidence"], row["doc_id"]) for row in rows])
    text = {chunk.id: chunk.text for chunk in chunks}
    args.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for row, ids in zip(rows, right, strict=True):
        part = "test" if row["country"] in held_out else "train"
        query = row["question_alt" if part == "test" else "question"]
        # Of several chunks with the evidence, the one with the words of the field, else the first.
        words = set(row["type"].split("_"))
        if ids:
            best = min(
                ids, key=lambda name: (-len(words & set(text[name].lower().split())), int(name.rpartition("#")[2]))
            )
            passage = text[best]
            parts[part].append(
                {"query": query, "passage": passage, "evidence": row["evidence"], "country": row["country"]}
            )
    for part, lines in parts.items():
        (args.out / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"doc_id": chunk.id, "text": text[chunk.id]} for chunk in chunks]
    (args.out / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print({part: len(lines) for part, lines in parts.items()}, f"{len(chunks)} chunks")


if __name__ == "__main__":
    main()
