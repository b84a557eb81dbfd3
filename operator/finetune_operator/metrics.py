"""What /metrics shows; nothing is labelled by object."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

API_REQUESTS = Counter(
    "finetune_operator_api_requests_total",
    "Requests to the API server, without the watches.",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
API_SECONDS = Histogram(
    "finetune_operator_api_request_seconds",
    "Time that requests to the API server took.",
    ["verb"],
    registry=REGISTRY,
)
RECONCILES = Counter(
    "finetune_operator_reconciles_total",
    "Reconciliations by outcome: changed, unchanged or error.",
    ["outcome"],
    registry=REGISTRY,
)
RECONCILE_SECONDS = Histogram(
    "finetune_operator_reconcile_seconds",
    "Time that one reconciliation took.",
    registry=REGISTRY,
)
PHASES = Counter(
    "finetune_operator_phase_changes_total",
    "Jobs that entered a phase.",
    ["phase"],
    registry=REGISTRY,
)
JOBS = Gauge("finetune_operator_jobs", "Jobs by phase, as of now.", ["phase"], registry=REGISTRY)
QUEUE_DEPTH = Gauge(
    "finetune_operator_queue_depth", "Jobs that wait for a worker.", registry=REGISTRY
)
QUEUE_OLDEST = Gauge(
    "finetune_operator_queue_oldest_seconds",
    "Age of the oldest job that waits for a worker or is with one.",
    registry=REGISTRY,
)
MISSED_EVENTS = Counter(
    "finetune_operator_missed_events_total",
    "Changes that a resync found and the watches had not delivered.",
    registry=REGISTRY,
)
GPU_HOURS = Counter(
    "finetune_operator_gpu_hours_total",
    "GPU-hours that attempts to train have held, as told in the statuses of their jobs.",
    ["method", "product"],
    registry=REGISTRY,
)
PLAN_MEMORY_ERROR = Histogram(
    "finetune_operator_plan_memory_error_ratio",
    "Estimated / measured memory - 1 of the plans of attempts that have ended.",
    ["method", "adapter", "product"],
    buckets=(-0.5, -0.25, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0),
    registry=REGISTRY,
)
