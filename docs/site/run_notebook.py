"""Run the notebook and save it with its outputs: `python -m docs.site.run_notebook`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebook.ipynb"


def run(path: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """Return a notebook as a kernel of this Python runs it, offline; a cell that fails raises an error."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=3600, startup_timeout=600, resources=place)
    return client.execute()


def main() -> None:
    """Run the notebook in place; what depends on the machine or the moment is left out."""
    notebook = run()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # warnings of libraries name folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    text = re.sub(r"/tmp/tmp\w+", "/tmp/reviews", nbformat.writes(notebook))
    NOTEBOOK.write_text(text.rstrip() + "\n", "utf-8")
    print(f"{len(notebook.cells)} cells", file=sys.stderr)


if __name__ == "__main__":
    main()
