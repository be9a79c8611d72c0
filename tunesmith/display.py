"""Short representations of results: a few lines in a terminal, a small table in a notebook."""

from __future__ import annotations

import html
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Lines below the title in `repr`, and rows of a table in a notebook; the object itself has everything.
MAX_LINES = 4
MAX_ROWS = 50


@dataclass(frozen=True, slots=True)
class Display:
    """The representation of a result."""

    title: str  # one line
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()  # of a table, in notebooks only


class Displayed:
    """Base of results: `repr` gives a title and at most `MAX_LINES` lines, `_repr_html_` also a table.

    A subclass implements `display`. All text is escaped in HTML, because it may come from rows or models.
    """

    __slots__ = ()

    def display(self) -> Display:
        """Return what is shown of this result."""
        raise NotImplementedError

    def __repr__(self) -> str:
        shown = self.display()
        lines = [_one_line(line) for line in shown.lines[:MAX_LINES]]
        return "\n".join([_one_line(shown.title), *(f"  {line}" for line in lines)])

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        """Return the representation in notebooks (IPython's display protocol)."""
        shown = self.display()
        parts = [f"<b>{_escaped(shown.title)}</b>"]
        if shown.rows:
            head = "".join(f"<th>{_escaped(name)}</th>" for name in shown.columns)
            body = "".join(
                f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in shown.rows[:MAX_ROWS]
            )
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        if (more := len(shown.rows) - MAX_ROWS) > 0:
            parts.append(f"<div>and {more} more rows</div>")
        parts += [f"<div>{_escaped(line)}</div>" for line in shown.lines]
        return f'<div class="tunesmith">{"".join(parts)}</div>'


def under_home(name: str) -> str:
    """Return a path below the home directory as `~/...`, any other name unchanged: records name no user."""
    home = os.path.expanduser("~")
    return f"~/{Path(name).relative_to(home).as_posix()}" if name.startswith(os.path.join(home, "")) else name


def model_label(name: str) -> str:
    """Return the name of a model without its path: `./models/bert` and `/data/runs/bert` are both `bert`.

    Of the commit of a model on the Hub, the first digits remain.
    """
    name = re.sub("(@[0-9a-f]{7})[0-9a-f]{33}$", r"\1", name)
    path = name.rstrip("/\\")
    is_path = path.startswith((".", "~", "/", "\\")) or path[1:3] in (":/", ":\\") or path.count("/") > 1
    return re.split(r"[/\\]", path)[-1] or name if is_path else name


def model_labels(names: Iterable[str]) -> dict[str, str]:
    """Map each name to its label; names whose labels would be equal stay whole."""
    labels = {name: model_label(name) for name in names}
    counts = Counter(labels.values())
    return {name: label if counts[label] == 1 else name for name, label in labels.items()}


def shortened(text: str, width: int = 60) -> str:
    """Return the text on one line, cut to `width` characters."""
    line = _one_line(text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _one_line(text: str) -> str:
    return " ".join(_printable(text).split())


def _escaped(text: str) -> str:
    return html.escape(_printable(text))


def _printable(text: str) -> str:
    """Replace control characters and lone surrogates, which neither terminals nor pages can show."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c == "\n" or (ord(c) >= 32 and not 127 <= ord(c) < 160) else " " for c in valid)
