"""The files of a run that an upload to the Hub consists of: its model, a manifest and a card; nothing quotes a row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunesmith.errors import CheckpointError
from tunesmith.inference.identify import CONFIG, MANIFEST_FILE, ModelManifest, find_model
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.models.loading.checkpoint import MANIFEST, READ_BY_LIBRARIES, file_digests, verify_model
from tunesmith.report.html import page
from tunesmith.report.model_card import card, training_settings
from tunesmith.report.run_data import Published, RunData, read_run_data
from tunesmith.report.schema import Report

# Not in the top folder, whose JSON files are those of the model.
REPORT = "report/report.json"
PAGE = "report/report.html"
# A path from the root of a file system; the group is its last part.
_PATH = re.compile(r"""(?<![\w/\\.:<])(?:[A-Za-z]:)?(?:[\\/][^\s'",;:()<>\\/]+)+[\\/]([^\s'",;:()<>\\/]+)""")


def upload_of(run: Path, published: Published, *, report: bool) -> dict[str, Path | bytes]:
    """Return what is uploaded of a finished run: name in the repository -> file or content.

    Files are taken from the model folder only, and of these the ones that the run itself has written there.

    Args:
        run: the run folder.
        published: the repository, the base, and the licence.
        report: also the report, without its example rows.

    Raises:
        CheckpointError: the run is not finished, or a file has changed.
    """
    folder = find_model(run)
    verify_model(folder)
    files: dict[str, Path | bytes] = {
        name: folder / name
        for name in file_digests(folder)
        if Path(name).suffix in READ_BY_LIBRARIES and Path(name).name == name
    }
    manifest = ModelManifest.model_validate_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    files[MANIFEST_FILE] = manifest.model_copy(update={"base": published.base}).text().encode()
    if CONFIG in files:
        files[CONFIG] = _adapter_config(folder / CONFIG, published.base)
    digests = file_digests(folder) | {
        name: sha256(content).hexdigest() for name, content in files.items() if isinstance(content, bytes)
    }
    files[MANIFEST] = json.dumps({name: digests[name] for name in files}, indent=1).encode()
    data = _without_rows(read_run_data(run), published)
    files["README.md"] = card(data).encode()
    if report:
        files[REPORT] = data.report.model_dump_json(indent=1).encode()
        files[PAGE] = page(data).encode()
    _check_paths(files, run)
    return files


def _adapter_config(file: Path, base: str) -> bytes:
    """Return the configuration of an adapter with the base as other programs find it: on the Hub."""
    config = json.loads(file.read_text(encoding="utf-8"))
    named, _, revision = (BUNDLED_MODELS[base].hub_id if base in BUNDLED_MODELS else base).partition("@")
    return json.dumps(config | {"base_model_name_or_path": named, "revision": revision or None}, indent=2).encode()


def _without_rows(run: RunData, published: Published) -> RunData:
    """Return what may be public of a run: no rows, and of paths only the last part."""
    report = Report.model_validate(_shortened(run.report.model_dump(mode="json")))
    report = report.model_copy(update={"model": published.base.partition("@")[0], "exports": []})
    run = replace(run, report=report, predictions=[], published=published)
    return replace(run, recipe_text=training_settings(run))


def _shortened(value: Any) -> Any:
    """Return a JSON value with the last part of every absolute path in its texts."""
    if isinstance(value, Mapping):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    return _PATH.sub(r"\1", value.replace(str(Path.home()), "~")) if isinstance(value, str) else value


def _check_paths(files: Mapping[str, Path | bytes], run: Path) -> None:
    """Raise CheckpointError if a text contains the path of the run or of the user's home, from wherever it came."""
    places = {str(run.resolve()), str(Path.home().resolve()), str(Path.home())}
    named = "|".join(re.escape(place) for place in places)
    path = re.compile(rf"(?<![\w/.])({named})(?=[\\/\"'\s])".encode())
    for name, content in files.items():
        if name == "tokenizer.json" or name.endswith(".safetensors"):  # a vocabulary has any word
            continue
        if found := path.search(content if isinstance(content, bytes) else content.read_bytes()):
            raise CheckpointError(
                f"{name}: names {found[1].decode()!r}, a path of this machine, so it is not uploaded; "
                "take it out of the recipe and tune again"
            )
