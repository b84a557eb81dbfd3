"""What a person sees while a cluster comes up: one line a step, with the seconds so far."""

from __future__ import annotations

import sys
import time

_started = time.monotonic()


def say(sentence: str) -> None:
    """Print to stderr, so that stdout stays for what other programs read."""
    print(f"[{time.monotonic() - _started:6.1f} s] {sentence}", file=sys.stderr, flush=True)
