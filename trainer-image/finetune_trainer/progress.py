"""What the process knows about its own progress, for the server and for the result."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from finetune_api.stability import StabilityRule, stability_of
from finetune_api.status import Finding, Progress, Stability
from finetune_api.trainer import ProgressReport


class ProgressBoard:
    """The newest progress. One thread writes it, the server's threads read it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._progress = Progress(activity="Loading")
        self.step_seconds: float | None = None
        self.tokens = 0
        """Trained tokens since the process started."""
        self.training_seconds = 0.0
        """Time in the steps that trained them."""
        self.checkpoint_time: float | None = None
        """When this process wrote its newest checkpoint, in seconds since 1970."""
        self.peak_tokens_per_second: float | None = None
        """Speed at the GPUs' peak arithmetic; unset where that is unknown."""
        self.logged: dict[str, float] = {}
        """Newest value of everything that was logged, by TRL's names."""
        self.stability: Stability | None = None
        """What the stability guard says; unset until there is a guard."""
        self.finding_counts: Mapping[tuple[str, str], int] = Counter()
        """Findings by rule and severity."""

    @property
    def progress(self) -> Progress:
        """The newest progress."""
        with self._lock:
            return self._progress

    def update(self, **values: Any) -> None:
        """Replace some values; numbers that are not finite are left out, for JSON has none."""
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[name] = None
        with self._lock:
            now = datetime.now(UTC)
            self._progress = self._progress.model_copy(update={**values, "updated": now})

    def measured(self, values: dict[str, float]) -> None:
        """Note what was logged."""
        # Replaced, not changed: the server's threads may be reading it.
        self.logged = self.logged | values

    def found(self, findings: list[Finding], watched: Sequence[StabilityRule]) -> None:
        """Note all stability findings so far, oldest first; rules without one count none."""
        counts: Counter[tuple[str, str]] = Counter(
            {(rule.name, rule.severity): 0 for rule in watched}
        )
        counts.update((found.rule, found.severity) for found in findings)
        self.finding_counts = counts
        self.stability = stability_of(findings)

    def checkpointed(self, step: int) -> None:
        """Note a complete checkpoint."""
        self.checkpoint_time = time.time()
        self.update(checkpoint_step=step)

    @property
    def tokens_per_second(self) -> float | None:
        """Mean speed of this process's steps."""
        return self.tokens / self.training_seconds if self.training_seconds else None

    @property
    def utilization(self) -> float | None:
        """Share of the GPUs' peak arithmetic that the newest steps took."""
        speed, peak = self.progress.tokens_per_second, self.peak_tokens_per_second
        return None if speed is None or peak is None else speed / peak

    def report(self) -> ProgressReport:
        """Return what GET /progress answers."""
        return ProgressReport(progress=self.progress, stability=self.stability)
