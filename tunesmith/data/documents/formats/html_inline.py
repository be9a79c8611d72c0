"""Visibility, inline text and table cells of HTML elements."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.data.documents.document import clean, tidy

# Elements without content of the page.
DROPPED = frozenset(
    {
        "script", "style", "noscript", "template", "nav", "footer", "aside", "button", "select", "input", "textarea",
        "iframe", "object", "embed", "applet", "svg", "canvas", "audio", "video", "title", "dialog", "map", "datalist",
        "meta", "link", "base", "del", "s", "strike",
    }
)  # fmt: skip
ROLES = frozenset({"navigation", "banner", "contentinfo", "search", "complementary", "menu", "dialog"})
# Classes with which common documentation generators mark navigation.
CLASSES = frozenset(
    {
        "navheader", "navfooter", "navbar", "sphinxsidebar", "related", "toc", "toctree-wrapper", "breadcrumb",
        "breadcrumbs", "sidebar", "headerlink", "anchor", "skip-link", "cookie-banner", "pagination",
    }
)  # fmt: skip
# Texts of the link from a heading to itself.
SELF_LINKS = frozenset("#¶§")
CODE = frozenset({"code", "kbd", "samp", "tt"})
# Block elements inside a cell or a heading: a line break separates their words from those of their neighbours.
BLOCKS = frozenset({"p", "div", "li", "ul", "ol", "dl", "dt", "dd", "pre", "blockquote", "section", "article", "tr"})
WIDEST = 200  # cells in a table row
# Without these, ten to the power of three would become 103.
RAISED = dict(zip("0123456789+-n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", strict=True))
# Placeholder for <br> until spaces are collapsed. No page can contain it, because `clean` removes it.
BREAK = "\x1d"


def inline(element: Any) -> str:
    """Return the inline text of an element: code in backticks, `<br>` as `BREAK`."""
    if element.tag == "br":
        return BREAK
    parts = [clean(element.text or "")]
    for child in element:
        if not left_out(child):
            separator = BREAK if child.tag in BLOCKS else ""
            parts.append(f"{separator}{inline(child)}{separator}")
        parts.append(clean(child.tail or ""))
    text = "".join(parts)
    if element.tag == "sup" and text.strip() and set(text.strip()) <= RAISED.keys():
        return "".join(RAISED[character] for character in text.strip())
    if element.tag in CODE and text.strip() and "`" not in text and BREAK not in text:
        return f"`{text.strip()}`"
    return text


def lines_of(element: Any) -> str:
    """Return the visible text of a code element with its line breaks."""
    if element.tag == "br":
        return "\n"
    inner = (("" if left_out(child) else lines_of(child)) + (child.tail or "") for child in element)
    return (element.text or "") + "".join(inner)


def left_out(element: Any) -> bool:
    """Return whether an element is invisible or only navigation."""
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
    # On <body> such a class describes what the page contains, not what it is.
    return element.get("role") in ROLES or (element.tag != "body" and bool(classes & CLASSES))


def number(text: str | None, default: int) -> int:
    """Return the integer in an attribute, or the default."""
    return int(text) if text and re.fullmatch(r"\d{1,6}", text) else default


def grid(element: Any) -> tuple[tuple[str, ...], ...]:
    """Return the cells of a table: spanning cells are repeated, and all rows have the same width."""
    rows: list[list[str]] = []
    spanning: dict[int, tuple[int, str]] = {}  # column -> rows still to fill, text
    for tr in element.xpath("./tr|./thead/tr|./tbody/tr|./tfoot/tr"):
        row: list[str] = []
        cells = iter(tr.xpath("./td|./th"))
        while len(row) < WIDEST:
            if len(row) in spanning:
                remaining, text = spanning.pop(len(row))
                if remaining > 1:
                    spanning[len(row)] = (remaining - 1, text)
                row.append(text)
                continue
            cell = next(cells, None)
            if cell is None:
                break
            text = tidy(inline(cell).replace("\n", " ").replace(BREAK, "\n")).strip("\n")
            for _ in range(min(number(cell.get("colspan"), 1) or 1, WIDEST - len(row))):
                if (rowspan := number(cell.get("rowspan"), 1)) > 1:
                    spanning[len(row)] = (min(rowspan, 1000) - 1, text)
                row.append(text)
        if len(row) > 1 and len(tr.xpath("./td|./th")) == 1 and len(set(row)) == 1:
            row = row[:1]  # a cell of the full width is a heading inside the table
        if any(row):
            rows.append(row)
    width = max(map(len, rows), default=0)
    return tuple(tuple(row + [""] * (width - len(row))) for row in rows)
