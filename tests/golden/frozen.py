"""Read, write and compare the frozen files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Set by `python -m tests.golden.record`: the tests write the files instead of comparing with them.
RECORD = "TUNESMITH_GOLDEN_RECORD"


def recording() -> bool:
    """Return whether the frozen files are being written."""
    return bool(os.environ.get(RECORD))


def record(kind: str, name: str, document: Any) -> None:
    """Write the frozen document golden/KIND/NAME.json."""
    path = HERE / kind / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(kind: str, name: str) -> Any:
    """Return the frozen document golden/KIND/NAME.json."""
    return json.loads((HERE / kind / f"{name}.json").read_text(encoding="utf-8"))


def differences(expected: Any, found: Any, *, relative: float = 0.0, at: str = "$") -> list[str]:
    """Return one line for every place where the two documents differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        missing = [f"{at}.{key}: missing" for key in expected if key not in found]
        added = [f"{at}.{key}: new" for key in found if key not in expected]
        both = [key for key in expected if key in found]
        inner = [differences(expected[key], found[key], relative=relative, at=f"{at}.{key}") for key in both]
        return missing + added + sum(inner, [])
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return [f"{at}: expected {len(expected)} items, found {len(found)}"]
        pairs = enumerate(zip(expected, found, strict=True))
        return sum((differences(a, b, relative=relative, at=f"{at}[{i}]") for i, (a, b) in pairs), [])
    floats = isinstance(expected, float) and isinstance(found, (int, float)) and not isinstance(found, bool)
    if relative and floats and math.isclose(expected, found, rel_tol=relative, abs_tol=relative * 1e-3):
        return []
    return (
        [] if type(expected) is type(found) and expected == found else [f"{at}: expected {expected!r}, found {found!r}"]
    )
