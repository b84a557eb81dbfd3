"""Serves /progress for the operator, /metrics for Prometheus and /healthz, from its own thread."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_trainer.progress import ProgressBoard


class TrainingCollector(Collector):
    """Turns the board into metrics when Prometheus asks; what is not known yet is left out."""

    def __init__(self, board: ProgressBoard, job: dict[str, str]) -> None:
        self.board = board
        self.job = job

    def collect(self) -> Iterator[Metric]:
        """Yield one gauge per known number, and the counter of tokens."""
        progress = self.board.progress
        values = {
            "finetune_step": (progress.step, "Optimizer steps done."),
            "finetune_total_steps": (progress.total_steps, "Optimizer steps planned."),
            "finetune_epoch": (progress.epoch, "Passes over the data."),
            "finetune_loss": (progress.loss, "Newest training loss."),
            "finetune_eval_loss": (progress.eval_loss, "Newest held-out loss."),
            "finetune_eval_loss_before": (
                progress.eval_loss_before,
                "Held-out loss before training.",
            ),
            "finetune_learning_rate": (progress.learning_rate, "Current learning rate."),
            "finetune_grad_norm": (progress.grad_norm, "Norm of the gradient before clipping."),
            "finetune_tokens_per_second": (progress.tokens_per_second, "Trained tokens a second."),
            "finetune_step_seconds": (self.board.step_seconds, "Duration of the newest step."),
            "finetune_eta_seconds": (progress.eta_seconds, "Estimated seconds to the last step."),
            "finetune_checkpoint_step": (
                progress.checkpoint_step,
                "Step of the newest complete checkpoint.",
            ),
            "finetune_checkpoint_timestamp_seconds": (
                self.board.checkpoint_time,
                "When the newest checkpoint was written, in seconds since 1970.",
            ),
        }
        for name, (value, help_text) in values.items():
            if value is not None:
                gauge = GaugeMetricFamily(name, help_text, labels=list(self.job))
                gauge.add_metric(list(self.job.values()), float(value))
                yield gauge
        tokens = CounterMetricFamily(
            "finetune_trained_tokens", "Tokens that this process trained on.", labels=list(self.job)
        )
        tokens.add_metric(list(self.job.values()), float(self.board.tokens))
        yield tokens


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
