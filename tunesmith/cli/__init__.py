"""The command line: the only room that prints, exits or reads the environment."""

from tunesmith.cli.main import main

__all__ = ["main"]
