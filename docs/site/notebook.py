"""A notebook as a page: its text, its code, and the outputs that were saved with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def as_markdown(path: Path) -> str:
    """Return a notebook as Markdown."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join(cell_text(cell) for cell in cells) + "\n"


def cell_text(cell: dict[str, Any]) -> str:
    """Return one cell: Markdown as it is, code in a block, followed by its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    return "\n\n".join([f"```python\n{source}\n```", *filter(None, map(output_text, cell["outputs"]))])


def output_text(output: dict[str, Any]) -> str:
    """Return an output: a table as HTML, other results and what was printed as text."""
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="output">\n{"".join(data["text/html"]).strip()}\n</div>'
    text = "".join(data.get("text/plain", output.get("text", "")))
    return f"```text\n{ESCAPES.sub('', text).rstrip()}\n```" if text.strip() else ""
