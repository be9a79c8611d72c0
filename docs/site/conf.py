"""Configuration of Sphinx. Everything a page needs is in the site: no fonts, scripts or styles of other hosts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import tunesmith
from docs.site.mathml import add_mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Tunesmith"
author = "the authors of Tunesmith"
version = release = tunesmith.__version__
language = "en"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns: list[str] = []

# The anchors that GitHub makes from headings; a link to one that does not exist is a warning, hence an error.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_dmath_double_inline = True
# `site:` is a file of the site that is no page, such as a report.
myst_url_schemes = {"http": None, "https": None, "mailto": None, "site": {"url": "{{path}}"}}
# Pages quote outputs and mix languages in one fence; they need not be valid code.
suppress_warnings = ["misc.highlighting_failure"]

python_maximum_signature_line_length = 70
add_function_parentheses = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Tunesmith"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options: dict[str, Any] = {"footer_icons": [], "top_of_page_buttons": []}
pygments_style = "friendly"
pygments_dark_style = "native"


def setup(app: Sphinx) -> None:
    """Add the renderer of formulas."""
    add_mathml(app)
