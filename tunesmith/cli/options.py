"""Options that several commands share, and one-line errors for invalid ones."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tunesmith.cli.terminal import log
from tunesmith.errors import OptionError, RecipeError, suggestion

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.models.generation.sampling import Sampling

    # The type that every command module's `add` receives; argparse gives it no public name.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

ROW_FILES = "rows as jsonl, json, csv, xlsx, txt, parquet, ..."
# Former names of commands: accepted, but not suggested.
COMMAND_ALIASES = ("need",)


class UsageError(OptionError):
    """The arguments of a command cannot be parsed, or do not fit each other."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and suggest the nearest name."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        if wrong := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            choices = [word for word in re.findall(r"[\w-]+", wrong[3]) if word not in COMMAND_ALIASES]
            message = f"no {wrong[1].lower()} {wrong[2]!r}{_suggestion(wrong[2], choices)}"
        raise UsageError(f"{self.prog}: {message}; see `{self.prog} --help`")

    def _get_formatter(self) -> argparse.HelpFormatter:
        if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
            return super()._get_formatter()
        from rich_argparse import RichHelpFormatter

        formatter = RichHelpFormatter(self.prog)
        formatter.text_markup = formatter.help_markup = False  # type: ignore[misc]
        return formatter

    def format_help(self) -> str:
        """Return the help, with the kinds of objectives and techniques where an option names them."""
        for action in self._actions:
            for package in ("objectives", "techniques"):
                if action.help and f"{{{package}}}" in action.help:
                    action.help = action.help.replace(f"{{{package}}}", _kinds(package))
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the arguments; raise UsageError for an unknown one, here where the options of the command are known."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            kind = "no option" if unknown[0].startswith("-") else "unexpected argument"
            options = [name for name, act in self._option_string_actions.items() if act.help != argparse.SUPPRESS]
            self.error(f"{kind} {unknown[0]!r}{_suggestion(unknown[0], options)}")
        return known, unknown


def _kinds(package: str) -> str:
    """Return the kinds of objectives or techniques; imports their package, so only for `--help`."""
    module = import_module(f"tunesmith.{package}")
    kinds = [part.model_fields["kind"].default for part in getattr(module, package.upper())]
    return ", ".join(kinds + [name for name, short in getattr(module, "SHORTHANDS", {}).items() if len(short) > 1])


class PrintSchema(argparse.Action):
    """`--schema`: print the JSON schema of the `--json` output and exit, without checking other arguments."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print the schema of the model named by `const`, as `module:name`, and exit with 0."""
        from pydantic import TypeAdapter

        module, name = str(self.const).split(":")
        print(json.dumps(TypeAdapter(getattr(import_module(module), name)).json_schema(), indent=1))
        parser.exit()


class DeprecatedOption(argparse.Action):
    """A former name of an option: sets the same value, is not listed by `--help`, and warns.

    Add it with `dest` of the new option, its name as `const`, and `default` and `help` set to `argparse.SUPPRESS`.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Store the value under the new name and log a warning."""
        log(f"warning: {option} is deprecated; use {self.const}")
        setattr(namespace, self.dest, values)


def add_common(parser: argparse.ArgumentParser, *, out: str = "") -> None:
    """Add `--json`, `--offline` and `--out`: a FOLDER if `out` has its help, else a copy of the JSON document."""
    # HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE count as --offline, with the values that huggingface_hub accepts.
    offline = any(
        os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, messages to stderr")
    parser.add_argument("--offline", action="store_true", default=offline, help="do not access the network")
    if out:
        parser.add_argument("--out", type=Path, metavar="FOLDER", help=out)
    else:
        parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON document to this file")


def add_schema(parser: argparse.ArgumentParser, model: str) -> None:
    """Add `--schema` for a pydantic model, named as `module:name`; the module is imported when needed."""
    text = "print the JSON schema of the --json output and exit"
    parser.add_argument("--schema", action=PrintSchema, const=model, nargs=0, help=text)


def add_place(parser: argparse.ArgumentParser, what: str = "the runs") -> None:
    """Add `--on`; `what` names in its help what is trained there."""
    text = f"where {what} are trained: local, ray, or ray://HOST:PORT (default: %(default)s)"
    parser.add_argument("--on", default="local", metavar="PLACE", help=text)


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--set KEY=VALUE`; `what` is its help."""
    text = f"{what}; may be repeated"
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_engine(parser: argparse.ArgumentParser, *own: str, default: str = "torch") -> None:
    """Add `--engine`, the program that computes answers: vLLM, SGLang or one of the command's own."""

    def checked(engine: str) -> str:
        """Return the engine, after checking its name; whether it is installed, the command checks after its models."""
        from tunesmith.inference.engine_program import kind_of

        if engine and engine not in own:
            kind_of(engine)
        return engine

    named = "".join(f"{name}, " for name in own)
    text = f"{named}vllm or sglang (with options of it), or the address of a running one (default: {default})"
    parser.add_argument("--engine", type=checked, default="", metavar="ENGINE", help=text)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--objective`, `--technique` and `--set`, which change a recipe; read by `changes_of`."""
    parser.add_argument("--model", help="alias, Hub id, folder or GGUF file; overrides the recipe")
    parser.add_argument("--objective", metavar="KIND", help="objective: {objectives}; overrides the recipe")
    parser.add_argument("--technique", metavar="KIND", help="technique: {techniques}; overrides the recipe")
    add_set(parser, "set a recipe key, for example technique.rank=8")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the recipe or data file of a command and the options of `add_changes`; read by `recipe_of`."""
    parser.add_argument("source", metavar="RECIPE|DATA", help=f"recipe.yaml, or {ROW_FILES}")
    add_changes(parser)


def changes_of(args: argparse.Namespace) -> list[str]:
    """Return the `key=value` changes of `add_changes`; `--set` is last and overrides the others."""
    from tunesmith.config.resolve import as_changes

    named = {"model": args.model, "objective": args.objective, "technique": args.technique}
    return [*as_changes(named), *args.changes]


@contextmanager
def naming_options(args: argparse.Namespace) -> Iterator[None]:
    """Enter a context in which errors name the options of `add_changes` as they were typed."""
    try:
        yield
    except RecipeError as error:
        for name in ("model", "objective", "technique"):
            value = getattr(args, name)
            place = f"{name}={json.dumps(value)}: "
            if value is not None and str(error).startswith(place):
                problem = str(error).removeprefix(place).removeprefix(f"{name}: ")
                raise RecipeError(f"--{name} {value}: {problem}") from None
        raise


def recipe_of(args: argparse.Namespace, *more: str, check: Callable[[Recipe], None] | None = None) -> Recipe:
    """Return the recipe of `add_source` with further changes, and log what was detected, chosen or translated.

    `check` is called with the recipe, if possible before its rows are read; it may raise TunesmithError.

    Raises:
        RecipeError: a key or value is invalid.
        DataError: rows cannot be read.
    """
    from tunesmith.config.resolve import resolve_recipe

    with naming_options(args):
        resolved = resolve_recipe(args.source, changes=[*changes_of(args), *more], offline=args.offline, check=check)
    for note in resolved.notes:
        log(note)
    return resolved.recipe


def add_sampling(parser: argparse.ArgumentParser, *, temperature: float, top_p: float) -> None:
    """Add `--top-p` and the options of `add_common_sampling`, with these defaults; read by `sampling_of`."""
    add_common_sampling(parser, temperature=temperature)
    text = "sample from the likeliest tokens with this total probability (default: %(default)s)"
    parser.add_argument("--top-p", type=float, default=top_p, metavar="P", help=text)


def add_common_sampling(parser: argparse._ActionsContainer, *, temperature: float, longest: int | None = None) -> None:
    """Add `--temperature`, `--max-new-tokens` and `--seed`, the sampling options that remote models also have."""
    text = "sampling temperature, 0 is greedy (default: %(default)s)"
    parser.add_argument("--temperature", type=float, default=temperature, metavar="T", help=text)
    text = f"maximum tokens per answer (default: {'as in training' if longest is None else '%(default)s'})"
    parser.add_argument("--max-new-tokens", type=int, default=longest, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="sampling seed (default: %(default)s)")


def add_thinking(parser: argparse.ArgumentParser) -> None:
    """Add `--thinking` and `--no-thinking`; None if neither is given."""
    text = "think before the answer, or do not; only for models that can (default: as trained)"
    parser.add_argument("--thinking", action=argparse.BooleanOptionalAction, default=None, help=text)


@contextmanager
def naming_thinking(args: argparse.Namespace) -> Iterator[None]:
    """Enter a context in which an error about the mode names the option that was given."""
    try:
        yield
    except RecipeError as error:
        if args.thinking is None or not str(error).startswith("thinking: "):
            raise
        raise UsageError(f"--{'' if args.thinking else 'no-'}{error}") from None


def sampling_of(args: argparse.Namespace, default: Sampling) -> Sampling:
    """Return the sampling options of `add_sampling` over those of a model. Raises OptionError for an invalid value."""
    from tunesmith.pipelines.requests import sampling_with

    return sampling_with(
        default,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )


def _suggestion(word: str, known: Sequence[str]) -> str:
    near = suggestion(word.partition("=")[0], known)
    return f", {near}" if near else f"; choose from {', '.join(known)}"
