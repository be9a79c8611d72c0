"""Plain text as rows: one text per line, paragraphs, or the entries of a log."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.data.readers.row import Row
from tunesmith.data.readers.text_file import TextFile

# Prose: this share of the blocks between blank lines has several lines.
SEVERAL_LINES = 0.3
# Text wrapped at a margin: most lines are about as long, and end inside a sentence.
WRAPPED_SHARE = 0.6
WRAPPED_LENGTHS = range(55, 101)  # characters
# Lines that begin with a capital: 8 % of the shipped general text, wrapped at 80 characters; nearly all headlines.
CAPITAL_SHARE = 0.6
SENTENCE_ENDS = tuple(".!?…:;\"'”’»)]")
ENTRY_SHARE = 0.5  # of the lines begin with a time; the others belong to the entry above
LEVEL_SHARE = 0.9  # of the entries have a level
TIME = re.compile(
    r"[\[(]?(?P<time>"
    r"\d{4}[-/.]\d\d[-/.]\d\d[T ]\d\d:\d\d(:\d\d)?([.,]\d+)?( ?(Z|[+-]\d\d:?\d\d))?"  # 2024-05-01 10:00:00,123
    r"|[A-Z][a-z]{2} [ \d]\d (\d{4} )?\d\d:\d\d:\d\d"  # May  1 10:00:00, as in syslog
    r"|\d\d[/.][A-Za-z\d]{2,3}[/.]\d{4}[: ]\d\d:\d\d:\d\d( [+-]\d{4})?"  # 01/May/2024:10:00:00 +0000
    r")[\])]?[,:]?\s+"
)
LEVEL = re.compile(
    r"[\[(<|]?\b(?P<level>TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERR(?:OR)?|CRIT(?:ICAL)?|FATAL|SEVERE|ALERT|EMERG)\b"
    r"[\])>|:]*[\s:|-]*",
    re.IGNORECASE,
)
LEVEL_WITHIN = 60  # characters after the time; later words are part of the message


def text_rows(file: TextFile) -> tuple[list[Row], str]:
    """Load a text file: paragraphs if it is prose, else one text per line.

    Args:
        file: the file.

    Returns:
        Rows with the column `text`, and a note on how the file was cut.
    """
    lines = file.read().split("\n")
    blocks = _blocks(lines)
    several = sum(len(block) > 1 for _, block in blocks)
    if len(blocks) > 1 and several >= SEVERAL_LINES * len(blocks):
        rows = [Row(f"{file.name}:{line}", {"text": "\n".join(block)}) for line, block in blocks]
        return rows, f"prose: {len(rows)} paragraphs, separated by blank lines"
    if len(blocks) == 1 and _wrapped(blocks[0][1]):
        line, block = blocks[0]
        return [Row(f"{file.name}:{line}", {"text": "\n".join(block)})], "prose: one text, wrapped at a margin"
    rows = [Row(f"{file.name}:{line + n}", {"text": text}) for line, block in blocks for n, text in enumerate(block)]
    return rows, f"one text per line: {len(rows)}"


def log_rows(file: TextFile) -> tuple[list[Row], str]:
    """Load a log: entries with time, level and message if it is uniform, else one text per line.

    Args:
        file: the file.

    Returns:
        The rows, and a note on what was found.
    """
    lines = [(number, line.rstrip()) for number, line in enumerate(file.read().split("\n"), 1) if line.strip()]
    matches = [TIME.match(line) for _, line in lines]
    if not matches or matches[0] is None or sum(map(bool, matches)) < ENTRY_SHARE * len(lines):
        rows = [Row(f"{file.name}:{number}", {"text": line.strip()}) for number, line in lines]
        return rows, f"log without a common pattern, one text per line: {len(rows)}"
    entries: list[tuple[int, str, list[str]]] = []
    for (number, line), match in zip(lines, matches, strict=True):
        if match:
            entries.append((number, match["time"], [line[match.end() :]]))
        else:
            entries[-1][2].append(line)
    levels = [LEVEL.search(text[0], 0, LEVEL_WITHIN) for _, _, text in entries]
    if sum(map(bool, levels)) < LEVEL_SHARE * len(entries):
        rows = [Row(f"{file.name}:{number}", {"time": time, "text": "\n".join(text)}) for number, time, text in entries]
        return rows, f"log: {len(rows)} entries with time and text"
    rows = [_entry(file.name, entry, level) for entry, level in zip(entries, levels, strict=True)]
    return rows, f"log: {len(rows)} entries with time, level, source and message"


def _entry(name: str, entry: tuple[int, str, list[str]], level: re.Match[str] | None) -> Row:
    """Return the row of a log entry. The message does not repeat the level, which would give a label away."""
    number, time, (first, *more) = entry
    source, message = (first[: level.start()], first[level.end() :]) if level else ("", first)
    fields = {
        "time": time,
        "level": level["level"].upper() if level else "",
        "source": source.strip(" []()<>|:-"),
        "message": "\n".join([message.strip(), *more]),
    }
    return Row(f"{name}:{number}", fields)


def _blocks(lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Return the first line number and the lines of each block between blank lines."""
    blocks: list[tuple[int, list[str]]] = []
    inside = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            inside = False
            continue
        if not inside:
            blocks.append((number, []))
        blocks[-1][1].append(line.strip())
        inside = True
    return blocks


def _wrapped(lines: Sequence[str]) -> bool:
    """Return whether lines are the pieces of a text that was wrapped at a margin."""
    long = sum(len(line) in WRAPPED_LENGTHS for line in lines)
    open_ends = sum(not line.endswith(SENTENCE_ENDS) for line in lines)
    capitals = sum(line[:1].isupper() for line in lines)
    if len(lines) < 2 or capitals >= CAPITAL_SHARE * len(lines):
        return False
    return long >= WRAPPED_SHARE * len(lines) and open_ends >= WRAPPED_SHARE * len(lines)
