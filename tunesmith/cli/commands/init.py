"""`tunesmith init`: write a commented recipe for a data file or from another trainer's configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.candidates import show_choice
from tunesmith.cli.options import ROW_FILES, UsageError, add_changes, add_common, changes_of
from tunesmith.cli.progress import reported
from tunesmith.cli.terminal import emit, log, show
from tunesmith.data.files import quoted

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands


def add(commands: Commands) -> None:
    """Add `init`."""
    parser = commands.add_parser(
        "init",
        help="write a commented recipe for a data file",
        description="Inspect a data file and write a recipe whose comments give the reason for every line; or convert "
        "the configuration of axolotl or LLaMA-Factory and list the keys that have no counterpart.",
        conflict_handler="resolve",  # --out is replaced: it names the recipe, not the JSON document
    )
    parser.add_argument("data", nargs="?", default="", metavar="DATA", help=ROW_FILES)
    text = "configuration of axolotl or LLaMA-Factory to convert"
    parser.add_argument("--from", dest="foreign", type=Path, metavar="FILE", help=text)
    quick = "choose the model without loading one: TF-IDF is measured, all else is estimated"
    parser.add_argument("--quick", action="store_true", help=quick)
    add_changes(parser)
    add_common(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("recipe.yaml"), metavar="FILE", help="output file (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the recipe and print it."""
    from tunesmith.config.importers.convert import convert
    from tunesmith.pipelines.init import draft_with_candidates

    choice = None
    if args.foreign is not None:
        made = convert(args.foreign, data=args.data, changes=changes_of(args))
    elif args.data:
        with reported() as on_event:
            drafted = draft_with_candidates(
                args.data, changes=changes_of(args), quick=args.quick, offline=args.offline, on_event=on_event
            )
        made, choice = drafted.made, drafted.choice
    else:
        raise UsageError("tunesmith init: no input; give DATA, or --from axolotl.yaml")
    made.write(args.out)
    for name, reason in made.dropped.items():
        log(f"not converted: {name}: {reason}")
    if made.guessed:
        log(f"columns: {made.reasons['objective']}; to change them: {made.guessed}")
    if args.json:
        document = {
            "path": args.out,
            "recipe": made.recipe.model_dump(mode="json"),
            "reasons": made.reasons,
            "left_out": made.dropped,
            "guessed": made.guessed,
            "candidates": [] if choice is None else [part.model_dump(mode="json") for part in choice.candidates],
        }
        emit(document)
        return 0
    if choice is not None:
        show_choice(choice)
        show()
    show(made.text(args.out.parent).rstrip())
    show()
    show(f"written: {args.out}")
    show(f"next: tunesmith tune {quoted(args.out)} --dry-run")
    return 0
