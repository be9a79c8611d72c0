"""Markdown as a tree of plain values, from which a page creates elements. No HTML is sent, so none can be injected."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

# A text, or {"tag": ..., "parts": [...]}. Pages create only elements of known tags.
Node = str | dict[str, Any]

TAGS = {
    "paragraph": "p", "bullet_list": "ul", "list_item": "li", "blockquote": "blockquote",
    "strong": "strong", "em": "em", "s": "s", "table": "table", "thead": "thead", "tbody": "tbody", "tr": "tr",
    "th": "th", "td": "td", "heading": "h4",
}  # fmt: skip
WORDS = {"text", "html_block", "html_inline", "text_special"}
CODE = {"code_inline", "code_block", "fence"}


def render(text: str) -> list[Node]:
    """Parse a text to nodes.

    HTML is kept as text, a link becomes its text and address, an image its description and address. If a letter or
    digit would be hidden, the whole text becomes one `pre` node.
    """
    from markdown_it.tree import SyntaxTreeNode

    nodes = _nodes(SyntaxTreeNode(_parser().parse(text)))
    written, visible = (Counter(filter(str.isalnum, part)) for part in (text, _text(nodes)))
    return nodes if written <= visible else [{"tag": "pre", "parts": [text]}]


def _text(nodes: list[Node]) -> str:
    """Return the visible text, including the counters of ordered lists."""
    visible = []
    for node in nodes:
        if isinstance(node, str):
            visible.append(node)
            continue
        if "start" in node:
            visible.append(" ".join(str(node["start"] + index) for index in range(len(node["parts"]))))
        visible.append(_text(node["parts"]))
    return "".join(visible)


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    parser: Any = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.normalizeLink = str  # addresses are displayed as written, never opened
    return parser.disable("reference")  # link definitions would be invisible


def _nodes(tree: Any) -> list[Node]:
    return [node for child in tree.children for node in _node(child)]


def _node(tree: Any) -> list[Node]:
    kind = tree.type
    if kind in WORDS:
        return [tree.content]
    if kind in CODE:
        code: Node = {"tag": "code", "parts": [tree.content]}
        if kind == "code_inline":
            return [code]
        language: list[Node] = [{"tag": "em", "parts": [tree.info.strip()]}, {"tag": "br", "parts": []}]
        return [{"tag": "pre", "parts": [*(language if tree.info.strip() else []), code]}]
    if kind in ("softbreak", "hardbreak", "hr"):
        return [{"tag": "hr" if kind == "hr" else "br", "parts": []}]
    if kind in ("link", "image"):
        address, title = (str(tree.attrs.get(name, "")) for name in ("href" if kind == "link" else "src", "title"))
        nodes = _nodes(tree)
        return nodes if nodes == [address] else [*nodes, f" ({' '.join(filter(None, [address, title]))})"]
    if kind == "ordered_list":
        return [{"tag": "ol", "parts": _nodes(tree), "start": tree.attrs.get("start", 1)}]
    # Of unknown elements the content is kept. Paragraphs of a tight list are marked as hidden.
    return [{"tag": TAGS[kind], "parts": _nodes(tree)}] if kind in TAGS and not tree.hidden else _nodes(tree)
