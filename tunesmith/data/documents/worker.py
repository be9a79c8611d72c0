"""Worker process `python -m tunesmith.data.documents.worker`: opens untrusted files with bounded memory and no secrets.

It reads one path per line as JSON and writes JSON lines: {"page": 3} for progress, then {"document": ...} or
{"error": "problem; fix"}. A broken or malicious file can only harm this process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tunesmith.data.documents.convert import convert
from tunesmith.data.documents.document import to_json
from tunesmith.errors import DataError

MEMORY = 3 * 2**30  # bytes


def main() -> None:
    """Convert files until stdin ends."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output printed by a library must not be mixed with the results
    logging.disable()
    warnings.simplefilter("ignore")
    bound()
    for line in sys.stdin:
        _write(output, _result(Path(json.loads(line)), output))


def _result(path: Path, output: IO[str]) -> dict[str, Any]:
    try:
        return {"document": to_json(convert(path, lambda page: _write(output, {"page": page})))}
    except DataError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"needs more than {MEMORY // 2**30} GiB of memory; split it, or save it as text"}
    except RecursionError:
        return {"error": "nested too deeply; save it as text"}
    except Exception as error:  # a parser may fail in any way on a broken file, and the other files must be converted
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return {"error": f"cannot be read ({reason}); open it and save it again"}


def _write(output: IO[str], value: Mapping[str, Any]) -> None:
    output.write(json.dumps(value) + "\n")
    output.flush()


def bound() -> None:
    """Limit this process to what a conversion needs: bounded memory, and no file writes."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":  # other systems do not enforce this limit, or count memory that is only reserved
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main()
