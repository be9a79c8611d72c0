"""The documentation site, built as `make docs` builds it, with every way to the network blocked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser

import tunesmith
from docs.site import pages
from docs.site.reference import public
from tests.test_words import FORBIDDEN

pytestmark = pytest.mark.timeout(1200)  # the first test waits for the build

ROOT = Path(__file__).parents[2]
OFFLINE = """
import runpy, socket, sys
def refuse(*_): raise OSError("a build of the site asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
sys.argv[1:] = ["--out", sys.argv[1]]
runpy.run_module("docs.site", run_name="__main__")
"""
# Elements that load what they name; a plain link does not.
LOADS = {
    "script": "src",
    "img": "src",
    "source": "srcset",
    "iframe": "src",
    "video": "src",
    "audio": "src",
    "use": "href",
}
# A laboratory notebook; what was measured stays as it was written.
LEFT_OUT = ("repository/bench/NOTES",)


class Page(HTMLParser):
    """What a page loads, what it links to, its anchors, and its text outside of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.lines: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag in ("pre", "code", "script", "style"):
            self.open.append(tag)
        if tag in LOADS and values.get(LOADS[tag]):
            self.loads.append(values[LOADS[tag]])
        if tag == "link" and values.get("rel") not in ("search", "next", "prev", "index", "canonical"):
            self.loads.append(values["href"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open and data.strip():
            self.lines += data.splitlines()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def built(site: Path) -> dict[str, Page]:
    """The pages of the site by their path."""
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


@pytest.mark.long
def test_every_page_of_docs_is_on_the_site(built: dict[str, Page]):
    docs = ROOT / "docs"
    assert {path.relative_to(docs).with_suffix(".html").as_posix() for path in docs.rglob("*.md")} <= set(built)
    assert {"reference/options.html", "reference/api.html", "reference/json.html", "notebook.html"} <= set(built)


def test_nothing_is_loaded_from_another_host(site: Path, built: dict[str, Page]):
    foreign = [f"{name}: {one}" for name, page in built.items() for one in page.loads if re.match(r"(\w+:)?//", one)]
    for path in [*site.rglob("*.css"), *site.rglob("*.html")]:
        text = path.read_text("utf-8")
        foreign += re.findall(r"url\(\s*[\"']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", text)
    for path in site.rglob("*.js"):
        foreign += re.findall(r"(?:fetch|import|open|src\s*=)\s*\(?\s*[\"'`]https?://[^\"'`]*", path.read_text("utf-8"))
    assert not foreign
    assert sum(len(page.loads) for page in built.values()) > 500  # the parser saw what pages load


def test_every_link_on_the_site_has_its_target(site: Path, built: dict[str, Page]):
    broken = []
    for name, page in built.items():
        for link in (*page.links, *(one.split()[0] for one in page.loads)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or name.startswith("reports/") and name.endswith("html") and link == "#":
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            path = target.resolve()
            anchors = (
                built[path.relative_to(site).as_posix()].anchors if path.suffix == ".html" and path.exists() else None
            )
            if not path.exists() or (parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors):
                broken.append(f"{name}: {link}")
    assert not broken


def test_every_public_name_has_its_reference(built: dict[str, Page]):
    anchors = built["reference/api.html"].anchors
    names = set(tunesmith.__all__) - {"__version__"}
    assert {f"tunesmith.{name}" for name in names} <= anchors
    silent = [name for name in names if not public(name).docstring or len(public(name).docstring.value) < 20]
    assert not silent


def test_arguments_of_public_functions_are_described():
    missing = []
    for name in tunesmith.__all__:
        if name == "__version__" or not public(name).is_function:
            continue
        item = public(name)
        sections = {part.kind.value: part.value for part in item.docstring.parse("google")}
        described = {one.name.lstrip("*") for one in sections.get("parameters", [])}
        missing += [f"{name}: {one.name}" for one in item.parameters if one.name not in described]
        missing += (
            [name] if item.returns is not None and str(item.returns) != "None" and "returns" not in sections else []
        )
    assert not missing


def test_no_word_of_the_old_dialect_is_on_the_site(site: Path, built: dict[str, Page]):
    # Reports were written by the version that made them: they have no page of Markdown.
    ours = {name: page for name, page in built.items() if (site / name).with_suffix(".md").exists()}
    ours = {name: page for name, page in ours.items() if not name.startswith(LEFT_OUT)}
    found = [
        f"{name}: {match[0]!r} in {line.strip()[:90]!r}"
        for name, page in ours.items()
        for line in page.lines
        if (match := FORBIDDEN.search(line))
    ]
    assert len(ours) > 60
    assert not found, f"{len(found)} lines:\n" + "\n".join(found)


def test_programs_find_every_page(site: Path):
    listed = re.findall(r"^- \[(.+)\]\((\S+)\)$", (site / "llms.txt").read_text("utf-8"), re.MULTILINE)
    assert len(listed) > 60
    assert [path for _, path in listed if not (site / path).is_file()] == []
    full = (site / "llms-full.txt").read_text("utf-8")
    skipped = re.compile(r"reference/(grid.*|licences|measured)\.md|decisions/|repository/")
    assert [title for title, path in listed if f"# {title}" not in full and not skipped.match(path)] == []
    assert "tunesmith.tune(" in full
    assert ":::" not in full
    assert json.loads((site / "schemas" / "report.json").read_text())["title"] == "Report"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a page](missing.md)", "missing"),
        ("[a heading](index.md#no-such-heading)", "no-such-heading"),
        ("```{tocktree}\n```", "tocktree"),
    ],
)
def test_what_sphinx_warns_of_fails_the_build(tmp_path: Path, text: str, problem: str):
    (tmp_path / "index.md").write_text(f"# A page\n\n{text}\n")
    options = ["-q", "-W", "--keep-going", "-c", str(ROOT / "docs" / "site"), str(tmp_path), str(tmp_path / "html")]
    done = subprocess.run([sys.executable, "-m", "sphinx", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert problem in done.stderr


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[pages.Staging]:
    """A repository with a page that links to each kind of file."""
    for name in ("docs/how-to/tune.md", "docs/a.html", "bench/NOTES.md", "examples/rows.yaml", "docs/images/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# A title\n")
    return pages.Staging(tmp_path, tmp_path / "source")


@pytest.mark.parametrize(
    ("written", "settled"),
    [
        ("[a](../how-to/tune.md#x)", "[a](tune.md#x)"),
        ("[a](../../bench/NOTES.md#x)", "[a](../repository/bench/NOTES.md#x)"),
        ("[a](../../examples/rows.yaml)", "[a](../repository/examples/rows.yaml.md)"),
        ("[a](../a.html)", "[a](site:../a.html)"),
        ("![a](../images/x.png)", "![a](../images/x.png)"),
        ('<img src="../images/x.png">', '<img src="../images/x.png">'),
        ("[a](https://example.org) [b](#here)", "[a](https://example.org) [b](#here)"),
        ("`[a](../a.html)`", "`[a](../a.html)`"),
        ("```\n[a](../a.html)\n```\n", "```\n[a](../a.html)\n```\n"),
    ],
)
def test_links_are_settled_for_the_site(staging: pages.Staging, written: str, settled: str):
    assert staging.settle(written, staging.root / "docs" / "how-to" / "tune.md") == settled


def test_a_link_to_a_missing_file_stops_the_build(staging: pages.Staging):
    with pytest.raises(FileNotFoundError, match=r"bench/gone.md: a page links to this file"):
        staging.settle("[a](../../bench/gone.md)", staging.root / "docs" / "how-to" / "tune.md")


@pytest.mark.browser
def test_search_works_from_the_folder_without_a_server(site: Path, browser: Browser):
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.goto((site / "search.html").as_uri() + "?q=overfit+check")
    results = page.locator("#search-results li a")
    results.first.wait_for()
    assert results.count() >= 3
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", background)[:3]) < 60  # dark as the system is
    # Wide tables, formulas and code scroll by themselves; the page does not.
    for name in ("tutorial", "reference/options", "reference/json", "explanation/formulas", "reports/README"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
    context.close()
