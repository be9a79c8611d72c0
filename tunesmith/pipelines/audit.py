"""`tunesmith audit`: check a file or the files of a recipe, optionally with the help of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.aliases import changed_keys
from tunesmith.config.commands import set_options
from tunesmith.data.audit.chunks import has_column, head
from tunesmith.data.audit.findings import Audit
from tunesmith.data.audit.fix import CleanedCopy, check_out, fix, log_of
from tunesmith.data.audit.options import AuditSource, Tools
from tunesmith.data.audit.run import audit
from tunesmith.data.examples.parsers import DIALOGUES
from tunesmith.data.files import check_folder, is_recipe, quoted
from tunesmith.data.readers.read import notes_of
from tunesmith.data.readers.row import Row, allowed_values, columns_of, file_of, has_allowed, missing_column
from tunesmith.data.schema.cells import has_column as has_cells
from tunesmith.data.schema.columns import LOOKED_AT
from tunesmith.data.schema.formats import ASKED, Format, detect, detect_or_guess
from tunesmith.data.schema.guess import Guess
from tunesmith.data.schema.values import has_plural_name, is_answer, is_open, label_separator
from tunesmith.data.splits.load import FIRST_ROWS
from tunesmith.display import Display, Displayed
from tunesmith.errors import DataError, UnsettledError
from tunesmith.objectives import OBJECTIVES
from tunesmith.pipelines.requests import AuditRequest
from tunesmith.report.html import environment

if TYPE_CHECKING:
    from tunesmith.config import Recipe

# Roles whose columns may be missing in test rows.
OPTIONAL_ROLES = tuple({role for each in OBJECTIVES for role in each.optional_columns})
GUESSED_FROM = 100_000  # rows, at most, whose values a guess looks at
EMBEDDED_TOKENS = 256  # of a text, for embeddings
DEFAULT_MAX_TOKENS = 2048  # of a row, if neither the recipe nor the model has a limit
# CSS classes of the page, by verdict and by severity.
VERDICT_CLASSES = {"blocked": "bad", "look": "unsure", "clean": "good"}
SEVERITY_CLASSES = {"blocking": "bad", "warning": "warn", "note": ""}


@dataclass(frozen=True, slots=True, repr=False)
class Done(Displayed):
    """The audit, and the cleaned copy if one was requested."""

    audit: Audit
    fixed: CleanedCopy | None

    def display(self) -> Display:
        """Show the audit, and what the cleaned copy contains."""
        shown = self.audit.display()
        if self.fixed is None:
            return shown
        copy = (
            f"{self.fixed.out}: {self.fixed.kept} rows kept, {self.fixed.changed} changed, {self.fixed.dropped} dropped"
        )
        return replace(shown, lines=[f"cleaned copy {copy}", *shown.lines])


def audit_rows(request: AuditRequest, *, workers: int = 1, offline: bool = False, log: Callable[[str], None]) -> Done:
    """Audit a file and write a cleaned copy if requested.

    Args:
        request: the options.
        workers: processes.
        offline: do not access the network.
        log: receives progress lines.

    Raises:
        DataError: the rows cannot be read, a column is missing, or an output would overwrite an input.
        RecipeError: the recipe is invalid.
        ModelError: the model cannot be loaded.
    """
    if request.fix is not None:
        check_out(request.fix)
    for path in request.pages:
        check_folder(path)
    recipe = _recipe(request, offline=offline)
    source = _source(request, recipe, offline=offline)
    # No output may overwrite an input or another output.
    taken = {Path(path).resolve() for path in (request.source, source.source, *source.against)}
    folders = [path for path in taken if path.is_dir()]
    for path in (*([request.fix, log_of(request.fix)] if request.fix else []), *request.pages):
        resolved = path.resolve()
        if resolved in taken or any(resolved.is_relative_to(folder) for folder in folders):
            raise DataError(f"{path}: this audit also reads or writes this file; choose another path")
        taken.add(resolved)
    for note in notes_of(source.source):
        log(note)
    log(source.shape)
    limit = recipe.data.max_tokens if recipe else 0
    model = model_tools(request.model, limit=limit, offline=offline) if request.model else {}
    result, fixes = audit(source, Tools(workers=workers, offline=offline, log=log, **model))
    return Done(result, None if request.fix is None else fix(source, fixes, request.fix, offline=offline))


def _recipe(request: AuditRequest, *, offline: bool) -> Recipe | None:
    """Return the named recipe, or one made of a file and settings; None for a file alone."""
    if not is_recipe(Path(request.source)) and not request.changes:
        return None
    from tunesmith.config import load_recipe, make_recipe  # imports torch, which rows alone do not need

    if is_recipe(Path(request.source)):
        return load_recipe(request.source, changes=request.changes)[0]
    raw: dict[str, Any] = {"data": {"train": request.source}}
    changed = changed_keys(request.changes)
    if not changed & {"objective", "objective.kind"}:  # the named columns determine the objective, or else the rows
        named = [each for each in OBJECTIVES if any(f"objective.{key}" in changed for key in each.column_keys)]
        rows = head(request.source, LOOKED_AT, offline=offline)
        detected = "" if named else _detected(request.source, rows, offline=offline).objective
        raw["objective"] = {"kind": named[0]().kind if named else detected}
    return make_recipe(raw, place=request.source, changes=request.changes)[0]


def _source(request: AuditRequest, recipe: Recipe | None, *, offline: bool) -> AuditSource:
    """Return the file to audit, its columns, and the files to compare it with."""
    if recipe and recipe.parts:
        name, part = next(iter(recipe.parts.items()))
        fix = f"name the file of one task, such as that of {name}: `tunesmith audit {quoted(part.data.train)}`"
        raise DataError(f"{request.source}: a recipe of {len(recipe.parts)} tasks, each with its own rows; {fix}")
    source = recipe.data.train if recipe else request.source
    rows = head(source, LOOKED_AT, offline=offline)
    format = _format(rows, recipe) if recipe else _detected(source, rows, offline=offline)
    if recipe and recipe.data.group and not has_column(source, recipe.data.group, offline=offline):
        raise DataError(missing_column(rows, recipe.data.group))
    if request.against:
        against: tuple[str, ...] = (request.against,)
    else:  # a fraction of the rows is split off later, without duplicates
        held_out = (recipe.data.test, recipe.data.validation) if recipe else ()
        against = tuple(path for path in held_out if isinstance(path, str) and path)
    for path in against:
        _check_columns(head(path, LOOKED_AT, offline=offline), format.columns)
    guessed = isinstance(format, Guess)
    shape = "guessed from column names and values; check it: " * guessed + format.explain()
    shape = shape.replace("detected as named", "columns as named")
    where = recipe.data.where if recipe else {}
    separator = _separator(source, format.columns, where, offline=offline)
    return AuditSource(source, format.columns, against, where, shape, separator)


def _separator(source: str, columns: Mapping[str, str], where: Mapping[str, Sequence[object]], *, offline: bool) -> str:
    """Return what separates several labels in a text, by the rows from which a run detects it; empty for none."""
    if "text" not in columns or not has_plural_name(label := columns.get("label", "")):
        return ""
    allowed = allowed_values(where)
    rows = [row for row in head(source, FIRST_ROWS, offline=offline) if has_allowed(row.fields, allowed)]
    return label_separator(rows, label)


def _detected(source: str, rows: list[Row], *, offline: bool) -> Format | Guess:
    """Detect the columns from the first rows, or guess them as `tunesmith init` does, from rows of the whole file.

    Rows with nothing but a prompt are for `rl`, which needs no answer.
    """
    try:
        found = detect(rows)
    except UnsettledError:
        raise
    except DataError:
        try:
            return detect_or_guess(head(source, GUESSED_FROM, offline=offline))
        except UnsettledError:
            raise
        except DataError:
            columns = columns_of(rows)
            if (
                len(columns) != 1
                or columns[0] not in ASKED
                or not all(is_answer(row.fields.get(columns[0])) for row in rows)
            ):
                raise
            return Format("prompts", "rl", {"prompt": columns[0]})
    asked = _asked(rows, found.columns)
    return Format("prompts", "rl", asked, ignored=found.ignored) if asked else found


def _asked(rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of prompts if these are columns of chats that all end before the answer; empty otherwise."""
    chat = next((columns[part] for part in DIALOGUES if part in columns), "")
    if not chat or not all(is_open(row.fields.get(chat)) for row in rows):
        return {}
    return {"prompt" if column == chat else part: column for part, column in columns.items()}


def _format(rows: list[Row], recipe: Recipe) -> Format:
    """Return the columns that the recipe names, completed by those detected in the rows."""
    objective = recipe.objective
    settings = objective.model_dump()
    named = {key: settings[key] for key in objective.column_keys if settings.get(key)}
    _check_columns(rows, named, optional=())
    if objective.samples_completions:  # the rows need no answer
        columns = dict(objective.columns(rows))
        if set(columns) == {"prompt"} or (columns := _asked(rows, columns)):
            return Format("as named", "", columns)
    if not named:
        return detect(rows)
    columns = dict(objective.columns(rows))
    if absent := [role for role, column in columns.items() if not has_cells(rows, column)]:
        keys = " and ".join(f"objective.{key}" for key in objective.column_keys[:2])
        problem = f"no column for {absent[0]} next to objective.{next(iter(named))}; detected {detect(rows).name} rows"
        raise DataError(f"{file_of(rows)}: {problem}; name {keys}, or neither")
    return Format("as named", "", columns)


def _check_columns(rows: list[Row], columns: Mapping[str, str], *, optional: Sequence[str] = OPTIONAL_ROLES) -> None:
    """Raise DataError for a column that no row has."""
    for role, column in columns.items():
        if role not in optional and not has_cells(rows, column):
            raise DataError(missing_column(rows, column))


def model_tools(name: str, *, limit: int, offline: bool) -> dict[str, Any]:
    """Return the fields of `Tools` that a model provides: token counts, states, and an encoder's embeddings.

    A row has at most `limit` tokens, by default the context length of the model. Raises ModelError.
    """
    from tunesmith.data.tokenization.chat_template import Template
    from tunesmith.inference.local_model import LocalModel
    from tunesmith.models.families import positions_of
    from tunesmith.models.loading.load import load_base
    from tunesmith.models.policy import Policy
    from tunesmith.models.sentence_embeddings import sentence_vectors
    from tunesmith.objectives import Classify

    base = load_base(name, offline=offline)
    longest = positions_of(base.network.config.to_dict()) or limit or DEFAULT_MAX_TOKENS

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in base.tokenizer(list(texts), verbose=False)["input_ids"]]

    def read(texts: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
        """Return the pooled states [N, D] of texts; a decoder reads the question for the label after each text."""
        policy = Policy.over(base.network, family=base.family)
        policy.train(False)
        template = Template(base.tokenizer, chat=base.family == "decoder")
        states = LocalModel(policy, template, Classify(labels=tuple(labels)), EMBEDDED_TOKENS).embed(texts)
        return np.asarray(states.numpy(), np.float32)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return sentence_vectors(base, texts, limit=min(longest, EMBEDDED_TOKENS))

    tools: dict[str, Any] = {"count": count, "limit": min(limit or longest, longest), "read": read}
    return {**tools, "embed": embed} if base.family == "encoder" else tools


def next_command(source: str, copy: Path, changes: Sequence[str]) -> str:
    """Return the command that tunes on a cleaned copy.

    Args:
        source: what was audited, a file or a recipe.
        copy: the cleaned copy.
        changes: recipe settings of the audit, `key=value`.
    """
    if is_recipe(Path(source)):
        options = set_options([*changes, f"data.train={copy}"])
        return f"tunesmith tune {quoted(source)} {options} --dry-run"
    options = set_options(changes)
    if not changes:
        found = _detected(str(copy), head(str(copy), LOOKED_AT), offline=True)
        options = found.change() if isinstance(found, Guess) else "--set objective.kind=rl" * (found.name == "prompts")
    return " ".join(filter(None, ["tunesmith tune", quoted(copy), options, "--dry-run"]))


def sentence(audit: Audit) -> str:
    """Summarize an audit in one line."""
    if not audit.findings:
        return f"no problems found in {audit.rows} rows"
    counts = {severity: sum(f.severity == severity for f in audit.findings) for severity in SEVERITY_CLASSES}
    summary = ", ".join(
        f"{count} {word}{'s' if count != 1 and word != 'blocking' else ''}" for word, count in counts.items() if count
    )
    if audit.verdict == "blocked":
        kinds = ", ".join(finding.kind for finding in audit.blocking)
        return f"blocked: fix {kinds} before tuning ({summary}, {audit.rows} rows)"
    return f"no blocking findings; check {summary} in {audit.rows} rows"


def page(audit: Audit) -> str:
    """Render an audit as an HTML page; all text from rows is escaped."""
    template = environment().get_template("audit.html.jinja")
    return template.render(
        a=audit, sentence=sentence(audit), mood=VERDICT_CLASSES[audit.verdict], tags=SEVERITY_CLASSES
    )
