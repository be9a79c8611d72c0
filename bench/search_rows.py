"""The example rows of a search, from the factbook questions of the examples.

    python -m bench.search_rows examples examples

A row has a question and the chunk of 400 characters that has its evidence, cut and chosen as by `bench/embed.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.embed import passages_of, read, write
from tunesmith.retrieval.chunks import cut, page_of_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of factbook.jsonl, factbook.test.jsonl and the documents")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    chunks = cut(
        [page_of_text(row["doc_id"], row["text"]) for row in read(args.data / "factbook.documents.jsonl")], 400
    )
    for part in ("", ".test"):
        rows = read(args.data / f"factbook{part}.jsonl")
        lines = [
            {
                "id": row["id"],
                "query": row["question"],
                "passage": passage,
                "evidence": row["evidence"],
                "country": row["country"],
            }
            for row, passage in zip(rows, passages_of(rows, chunks), strict=True)
            if passage
        ]
        write(args.out / f"search{part}.jsonl", lines)
        print(f"search{part}.jsonl: {len(lines)} of {len(rows)} rows")


if __name__ == "__main__":
    main()
