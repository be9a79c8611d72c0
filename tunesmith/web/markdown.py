"""Markdown as a tree of plain values, from which a page makes elements: no markup travels, so none can do harm."""

from __future__ import annotations

from functools import cache
from typing import Any

# A text, or {"tag": ..., "parts": [...]}. A page makes no element of another name.
Node = str | dict[str, Any]

TAGS = {
    "paragraph": "p", "bullet_list": "ul", "ordered_list": "ol", "list_item": "li", "blockquote": "blockquote",
    "strong": "strong", "em": "em", "s": "s", "table": "table", "thead": "thead", "tbody": "tbody", "tr": "tr",
    "th": "th", "td": "td", "heading": "h4",
}  # fmt: skip
WORDS = {"text", "html_block", "html_inline", "text_special"}
CODE = {"code_inline", "code_block", "fence"}


def render(text: str) -> list[Node]:
    """The nodes of a text. HTML in it is text, a link stands beside its words, an image is its description."""
    from markdown_it.tree import SyntaxTreeNode

    return _nodes(SyntaxTreeNode(_reader().parse(text)))


@cache
def _reader() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])


def _nodes(tree: Any) -> list[Node]:
    return [node for child in tree.children for node in _node(child)]


def _node(tree: Any) -> list[Node]:
    kind = tree.type
    if kind in WORDS:
        return [tree.content]
    if kind in CODE:
        code: Node = {"tag": "code", "parts": [tree.content]}
        return [code if kind == "code_inline" else {"tag": "pre", "parts": [code]}]
    if kind in ("softbreak", "hardbreak", "hr"):
        return [{"tag": "hr" if kind == "hr" else "br", "parts": []}]
    if kind in ("link", "image"):
        place = str(tree.attrs.get("href") or tree.attrs.get("src") or "")
        words = _nodes(tree)
        return words if words == [place] else [*words, f" ({place})"]
    # Of what is not known the inside stays; the paragraphs of a list without blank lines are hidden.
    return [{"tag": TAGS[kind], "parts": _nodes(tree)}] if kind in TAGS and not tree.hidden else _nodes(tree)
