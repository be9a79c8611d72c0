"""Execute every command that the package prints: `python -m tests.printed_commands [SCENARIO ...]`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from rich.console import Console
from rich.table import Table

from tests.printed_commands.check import execute


def main() -> int:
    """Print a table with every command, where it is printed and its exit code; return 1 if one fails."""
    with tempfile.TemporaryDirectory(prefix="printed-") as folder:
        results = execute(Path(folder), sys.argv[1:])
    table = Table("printed in", "command", "pasted", "exit code")
    for result in results:
        pasted = result.pasted.replace(str(folder), "...")
        table.add_row(result.printed.file, result.printed.command, pasted, str(result.code))
    console = Console(width=200)
    console.print(table)
    failed = [result for result in results if result.code]
    for result in failed:
        console.print(f"{result.pasted}\n{result.errors}\n", markup=False)
    console.print(f"{len(results)} commands executed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
