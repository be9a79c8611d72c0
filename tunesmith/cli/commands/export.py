"""`tunesmith export`: a run for other programs, checked against the original after it was written."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import Deprecated, add_common, add_schema
from tunesmith.cli.progress import listening
from tunesmith.cli.signals import caught
from tunesmith.cli.terminal import hush, publish, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.report.schema import Export

FORMATS = ("merged", "gguf", "adapter")
DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def add(commands: Commands) -> None:
    """Add `export`."""
    parser = commands.add_parser(
        "export",
        help="a run for other programs, checked after it was written",
        description="Writes the tuned model for transformers (merged), llama.cpp and Ollama (gguf), or PEFT (adapter). "
        "The other program then answers test rows of the run from it, and what it answers is compared with the "
        "original: exit 1 where they differ too much.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--format", choices=FORMATS, default="merged", help="for which program (%(default)s)")
    numbers = "how weights are kept: merged as f32, f16 or bf16, gguf as f16, q8_0 or q4_0 (the first of each)"
    parser.add_argument("--dtype", choices=DTYPES, default="", help=numbers)
    parser.add_argument(
        "--numbers", dest="dtype", choices=DTYPES, action=Deprecated, const="--dtype", help=argparse.SUPPRESS
    )
    add_schema(parser, _schema)
    add_common(parser, out="folder of the export (default: RUN/export/FORMAT)")
    parser.set_defaults(run=run)


def _schema() -> str:
    import json

    from tunesmith.report.schema import Export

    return json.dumps(Export.model_json_schema(), indent=1)


def run(args: argparse.Namespace) -> int:
    """Export as the command line says."""
    from tunesmith.pipelines.export import ExportRequest, export

    hush()
    wanted = ExportRequest.of(args.format, args.dtype)
    with caught() as signals, listening(signals) as on_event:
        found = export(args.folder, wanted, out=args.out, on_event=on_event, offline=args.offline)
    args.out = None  # the folder, and no file for the page
    if not publish(found.model_dump(mode="json"), args):
        _show(found)
    return 0


def _show(found: Export) -> None:
    """Where it lies, how far it agrees, and how it is used."""
    folder = shlex.quote(found.folder)
    what = "states" if found.metric == "states" else "greedy answers"
    show(f"{found.format}: {found.folder}")
    show(f"checked in {found.checked}: {found.same_answers:.1%} of the {what} to {found.rows} test rows are the same")
    if found.score_original is not None:
        show(f"{found.metric} on them: {found.score_original:.3f} here, {found.score_export:.3f} there")
    if found.format.startswith("gguf"):
        show(f"next:\n  tunesmith serve {folder}/model.gguf\n  ollama create NAME -f {folder}/Modelfile")
