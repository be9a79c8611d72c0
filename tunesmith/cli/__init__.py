"""The command line: the only package that prints, exits or reads the environment."""

from tunesmith.cli.main import main

__all__ = ["main"]
