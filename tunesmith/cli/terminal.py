"""Terminal output: logs on stderr, results on stdout; user text is never interpreted as markup."""

from __future__ import annotations

import argparse
import codecs
import json
import logging
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunesmith.data.files import write_whole
from tunesmith.errors import StorageError
from tunesmith.report.formatting import clean

if TYPE_CHECKING:
    from rich.console import Console

# Lines of output that is not a terminal still end up on screens and in issues.
PIPED_WIDTH = 100
# Error handler of streams, and what it writes for characters that the code pages of Windows lack.
IN_ASCII = "tunesmith.in_ascii"
SUBSTITUTES = str.maketrans({"\N{RIGHTWARDS ARROW}": "->", "\N{MINUS SIGN}": "-"})


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return what a stream writes for characters that its encoding lacks: a substitute or an escape."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(SUBSTITUTES)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(IN_ASCII, _in_ascii)


def console(file: TextIO) -> Console:
    """Return a rich console that styles text but interprets neither markup nor emoji codes."""
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            """Raise the error again, where it is caught; rich would exit with 1, which is a failed check."""
            raise

    screen = Screen(file=file, markup=False, emoji=False, highlight=False)
    if screen.is_terminal:
        return screen
    return Screen(file=file, markup=False, emoji=False, highlight=False, width=PIPED_WIDTH)


def hush() -> None:
    """Silence warnings and progress bars of libraries for this process; `python -W` keeps the warnings."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def log(text: str) -> None:
    """Write a log line to stderr."""
    print(clean(text), file=sys.stderr, flush=True)


def show(text: str = "") -> None:
    """Write a line of the result to stdout."""
    print(clean(text), flush=True)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, drop: Sequence[str] = ()) -> None:
    """Write a table to stdout, no wider than the terminal, or PIPED_WIDTH elsewhere.

    Args:
        columns: headings; a column whose heading ends in `>` is right-aligned.
        rows: cells.
        drop: headings of the least important columns, in the order in which they are left out.
    """
    from tunesmith.report.tables import FittedTable

    console(sys.stdout).print(FittedTable(columns, rows, drop=drop))


def publish(document: Mapping[str, Any], args: argparse.Namespace) -> bool:
    """Write the document to stdout under `--json`, and to the file of `--out`.

    Returns True under `--json`: the command must not print anything else to stdout. Raises StorageError.
    """
    if args.out is not None:
        write_result(args.out, _json(document) + "\n")
    if args.json:
        emit(document)
    return bool(args.json)


def write_result(path: Path, text: str) -> None:
    """Write a result that may have taken long: if it cannot be written, to a temporary file that the error names."""
    try:
        write_whole(path, text)
    except StorageError as error:
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="tunesmith-"))
            try:
                (folder / path.name).write_text(text, encoding="utf-8", newline="\n")
            except OSError:
                shutil.rmtree(folder)
                raise
            raise StorageError(f"{error}; the result is in {folder / path.name}") from error
        raise


def emit(document: Mapping[str, Any]) -> None:
    """Write a JSON document to stdout."""
    print(_json(document), flush=True)


def _json(document: Mapping[str, Any]) -> str:
    text = json.dumps(_finite(document), ensure_ascii=False, indent=1, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()  # lone surrogates, as in a file name that is not UTF-8


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
