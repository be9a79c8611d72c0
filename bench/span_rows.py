"""Rows for `objective: tag`: `python -m bench.span_rows DATA OUT.jsonl [ROWS [debian | factbook | foldoc | names]]`.

DATA is a folder with `d1_debian_synopsis`, `f2_factbook_qa` and other sets (see bench/NOTES.md); for foldoc it is the
file `foldoc.dict.dz` of Debian's package dict-foldoc.

debian: paragraphs of descriptions of packages. The spans come from facts outside of a text, and from patterns:

- PACKAGE: a word that is the name of a package in the index and has a digit, a hyphen or a plus sign, so that it is no
  word of the language. The index at hand is a part of Debian's, so that some names are not marked;
- VERSION: numbers with dots, and what follows them without a space;
- LICENCE: names of free licences with their version. BSD, MIT, Apache, Artistic and Mozilla are also names of programs
  and projects, so that they count only with "license", "licensed" or "terms" behind them.

Where two of them overlap, the longer one is kept. The column `package` groups the paragraphs of a description.

factbook: lists of the World Factbook. A row has the first six entries of two fields of a country, joined by a
semicolon, without headings; which two is drawn by a hash of the country and the field. The field says what its entries
are: LANGUAGE, RELIGION, ETHNIC_GROUP, COUNTRY (to which it exports), RESOURCE or CROP (agricultural products, meat
included). A name such as Dutch has the type of its list. A span is an entry up to its first number.

- Brackets, notes and samples of languages are deleted from the text, and semicolons in a field become commas.
- Not marked are the rest of a list ("other Christian", "none") and believers, agnostics and atheists.
- A field is left out if it names fewer than three, or if one of these entries has more than four words, a colon, a
  bracket without its other half, or a word such as "and" ("Ewe and Mina").

The column `country` groups the rows.

foldoc: first paragraphs of the Free On-line Dictionary of Computing, in which editors have linked words to entries. A
span is a link, and its type that of the entry, which the editors have given it: LANGUAGE, SYSTEM, ORGANISATION (also
companies), HARDWARE, NETWORK or PERSON. The column `entry` groups the rows.

- Links to entries of other types or of none, and to addresses, are not marked; plurals lead to the singular.
- A later paragraph does not count: it links words again or not, as the editor liked.

names: sentences of film reviews in small letters, as people type and as speech is transcribed. A span, NAME, is what
the reviewer wrote with capital letters inside a sentence: people, films, places, peoples. The column `id` groups the
rows.

- Capitals at the start of a sentence say nothing, so a row counts only if each such word also occurs in small letters
  elsewhere, and no capital follows. Rows that are written in capitals or like a headline are left out; words all in
  capitals are not marked.
- "of", "the" and "de" between capitals belong to the name; "'s" at its end does not.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
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
FIELD = re.compile(r"\n\n([A-Z][^\n:]*):\n(.*)")
TYPES = {
    "Languages": "LANGUAGE",
    "Religions": "RELIGION",
    "Ethnic groups": "ETHNIC_GROUP",
    "Exports - partners": "COUNTRY",
    "Natural resources": "RESOURCE",
    "Agricultural products": "CROP",
}
BRACKETS = re.compile(r"\s*(?:\([^()]*\)|\[[^\[\]]*\])")
SHARE = re.compile(r"\s*(?:(?:less than|about|approximately|only|[<>~])\s*)?\d.*")
REST = re.compile(
    r"(?:others?|none|no|not|non-\w+|un(?:specified|known|affiliated|declared|available)|negligible|NA|refused|foreign\w*"
    r"|mixed|more|many|believer|agnostic|atheist)\b",
    re.IGNORECASE,
)
UNCLEAR = re.compile(r"\b(?:and|or|include|includes|including)\b|(?:\S+\s+){4}\S")
FEWEST_ENTRIES, MOST_ENTRIES = 3, 6
TOPIC = re.compile(r"\s*<([^<>]{3,60})>\s*")
LINK = re.compile(r"\{+([^{}]{1,60})\}+")
TOPICS = {
    "language": "LANGUAGE",
    "operating system": "SYSTEM",
    **dict.fromkeys(("company", "body"), "ORGANISATION"),
    **dict.fromkeys(("hardware", "computer", "processor", "storage", "architecture", "printer"), "HARDWARE"),
    **dict.fromkeys(("networking", "communications", "protocol", "messaging", "web", "chat"), "NETWORK"),
    "person": "PERSON",
}
CAPITALISED = r"[A-Z][\w.-]*[a-z][\w-]*(?:['’](?!s\b)\w+|['’]s(?= [A-Z]))?"
CAPITALS = re.compile(rf"{CAPITALISED}(?:(?: of| the| of the| de)? {CAPITALISED})*")
SENTENCE = re.compile(
    r"(?:^|[.!?:;…]['\"”’)]*|[-–—(]|[\"“‘'`])\s*(\w[\w'’-]*)"
)  # and where a quotation or an aside begins
PRONOUN = re.compile(r"I(?:['’]\w+)?")


def main(data: str, out: str, rows: str = "3000", source: str = "debian") -> None:
    """Write the rows."""
    if source == "debian":
        made = debian_rows(Path(data), int(rows))
    else:
        made = islice(
            {"factbook": factbook_rows, "foldoc": foldoc_rows, "names": name_rows}[source](Path(data)), int(rows)
        )
    with Path(out).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in made)


def debian_rows(data: Path, rows: int) -> Iterator[dict[str, object]]:
    """Yield paragraphs until `rows` of them have a span, by the order of their descriptions."""
    names = {name for path in sorted(data.glob("*/*.jsonl")) for name in package_names(path)}
    names = {name for name in names if len(name) > 3 and re.search(r"[\d+-]", name) and re.search("[a-z]{2}", name)}
    marked = plain = 0
    for row in records(data / "d1_debian_synopsis" / "d1_debian_synopsis.jsonl"):
        for number, text in enumerate(row["document"].split("\n\n"), 1):
            if not FEWEST_CHARACTERS <= len(text) <= MOST_CHARACTERS or marked >= rows:
                continue
            spans = spans_in(text, names)
            if not spans and plain * PLAIN_SHARE >= marked:
                continue
            marked, plain = marked + bool(spans), plain + (not spans)
            yield {"id": f"{row['id']}/{number}", "text": text, "spans": spans, "package": row["id"]}


def factbook_rows(data: Path) -> Iterator[dict[str, object]]:
    """Yield two lists of a country as one row, countries in the order of a hash."""
    lists: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in records(data / "f2_factbook_qa" / "docs.jsonl"):
        found = {name: first_entries(value) for name, value in FIELD.findall(row["text"]) if name in TYPES}
        lists[row["country"]] |= {name: value for name, value in found.items() if listed(value) is not None}
    for country in sorted(lists, key=drawn):
        fields = sorted(lists[country], key=lambda field: drawn(f"{country}/{field}"))
        for number, pair in enumerate(zip(fields[::2], fields[1::2], strict=False), 1):
            text, spans = "", []
            for field in pair:
                at = len(text) + 2 * bool(text)
                text += "; " * bool(text) + lists[country][field]
                for start, end in listed(lists[country][field]) or ():
                    spans.append({"start": at + start, "end": at + end, "label": TYPES[field]})
            yield {"id": f"{country}/{number}", "text": text, "spans": spans, "country": country}


def foldoc_rows(path: Path) -> Iterator[dict[str, object]]:
    """Yield first paragraphs with a typed link, entries in the order of a hash."""
    entries = foldoc_entries(gzip.decompress(path.read_bytes()).decode())
    types: dict[str, str] = {}
    for names, body in entries:
        if topic := TOPIC.match(body):
            for name in names:
                types.setdefault(name.lower(), TOPICS.get(topic[1].split(",")[0].strip(), ""))
    for names, body in sorted(entries, key=lambda entry: drawn(entry[0][0])):
        first = " ".join(TOPIC.sub("", body.strip().split("\n\n")[0], count=1).split())
        text, spans, at = "", [], 0
        for link in LINK.finditer(first):
            text += first[at : link.start()]
            name, at = link[1], link.end()
            low = name.lower()
            label = next(
                (types[form] for form in (low, low.removesuffix("s"), low.removesuffix("es")) if form in types), ""
            )
            if label:
                spans.append({"start": len(text), "end": len(text) + len(name), "label": label})
            text += name
        text += first[at:]
        if spans and FEWEST_CHARACTERS <= len(text) <= MOST_CHARACTERS:
            yield {"id": names[0], "text": text, "spans": spans, "entry": names[0]}


def name_rows(data: Path) -> Iterator[dict[str, object]]:
    """Yield reviews in small letters, one without a name for four with one, in the order of a hash."""
    reviews = sorted(records(data / "a2_vader_movie" / "a2_vader_movie.jsonl"), key=lambda row: drawn(row["id"]))
    ordinary = {word for row in reviews for word in re.findall(r"(?<![\w'’-])[a-z][a-z'’-]*", row["text"])}
    marked = plain = 0
    for row in reviews:
        text, words = row["text"], row["text"].split()
        starts = {found.start(1): found for found in SENTENCE.finditer(text)}
        if any(first[1][0].isupper() and is_unclear(first, ordinary) for first in starts.values()):
            continue
        if sum(word[0].isupper() for word in words) > len(words) / 2 or len(text.lower()) != len(text):
            continue
        found = [
            name for name in CAPITALS.finditer(text) if name.start() not in starts and not PRONOUN.fullmatch(name[0])
        ]
        if not FEWEST_CHARACTERS <= len(text) <= MOST_CHARACTERS or (not found and plain * PLAIN_SHARE >= marked):
            continue
        marked, plain = marked + bool(found), plain + (not found)
        spans = [{"start": name.start(), "end": name.end(), "label": "NAME"} for name in found]
        yield {"id": row["id"], "text": text.lower(), "spans": spans}


def is_unclear(first: re.Match[str], ordinary: set[str]) -> bool:
    """Return whether the first word of a sentence may belong to a name."""
    return first[1].lower() not in ordinary or bool(re.match(rf" {CAPITALISED}", first.string[first.end() :]))


def foldoc_entries(text: str) -> list[tuple[list[str], str]]:
    """Return the names and the text of each entry: names begin a line, and the text is indented."""
    entries: list[tuple[list[str], str]] = []
    names: list[str] = []
    lines: list[str] = []
    for line in text.splitlines():
        if line and not line.startswith(" "):
            if lines:
                entries.append((names, "\n".join(lines)))
                names, lines = [], []
            names = [*names, line.strip()]
        elif names and (line or lines):
            lines.append(line.removeprefix("   "))
    return [*entries, (names, "\n".join(lines))]


def first_entries(value: str) -> str:
    """Return the first entries of the list in a field."""
    value = re.sub(r"^(?:Languages|Religions): ", "", value.split(" ; ")[0])
    while BRACKETS.search(value):
        value = BRACKETS.sub("", value)
    return ",".join(re.split("[,;]", value)[:MOST_ENTRIES]).strip(" .")


def listed(value: str) -> list[tuple[int, int]] | None:
    """Return the first and last offset of each name in a list, or None where the list is too short or unclear."""
    found = []
    for entry in re.finditer(r"[^,\s][^,]*", value):
        name = SHARE.sub("", entry[0]).strip()
        if UNCLEAR.search(name) or re.search("[][:()]", entry[0]):
            return None
        if name and not REST.match(name):
            found.append((entry.start(), entry.start() + len(name)))
    return found if len(found) >= FEWEST_ENTRIES else None


def drawn(name: str) -> str:
    """Return the hash that orders names."""
    return hashlib.sha256(name.encode()).hexdigest()


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
