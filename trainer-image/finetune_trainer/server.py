"""Serves /progress for the operator, /metrics for Prometheus and /healthz, from its own thread."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_api import metrics as catalogue
from finetune_api.metrics import OwnMetric
from finetune_trainer.peaks import peak_memory
from finetune_trainer.progress import ProgressBoard

_VERDICTS = {"Stable": 0, "Warning": 1, "Unstable": 2}


class TrainingCollector(Collector):
    """Turns the board into metrics when Prometheus asks; what is not known yet is left out."""

    def __init__(self, board: ProgressBoard, job: dict[str, str]) -> None:
        self.board = board
        self.job = job

    def collect(self) -> Iterator[Metric]:
        """Yield what TRL logged, what the trainer measures itself, and the findings."""
        for metric, value in self._measured():
            if value is not None:
                yield self._family(metric, {(): value})
        for metric, samples in (
            (catalogue.GPU_MEMORY, self._peaks()),
            (catalogue.FINDINGS, self._findings()),
            (catalogue.PART_SECONDS, self._parts()),
        ):
            if samples:
                yield self._family(metric, samples)
        yield from self._logged()

    def _measured(self) -> list[tuple[OwnMetric, float | None]]:
        board, progress = self.board, self.board.progress
        memory = peak_memory()
        return [
            (catalogue.STEP, progress.step),
            (catalogue.TOTAL_STEPS, progress.total_steps),
            (catalogue.EPOCH, progress.epoch),
            (catalogue.EVAL_LOSS_BEFORE, progress.eval_loss_before),
            (catalogue.TOKENS, board.tokens),
            (catalogue.TOKENS_PER_SECOND, progress.tokens_per_second),
            (catalogue.STEP_SECONDS, board.step_seconds),
            (catalogue.ETA_SECONDS, progress.eta_seconds),
            (catalogue.MODEL_FLOPS_UTILIZATION, board.utilization),
            (catalogue.CHECKPOINT_STEP, progress.checkpoint_step),
            (catalogue.CHECKPOINT_TIMESTAMP, board.checkpoint_time),
            (catalogue.HOST_MEMORY, memory.host),
            (catalogue.GPU_MEMORY_USED, memory.used),
            (
                catalogue.VERDICT,
                _VERDICTS.get(board.stability.verdict) if board.stability else None,
            ),
        ]

    def _peaks(self) -> dict[tuple[str, ...], float]:
        memory = peak_memory()
        peaks = {("allocated",): memory.allocated, ("reserved",): memory.reserved}
        return {kind: value for kind, value in peaks.items() if value is not None}

    def _findings(self) -> dict[tuple[str, ...], float]:
        counts = self.board.finding_counts
        return {(rule, severity): count for (rule, severity), count in counts.items()}

    def _parts(self) -> dict[tuple[str, ...], float]:
        return {
            (key.removeprefix(catalogue.SECONDS),): value
            for key, value in self.board.logged.items()
            if key.startswith(catalogue.SECONDS)
        }

    def _logged(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for key, value in self.board.logged.items():
            metric = catalogue.exported(key)
            if metric is None:
                continue
            labels = self.job if metric.reward is None else self.job | {"reward": metric.reward}
            if metric.name not in families:
                families[metric.name] = GaugeMetricFamily(
                    metric.name, metric.help, labels=list(labels)
                )
            families[metric.name].add_metric(list(labels.values()), value)
        yield from families.values()

    def _family(self, metric: OwnMetric, samples: dict[tuple[str, ...], float]) -> Metric:
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.help, labels=[*self.job, *metric.labels])
        for labels, value in samples.items():
            family.add_metric([*self.job.values(), *labels], float(value))
        return family


def start(board: ProgressBoard, job: dict[str, str], port: int) -> ThreadingHTTPServer:
    """Serve until the process ends; job has the labels of every metric. Port 0 is any free one."""
    registry = CollectorRegistry()
    registry.register(TrainingCollector(board, job))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/progress":
                body = json.dumps(board.report().to_json()).encode()
                self._answer(200, "application/json", body)
            elif self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif self.path == "/healthz":
                self._answer(200, "text/plain", b"ok\n")
            else:
                self._answer(404, "text/plain", b"there are /progress, /metrics and /healthz\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A probe every few seconds is no news."""

    server = ThreadingHTTPServer(("", port), Handler)
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
