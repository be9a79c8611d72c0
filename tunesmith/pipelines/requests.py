"""The checked options of the commands that read no recipe. Imports no torch, so that a mistake is reported at once.

The command line and the Python API make the same requests. Messages name the options of the command line; the API
writes them as parameters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunesmith.annotation.assignment import NO_OVERLAP, Overlap
from tunesmith.annotation.label_features import TFIDF
from tunesmith.annotation.label_rows import Columns
from tunesmith.data.documents.to_rows import SIZE
from tunesmith.data.examples.span_formats import ENDINGS, FORMATS, ROWS
from tunesmith.data.files import quoted
from tunesmith.errors import OptionError, RecipeError
from tunesmith.inference.openai_client import Endpoint
from tunesmith.models.generation.sampling import Sampling
from tunesmith.pipelines.many_runs import LOCAL, check_place

SMALLEST_SIZE = 200  # characters of a passage
MOST_PER_PASSAGE = 5
# Environment variables with the key of a server. `collect` asks the one server that the user names.
SERVER_KEY, WRITER_KEYS = "TUNESMITH_API_KEY", ("TUNESMITH_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """The options of `tunesmith audit`."""

    source: str  # file, Hub data set or recipe
    against: str = ""  # test rows; empty for those of the recipe
    model: str = ""  # optional model that counts tokens and checks labels
    changes: tuple[str, ...] = ()  # recipe settings, `key=value`
    fix: Path | None = None  # file for a cleaned copy
    pages: tuple[Path, ...] = ()  # files that the caller writes the findings to


@dataclass(frozen=True, slots=True)
class Writer:
    """The model that generates rows: a local model by name, or a server by URL."""

    name: str
    model: str = ""  # name of the model on the server
    key: str = field(default="", repr=False)  # bearer token of the server
    temperature: float = 0.7
    max_tokens: int = 512  # of one answer
    seed: int = 0

    @property
    def remote(self) -> bool:
        """Return whether the model is on a server."""
        return self.name.startswith(("http://", "https://"))

    @property
    def identity(self) -> str:
        """Return everything that the answers depend on, as a cache key; the bearer token is not part of it."""
        return json.dumps([self.name, self.model, self.temperature, self.max_tokens, self.seed])

    @property
    def endpoint(self) -> Endpoint:
        """Return the server of a remote model."""
        return Endpoint(self.name, self.model, self.key, self.temperature, self.max_tokens, self.seed)


@dataclass(frozen=True, slots=True)
class CollectRequest:
    """The options of `tunesmith collect`."""

    sources: tuple[str, ...]  # files and folders
    shape: str  # a key of SHAPES
    out: Path
    size: int = SIZE  # characters of a passage
    templates: tuple[str, ...] = ()  # names of prompts for generated rows
    writer: Writer | None = None
    seeds: str = ""  # file of example rows
    per_passage: int = 3  # generated rows
    passages: int = 0  # passages sampled per template, 0 for all

    def __post_init__(self) -> None:
        if self.size < SMALLEST_SIZE:
            raise OptionError(f"--size: expected at least {SMALLEST_SIZE} characters, got {self.size}; use {SIZE}")
        if not 1 <= self.per_passage <= MOST_PER_PASSAGE:
            expected = f"expected 1 to {MOST_PER_PASSAGE}, got {self.per_passage}"
            raise OptionError(f"--per-passage: {expected}; more rows repeat each other")
        _check_count("--passages", self.passages, zero="all passages")


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """The options of `tunesmith evaluate`."""

    model: str
    data: str
    against: str = ""  # another model, or OWN_BASE
    objective: str = ""  # kind; empty: that of the run, or the one that fits the rows
    base: str = ""  # replaces the base of an adapter
    rows: int = 0  # rows to sample, 0 for all
    changes: tuple[str, ...] = ()  # recipe settings, `key=value`
    task: str = ""  # task of a multitask run
    engine: str = ""  # vLLM or SGLang as `EngineServer` takes it; empty for torch
    on: str = LOCAL  # where the arms are tuned

    def __post_init__(self) -> None:
        check_place(self.on)
        _check_count("--rows", self.rows, zero="all rows")


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """The options of `tunesmith label`."""

    source: str  # file or Hub data set
    columns: Columns = Columns()
    labels: tuple[str, ...] = ()  # labels offered initially
    spans: tuple[str, ...] = ()  # spans of the texts are marked, with these labels initially
    form: str = ""  # of an export, one of `span_formats.FORMATS`; empty: rows
    brought: str = ""  # file with labels of the same texts
    store: Path | None = None  # None: next to the data
    overlap: Overlap = NO_OVERLAP
    features: str = TFIDF  # features of active learning: tfidf or an encoder
    seed: int = 0
    offline: bool = False

    @property
    def kept_in(self) -> Path:
        """Return the path of the store of votes."""
        if self.store is not None:
            return self.store
        path = Path(self.source)
        return path.with_suffix(".labels.db") if path.exists() else Path(f"{path.name.partition(':')[0]}.labels.db")

    def options(self) -> str:
        """Return the options of `label` that name columns and spans, for commands in messages."""
        spans = f" --spans {quoted(','.join(self.spans))}" if self.spans else ""
        return f"{self.columns.options()}{spans}"

    def check_export(self, path: Path) -> None:
        """Raise OptionError if labelled rows cannot be written to a file."""
        if path.resolve() == Path(self.source).resolve():
            raise OptionError(f"--export: {path} is the data file itself; name another file")
        form = self.form or ROWS
        if form not in FORMATS:
            raise OptionError(f"--format: expected {', '.join(FORMATS)}, got {form!r}")
        if path.suffix.lower() not in ENDINGS[form]:
            raise OptionError(f"--export: expected a file name ending in {ENDINGS[form][0]}, got {path}; rename it")


@dataclass(frozen=True, slots=True)
class FeedbackRequest:
    """The options of `tunesmith feedback`."""

    model: str
    against: str = ""  # another model, or OWN_BASE; empty: two samples of the model
    prompts: str = ""  # file of prompts; empty: the test rows of the run
    column: str = ""  # column with the prompt
    rows: int = 100  # prompts to sample, 0 for all
    as_written: bool = False  # do not add the instruction of the run to the prompts
    limit: int = 0  # tokens of a prompt, 0 for the limit of training
    thumbs: bool = False  # show single answers instead of pairs
    gold: str = ""  # file of control items
    store: Path | None = None  # None: in the run folder
    overlap: Overlap = NO_OVERLAP
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95))
    offline: bool = False
    # The option or recipe key of each setting, for messages.
    warmer: str = "--temperature"
    longer: str = "--max-new-tokens"

    def __post_init__(self) -> None:
        _check_count("--rows", self.rows, zero="all prompts")
        _check_count("--max-tokens", self.limit, zero="the training limit")

    @property
    def kept_in(self) -> Path:
        """Return the path of the store of votes."""
        if self.store is not None:
            return self.store
        path = Path(self.model)
        return path / "feedback.db" if path.is_dir() else Path(f"{path.name}.feedback.db")


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Options of a comparison that are not in the recipe."""

    minutes: float = 0.0  # time budget, 0: no limit
    price_per_hour: float = 0.0  # of this machine
    key: str = field(default="", repr=False)  # of a server
    engine: str = ""  # vLLM or SGLang as `EngineServer` takes it; empty for torch
    on: str = LOCAL  # where the arms are tuned

    def __post_init__(self) -> None:
        check_place(self.on)
        for name, value in (("--budget", self.minutes), ("--price-per-hour", self.price_per_hour)):
            if not 0 <= value < float("inf"):
                raise OptionError(f"{name}: expected a number >= 0, got {value}; omit the option for none")


@dataclass(frozen=True, slots=True)
class LearningCurveOptions:
    """The requested predictions, and the time for them."""

    rows: tuple[int, ...] = ()  # numbers of training rows; empty: twice and four times the available ones
    target: float | None = None  # score whose rows are wanted
    minutes: float | None = None  # time budget; None: no limit
    on: str = LOCAL  # where the runs are trained

    def __post_init__(self) -> None:
        check_place(self.on)
        for rows in self.rows:
            if rows < 1:
                raise OptionError(f"--rows: expected an integer >= 1, got {rows}; use a larger number")
        if self.minutes is not None and not self.minutes > 0:
            expected = f"expected a number > 0, got {self.minutes}"
            raise OptionError(f"--minutes: {expected}; omit the option for no limit")


def sampling_with(default: Sampling, **values: float | None) -> Sampling:
    """Return decoding settings with the given values.

    Args:
        default: the settings of a model.
        values: fields of Sampling; None keeps the default.

    Raises:
        OptionError: if a value is out of range.
    """
    try:
        return replace(default, **{key: value for key, value in values.items() if value is not None})  # type: ignore[arg-type]
    except RecipeError as error:
        key, colon, problem = str(error).partition(":")
        raise OptionError(f"--{key.replace('_', '-')}{colon}{problem}") from None


def listed(words: str | Sequence[str]) -> tuple[str, ...]:
    """Split a comma-separated list; empty items are dropped. The items of a sequence may contain commas."""
    items = words.split(",") if isinstance(words, str) else words
    return tuple(word.strip() for word in items if word.strip())


def key_from_environment(*names: str) -> str:
    """Return the first of these environment variables that is set; empty without one."""
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _check_count(option: str, count: int, *, zero: str) -> None:
    if count < 0:
        raise OptionError(f"{option}: expected an integer >= 0, got {count}; use 0 for {zero}")
