"""The table of model families in docs/models.md: every cell is a run on a tiny random checkpoint.

    python -m bench.families            # all families, about a minute
    python -m bench.families qwen3 bert # only these; the others stay as they are

`bench/families.json` holds the outcomes. `tests/models/test_families.py` runs every cell again and compares.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTCOMES = ROOT / "bench" / "families.json"
PAGE = ROOT / "docs" / "models.md"

COLUMNS = {
    "load": "load",
    "classify": "classify",
    "instruct": "instruct",
    "lora": "LoRA",
    "full": "full",
    "prompt": "prompt",
    "merge": "merge",
    "peft": "PEFT",
    "gguf": "GGUF",
}
INTRODUCTION = """\
# Models

Tunesmith reads whatever transformers knows as a text decoder, a checkpoint that has a text decoder among its towers,
or a text encoder. Then it measures the network itself: what packs, shares a prefix or continues from a cache is decided
by comparing states, not by a list of names. So a family that is not in this table may well work. Ask:

```sh
tunesmith models check MODEL
```

MODEL is an alias, a Hub id, a folder, a run or a GGUF file. The command measures on that very network that

{claims}

It prints one table (`--json` for one document) and exits with 1 if a claim fails. The certificate is kept in the cache
by a digest of the configuration, the chat template and the versions of the libraries. `tunesmith tune` measures what
is missing before it trains, and puts the result into the report; a claim that fails is a warning there. After 30
seconds it starts no further measurement and leaves the rest to the next run, and it copies at most 2 GiB of weights.

The context of a model with LongRoPE (Phi-3 with 128k, Phi-4-mini) ends at its original length, mostly 4,096 tokens.
Beyond it the network uses other frequencies, also for the shorter rows of a batch, while cached keys keep the first.

## Families

Every cell is a run on a tiny random checkpoint of the family with transformers {transformers} and PEFT {peft}.
`python -m bench.families` makes this page, and CI runs every cell again.

- **load**: all weights come from the files, and loss, rows together, cache, shared prefix, end of a turn and learned
  tokens are right
- **classify**, **instruct**: training steps of this objective with LoRA lower the loss; instruct also answers
- **LoRA**: gradients reach every targeted layer and no other
- **full**, **prompt**: training steps of full fine-tuning and of prompt tuning lower the loss. Falcon-H1 without an
  `embedding_multiplier`; with one, `prompt` is [refused](reference/techniques.md#rejected-combinations)
- **merge**, **PEFT**: merged weights, and the saved adapter opened in PEFT, give the logits of the tuned model
- **GGUF**: llama.cpp gives the same answers from the exported file
- **rows**: how the rows of a batch run: packed without padding, padded, or one by one
- **difference**: the largest relative difference of states or logits in all of these comparisons

"""


def measure(names: Sequence[str], root: Path) -> dict[str, Any]:
    """Run every cell of some families.

    Args:
        names: keys of FAMILIES.
        root: an existing folder for the checkpoints.

    Returns:
        What families.json holds of each family.
    """
    from tests.family_cells import CELLS, tried
    from tests.tiny_families import FAMILIES

    found = {}
    for name in names:
        family = tried(name, root)
        cells = {cell: family.outcome(cell) for cell in CELLS}
        found[name] = {"title": FAMILIES[name].title, "cells": cells, **family.facts()}
        print(name, {cell: outcome for cell, outcome in cells.items() if outcome}, file=sys.stderr)
    return found


def page(outcomes: Mapping[str, Any]) -> str:
    """Return docs/models.md.

    Args:
        outcomes: contents of families.json.
    """
    from tunesmith.models.certificate import CLAIMS

    claims = "\n".join(f"- {claim}" for claim in CLAIMS.values())
    families = sorted(outcomes["families"].values(), key=lambda family: str(family["title"]).lower())
    reasons: list[str] = []

    def cell(outcome: str) -> str:
        if not outcome:
            return "yes"
        if outcome not in reasons:
            reasons.append(outcome)
        number = reasons.index(outcome) + 1
        return f"**fails** ({number})" if outcome.startswith("fails: ") else f"no ({number})"

    head = ("family", "model_type", *COLUMNS.values(), "rows", "difference")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for family in families:
        cells = [cell(family["cells"][key]) for key in COLUMNS]
        row = (family["title"], f"`{family['kind']}`", *cells, family["rows"], family["difference"])
        lines.append(f"| {' | '.join(row)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return (
        INTRODUCTION.format(claims=claims, **outcomes["versions"])
        + "\n".join(lines)
        + "\n\nWhy not:\n\n"
        + "\n".join(notes)
        + "\n"
    )


def main(words: Sequence[str]) -> None:
    """Run the cells, and write families.json and the page."""
    from tests.tiny_families import FAMILIES
    from tunesmith.models.certificate import versions

    known = json.loads(OUTCOMES.read_text(encoding="utf-8"))["families"] if OUTCOMES.exists() else {}
    with tempfile.TemporaryDirectory() as root:
        known |= measure(words or list(FAMILIES), Path(root))
    outcomes = {"versions": versions(), "families": {name: known[name] for name in FAMILIES if name in known}}
    OUTCOMES.write_text(json.dumps(outcomes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
