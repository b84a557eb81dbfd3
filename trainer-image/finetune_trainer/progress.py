"""What the process knows about its own progress, for the server and for the result."""

import math
import time
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from finetune_api.status import Progress
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

    def checkpointed(self, step: int) -> None:
        """Note a complete checkpoint."""
        self.checkpoint_time = time.time()
        self.update(checkpoint_step=step)

    @property
    def tokens_per_second(self) -> float | None:
        """Mean speed of this process's steps."""
        return self.tokens / self.training_seconds if self.training_seconds else None

    def report(self) -> ProgressReport:
        """Return what GET /progress answers."""
        return ProgressReport(progress=self.progress)
