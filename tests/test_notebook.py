"""docs/notebook.ipynb: run from start to end with the real small encoder."""

from __future__ import annotations

import ast

import nbformat
import pytest

from docs.site.notebook import as_markdown
from docs.site.run_notebook import NOTEBOOK, run

pytestmark = [pytest.mark.real, pytest.mark.whole, pytest.mark.timeout(900)]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.long
def test_the_notebook_runs_from_start_to_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the kernel: other tests run beside it
    cells = code_cells(run())
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    shown = [
        "".join(output.get("text", "") or output["data"]["text/plain"] for output in cell.outputs) for cell in cells
    ]
    assert all(shown)
    assert "report.html" in shown[-1]
    assert set(ast.literal_eval(shown[-2])) <= {"positive", "negative"}


def test_the_notebook_has_a_page():
    page = as_markdown(NOTEBOOK)
    assert "```python\nimport json" in page
    assert "/tmp/tmp" not in page  # folders of the machine that ran it
