"""Build the site strictly and offline: every warning is an error, and nothing is fetched."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from sphinx.cmd.build import main as sphinx

from docs.site import llms, pages, reference

CONFIGURATION = Path(__file__).parent
ROOT = CONFIGURATION.parents[1]


def build(out: Path) -> int:
    """Write the site to `out/html`, from pages in `out/source`. Return the exit code of Sphinx."""
    source, extra, html, doctrees = parts = [out / name for name in ("source", "extra", "html", "doctrees")]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    pages.stage(ROOT, source, extra)
    reference.write(source, extra)
    options = ["-W", "--keep-going", "--quiet", "-c", str(CONFIGURATION), "-d", str(doctrees)]
    code = sphinx([*options, str(source), str(html)])
    if not code:
        shutil.copytree(extra, html, dirs_exist_ok=True)
        llms.write(source, html)
    return code


def main() -> int:
    """Build the site and print its address."""
    parser = argparse.ArgumentParser(prog="python -m docs.site", description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder of the site")
    started = time.monotonic()
    out = parser.parse_args().out.resolve()
    code = build(out)
    if not code:
        count = len(list((out / "html").rglob("*.html")))
        print(f"{count} pages in {time.monotonic() - started:.0f} s: {(out / 'html' / 'index.html').as_uri()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
