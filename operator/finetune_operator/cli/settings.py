"""What can be set, by flag or by environment variable; a flag wins."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_operator.lifecycle import Prices
from finetune_operator.workloads import TrainerSettings


@dataclass(frozen=True)
class Settings:
    """The operator's settings."""

    trainer: TrainerSettings
    prices: Prices
    namespaces: tuple[str, ...]
    """Namespaces to watch; empty is all of them."""
    nodes: Literal["watch", "ignore"]
    """Whether plans look at the GPUs that nodes have."""
    context: str | None
    """Context of the kubeconfig; unset is the current one."""
    workers: int
    """Jobs that are reconciled at the same time."""
    resync_seconds: float
    """Interval of the safety net under the watches."""
    progress_via: Literal["pod", "proxy"]
    """How trainers are asked for their progress: directly, or through the API server."""
    address: str
    """Address of /healthz, /readyz and /metrics."""
    port: int
    """Port of the same."""
    log_level: str
    log_format: Literal["json", "text"]


def parse(arguments: Sequence[str]) -> Settings:
    """Return the settings; SystemExit with a sentence when they are not right."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.gpu_price and not options.currency:
        parser.error("--gpu-price is given without --currency: name one, such as USD")
    log_format = options.log_format
    if log_format == "auto":
        log_format = "text" if sys.stderr.isatty() else "json"
    return Settings(
        trainer=TrainerSettings(
            image=options.trainer_image,
            env=dict(options.trainer_env),
            pull_secrets=tuple(options.trainer_pull_secret),
        ),
        prices=Prices(options.currency, dict(options.gpu_price)),
        namespaces=tuple(options.namespace or _listed("FINETUNE_NAMESPACES")),
        nodes=options.nodes,
        context=options.context,
        workers=options.workers,
        resync_seconds=options.resync_seconds,
        progress_via=options.progress_via,
        address=options.address,
        port=options.port,
        log_level=options.log_level,
        log_format=log_format,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune-operator", description="Turns FineTuneJobs into fine-tuned models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the operator against the cluster")
    add = run.add_argument
    image = os.environ.get("FINETUNE_TRAINER_IMAGE")
    add("--trainer-image", default=image, required=image is None, metavar="IMAGE",
        help="image of prepare and trainer pods [FINETUNE_TRAINER_IMAGE]")  # fmt: skip
    add("--trainer-env", action="append", default=[], type=_assignment, metavar="NAME=VALUE",
        help="environment variable of all trainer pods; may be repeated")  # fmt: skip
    add("--trainer-pull-secret", action="append", default=[], metavar="NAME",
        help="image pull secret of all trainer pods, by its name in the job's namespace; may be"
        " repeated")  # fmt: skip
    add("--gpu-price", action="append", default=[], type=_price, metavar="PRODUCT=PRICE",
        help="price of one GPU-hour of a product, such as NVIDIA-L4=0.70, for the cost in statuses;"
        " may be repeated")  # fmt: skip
    add("--currency", default="", metavar="NAME", help="currency of the prices, such as USD")
    add("--namespace", action="append", metavar="NAME",
        help="namespace to watch, may be repeated; none is all [FINETUNE_NAMESPACES]")  # fmt: skip
    add("--nodes", choices=["watch", "ignore"], default=os.environ.get("FINETUNE_NODES", "watch"),
        help="watch: plan with the GPUs that the nodes have, where listing nodes is allowed"
        " [FINETUNE_NODES]")  # fmt: skip
    add("--context", default=None, help="context of the kubeconfig")
    add("--workers", type=int, default=_number("FINETUNE_WORKERS", 8),
        help="jobs reconciled at the same time [FINETUNE_WORKERS]")  # fmt: skip
    add("--resync-seconds", type=float, default=_number("FINETUNE_RESYNC_SECONDS", 300),
        help="seconds between full listings, three requests each: after a lost watch a deletion"
        " that left no object behind is noticed no later [FINETUNE_RESYNC_SECONDS]")  # fmt: skip
    add("--progress-via", choices=["pod", "proxy"],
        default=os.environ.get("FINETUNE_PROGRESS_VIA", "pod"),
        help="proxy: ask trainers through the API server, from outside the cluster"
        " [FINETUNE_PROGRESS_VIA]")  # fmt: skip
    every = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus come from outside
    add("--address", default=every, help="address of /healthz, /readyz and /metrics")
    add("--port", type=int, default=_number("FINETUNE_PORT", 8080),
        help="port of the same; 0 is any free one [FINETUNE_PORT]")  # fmt: skip
    add("--log-level", choices=["debug", "info", "warning", "error"],
        default=os.environ.get("FINETUNE_LOG_LEVEL", "info"),
        help="[FINETUNE_LOG_LEVEL]")  # fmt: skip
    add("--log-format", choices=["auto", "json", "text"],
        default=os.environ.get("FINETUNE_LOG_FORMAT", "auto"),
        help="auto is text on a terminal and JSON elsewhere [FINETUNE_LOG_FORMAT]")  # fmt: skip
    return parser


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def _price(text: str) -> tuple[str, float]:
    product, amount = _assignment(text)
    try:
        price = float(amount)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        raise argparse.ArgumentTypeError(
            f"the price of {product} is {amount!r}, expected a number from 0 up, such as 0.70"
        )
    return product, price


def _listed(variable: str) -> list[str]:
    return [name for name in os.environ.get(variable, "").split(",") if name]


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))
