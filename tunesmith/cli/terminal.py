"""What goes to the screen: logs on stderr, results on stdout, text from outside never taken for markup."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunesmith.data.files import write_whole
from tunesmith.report.formatting import clean

if TYPE_CHECKING:
    from rich.console import Console

# Without a terminal there is no width to keep to, and cut cells help nobody.
PIPED_WIDTH = 160


def console(file: TextIO) -> Console:
    """A rich console that colours and draws but interprets nothing; NO_COLOR is rich's own doing."""
    from rich.console import Console

    made = Console(file=file, markup=False, emoji=False, highlight=False)
    return (
        made if made.is_terminal else Console(file=file, markup=False, emoji=False, highlight=False, width=PIPED_WIDTH)
    )


def hush() -> None:
    """Keep the libraries from speaking for the rest of the process; `python -W` still has its say."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def log(text: str) -> None:
    """Write a line for people to stderr."""
    print(clean(text), file=sys.stderr, flush=True)


def show(text: str = "") -> None:
    """Write a line of the result to stdout."""
    print(clean(text), flush=True)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout; columns whose heading ends in `>` stand on the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    console(sys.stdout).print(table)


def publish(document: Mapping[str, Any], args: argparse.Namespace) -> bool:
    """Write the document to stdout under `--json`, to the file of `--out`; whether stdout has been served.

    Raises DataError for a file that cannot be written.
    """
    if args.out is not None:
        write_whole(args.out, _json(document) + "\n")
    if args.json:
        emit(document)
    return bool(args.json)


def emit(document: Mapping[str, Any]) -> None:
    """Write the one JSON document to stdout."""
    print(_json(document), flush=True)


def _json(document: Mapping[str, Any]) -> str:
    text = json.dumps(_finite(document), ensure_ascii=False, indent=1, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()  # half a character, as in a name that is not UTF-8


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
