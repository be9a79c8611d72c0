"""Completion of commands, options, recipe keys and paths in a shell: `tunesmith --print-completion bash`."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from tunesmith.cli.options import COMMAND_ALIASES

SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")
FOLDERS = re.compile(r"FOLDER|RUN(\|COMPARISON)?")
FILES = re.compile(r"\b(FILE|FOLDER|DATA|RECIPE|MODEL2?|RUN|SOURCE|OUT|TEST|STORE)\b")
# shtab's function, but no space after a key of a recipe: the value follows.
BASH = """
_tunesmith() { _shtab_tunesmith "$@"; [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace; return 0; }
complete -o bashdefault -F _tunesmith tunesmith"""


class PrintCompletion(argparse.Action):
    """`--print-completion SHELL`: print the script that completes the command line, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object) -> NoReturn:
        """Print the script and exit with 0."""
        import shtab

        keys = recipe_keys()
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        for alias in COMMAND_ALIASES:  # former names are accepted, not offered
            commands._name_parser_map.pop(alias, None)
        for command in commands.choices.values():
            for action in command._actions:
                metavar = action.metavar if isinstance(action.metavar, str) else ""
                if "--set" in action.option_strings:
                    action.choices = keys  # not checked: this process only prints
                elif FOLDERS.fullmatch(metavar):
                    action.complete = shtab.DIRECTORY
                elif FILES.search(metavar):
                    action.complete = shtab.FILE
        script = shtab.complete(parser, shell)
        print(script + BASH if shell == "bash" else script)
        parser.exit()


def recipe_keys() -> list[str]:
    """Return the keys of a recipe with their sections and an equals sign: `technique.rank=`."""
    from tunesmith.config import Recipe

    schema = Recipe.model_json_schema()
    keys = []
    for name, entry in schema["properties"].items():
        kinds = entry.get("discriminator", {}).get("mapping", {}).values()
        parts = [*kinds, *([entry["$ref"]] if "$ref" in entry else [])]
        inner = {key for part in parts for key in schema["$defs"][part.rsplit("/", 1)[1]]["properties"]}
        keys += [f"{name}.{key}=" for key in sorted(inner)]
        keys += [f"{name}="] if kinds or not inner else []
    return keys
