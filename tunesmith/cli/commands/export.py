"""`tunesmith export`: export a run for other programs and verify it there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import DeprecatedOption, add_common, add_schema
from tunesmith.cli.progress import listening
from tunesmith.cli.signals import caught
from tunesmith.cli.terminal import hush, publish, show
from tunesmith.data.files import quoted

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.report.schema import Export

FORMATS = ("merged", "gguf", "adapter")
DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def add(commands: Commands) -> None:
    """Add `export`."""
    parser = commands.add_parser(
        "export",
        help="export a run for transformers, llama.cpp, Ollama or PEFT, and verify it",
        description="Export the tuned model for transformers (merged), llama.cpp and Ollama (gguf) or PEFT (adapter). "
        "The exported model then answers test rows of the run in that program, and its answers are compared with "
        "those of the original. Exits with 1 if they differ too much.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--format", choices=FORMATS, default="merged", help="export format (default: %(default)s)")
    text = "dtype of the weights: f32, f16 or bf16 for merged, f16, q8_0 or q4_0 for gguf (default: the first of each)"
    parser.add_argument("--dtype", choices=DTYPES, default="", help=text)
    parser.add_argument(
        "--numbers", dest="dtype", choices=DTYPES, action=DeprecatedOption, const="--dtype",
        default=argparse.SUPPRESS, help=argparse.SUPPRESS,
    )  # fmt: skip
    add_schema(parser, "tunesmith.report.schema:Export")
    add_common(parser, out="folder of the export (default: RUN/export/FORMAT)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export the run and print how well the export agrees with it."""
    from tunesmith.inference.identify import find_model, read_manifest

    read_manifest(find_model(args.folder, offline=args.offline))  # fail before torch is imported
    from tunesmith.pipelines.export import ExportRequest, export

    hush()
    request = ExportRequest.of(args.format, args.dtype)
    with caught() as signals, listening(signals) as on_event:
        done = export(args.folder, request, out=args.out, on_event=on_event, offline=args.offline)
    args.out = None  # --out is the folder of the export, not a file for the JSON document
    if not publish(done.model_dump(mode="json"), args):
        _show(done)
    return 0


def _show(done: Export) -> None:
    folder = quoted(done.folder)
    show(f"{done.format}: {done.folder}")
    show(done.agreement())
    if done.score_original is not None:
        show(f"{done.metric}: {done.score_original:.3f} original, {done.score_export:.3f} export")
    if (Path(done.folder) / "README.md").exists():
        show(f"code that uses it, as it was checked: {folder}/README.md")
    if done.format.startswith("gguf"):
        show(f"next:\n  tunesmith serve {folder}/model.gguf\n  ollama create NAME -f {folder}/Modelfile")
