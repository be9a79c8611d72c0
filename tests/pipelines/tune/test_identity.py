"""The identity of a run, by which a later version finds, reuses and resumes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config import make_recipe
from tunesmith.training.run_folder import identities

# Recorded with the version before thinking and mixtures of experts had keys. A new recipe key belongs into `NEW_KEYS`.
RECORDED = {
    "classify": "8daa28b05188927c",
    "domain": "bb9b99c3ae45809c",
    "instruct": "a0ef514b9ff2c0e5",
    "reward": "bead0ffbdb295809",
    "rl": "c044573883ae7067",
    "instruct with full": "7c74274640f8059b",
    "instruct with ia3": "695c54c9aaafac2f",
    "instruct with dora": "c8c6eacfd589599a",
    "instruct with prompt": "471fa80bb03f7763",
    "instruct with prefix": "ecf20880d24df5da",
    "instruct with p-tuning": "74758403d19ae122",
}


@pytest.mark.parametrize("name", RECORDED)
def test_runs_of_earlier_versions_are_found_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    objective, _, technique = name.partition(" with ")
    raw = {"model": "smollm2-135m", "data": "rows.jsonl", "objective": objective, "technique": technique or "lora"}
    made = make_recipe(raw, place="recipe.yaml")[0]
    assert identities(made, Path("runs"))[0][0] == RECORDED[name]


def test_the_model_of_the_candidates_is_the_same_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "q", "passage": "p"}\n')
    raw = {"model": "minilm-l6", "data": {"train": str(rows)}}
    one, other = (
        make_recipe({**raw, "objective": {"kind": "rerank", "encoder": encoder}}, place="test")[0]
        for encoder in ("encoder", str(tmp_path / "encoder"))
    )
    assert identities(one, tmp_path) == identities(other, tmp_path)
