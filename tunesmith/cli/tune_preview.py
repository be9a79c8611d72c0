"""Output of `tune --dry-run`: training rows with their learned tokens marked."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tunesmith.cli.terminal import console, log, publish
from tunesmith.report.formatting import clean

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.pipelines.tune.preview import Preview, RowPreview

LEARNED, NEWLINE = "bold green", "\n"


def show(preview: Preview, args: argparse.Namespace) -> int:
    """Print a preview, or its JSON document under `--json`, and return exit code 0."""
    for problem in preview.problems:
        log(problem)
    if args.json:
        args.out = None  # for `tune` it is the run folder, which a dry run does not create
        rows = [asdict(row) for row in preview.rows]
        facts = {**asdict(preview.facts), "faults": list(preview.problems)}
        recipe = preview.recipe.model_dump(mode="json")
        document = {"rows": rows, "facts": facts, "notes": list(preview.notes), "recipe": recipe}
        forecast = preview.forecast and preview.forecast.model_dump(mode="json")
        publish({**document, "forecast": forecast, "parts": preview.parts}, args)
    else:
        draw(preview, console(sys.stdout))
    return 0


def draw(preview: Preview, screen: Console) -> None:
    """Print rows and statistics; learned tokens are coloured, or in [[double brackets]] without colours."""
    from tunesmith.pipelines.plan.predict_run import prediction_line

    coloured = screen.color_system is not None and not screen.no_color
    mark = "in green" if coloured else "in [[double brackets]]"
    for row in preview.rows:
        learned = f"label {row.label}" if row.label else f"learned tokens {mark}"
        screen.print(f"--- {row.where}: {row.tokens} tokens, {learned}", style="dim", soft_wrap=True)
        screen.print(_row(row, coloured=coloured), soft_wrap=True)
    facts = preview.facts
    lengths = f"tokens per row: median {facts.p50}, 95th percentile {facts.p95}, maximum {facts.longest}"
    share = "" if facts.learned_share is None else f"; {facts.learned_share:.1%} of tokens are learned"
    checks = [text for text in (facts.bos, facts.end) if text and not text.startswith("warning")]
    cost = [prediction_line(preview.cost, preview.forecast)] if preview.cost and preview.forecast else []
    for line in (*preview.notes, f"{facts.rows} training rows; {lengths}{share}", *checks, *cost):
        screen.print(clean(line), soft_wrap=True)


def _row(row: RowPreview, *, coloured: bool) -> Any:
    """Return a row as rich text, without interpreting markup in it."""
    from rich.text import Text

    whole, side = Text(), ""
    for piece in row.pieces:
        text = clean(piece.text)
        if piece.side != side:
            side = piece.side
            whole.append(f"{'' if not whole or whole.plain.endswith(NEWLINE) else NEWLINE}{side}:\n", style="dim")
        if not piece.learned:
            whole.append(text)
        elif coloured:
            whole.append(text, style=LEARNED)
        else:
            whole.append(f"[[{text}]]")
    return whole
