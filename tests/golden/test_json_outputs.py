"""Frozen JSON documents of every command: their keys, numbers and labels may not change.

`--schema`, `--json`, the answers of `serve`, `label` and `feedback`, and the files of a run folder. Times, sizes and
facts of the machine are compared by type, sentences by presence (`documents.py` lists the keys). Where torch,
transformers or the processor are others than those that recorded the files, keys and types alone are compared.
`demo` is left out: it tunes the models that are always there, for minutes. `python -m tests.golden.record` writes the
files anew.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.golden.commands import COMMANDS, RUN_FOLDERS, run_all
from tests.golden.documents import comparable, plain_schema, shape, steady
from tests.golden.frozen import differences, load, record, recording
from tests.golden.runs import signature

pytestmark = pytest.mark.long  # also the first case: it would run every command

NAMES = [*COMMANDS, *(f"files-{run}" for run in RUN_FOLDERS)]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every command gave, each having run once in the same folder."""
    folder = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = run_all(folder)
    # `runs` sorts by the minute in which a run ended: a minute may begin between two of them.
    found["runs"]["documents"][0]["runs"].sort(key=lambda run: str(run["run"]))
    for name in found:
        if name.startswith("schema-"):
            found[name]["documents"] = [plain_schema(document) for document in found[name]["documents"]]
    return {name: steady(document, str(folder.parent)) for name, document in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_command_gives_the_frozen_document(name: str, documents: dict[str, Any]) -> None:
    if recording():
        record("json", "signature", signature())
        record("json", name, documents[name])
        return
    same = load("json", "signature") == signature()
    seen = comparable if same or name.startswith("schema-") else shape
    faults = differences(seen(load("json", name)), seen(documents[name]))
    assert not faults, "\n".join(faults[:30])
