"""Rows for `objective: tag` from texts about Debian packages: `python -m bench.span_rows DATA OUT.jsonl [ROWS]`.

DATA is a folder with `d1_debian_synopsis` and other sets of the package index (see bench/NOTES.md). Paragraphs of the
descriptions are the texts. The spans come from facts outside of a text, and from patterns:

- PACKAGE: a word that is the name of a package in the index and has a digit, a hyphen or a plus sign, so that it is no
  word of the language. The index at hand is a part of Debian's, so that some names are not marked;
- VERSION: numbers with dots, and what follows them without a space;
- LICENCE: names of free licences with their version. BSD, MIT, Apache, Artistic and Mozilla are also names of programs
  and projects, so that they count only with "license", "licensed" or "terms" behind them.

Where two of them overlap, the longer one is kept. The column `package` groups the paragraphs of a description.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"(?<![\w/.@:+-])[a-z0-9][a-z0-9+.-]*[a-z0-9+](?![\w/@+-])")
VERSION = re.compile(r"(?<![\w./-])v?\d+(?:\.\d+)+(?:[-+~]?[a-z0-9]+)*(?![\w/])", re.IGNORECASE)
NUMBERED = r"(?:[- ]?(?:v(?:ersion )?)?\d(?:\.\d)?\+?)?(?: or later)?"
LICENCE = re.compile(
    rf"\b(?:(?:GNU )?(?:(?:Lesser |Affero )?General Public Licen[cs]e|[AL]?GPL){NUMBERED}(?: [Ll]icen[cs]e)?"
    rf"|(?:BSD|MIT|Apache|Artistic|Mozilla Public|MPL){NUMBERED}(?:[- ](?:like|style))?"
    r"(?: [Ll]icen[cs]e|(?=[ -]licen[cs]ed| terms)))(?!\w)"
)
FEWEST_CHARACTERS, MOST_CHARACTERS = 40, 400
PLAIN_SHARE = 4  # one paragraph without a span for this many with one


def main(data: str, out: str, rows: str = "3000") -> None:
    """Write the rows, by the order of their descriptions."""
    names = {name for path in sorted(Path(data).glob("*/*.jsonl")) for name in package_names(path)}
    names = {name for name in names if len(name) > 3 and re.search(r"[\d+-]", name) and re.search("[a-z]{2}", name)}
    marked = plain = 0
    with Path(out).open("w", encoding="utf-8") as file:
        for row in records(Path(data) / "d1_debian_synopsis" / "d1_debian_synopsis.jsonl"):
            for number, text in enumerate(row["document"].split("\n\n"), 1):
                if not FEWEST_CHARACTERS <= len(text) <= MOST_CHARACTERS or marked >= int(rows):
                    continue
                spans = spans_in(text, names)
                if not spans and plain * PLAIN_SHARE >= marked:
                    continue
                marked, plain = marked + bool(spans), plain + (not spans)
                line = {"id": f"{row['id']}/{number}", "text": text, "spans": spans, "package": row["id"]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def spans_in(text: str, names: set[str]) -> list[dict[str, object]]:
    """Return the spans of a text, the longer one where two overlap."""
    found = [(m.span(), "VERSION") for m in VERSION.finditer(text)]
    found += [(m.span(), "LICENCE") for m in LICENCE.finditer(text)]
    found += [(m.span(), "PACKAGE") for m in NAME.finditer(text) if m[0] in names]
    kept: list[tuple[tuple[int, int], str]] = []
    for (start, end), label in sorted(found, key=lambda one: one[0][0] - one[0][1]):
        if all(end <= a or b <= start for (a, b), _ in kept):
            kept.append(((start, end), label))
    return [{"start": start, "end": end, "label": label} for (start, end), label in sorted(kept)]


def package_names(path: Path) -> Iterator[str]:
    """Yield the names of binary and source packages of a file of the index."""
    for row in records(path):
        for key in ("id", "source", "package", "title") if "debian" in path.name or path.parent.name[0] in "df" else ():
            value = row.get(key)
            if isinstance(value, str) and NAME.fullmatch(value):
                yield value


def records(path: Path) -> Iterator[dict[str, str]]:
    """Yield the objects of a file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
