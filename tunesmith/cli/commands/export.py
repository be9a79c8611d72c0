"""`tunesmith export` and `tunesmith push`: a run for other programs, verified there, and on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import DeprecatedOption, add_common, add_schema
from tunesmith.cli.progress import listening
from tunesmith.cli.signals import caught
from tunesmith.cli.terminal import hush, publish, show, show_table
from tunesmith.data.files import quoted
from tunesmith.inference.export.dtypes import DTYPES, MIXTURE_NAMES
from tunesmith.report.formatting import share, size

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.push import Push
    from tunesmith.report.schema import Export

# Every precision of some format.
PRECISIONS = tuple(dict.fromkeys(dtype for dtypes in DTYPES.values() for dtype in dtypes))


def add(commands: Commands) -> None:
    """Add `export` and `push`."""
    parser = commands.add_parser(
        "export",
        help="export a run for transformers, llama.cpp, Ollama, vLLM or PEFT, and verify it",
        description="Export the tuned model for transformers (merged), llama.cpp and Ollama (gguf), PEFT (adapter), or "
        "in 8 bits for vLLM (compressed-tensors). "
        "The exported model then answers test rows of the run in that program, and its answers are compared with "
        "those of the original. Exits with 1 if they differ too much.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--format", choices=tuple(DTYPES), default="", help="export format (default: merged)")
    text = f"dtype: f32, f16 or bf16 for merged, f16, {', '.join(MIXTURE_NAMES)} for gguf, int8 or fp8 for "
    text += "compressed-tensors (default: the first of each)"
    parser.add_argument("--dtype", choices=PRECISIONS, default="", metavar="DTYPE", help=text)
    text = "write the smallest gguf file that is shown to be not worse than the tuned model on held-out rows"
    parser.add_argument("--smallest", action="store_true", help=text)
    text = "loss that --smallest does not accept, in points of the metric (default: 1)"
    parser.add_argument("--margin", type=float, metavar="POINTS", help=text)
    text = "ask the export the challenge of the run at the end, as `tunesmith verify` does (default: yes)"
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help=text)
    parser.add_argument(
        "--numbers", dest="dtype", choices=PRECISIONS, action=DeprecatedOption, const="--dtype",
        default=argparse.SUPPRESS, help=argparse.SUPPRESS,
    )  # fmt: skip
    add_schema(parser, "tunesmith.report.schema:Export")
    add_common(parser, out="folder of the export (default: RUN/export/FORMAT-DTYPE)")
    parser.set_defaults(run=run)
    pushing = commands.add_parser(
        "push",
        help="upload a run to the Hugging Face Hub, privately by default",
        description="Upload the model of a run with a model card to a repository of the Hugging Face Hub. First shows "
        "every file, where it goes and who can read it, and asks. Without a terminal and without --yes nothing is "
        "uploaded. Rows, answers, logs, checkpoints and the recipe are never uploaded.",
    )
    pushing.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    pushing.add_argument("repo", metavar="OWNER/NAME", help="repository, created if it does not exist")
    pushing.add_argument("--public", action="store_true", help="let everyone read it (default: private)")
    pushing.add_argument("--report", action="store_true", help="also upload the report, without its example rows")
    text = "licence of the model, as the Hub names it (default: that of base and data, other if it is not known)"
    pushing.add_argument("--license", default="", metavar="ID", help=text)
    text = "Hub id of the base, for a run over a copy of it in a folder (default: as in training)"
    pushing.add_argument("--base", default="", metavar="OWNER/NAME", help=text)
    pushing.add_argument("--yes", action="store_true", help="upload without asking")
    add_schema(pushing, "tunesmith.pipelines.push:Push")
    add_common(pushing)
    pushing.set_defaults(run=push)


def run(args: argparse.Namespace) -> int:
    """Export the run and print how well the export agrees with it."""
    from tunesmith.inference.identify import find_model, read_manifest
    from tunesmith.inference.llamacpp import find_converter

    read_manifest(find_model(args.folder, offline=args.offline))  # fail before torch is imported
    if args.format == "gguf" or args.smallest:
        find_converter()
    from tunesmith.pipelines.export.export import export
    from tunesmith.pipelines.export.request import ExportRequest

    hush()
    request = ExportRequest.of(args.format, args.dtype, smallest=args.smallest, margin=args.margin, verify=args.verify)
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
    if (smallest := done.smallest) is not None:
        shown = smallest.display()
        show_table(shown.columns, shown.rows, drop=("bits", "tokens/s"))
        layers = [
            (one.layer, ", ".join(one.types), f"{one.divergence:.2g}", share(one.kept)) for one in smallest.layers
        ]
        show_table(("layer", "types", "KL alone at 4 bits>", "tuning / (tuning + rounding)>"), layers)
        show(smallest.sentence())
    elif done.score_original is not None:
        show(f"{done.metric}: {done.score_original:.3f} original, {done.score_export:.3f} export")
    if done.verified:
        show(f"verify: {done.verified}")
    if (Path(done.folder) / "README.md").exists():
        show(f"code that uses it, as it was checked: {folder}/README.md")
    if done.format.startswith("gguf"):
        show(f"next:\n  tunesmith serve {folder}/model.gguf\n  ollama create NAME -f {folder}/Modelfile")


def push(args: argparse.Namespace) -> int:
    """Show the plan, ask, and upload."""
    from tunesmith.pipelines.push import push as push_run

    hush()

    def confirm(plan: Push) -> bool:
        if not args.json:
            show_table(("file", "size>"), [(file.name, size(file.bytes)) for file in plan.files])
            for line in plan.lines():
                show(line)
        if args.yes:
            return True
        asks = sys.stdin is not None and sys.stdin.isatty() and not args.json
        try:
            return asks and input("upload? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:  # Ctrl-D
            return False

    done = push_run(
        args.folder,
        args.repo,
        confirm=confirm,
        public=args.public,
        report=args.report,
        licence=args.license,
        base=args.base,
        offline=args.offline,
    )
    if not publish(done.model_dump(mode="json"), args):
        show(f"uploaded: {done.url}" if done.commit else "nothing was uploaded; add --yes to upload it")
    return 0
