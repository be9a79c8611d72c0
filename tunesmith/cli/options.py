"""Options that several commands share, and how a wrong one is told."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tunesmith.cli.terminal import log
from tunesmith.errors import RecipeError, TunesmithError

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.models.generation.sampling import Sampling

    # What every command module's `add` receives; argparse gives the type no public name.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class UsageError(TunesmithError):
    """The words after the command cannot be understood."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest name where one is near."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{self.prog}: {_shorter(message)}; see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """What argparse finds; a word that is left over is an error here, where the options are known."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            what = "option" if left[0].startswith("-") else "place for"
            self.error(f"no {what} {left[0]!r}{_nearest(left[0], list(self._option_string_actions))}")
        return found, left


def add_common(parser: argparse.ArgumentParser, *, out: str = "") -> None:
    """Add `--json`, `--offline` and `--out`: a folder where `out` says what for, else a file."""
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, everything else on stderr")
    parser.add_argument("--offline", action="store_true", default=_no_network(), help="never ask the network")
    if out:
        parser.add_argument("--out", type=Path, metavar="FOLDER", help=out)
    else:
        parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to this file too")


class Deprecated(argparse.Action):
    """An option under its old name: it still works, and the log names the new one, `const`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Store the value for the new option."""
        log(f"{option} is deprecated; use {self.const}")
        setattr(namespace, self.dest, values)


class PrintSchema(argparse.Action):
    """`--schema`: print the JSON schema of what `--json` prints, and end before anything else is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print what the function in `const` answers and exit with 0."""
        print(self.const())
        parser.exit()


def add_schema(parser: argparse.ArgumentParser, schema: Callable[[], str]) -> None:
    """Add `--schema`."""
    text = "print the JSON schema of what --json prints, and end"
    parser.add_argument("--schema", action=PrintSchema, const=schema, nargs=0, help=text)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--objective`, `--technique` and `--set`, which change a recipe."""
    parser.add_argument("--model", help="alias, Hub id, folder or file.gguf")
    parser.add_argument("--objective", metavar="KIND", help="what is learned, instead of the recipe's")
    parser.add_argument("--technique", metavar="KIND", help="which numbers move, instead of the recipe's")
    add_set(parser, "change a key of the recipe, such as technique.rank=8")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the recipe or the rows that a command is about, and what changes the recipe."""
    parser.add_argument("source", metavar="RECIPE|DATA", help="recipe.yaml, or rows as jsonl, json, csv, tsv, parquet")
    add_changes(parser)


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--set`, which does `what`."""
    text = f"{what}; may be repeated"
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help=text)


def changes_of(args: argparse.Namespace) -> list[str]:
    """All changes that the command line asks of the recipe; `--set` has the last word."""
    from tunesmith.config.resolve import as_changes

    named = {"model": args.model, "objective": args.objective, "technique": args.technique}
    return [*as_changes(named), *args.changes]


def recipe_of(args: argparse.Namespace, *more: str) -> Recipe:
    """The recipe of `add_source` with its changes and `more` of them; what was chosen or translated is told."""
    from tunesmith.config.resolve import resolve_recipe

    asked = resolve_recipe(args.source, changes=[*changes_of(args), *more], offline=args.offline)
    for note in asked.notes:
        log(note)
    return asked.recipe


def listed(words: str) -> tuple[str, ...]:
    """The words between commas."""
    return tuple(word.strip() for word in words.split(",") if word.strip())


def add_sampling(parser: argparse.ArgumentParser, *, temperature: float, top_p: float) -> None:
    """How an answer of a model that was tuned here is drawn."""
    add_drawing(parser, temperature=temperature)
    parser.add_argument("--top-p", type=float, default=top_p, help="draw from this much of the mass (%(default)s)")


def add_drawing(parser: argparse._ActionsContainer, *, temperature: float, longest: int | None = None) -> None:
    """What can be asked of anybody who answers, also of a server; check with `drawing`."""
    most = "else as in training" if longest is None else "%(default)s"
    parser.add_argument("--temperature", type=float, default=temperature, help="0: always the likeliest (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=longest, metavar="N", help=f"longest answer; {most}")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same again (%(default)s)")


def drawing(default: Sampling, **wished: Any) -> Sampling:
    """The model's own settings with those of the command line in their place. Raises UsageError."""
    from dataclasses import replace

    try:
        return replace(default, **{key: value for key, value in wished.items() if value is not None})
    except RecipeError as error:
        key, colon, why = str(error).partition(":")
        raise UsageError(f"--{key.replace('_', '-')}{colon}{why}") from None


def sampling_of(args: argparse.Namespace, default: Sampling) -> Sampling:
    """What `add_drawing` and `--top-p` set. Raises UsageError."""
    wished = {name: vars(args)[name] for name in ("temperature", "top_p", "max_new_tokens", "seed")}
    return drawing(default, **wished)


def _no_network() -> bool:
    """Whether the environment asks for no network, in the words of the Hub's own library."""
    return any(
        os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _shorter(message: str) -> str:
    """argparse's message; for a wrong choice or option with the nearest name."""
    wrong = re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message)
    if wrong:
        known = re.findall(r"[\w-]+", wrong[3])
        return f"no {wrong[1].lower()} {wrong[2]!r}{_nearest(wrong[2], known)}"
    return message


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.partition("=")[0], known, 1)
    return f", did you mean {near[0]!r}?" if near else f", there are {', '.join(known)}"
