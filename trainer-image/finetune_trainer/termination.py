"""SIGTERM: at once where nothing is lost by it, at the next step boundary while training."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came. Not an Exception: no library may swallow it on its way out."""


class Termination:
    """Knows whether SIGTERM came, and raises Terminated unless that is put off."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def install(self) -> None:
        """Handle SIGTERM from now on. Process 1 of a container ignores it otherwise."""
        signal.signal(signal.SIGTERM, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, SIGTERM is only noted: the training loop stops at its next step."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Terminated
