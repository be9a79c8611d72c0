"""The files of a run that an upload to the Hub consists of: its model, a manifest and a card; nothing quotes a row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tunesmith.config import Recipe
from tunesmith.config.load import WORDS, with_places
from tunesmith.data.remote import last_part
from tunesmith.display import model_label
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
# A URL, or a path from the root of a file system; the group is its last part.
_PATH = re.compile(
    r"""(?<![\w/\\.:<])(?:[a-z][a-z0-9+.-]+://[^\s'"<>?]*/|(?:[A-Za-z]:)?(?:[\\/]{1,2}[^\s'",;:()<>\\/]+)+[\\/])"""
    r"""([^\s'",;:()<>\\/?]+)(?:\?[^\s'"<>]*)?"""
)
# Of a tokenizer: these have any word.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")


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
    named = {"base": published.base, "objective": manifest.objective.with_models(model_label)}
    files[MANIFEST_FILE] = manifest.model_copy(update=named).text().encode()
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


def row_sources(recipe: Recipe) -> list[str]:
    """Return the sources of all rows, texts and documents of a recipe."""
    found = []

    def note(source: str) -> str:
        found.append(source)
        return source

    with_places(recipe, rows=note, code=str)
    return [source for source in found if source and source not in WORDS]


def _without_rows(run: RunData, published: Published) -> RunData:
    """Return what may be public of a run: no rows, and of paths only the last part."""
    places = {source: last_part(source) for source in (*row_sources(run.recipe), run.recipe.model)}
    home = str(Path.home())
    # Longest first: one may be the beginning of another.
    shorter = sorted(
        {path.replace(home, start): name for path, name in places.items() for start in (home, "~")}.items(),
        key=lambda pair: -len(pair[0]),
    )

    def shortened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shortened(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shortened(inner) for inner in value]
        if not isinstance(value, str):
            return value
        for path, name in shorter:
            value = value.replace(path, name)
        return _PATH.sub(r"\1", value.replace(home, "~"))

    report = Report.model_validate(shortened(run.report.model_dump(mode="json")))
    report = report.model_copy(update={"model": published.base.partition("@")[0], "exports": []})
    run = replace(run, report=report, predictions=[], published=published)
    return replace(run, recipe_text=training_settings(run))


def _check_paths(files: Mapping[str, Path | bytes], run: Path) -> None:
    """Raise CheckpointError if a text contains the path of the run or of the user's home, from wherever it came."""
    places = {place for place in (run.resolve(), Path.home().resolve(), Path.home()) if place.parent != place}
    named = {text for place in places for text in (str(place), place.as_posix(), quote(place.as_posix(), safe=""))}
    named |= {quote(text, safe="/:") for text in named} | {json.dumps(text)[1:-1] for text in named}
    path = re.compile("|".join(rf"{re.escape(text)}(?!\w)" for text in sorted(named)).encode())
    for name, content in files.items():
        if name in _VOCABULARIES or name.endswith(".safetensors"):
            continue
        if found := path.search(content if isinstance(content, bytes) else content.read_bytes()):
            raise CheckpointError(
                f"{name}: names {found[0].decode()!r}, a path of this machine, so it is not uploaded; "
                "take it out of the recipe and tune again"
            )
