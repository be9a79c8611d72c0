"""The pages for programs: llms.txt lists them, llms-full.txt has all of them, each page is also there as Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from docs.site.pages import chapters

TOCTREE = re.compile(r"\n```\{toctree\}.*?```\n", re.DOTALL)
DIRECTIVE = re.compile(r"^:{3,}\{py:\w+\} (.*)$", re.MULTILINE)
FENCE_END = re.compile(r"^:{3,}\n?", re.MULTILINE)
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
SUMMARY = (
    "Tunesmith fine-tunes a language model on your own rows and measures, on held-out rows, whether that helped: base "
    "and tuned model on the same rows, with baselines, controls, intervals and p-values. It runs on a CPU, offline."
)
# Long tables of results, and files of the repository, are listed but not part of llms-full.txt.
LISTED_ONLY = re.compile(r"reference/(grid.*|licences|measured)$|decisions/|repository/")


def plain(text: str) -> str:
    """Return a page without the marks that only Sphinx reads."""
    text = TOCTREE.sub("", text)
    text = DIRECTIVE.sub(lambda found: f"#### `{found[1]}`", text)
    return FENCE_END.sub("", text).replace("](site:", "](").rstrip() + "\n"


def write(source: Path, html: Path) -> None:
    """Write the files for programs into the site.

    Args:
        source: folder of the pages that Sphinx read.
        html: folder of the site.
    """
    pages = {path.relative_to(source).with_suffix("").as_posix(): path for path in sorted(source.rglob("*.md"))}
    texts = {name: plain(path.read_text("utf-8")) for name, path in pages.items()}
    for name, text in texts.items():
        (html / f"{name}.md").write_text(text, "utf-8")
    index = pages["index"].read_text("utf-8")
    grouped = {heading: names for heading, names in chapters(index) if names}
    generated = [name for name in texts if name.startswith("reference/") and name not in grouped["Reference"]]
    grouped["Reference"] += generated
    lines = ["# Tunesmith", "", f"> {SUMMARY}", ""]
    for heading, names in grouped.items():
        title = "Optional" if heading == "Decisions" else heading  # llmstxt.org: may be skipped for a short context
        lines += [f"## {title}", "", *(f"- [{title_of(texts[name])}]({name}.md)" for name in names), ""]
    (html / "llms.txt").write_text("\n".join(lines), "utf-8")
    full = [name for names in grouped.values() for name in names if not LISTED_ONLY.match(name)]
    (html / "llms-full.txt").write_text("\n\n".join(texts[name] for name in full), "utf-8")


def title_of(text: str) -> str:
    """Return the title of a page."""
    found = TITLE.search(text)
    return found[1] if found else ""
