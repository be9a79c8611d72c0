"""Shared parts of the Python functions: recipe settings, progress, errors in Python's words, and listings.

The functions themselves are in `api_training`, `api_data` and `api_models`, one per command; `import tunesmith`
exports them. They call the same pipelines as the command line. Everything heavy is imported when a function is called.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tunesmith.display import Display, Displayed
from tunesmith.errors import DataError, TunesmithError

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.config import Recipe
    from tunesmith.events import EventHandler
    from tunesmith.training.callbacks import Callbacks
    from tunesmith.web.server import OpenServer

P = ParamSpec("P")
R = TypeVar("R")
# A section of a recipe: a kind such as "lora", or a mapping with its keys.
Section = str | Mapping[str, Any]


def python_words(function: Callable[P, R]) -> Callable[P, R]:
    """Let errors name parameters instead of options (`rows=`, not `--rows`), and `offline` hold for all calls below."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from tunesmith.data.remote import without_network

        _refuse_tables((*args, *kwargs.values()))
        try:
            with without_network(bool(kwargs.get("offline"))):
                return function(*args, **kwargs)
        except TunesmithError as error:
            if error.args and isinstance(error.args[0], str):
                error.args = (as_parameters(error.args[0]), *error.args[1:])
            raise

    return call


def _refuse_tables(values: Iterable[object]) -> None:
    """Raise DataError for rows in memory: a DataFrame, a Dataset or a list of mappings."""
    for value in values:
        first = value[0] if isinstance(value, list) and value else None
        if hasattr(value, "to_json") or isinstance(first, Mapping):
            raise DataError(
                f"{type(value).__name__}: rows are read from files, so that a run can be repeated; write them to one "
                "first, a DataFrame by to_json('rows.jsonl', orient='records', lines=True)"
            )


def as_parameters(message: str) -> str:
    """Return a message with options written as parameters; commands in backquotes are unchanged."""
    parts = message.split("`")  # odd parts are quoted
    option = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")
    parts[::2] = [option.sub(lambda found: f"{found[1].replace('-', '_')}=", part) for part in parts[::2]]
    return "`".join(parts).replace("=:", ":")


@contextmanager
def reporting(progress: bool, callback: EventHandler | None = None) -> Iterator[Callbacks]:
    """Yield callbacks that show progress and pass every event on.

    Args:
        progress: show a bar in a terminal and in a notebook, and lines in a log.
        callback: receives every event.
    """
    from tunesmith.events import ignore
    from tunesmith.progress import reporting as reporting_loops
    from tunesmith.training.callbacks import Callbacks

    if not progress:
        on_event = callback or ignore
        with reporting_loops(on_event):
            yield Callbacks(on_event)
        return
    from dataclasses import replace

    from tunesmith.cli.progress import work
    from tunesmith.notebook import in_notebook, notebook_progress

    with quiet(), work(notebook_progress() if in_notebook() else None) as callbacks:
        if callback is None:
            yield callbacks
            return
        on_event = _both(callbacks.on_event, callback)
        with reporting_loops(on_event):
            yield replace(callbacks, on_event=on_event)


def _both(first: EventHandler, second: EventHandler) -> EventHandler:
    def on_event(event: Any) -> None:
        first(event)
        second(event)

    return on_event


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of transformers, which would interrupt ours, and restore them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def changes_of(settings: Mapping[str, Any] | None, more: Mapping[str, Any] | None = None, **named: Any) -> list[str]:
    """Return parameters as `key=value` changes of a recipe, each kind over those before it.

    Args:
        settings: further keys, dotted or nested, over the named ones.
        more: keyword arguments that the function does not name, over both.
        **named: keys that are parameters of the function; None is not set.
    """
    from tunesmith.config.resolve import as_changes

    return [*as_changes(named), *as_changes(settings or {}), *as_changes(more or {})]


def recipe_of(
    source: str | Path | Recipe,
    changes: Sequence[str],
    *,
    on_event: EventHandler,
    offline: bool = False,
    check: Callable[[Recipe], None] | None = None,
) -> Recipe:
    """Return the complete recipe of a source, and report what was detected, chosen or translated.

    Args:
        source: a recipe, a recipe file, or a file of rows.
        changes: `key=value` changes of the recipe.
        on_event: receives the reports.
        offline: do not access the network.
        check: called with the recipe, if possible before its rows are read; may raise TunesmithError.
    """
    from tunesmith.config.resolve import resolve_recipe
    from tunesmith.events import Note

    resolved = resolve_recipe(source, changes=changes, offline=offline, check=check)
    for text in resolved.notes:
        on_event(Note(text))
    return resolved.recipe


def words(value: str | Iterable[str] | None) -> list[str]:
    """Return one or several words as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def messages(progress: bool) -> Callable[[str], None]:
    """Return the function that writes messages of a command: to stderr, or nowhere."""
    from tunesmith.cli.terminal import log

    return log if progress else lambda text: None


class Listing(Displayed, list[dict[str, Any]]):
    """Several results as dictionaries; a notebook shows them as a table.

    Args:
        title: the first line.
        rows: the results.
        columns: keys that are shown.
        shown: the rows in the form in which they are shown, if different.
    """

    def __init__(
        self,
        title: str,
        rows: Iterable[dict[str, Any]],
        columns: Sequence[str],
        shown: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(rows)
        self.title = title
        self.columns = columns
        self._shown = shown

    def display(self) -> Display:
        """Show one line per result."""
        cells = [["" if row.get(key) is None else str(row[key]) for key in self.columns] for row in self._shown or self]
        lines = ["  ".join(cell for cell in row if cell) for row in cells]
        return Display(f"{self.title}: {len(self)}", lines, self.columns, cells)


class Served(Displayed):
    """A page or an API that answers in the background until `close`.

        with tunesmith.serve("runs/reviews") as served:
            print(served.url)

        tunesmith.feedback("runs/reviews").wait()  # until Ctrl-C

    Args:
        opened: opens the app and closes it at the end.
        what: name for display.
    """

    def __init__(self, opened: AbstractContextManager[OpenServer], what: str) -> None:
        from tunesmith.web.server import server

        self._what = what
        self._stack = ExitStack()
        self._open = self._stack.enter_context(opened)
        self.url = self._open.url
        made = self._open
        self._server = server(made.app, token=made.token, policy=made.policy, drain=made.drain)
        run = functools.partial(self._server.run, sockets=[made.sock])
        self._thread = threading.Thread(target=run, name=f"tunesmith {what}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Block until Ctrl-C, then close."""
        with self, contextlib.suppress(KeyboardInterrupt):
            while self._thread.is_alive():
                self._thread.join(0.2)

    def close(self) -> None:
        """Finish running requests, stop the server and save everything; does nothing the second time."""
        self._server.should_exit = True
        self._thread.join()
        self._stack.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def display(self) -> Display:
        """Show the address."""
        state = self.url if self._thread.is_alive() else "closed"
        return Display(f"Served({self._what}): {state}")
