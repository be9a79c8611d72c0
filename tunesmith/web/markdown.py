"""Markdown as a tree of plain values, from which a page makes elements: no markup travels, so none can do harm."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

# A text, or {"tag": ..., "parts": [...]}. A page makes no element of another name.
Node = str | dict[str, Any]

TAGS = {
    "paragraph": "p", "bullet_list": "ul", "list_item": "li", "blockquote": "blockquote",
    "strong": "strong", "em": "em", "s": "s", "table": "table", "thead": "thead", "tbody": "tbody", "tr": "tr",
    "th": "th", "td": "td", "heading": "h4",
}  # fmt: skip
WORDS = {"text", "html_block", "html_inline", "text_special"}
CODE = {"code_inline", "code_block", "fence"}


def render(text: str) -> list[Node]:
    """The nodes of a text. HTML in it is text, a link stands beside its words, an image is its description.

    A text of which a letter or digit would be hidden is one node that shows it as it is.
    """
    from markdown_it.tree import SyntaxTreeNode

    found = _nodes(SyntaxTreeNode(_reader().parse(text)))
    there, kept = (Counter(filter(str.isalnum, part)) for part in (text, _text(found)))
    return found if there <= kept else [{"tag": "pre", "parts": [text]}]


def _text(nodes: list[Node]) -> str:
    """What a reader sees, the numbers of lists with it."""
    return "".join(node if isinstance(node, str) else _numbers(node) + _text(node["parts"]) for node in nodes)


def _numbers(node: dict[str, Any]) -> str:
    first = node.get("start")
    return "" if first is None else " ".join(str(first + place) for place in range(len(node["parts"])))


@cache
def _reader() -> Any:
    from markdown_it import MarkdownIt

    reader: Any = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    reader.normalizeLink = str  # an address is shown, never opened: as it was written
    return reader.disable("reference")  # a definition would be nowhere to be seen


def _nodes(tree: Any) -> list[Node]:
    return [node for child in tree.children for node in _node(child)]


def _node(tree: Any) -> list[Node]:
    kind = tree.type
    if kind in WORDS:
        return [tree.content]
    if kind in CODE:
        code: Node = {"tag": "code", "parts": [tree.content]}
        words: list[Node] = [{"tag": "em", "parts": [tree.info.strip()]}, {"tag": "br", "parts": []}]
        return [
            code if kind == "code_inline" else {"tag": "pre", "parts": [*(words if tree.info.strip() else []), code]}
        ]
    if kind in ("softbreak", "hardbreak", "hr"):
        return [{"tag": "hr" if kind == "hr" else "br", "parts": []}]
    if kind in ("link", "image"):
        place, title = (str(tree.attrs.get(name, "")) for name in ("href" if kind == "link" else "src", "title"))
        words = _nodes(tree)
        return words if words == [place] else [*words, f" ({' '.join(filter(None, [place, title]))})"]
    if kind == "ordered_list":
        return [{"tag": "ol", "parts": _nodes(tree), "start": tree.attrs.get("start", 1)}]
    # Of what is not known the inside stays; the paragraphs of a list without blank lines are hidden.
    return [{"tag": TAGS[kind], "parts": _nodes(tree)}] if kind in TAGS and not tree.hidden else _nodes(tree)
