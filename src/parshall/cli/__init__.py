"""The command line: `parshall up`, `parshall chat` and the administration of a data folder."""

from parshall.cli.main import main

__all__ = ["main"]
