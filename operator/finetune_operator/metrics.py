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
