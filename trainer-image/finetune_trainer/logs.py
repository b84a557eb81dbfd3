"""Logs are one JSON object per line on standard error, libraries' messages included."""

import json
import logging
import warnings
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, logger, message and the record's own fields as JSON."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def fields(**values: Any) -> dict[str, Any]:
    """Return the `extra` argument of a logging call that adds fields to its line."""
    return {"fields": values}


def configure(level: int = logging.INFO) -> None:
    """Send everything through one JSON handler; Python's warnings too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # Deprecations are for whoever upgrades the libraries.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="(trl|transformers|peft|torch)"
    )
    for noisy in ("httpx", "httpcore", "botocore", "boto3", "urllib3", "filelock", "torchao"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Says at each import that an optional kernel is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # DeepSpeed sets its level and handler when it is imported; a filter stays.
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Tell DeepSpeed's other messages from the one that there is no GPU, which the plan says."""
    return "Setting accelerator to CPU" not in record.getMessage()


def quiet_libraries() -> None:
    """Route Transformers' own handler into ours and switch its progress bars off."""
    from transformers.utils import logging as transformers_logging

    # The pair of versions in the image is the one that the rollout is tested with.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.set_verbosity_warning()
