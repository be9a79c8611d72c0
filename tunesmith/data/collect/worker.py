"""`python -m tunesmith.data.collect.worker`: files of others are opened in here, with little memory and no secrets.

Reads one path a line as JSON, answers with JSON lines: {"page": 3} while it works, then {"document": ...} or
{"error": "finding; cure"}. What a broken or evil file does to a parser, it does to this process alone.
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

from tunesmith.data.collect.convert import convert
from tunesmith.data.collect.document import to_json
from tunesmith.errors import DataError

MEMORY = 3 * 2**30


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not stand between the answers
    logging.disable()
    warnings.simplefilter("ignore")
    bound()
    for line in sys.stdin:
        _say(answers, _answer(Path(json.loads(line)), answers))


def _answer(path: Path, answers: IO[str]) -> dict[str, Any]:
    try:
        return {"document": to_json(convert(path, lambda page: _say(answers, {"page": page})))}
    except DataError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"needs more than {MEMORY // 2**30} GB to open; split it, or save it as text"}
    except RecursionError:
        return {"error": "nested too deeply to be read; save it as text"}
    except Exception as error:  # a parser may fail in any way on a broken file, and the others must go on
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return {"error": f"cannot be read ({why}); open it and save it anew"}


def _say(answers: IO[str], value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def bound() -> None:
    """Take from this process what a document never needs: much memory, and writing files."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is not kept, or counts what is only reserved
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main()
