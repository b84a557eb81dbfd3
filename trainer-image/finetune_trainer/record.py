"""What every result carries, however the run ended."""

from typing import Any

from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.peaks import peak_memory
from finetune_trainer.progress import ProgressBoard


def record(board: ProgressBoard, metrics: MetricsLog) -> dict[str, Any]:
    """Return step, metrics, and measured peaks and speed."""
    speed = board.tokens_per_second
    measured = peak_memory().measured() | ({} if speed is None else {"tokens_per_second": speed})
    return {
        "step": board.progress.step,
        "metrics": metrics.summary(),
        "measured": {name: round(value, 3) for name, value in measured.items()},
        "stability": board.stability,
    }
