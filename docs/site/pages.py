"""Copy the pages into the folder that Sphinx reads, with links that work on the site.

A link in docs/ is relative to its file, as GitHub wants it. On the site

- a page of docs/ keeps its path,
- any other file of docs/ (reports, images, rows) is copied next to the pages,
- a file elsewhere in the repository becomes a page below `repository/`, if some page links to it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docs.site import notebook

FENCE = re.compile(r"^ *(`{3,}|:{3,})")
# A code span, or the target of a link, an image or a picture; links inside of code spans are text.
TARGET = re.compile(
    r"(?P<code>(?<!`)(`+)(?!`).*?(?<!`)\2(?!`))|(?P<before>\]\(|\bsrc=\"|\bsrcset=\")(?P<to>[^)\"\s]+)", re.DOTALL
)
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
PAGE_LINK = re.compile(r"\]\(([^)#\s]+\.(?:md|ipynb))\)")
# Files of the repository that have a page even if no page of docs/ links to them.
ALWAYS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".jsonl": "text"}
MAX_LINES = 400  # of a file that is shown as code
START = "Start"


@dataclass
class Staging:
    """Where pages come from and go to, and which files of the repository they link to."""

    root: Path
    source: Path
    linked: list[Path] = field(default_factory=list)

    def place(self, file: Path) -> str:
        """Return the path of a file's page below `source`, or of its copy on the site.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        if not file.exists():
            raise FileNotFoundError(f"{file.relative_to(self.root)}: a page links to this file, and it is missing")
        docs = self.root / "docs"
        if docs in file.parents:
            name = file.relative_to(docs).as_posix()
            return re.sub(r"\.ipynb$", ".md", name)
        if file not in self.linked:
            self.linked.append(file)
        name = file.relative_to(self.root).as_posix()
        return f"repository/{name}" if file.suffix == ".md" else f"repository/{name}.md"

    def settle(self, text: str, file: Path) -> str:
        """Return the text of a page with its links as the site needs them.

        Args:
            text: Markdown.
            file: the file of the repository that it is from; its links are relative to it.
        """
        here = Path(self.place(file)).parent

        def target(found: re.Match[str]) -> str:
            to, before = found["to"], found["before"]
            if found["code"] or re.match(r"[a-z]+:|#", to):
                return found[0]
            path, hash_sign, anchor = to.partition("#")
            place = self.place((file.parent / path).resolve())
            relative = os.path.relpath(place, here)
            if before != "](":
                return f"{before}{relative}"
            is_page = place.endswith(".md")
            is_image = found.string[: opening(found.string, found.start())].endswith("!")
            # `site:` is the scheme of conf.py for what Sphinx is not to touch.
            return f"]({'' if is_page or is_image else 'site:'}{relative}{hash_sign}{anchor}"

        return outside_fences(text, lambda part: TARGET.sub(target, part))


def opening(text: str, end: int) -> int:
    """Return the index of the bracket that the one at `end` closes; links may contain images."""
    depth = 0
    for index in range(end, -1, -1):
        depth += {"]": 1, "[": -1}.get(text[index], 0)
        if not depth:
            return index
    return 0


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Apply a function to what is not in a fenced block of code."""
    parts: list[list[str]] = [[]]
    fence = ""
    for line in text.splitlines(keepends=True):
        found = FENCE.match(line)
        closes = bool(fence) and line.strip().startswith(fence) and not line.strip().strip(fence[0])
        if found and not fence:
            fence = found[1]
            parts.append([])
        parts[-1].append(line)
        if closes:
            fence = ""
            parts.append([])
    return "".join(change(joined) if not FENCE.match(joined) else joined for joined in map("".join, parts))


def stage(root: Path, source: Path, extra: Path) -> None:
    """Copy every page of docs/, and the files of the repository that they link to.

    Args:
        root: the repository.
        source: folder of the pages, created.
        extra: folder of the files that are copied to the site as they are, created.
    """
    staging = Staging(root, source)
    for file in sorted((root / "docs").rglob("*")):
        name = file.relative_to(root / "docs")
        if not file.is_file() or name.parts[0] == "site":
            continue
        if file.suffix == ".md":
            write(source / name, staging.settle(file.read_text("utf-8"), file))
        elif file.suffix == ".ipynb":
            write(source / name.with_suffix(".md"), staging.settle(notebook.as_markdown(file), file))
        else:
            for folder in [extra, *([source] if name.parts[0] == "images" or file.suffix == ".png" else [])]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / name)
    for name in ALWAYS:
        staging.place(root / name)
    for file in staging.linked:  # which grows as these pages link to further files
        write(source / staging.place(file), repository_page(staging, file))
    write(source / "repository" / "index.md", repository_index(staging))
    index = source / "index.md"
    index.write_text(with_navigation(index.read_text("utf-8")), "utf-8")


def repository_page(staging: Staging, file: Path) -> str:
    """Return the page of a file outside of docs/: its Markdown, its lines as code, or the list of a folder."""
    name = file.relative_to(staging.root).as_posix()
    if file.is_dir():
        return f"# {name}/\n\n" + "".join(f"- `{entry.name}`\n" for entry in sorted(file.iterdir()))
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        return staging.settle(text, file)
    lines = text.splitlines()
    note = f"The first {MAX_LINES} of {len(lines):,} lines.\n\n" if len(lines) > MAX_LINES else ""
    body = "\n".join(lines[:MAX_LINES])
    return f"# {name}\n\n{note}``````{LANGUAGES.get(file.suffix, 'text')}\n{body}\n``````\n"


def repository_index(staging: Staging) -> str:
    """Return the page that lists the pages of files outside of docs/."""
    names = sorted(staging.place(file).removeprefix("repository/") for file in staging.linked)
    listed = "".join(
        f"- [{name if Path(name.removesuffix('.md')).suffix else name.removesuffix('.md')}]({name})\n" for name in names
    )
    return (
        "# Files of the repository\n\nFiles outside of `docs/` that these pages link to.\n\n"
        + listed
        + toctree([name.removesuffix(".md") for name in names], "")
    )


def toctree(names: list[str], caption: str) -> str:
    """Return a hidden list of pages for the navigation."""
    lines = ["", "```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *names, "```", ""]
    return "\n".join(lines)


def chapters(index: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the headings of docs/index.md, and the pages that each links to, without suffix."""
    parts = HEADING.split(index)
    seen: set[str] = set()
    for heading, text in zip([START, *parts[1::2]], parts[::2], strict=True):
        names = dict.fromkeys(re.sub(r"\.(md|ipynb)$", "", name) for name in PAGE_LINK.findall(text))
        yield heading, [name for name in names if name not in seen]
        seen |= set(names)


def with_navigation(index: str) -> str:
    """Return the first page with the navigation that its headings and links describe."""
    trees = [toctree(names, heading) for heading, names in chapters(index) if names]
    return index + "".join(trees) + toctree(["repository/index"], "Repository")


def write(path: Path, text: str) -> None:
    """Write a page; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
