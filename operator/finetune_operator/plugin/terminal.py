"""The terminal."""

from rich.console import Console


def console() -> Console:
    """Return a console that prints words as they are: what clusters and users say is no markup."""
    return Console(markup=False, emoji=False, highlight=False)
