"""`tunesmith init`: a recipe with its reasons, from rows or from another trainer's file."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_changes, add_common, changes_of
from tunesmith.cli.terminal import emit, log, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.config.annotated_yaml import AnnotatedRecipe


def add(commands: Commands) -> None:
    """Add `init`."""
    parser = commands.add_parser(
        "init",
        help="look at the data and write a recipe with reasons",
        description="Look at rows and write a recipe whose comments say why each line is there; or carry over the "
        "configuration of axolotl or LLaMA-Factory and name what was left out.",
        conflict_handler="resolve",  # what is written here is a recipe, not the JSON document
    )
    parser.add_argument("data", nargs="?", default="", metavar="DATA", help="rows as jsonl, json, csv, tsv, parquet")
    parser.add_argument("--from", dest="foreign", type=Path, metavar="FILE", help="axolotl's or LLaMA-Factory's yaml")
    add_changes(parser)
    add_common(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("recipe.yaml"), metavar="FILE", help="the recipe to write (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the recipe, and say what was decided or left out."""
    made = _draft(args)
    made.write(args.out)
    for name, why in made.dropped.items():
        log(f"left out: {name}: {why}")
    if made.guessed:
        log(f"the columns have no known names; guessed: {made.guessed}")
    if args.json:
        recipe = made.recipe.model_dump(mode="json")
        emit(
            {
                "path": args.out,
                "recipe": recipe,
                "reasons": made.reasons,
                "left_out": made.dropped,
                "guessed": made.guessed,
            }
        )
        return 0
    show(made.text(args.out.parent).rstrip())
    show()
    show(f"written: {args.out}")
    show(f"next: tunesmith tune {shlex.quote(str(args.out))} --dry-run")
    return 0


def _draft(args: argparse.Namespace) -> AnnotatedRecipe:
    """The draft that the command line asks for. Raises UsageError."""
    from tunesmith.config.importers.convert import convert
    from tunesmith.config.scaffold import draft

    if args.foreign is not None:
        return convert(args.foreign, data=args.data, changes=changes_of(args))
    if not args.data:
        raise UsageError("tunesmith init: nothing to look at; give DATA, or --from axolotl.yaml")
    return draft(args.data, changes=changes_of(args), offline=args.offline)
