"""An audit as people ask for it: a file or a recipe, against test rows, with a model's help where one is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.ask import Ask, Tools
from tunesmith.data.audit.finding import Audit
from tunesmith.data.audit.fix import Fixed, check_out, fix
from tunesmith.data.audit.run import audit
from tunesmith.data.audit.stream import head
from tunesmith.data.formats import LOOKED_AT, Format, detect
from tunesmith.data.rows import Row, as_word, missing_column
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

# Settings of an objective that name columns, by objective.
COLUMN_KEYS = {"classify": ("text", "label"), "instruct": ("prompt", "answer", "messages"), "domain": ("text",)}
EMBEDDED_TOKENS, EMBEDDED_ROWS = 256, 32


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for: rows or a recipe, test rows, a model that helps, `key=value` changes, a cleaned copy."""

    source: str
    against: str = ""
    model: str = ""
    changes: tuple[str, ...] = ()
    fix: Path | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What was found, and what became of the rows if a cleaned copy was asked for."""

    audit: Audit
    fixed: Fixed | None


def audit_rows(wish: Wish, *, workers: int = 1, offline: bool = False, tell: Callable[[str], None]) -> Done:
    """The audit of a file, and its cleaned copy where one is asked for. Raises DataError, RecipeError, ModelError."""
    if wish.fix is not None:
        check_out(wish.fix)
    ask, limit = _ask(wish, offline=offline)
    tell(ask.shape)
    model = _model(wish.model, limit=limit, offline=offline) if wish.model else {}
    found, cures = audit(ask, Tools(workers=workers, offline=offline, tell=tell, **model))
    return Done(found, None if wish.fix is None else fix(ask, cures, wish.fix, offline=offline))


def _ask(wish: Wish, *, offline: bool) -> tuple[Ask, int]:
    """Which file and columns, and the longest row of the recipe (0 without one)."""
    recipe = _recipe(wish, offline=offline)
    source = recipe.data.train if recipe else wish.source
    rows = head(source, LOOKED_AT, offline=offline)
    named = _named(recipe) if recipe else {}
    for column in named.values():
        if not any(column in row.fields for row in rows):
            raise DataError(missing_column(rows, column))
    found = Format("as named", "", named) if named else detect(rows)
    where = {} if recipe is None else {c: frozenset(map(_word, values)) for c, values in recipe.data.where.items()}
    against = tuple(filter(None, [wish.against])) or _held(recipe)
    for other in against:
        _same_columns(other, found.columns, offline=offline)
    shape = found.explain().replace("detected as named", "columns as named")
    return Ask(source, found.columns, against, where, shape), recipe.data.max_tokens if recipe else 0


def _recipe(wish: Wish, *, offline: bool) -> Recipe | None:
    """The recipe that was named, or that the changes stand for; None for rows alone."""
    if Path(wish.source).suffix.lower() not in (".yaml", ".yml") and not wish.changes:
        return None
    from tunesmith.recipe import load_recipe, make_recipe  # loads torch, which rows alone do not need

    if wish.changes and Path(wish.source).suffix.lower() not in (".yaml", ".yml"):
        return make_recipe(_raw(wish, offline=offline), place=wish.source, changes=wish.changes)[0]
    return load_recipe(wish.source, changes=wish.changes)[0]


def _raw(wish: Wish, *, offline: bool) -> dict[str, Any]:
    """A recipe for a file of rows; which objective, the columns that are named tell, else the rows."""
    named = {change.partition("=")[0] for change in wish.changes}
    raw: dict[str, Any] = {"data": {"train": wish.source}}
    if named & {"objective", "objective.kind"}:
        return raw
    kinds = [kind for kind, keys in COLUMN_KEYS.items() if any(f"objective.{key}" in named for key in keys)]
    kind = kinds[0] if kinds else detect(head(wish.source, LOOKED_AT, offline=offline)).objective
    return {**raw, "objective": {"kind": kind}}


def _named(recipe: Recipe) -> dict[str, str]:
    """Our word for a part -> its column, where the recipe names all that its objective needs."""
    settings = recipe.objective.model_dump()
    found = {key: settings[key] for key in COLUMN_KEYS.get(recipe.objective.kind, ()) if settings.get(key)}
    whole = "messages" in found or len(found) == 2 or recipe.objective.kind == "domain"
    return found if whole else {}


def _held(recipe: Recipe | None) -> tuple[str, ...]:
    """The test and validation files of a recipe; shares of the rows are cut later, without copies."""
    parts = (recipe.data.test, recipe.data.validation) if recipe else ()
    return tuple(part for part in parts if isinstance(part, str))


def _same_columns(source: str, columns: Mapping[str, str], *, offline: bool) -> None:
    rows: list[Row] = head(source, LOOKED_AT, offline=offline)
    asked = [column for part, column in columns.items() if part not in ("label", "answer", "system", "input", "tools")]
    for column in asked:
        if not any(column in row.fields for row in rows):
            raise DataError(missing_column(rows, column))


def _word(value: object) -> str:
    return as_word(value) or str(value)


def _model(name: str, *, limit: int, offline: bool) -> dict[str, Any]:
    """What a model brings: a count of tokens and its limit, and an encoder's sentence embeddings."""
    from tunesmith.model.load import load_base

    base = load_base(name, offline=offline)
    longest = int(base.network.config.max_position_embeddings)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in base.tokenizer(list(texts))["input_ids"]]

    found: dict[str, Any] = {"count": count, "limit": min(limit or longest, longest)}
    return {**found, "embed": _embedder(base, min(longest, EMBEDDED_TOKENS))} if base.family == "encoder" else found


def _embedder(base: Any, longest: int) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """(n, D) mean states of an encoder, each of length one: texts of like meaning lie near each other."""
    from contextlib import nullcontext

    import torch

    from tunesmith.data.template import Encoded, Template
    from tunesmith.model.batch import collate
    from tunesmith.model.policy import Policy

    template = Template(base.tokenizer, chat=False)
    policy = Policy.over(base.network, family=base.family, reference=nullcontext)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [Encoded((template.document(text, limit=longest),), "") for text in texts]
        order = sorted(range(len(rows)), key=lambda i: rows[i].length)
        found = np.zeros((len(rows), policy.hidden), np.float32)
        for start in range(0, len(order), EMBEDDED_ROWS):
            part = order[start : start + EMBEDDED_ROWS]
            batch = collate([rows[i] for i in part], share=False)
            with torch.inference_mode():
                found[part] = policy.pooled(batch).float().numpy()
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9), np.float32)

    return embed
