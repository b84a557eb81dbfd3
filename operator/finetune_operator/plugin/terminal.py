"""The terminal."""

import re
from typing import Any

from rich.console import Console


class _Console(Console):
    """Leaves out the spaces to which tables fill lines, where nobody sees colours behind them."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write(re.sub(r" +$", "", captured.get(), flags=re.MULTILINE))
        self.file.flush()


def console() -> Console:
    """Return a console that prints words as they are: what clusters and users say is no markup."""
    return _Console(markup=False, emoji=False, highlight=False)


def amount(number: float) -> str:
    """Return hours or a price with as many decimals as a small one needs."""
    return f"{number:,.2f}" if number == 0 or number >= 0.1 else f"{number:.4f}"
