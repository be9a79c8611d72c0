"""What `tune --dry-run` shows: rows as the loss sees them."""

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
    """Show a preview to people, or as JSON to programs, and return 0."""
    for fault in preview.problems:
        log(fault)
    if args.json:
        args.out = None  # under tune, --out is the folder of a run that does not begin here
        publish(as_document(preview), args)
    else:
        draw(preview, console(sys.stdout))
    return 0


def as_document(preview: Preview) -> dict[str, Any]:
    """The preview as plain values."""
    rows = [asdict(row) for row in preview.rows]
    facts = {**asdict(preview.facts), "faults": list(preview.problems)}
    return {
        "rows": rows,
        "facts": facts,
        "notes": list(preview.notes),
        "recipe": preview.recipe.model_dump(mode="json"),
    }


def draw(preview: Preview, screen: Console) -> None:
    """Draw rows and facts; what is learned is coloured, or in [[double brackets]] where there is no colour."""
    coloured = screen.color_system is not None and not screen.no_color
    how = "in green" if coloured else "in [[double brackets]]"
    for row in preview.rows:
        said = f"label {row.label}" if row.label else f"learned: {how}"
        screen.print(f"--- {row.where}: {row.tokens} tokens, {said}", style="dim", soft_wrap=True)
        screen.print(_row(row, coloured=coloured), soft_wrap=True)
    for line in _facts(preview):
        screen.print(clean(line), soft_wrap=True)


def _row(row: RowPreview, *, coloured: bool) -> Any:
    """One row as rich text; nothing in it is taken for markup."""
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


def _facts(preview: Preview) -> list[str]:
    """Facts about all rows, a line each."""
    facts = preview.facts
    lengths = f"tokens a row: half up to {facts.p50}, 95 % up to {facts.p95}, longest {facts.longest}"
    share = "" if facts.learned_share is None else f"; {facts.learned_share:.1%} of them learned"
    checks = [text for text in (facts.bos, facts.end) if text and not text.startswith("warning")]
    return [*preview.notes, f"{facts.rows} training rows; {lengths}{share}", *checks]
