"""`tunesmith verify`: whether what answers is the model that was tuned."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_schema
from tunesmith.cli.progress import reported
from tunesmith.cli.terminal import hush, publish, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands


def add(commands: Commands) -> None:
    """Add `verify`."""
    parser = commands.add_parser(
        "verify",
        help="check that what answers is the model that was tuned",
        description="Send the prompts of a run's challenge to a server, a folder or a file, and decide whether it "
        "answers as the tuned model, as its base, as a damaged copy, or as something else. Exits with 1 unless it is "
        "the tuned model. `verify make ADAPTER` makes a challenge for an adapter of another program.",
    )
    text = "run folder or challenge file; or `make` and an adapter"
    parser.add_argument("words", nargs="+", metavar="RUN | make ADAPTER", help=text)
    text = "address of an OpenAI-compatible server (URL, or URL#MODEL if it has several; key: TUNESMITH_API_KEY), "
    text += "model folder, run or .gguf file (default: RUN)"
    parser.add_argument("--at", default="", metavar="TARGET", help=text)
    text = "compare how it renders and parses chats instead, by the conversations in chat.json of RUN"
    parser.add_argument("--chat", action="store_true", help=text)
    text = "base model for the adapter (default: the base named in the adapter)"
    parser.add_argument("--base", default="", metavar="MODEL", help=text)
    text = "prompts that the adapter was tuned for, for `make` (default: general questions only)"
    parser.add_argument("--rows", default="", metavar="FILE", help=text)
    add_schema(parser, "tunesmith.pipelines.verify.verify:Verified")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify a target and print the verdict, or make a challenge."""
    from tunesmith.pipelines.verify.challenge import read_challenge

    if args.words[0] == "make":
        return _make(args)
    if len(args.words) > 1:
        raise UsageError(f"verify: expected one run, got {len(args.words)}; see `tunesmith verify --help`")
    if args.base or args.rows:
        raise UsageError("verify: --base and --rows are for `verify make`; leave them out")
    if args.chat:
        return _verify_chat(args)
    place = Path(args.words[0])
    challenge = read_challenge(place)
    if place.is_file() and not args.at:
        raise UsageError(f"verify: {place} is a challenge without a model; name what to verify with --at")
    from tunesmith.pipelines.verify.verify import verify

    hush()
    with reported() as on_event:
        found = verify(challenge, args.at or args.words[0], on_event=on_event, offline=args.offline)
    if not publish(found.model_dump(mode="json"), args):
        show(f"{found.target}: {found.sentence}")
        for line in found.display().lines:
            show(line)
    return 0 if found.verdict == "tuned" else 1


def _verify_chat(args: argparse.Namespace) -> int:
    """Compare the chats of a target with the contract of a run."""
    from tunesmith.pipelines.verify.verify import verify_chat

    hush()
    with reported() as on_event:
        target = args.at or args.words[0]
        found = verify_chat(Path(args.words[0]), target, on_event=on_event, offline=args.offline)
    if not publish(found.model_dump(mode="json"), args):
        show(f"{found.target}: {found.sentence()}")
    return 0 if found.difference is None else 1


def _make(args: argparse.Namespace) -> int:
    """Write the challenge of an adapter."""
    if args.at or args.chat:
        raise UsageError("verify make: --at and --chat are for `verify RUN`; leave them out")
    if len(args.words) != 2:
        raise UsageError(f"verify make: expected one adapter, got {len(args.words) - 1}; see `tunesmith verify --help`")
    from tunesmith.pipelines.verify.make import challenge_of, prompts_in

    hush()
    args.out = args.out or Path("challenge.json")
    rows = prompts_in(args.rows, offline=args.offline) if args.rows else ()
    made = challenge_of(args.words[1], base=args.base, rows=rows, offline=args.offline)
    if not publish(made.model_dump(mode="json"), args):
        show(f"{len(made.prompts)} prompts that it answers otherwise than its base: {args.out}")
    return 0
