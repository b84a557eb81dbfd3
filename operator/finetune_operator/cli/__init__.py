"""The command line: finetune-operator run."""

from finetune_operator.cli.main import main

__all__ = ["main"]
