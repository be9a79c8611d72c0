"""Conversion of HTML: the visible text, without scripts, navigation and hidden parts. Nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tunesmith.data.documents.document import Block, Document, Kind, QuestionAnswer, clean, markdown, one_line, tidy
from tunesmith.data.documents.encoding import decode
from tunesmith.data.documents.formats.html_inline import BREAK, DROPPED, grid, inline, left_out, lines_of, number
from tunesmith.data.documents.formats.schema_org import microdata_pairs, schema_pairs
from tunesmith.errors import DataError

HEADINGS = {f"h{n}": n for n in range(1, 7)}
INLINE = frozenset(
    {
        "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "br", "cite", "code", "data", "del", "dfn", "em", "font", "i",
        "img", "ins", "kbd", "label", "mark", "q", "ruby", "rp", "rt", "s", "samp", "small", "span", "strike", "strong",
        "sub", "sup", "time", "tt", "u", "var", "wbr", "math", "picture", "source", "nobr",
    }
)  # fmt: skip
# Elements that occur in tables used for page layout, not in data tables.
PLACED = ".//table|.//h1|.//h2|.//h3|.//h4|.//form"
DEEPEST = 200  # nested elements
# Classes of note and warning boxes.
BOXES = frozenset({"note", "tip", "warning", "caution", "important", "danger", "hint", "admonition"})
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)


def html_document(data: bytes, *, declared: str = "") -> Document:
    """Convert a page to blocks, with question-answer pairs from `<details>`, definition lists and schema.org.

    Raises:
        DataError: the page has no element, or its elements are nested too deeply.
    """
    root, note = parse(data, declared=declared)
    if root is None:
        raise DataError("no HTML elements; give a page with text")
    schema = [*schema_pairs(root), *microdata_pairs(root)]
    title = one_line(root.findtext(".//title") or "")
    walk = _Walk()
    walk.children(_main(root))
    pairs = [QuestionAnswer(_fragment(p.question), _fragment(p.answer)) for p in schema]
    complete = tuple(p for p in (*pairs, *walk.pairs) if p.question and p.answer)
    return Document(tuple(walk.blocks), title, complete, notes=(note,) if note else ())


def parse(data: bytes, *, declared: str = "") -> tuple[Any, str]:
    """Return the root element or None, and a note if the encoding was guessed."""
    from lxml import etree
    from lxml import html as lxml_html

    charset = _CHARSET.search(data[:4096])
    text, note = decode(data, declared=declared or (charset[1].decode("ascii", "replace") if charset else ""))
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        return None, note
    parser = lxml_html.HTMLParser(
        encoding="utf-8", no_network=True, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        return lxml_html.document_fromstring(text.encode("utf-8", errors="replace"), parser=parser), note
    except etree.ParserError:
        return None, note


def _fragment(text: str) -> str:
    """Convert a text that may contain HTML to Markdown."""
    if "<" not in text and "&" not in text:
        return tidy(text)
    root, _ = parse(text.encode("utf-8", errors="replace"), declared="utf-8")
    if root is None:
        return ""
    walk = _Walk()
    walk.children(root)
    return markdown(walk.blocks)


def _main(root: Any) -> Any:
    """Return the element marked as the main content if there is exactly one, else the whole page."""
    for path in (".//main", ".//*[@role='main']", ".//article"):
        elements = root.xpath(path)
        if len(elements) == 1:
            return elements[0]
    return root


# Kind, level and prefix of the next block of plain text.
PARAGRAPH: tuple[Kind, int, str] = ("paragraph", 0, "")


class _Walk:
    """A depth-first walk over a page; inline text is buffered until a block begins or ends."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.pairs: list[QuestionAnswer] = []
        self._line: list[str] = []
        self._as = PARAGRAPH
        self._depth = 0

    def children(self, element: Any) -> None:
        """Add everything inside an element."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise DataError(f"elements nested more than {DEEPEST} deep; save the page as plain text")
        self._line.append(element.text or "")
        for child in element:
            if not left_out(child):
                self._element(child)
            self._line.append(child.tail or "")
        self.flush()
        self._depth -= 1

    def flush(self, kind: Kind | None = None, level: int = 0) -> None:
        """Turn the buffered inline text into a block; the first block inside a list item is the item."""
        text = tidy("".join(self._line).replace("\n", " ").replace(BREAK, "\n"))
        self._line = []
        if not text:
            return
        default_kind, default_level, prefix = self._as
        self._as = PARAGRAPH
        if kind is None:
            self.blocks.append(Block(default_kind, prefix + text, default_level))
        else:
            self.blocks.append(Block(kind, one_line(text), level))

    def _element(self, element: Any) -> None:
        tag = element.tag
        if tag in INLINE and not _has_block(element):
            self._line.append(inline(element))
            return
        self.flush()
        if tag in HEADINGS:
            self._line.append(inline(element))
            # The title of a note or warning box does not start a section.
            parent = element.getparent()
            in_box = parent is not None and bool(BOXES & set((parent.get("class") or "").lower().split()))
            self.flush("term" if in_box else "heading", 0 if in_box else HEADINGS[tag])
        elif tag == "pre":
            self._code(element)
        elif tag in ("ul", "ol", "menu", "dir"):
            self._list(element)
        elif tag == "dl":
            self._definitions(element)
        elif tag == "details":
            self._details(element)
        elif tag == "table":
            self._table(element)
        elif tag == "p" and _is_lead(element):
            self._line.append(inline(element))
            self.flush("term")
        else:
            self.children(element)

    def _code(self, element: Any) -> None:
        text = clean(lines_of(element)).strip("\n")
        text = "\n".join(line.rstrip() for line in text.split("\n"))
        if text.strip():
            self.blocks.append(Block("code", text))

    def _list(self, element: Any) -> None:
        level = sum(1 for above in element.iterancestors("ul", "ol", "menu"))
        count = number(element.get("start"), 1)
        for child in element:
            if left_out(child):
                continue
            if child.tag != "li":
                self._element(child)
                continue
            self._as = ("item", level, f"{count}. " if element.tag == "ol" else "")
            count += 1
            self.children(child)
            self._as = PARAGRAPH

    def _definitions(self, element: Any) -> None:
        """Add terms and definitions as blocks and as pairs; consecutive terms share the next definition."""
        terms: list[str] = []
        open_terms = True
        for child in _direct(element, ("dt", "dd")):
            if child.tag == "dt":
                terms = [*terms, one_line(inline(child))] if open_terms else [one_line(inline(child))]
                open_terms = True
                self._line.append(inline(child))
                self.flush("term")
                continue
            open_terms = False
            start = len(self.blocks)
            self.children(child)
            answer = markdown(self.blocks[start:])
            if not _is_link_list(child):
                self.pairs += [QuestionAnswer(term, answer, "definition") for term in terms if term]

    def _details(self, element: Any) -> None:
        summary = next(iter(element.findall("summary")), None)
        question = ""
        if summary is not None:
            question = one_line(inline(summary))
            self._line.append(question)
            self.flush("term")
            element.text = (element.text or "") + (summary.tail or "")
            summary.tail = None
            element.remove(summary)
        start = len(self.blocks)
        self.children(element)
        if question:
            self.pairs.append(QuestionAnswer(question, markdown(self.blocks[start:]), "faq"))

    def _table(self, element: Any) -> None:
        cells = grid(element)
        if element.get("role") == "presentation" or element.xpath(PLACED) or len(cells) < 2 or len(cells[0]) < 2:
            self.children(element)
            return
        caption = next(iter(element.findall("caption")), None)
        if caption is not None:
            self._line.append(inline(caption))
            self.flush("paragraph")
        self.blocks.append(Block("table", "", cells=cells))


def _has_block(element: Any) -> bool:
    return any(isinstance(inner.tag, str) and inner.tag not in INLINE and inner.tag not in DROPPED
               for inner in element.iterdescendants())  # fmt: skip


def _is_link_list(element: Any) -> bool:
    """Return whether more than 40 % of a text is links, as in an index."""
    length = len("".join(element.itertext()).strip())
    linked = sum(len("".join(link.itertext())) for link in element.iter("a"))
    return linked > 0.4 * length


def _is_lead(element: Any) -> bool:
    """Return whether a whole paragraph is bold, which is how headings without heading markup are written."""
    bold = "".join("".join(inner.itertext()) for inner in element if inner.tag in ("b", "strong"))
    return bool(bold.strip()) and one_line("".join(element.itertext())) == one_line(bold)


def _direct(element: Any, tags: tuple[str, ...]) -> Iterator[Any]:
    """Yield the children with these tags, including those grouped in a `div`."""
    for child in element:
        if child.tag in tags:
            yield child
        elif child.tag == "div":
            yield from (inner for inner in child if inner.tag in tags)
