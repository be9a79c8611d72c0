"""An audit as people ask for it: a file or a recipe, against test rows, with a model's help where one is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.aliases import changed_keys
from tunesmith.data.audit.chunks import has_column, head
from tunesmith.data.audit.findings import Audit
from tunesmith.data.audit.fix import CleanedCopy, check_out, fix, log_of
from tunesmith.data.audit.options import AuditSource, Tools
from tunesmith.data.audit.run import audit
from tunesmith.data.files import check_folder, is_recipe
from tunesmith.data.readers.row import Row, file_of, missing_column
from tunesmith.data.schema.formats import LOOKED_AT, Format, detect
from tunesmith.errors import DataError
from tunesmith.report.html import environment

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.models.loading.load import Base


MOODS = {"blocked": "bad", "look": "unsure", "clean": "good"}


TAGS = {"blocking": "bad", "warning": "warn", "note": ""}


def sentence(audit: Audit) -> str:
    """The whole audit in one line."""
    if not audit.findings:
        return f"nothing wrong was found in {audit.rows} rows"
    counts = {word: sum(f.severity == word for f in audit.findings) for word in TAGS}
    told = ", ".join(
        f"{count} {word}{'s' if count != 1 and word != 'blocking' else ''}" for word, count in counts.items() if count
    )
    if audit.verdict == "blocked":
        kinds = ", ".join(finding.kind for finding in audit.blocking)
        return f"blocked: {kinds} must be cured before tuning ({told}, {audit.rows} rows)"
    return f"nothing blocks; look at {told} in {audit.rows} rows"


def page(audit: Audit) -> str:
    """The audit's page; everything that came from rows is escaped."""
    template = environment().get_template("audit.html.jinja")
    return template.render(a=audit, sentence=sentence(audit), mood=MOODS[audit.verdict], tags=TAGS)


# Settings of an objective that name columns, by objective.
COLUMN_KEYS = {
    "classify": ("text", "label"),
    "instruct": ("prompt", "answer", "messages"),
    "domain": ("text",),
    "preference": ("chosen", "rejected", "prompt", "answer", "label"),
    "reward": ("chosen", "rejected", "prompt"),
    "rl": ("prompt", "answer", "messages"),
}


# Parts that rows to compare with need not have.
UNASKED = ("label", "answer", "system", "input", "history", "tools")


EMBEDDED_TOKENS = 256


# Tokens of a row where neither the recipe nor the model sets a bound.
DEFAULT_MAX_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """What the user asked for: rows or a recipe, test rows, a model that helps, `key=value` changes, a cleaned copy.

    `pages` are files that the caller will write the findings to.
    """

    source: str
    against: str = ""
    model: str = ""
    changes: tuple[str, ...] = ()
    fix: Path | None = None
    pages: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """What was found, and what became of the rows if a cleaned copy was asked for."""

    audit: Audit
    fixed: CleanedCopy | None


def audit_rows(request: AuditRequest, *, workers: int = 1, offline: bool = False, log: Callable[[str], None]) -> Done:
    """The audit of a file, and its cleaned copy where one is asked for. Raises DataError, RecipeError, ModelError."""
    if request.fix is not None:
        check_out(request.fix)
    for path in request.pages:
        check_folder(path)
    ask, limit = _ask(request, offline=offline)
    _check_apart(request, ask)
    log(ask.shape)
    model = model_tools(request.model, limit=limit, offline=offline) if request.model else {}
    found, cures = audit(ask, Tools(workers=workers, offline=offline, log=log, **model))
    return Done(found, None if request.fix is None else fix(ask, cures, request.fix, offline=offline))


def _check_apart(request: AuditRequest, ask: AuditSource) -> None:
    """Raise DataError where a file would be written over one that is read, or over another that is written."""
    taken = {Path(source).resolve() for source in (request.source, ask.source, *ask.against)}
    folders = [path for path in taken if path.is_dir()]
    for path in (*([request.fix, log_of(request.fix)] if request.fix else []), *request.pages):
        whole = path.resolve()
        if whole in taken or any(whole.is_relative_to(folder) for folder in folders):
            raise DataError(f"{path}: is read, or written, by this audit too; give it a name of its own")
        taken.add(whole)


def _ask(request: AuditRequest, *, offline: bool) -> tuple[AuditSource, int]:
    """Which file and columns, and the longest row of the recipe (0 without one)."""
    recipe = _recipe(request, offline=offline)
    if recipe and recipe.parts:
        name, part = next(iter(recipe.parts.items()))
        cure = f"name one task's file, such as that of {name}: tunesmith audit {part.data.train}"
        raise DataError(f"{request.source}: a recipe of {len(recipe.parts)} tasks, each with rows of its own; {cure}")
    source = recipe.data.train if recipe else request.source
    rows = head(source, LOOKED_AT, offline=offline)
    found = _format(rows, recipe) if recipe else detect(rows)
    where = recipe.data.where if recipe else {}
    if recipe and recipe.data.group and not has_column(source, recipe.data.group, offline=offline):
        raise DataError(missing_column(rows, recipe.data.group))
    against = tuple(filter(None, [request.against])) or _held(recipe)
    for other in against:
        _same_columns(other, found.columns, offline=offline)
    shape = found.explain().replace("detected as named", "columns as named")
    return AuditSource(source, found.columns, against, where, shape), recipe.data.max_tokens if recipe else 0


def _recipe(request: AuditRequest, *, offline: bool) -> Recipe | None:
    """The recipe that was named, or that the changes stand for; None for rows alone."""
    whole = is_recipe(Path(request.source))
    if not whole and not request.changes:
        return None
    from tunesmith.config import load_recipe, make_recipe  # loads torch, which rows alone do not need

    if not whole:
        return make_recipe(_raw(request, offline=offline), place=request.source, changes=request.changes)[0]
    return load_recipe(request.source, changes=request.changes)[0]


def _raw(request: AuditRequest, *, offline: bool) -> dict[str, Any]:
    """A recipe for a file of rows; which objective, the columns that are named tell, else the rows."""
    named = changed_keys(request.changes)
    raw: dict[str, Any] = {"data": {"train": request.source}}
    if named & {"objective", "objective.kind"}:
        return raw
    kinds = [kind for kind, keys in COLUMN_KEYS.items() if any(f"objective.{key}" in named for key in keys)]
    kind = kinds[0] if kinds else detect(head(request.source, LOOKED_AT, offline=offline)).objective
    return {**raw, "objective": {"kind": kind}}


def _format(rows: list[Row], recipe: Recipe) -> Format:
    """The columns that the recipe names; where it does not name all, laid over those that the rows tell."""
    settings = recipe.objective.model_dump()
    named = {key: settings[key] for key in COLUMN_KEYS.get(recipe.objective.kind, ()) if settings.get(key)}
    for column in named.values():
        if not any(column in row.fields for row in rows):
            raise DataError(missing_column(rows, column))
    from tunesmith.objectives import Rl  # loaded with the recipe, and only then

    if isinstance(recipe.objective, Rl) and set(asked := recipe.objective.columns(rows)) == {"prompt"}:
        return Format("as named", "", {"text": asked["prompt"]})  # no answer is learned from
    if not named:
        return detect(rows)
    columns = dict(recipe.objective.columns(rows))
    if missed := [part for part, column in columns.items() if not any(column in row.fields for row in rows)]:
        both = " and ".join(f"objective.{key}" for key in COLUMN_KEYS[recipe.objective.kind][:2])
        found = f"{detect(rows).name} rows have no {missed[0]} beside objective.{next(iter(named))}"
        raise DataError(f"{file_of(rows)}: {found}; name {both}, or leave it out")
    return Format("as named", "", columns)


def _held(recipe: Recipe | None) -> tuple[str, ...]:
    """The test and validation files of a recipe; shares of the rows are cut later, without copies."""
    parts = (recipe.data.test, recipe.data.validation) if recipe else ()
    return tuple(part for part in parts if isinstance(part, str))


def _same_columns(source: str, columns: Mapping[str, str], *, offline: bool) -> None:
    rows: list[Row] = head(source, LOOKED_AT, offline=offline)
    asked = [column for part, column in columns.items() if part not in UNASKED]
    for column in asked:
        if not any(column in row.fields for row in rows):
            raise DataError(missing_column(rows, column))


def model_tools(name: str, *, limit: int, offline: bool) -> dict[str, Any]:
    """What a model brings: a count of tokens and its limit, a reader of labels, an encoder's sentence embeddings."""
    from tunesmith.models.families import positions_of
    from tunesmith.models.loading.load import load_base
    from tunesmith.models.sentence_embeddings import sentence_vectors

    base = load_base(name, offline=offline)
    longest = positions_of(base.network.config.to_dict()) or limit or DEFAULT_MAX_TOKENS

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in base.tokenizer(list(texts), verbose=False)["input_ids"]]

    found: dict[str, Any] = {"count": count, "limit": min(limit or longest, longest), "read": partial(_read, base)}
    if base.family != "encoder":
        return found
    return {**found, "embed": partial(sentence_vectors, base, limit=min(longest, EMBEDDED_TOKENS))}


def _read(base: Base, texts: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
    """[N, D]: a model's states after each text, a decoder's after the question which label fits it."""

    from tunesmith.data.tokenization.chat_template import Template
    from tunesmith.inference.local_model import LocalModel
    from tunesmith.models.policy import Policy
    from tunesmith.objectives import Classify

    policy = Policy.over(base.network, family=base.family)
    policy.train(False)
    template = Template(base.tokenizer, chat=base.family == "decoder")
    states = LocalModel(policy, template, Classify(labels=tuple(labels)), EMBEDDED_TOKENS).embed(texts)
    return np.asarray(states.numpy(), np.float32)
