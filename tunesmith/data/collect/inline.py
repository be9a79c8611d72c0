"""The parts of a page: which of them a reader sees, their text on the way, and the cells of a table."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.data.collect.document import clean, tidy

# Not part of what a page says.
DROPPED = frozenset(
    {
        "script", "style", "noscript", "template", "nav", "footer", "aside", "button", "select", "input", "textarea",
        "iframe", "object", "embed", "applet", "svg", "canvas", "audio", "video", "title", "dialog", "map", "datalist",
        "meta", "link", "base", "del", "s", "strike",
    }
)  # fmt: skip
ROLES = frozenset({"navigation", "banner", "contentinfo", "search", "complementary", "menu", "dialog"})
# How the common makers of manuals mark what only leads elsewhere.
CLASSES = frozenset(
    {
        "navheader", "navfooter", "navbar", "sphinxsidebar", "related", "toc", "toctree-wrapper", "breadcrumb",
        "breadcrumbs", "sidebar", "headerlink", "anchor", "skip-link", "cookie-banner", "pagination",
    }
)  # fmt: skip
# The signs by which a heading links to itself.
SELF_LINKS = frozenset("#¶§")
CODE = frozenset({"code", "kbd", "samp", "tt"})
# What begins on a line of its own inside a cell or a heading: its words are not those of its neighbours.
BLOCKS = frozenset({"p", "div", "li", "ul", "ol", "dl", "dt", "dd", "pre", "blockquote", "section", "article", "tr"})
WIDEST = 200
# Without them 10 to the third would read 103.
RAISED = dict(zip("0123456789+-n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", strict=True))
# Stands for <br> until spaces are collapsed; no page can bring it, `clean` takes it out.
BREAK = "\x1d"


def inline(element: Any) -> str:
    """The text of an element on the way: code between backticks, `<br>` as a line end."""
    if element.tag == "br":
        return BREAK
    parts = [clean(element.text or "")]
    for child in element:
        if not left_out(child):
            apart = BREAK if child.tag in BLOCKS else ""
            parts.append(f"{apart}{inline(child)}{apart}")
        parts.append(clean(child.tail or ""))
    text = "".join(parts)
    if element.tag == "sup" and text.strip() and set(text.strip()) <= RAISED.keys():
        return "".join(RAISED[sign] for sign in text.strip())
    if element.tag in CODE and text.strip() and "`" not in text and BREAK not in text:
        return f"`{text.strip()}`"
    return text


def lines_of(element: Any) -> str:
    """The text of code, its line ends kept and what a reader does not see left out."""
    if element.tag == "br":
        return "\n"
    inner = (("" if left_out(child) else lines_of(child)) + (child.tail or "") for child in element)
    return (element.text or "") + "".join(inner)


def left_out(element: Any) -> bool:
    """Whether a reader sees nothing of this element, or only a way to elsewhere."""
    if not isinstance(element.tag, str) or element.tag in DROPPED:
        return True
    if element.tag == "header" and not element.xpath(".//h1|.//h2"):
        return True
    style = (element.get("style") or "").replace(" ", "").lower()
    hidden = element.get("hidden") is not None or element.get("aria-hidden") == "true"
    if hidden or "display:none" in style or "visibility:hidden" in style:
        return True
    if (
        element.tag == "a"
        and (element.get("href") or "").startswith("#")
        and (element.text or "").strip() in SELF_LINKS
    ):
        return True
    classes = set((element.get("class") or "").lower().split())
    # Of the whole page such a class says only what stands on it.
    return element.get("role") in ROLES or (element.tag != "body" and bool(classes & CLASSES))


def number(text: str | None, default: int) -> int:
    """The whole number that an attribute holds, or the default."""
    return int(text) if text and re.fullmatch(r"\d{1,6}", text) else default


def grid(element: Any) -> tuple[tuple[str, ...], ...]:
    """The cells of a table, those that span several places repeated there, all rows of one width."""
    rows: list[list[str]] = []
    waiting: dict[int, tuple[int, str]] = {}
    for tr in element.xpath("./tr|./thead/tr|./tbody/tr|./tfoot/tr"):
        row: list[str] = []
        cells = iter(tr.xpath("./td|./th"))
        while len(row) < WIDEST:
            if len(row) in waiting:
                left, text = waiting.pop(len(row))
                if left > 1:
                    waiting[len(row)] = (left - 1, text)
                row.append(text)
                continue
            cell = next(cells, None)
            if cell is None:
                break
            text = tidy(inline(cell).replace("\n", " ").replace(BREAK, "\n")).strip("\n")
            for _ in range(min(number(cell.get("colspan"), 1) or 1, WIDEST - len(row))):
                if (down := number(cell.get("rowspan"), 1)) > 1:
                    waiting[len(row)] = (min(down, 1000) - 1, text)
                row.append(text)
        if len(row) > 1 and len(tr.xpath("./td|./th")) == 1 and len(set(row)) == 1:
            row = row[:1]  # a cell over the whole width is a heading inside the table
        if any(row):
            rows.append(row)
    width = max(map(len, rows), default=0)
    return tuple(tuple(row + [""] * (width - len(row))) for row in rows)
