"""The command line's arguments."""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from finetune_operator.plugin import commands
from finetune_operator.plugin.errors import PluginError

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def __init__(self, **options: Any) -> None:
        wide = partial(argparse.HelpFormatter, max_help_position=32)
        super().__init__(allow_abbrev=False, formatter_class=wide, **options)

    def error(self, message: str) -> NoReturn:
        raise PluginError(f"{message.removeprefix('argument ')}: see {self.prog} -h.")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options, with the function that follows them as run; PluginError if unclear."""
    # Without arguments somebody wants to know what there is.
    options, unknown = _parser().parse_known_args(arguments or ["--help"])
    if unknown:
        raise PluginError(
            f"{unknown[0]} means nothing to {options.command}: see kubectl finetune"
            f" {options.command} -h."
        )
    return options


def _parser() -> _Parser:
    parser = _Parser(
        prog="kubectl finetune", description="Plans, checks, watches and runs FineTuneJobs."
    )
    names = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )

    def command(name: str, run: Command, does: str) -> _Parser:
        found = names.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        found.set_defaults(run=run)
        return found

    _plan(command("plan", commands.plan, "say which GPUs a job would get and why"))
    _job_file(command("validate", commands.validate, "check jobs as the API server would"))
    _status(command("status", commands.status, "show progress, loss, stability and attempts"))
    _logs(command("logs", commands.logs, "print the log of the job's newest pod"))
    _job_name(command("report", commands.report, "say where the report of a finished job is"))
    _recommend(
        command("recommend", commands.recommend, "say which method and GPUs fit, and write a job")
    )
    _run(command("run", commands.run, "prepare, plan and train a job on this machine"))
    return parser


def _job_file(parser: _Parser) -> None:
    parser.add_argument("-f", "--filename", required=True, action="append", type=Path,
        metavar="FILE",
        help="YAML or JSON file with jobs; - is stdin; may be repeated")  # fmt: skip


def _one_job(parser: _Parser) -> None:
    _job_file(parser)
    parser.add_argument("--name", help="only the job of this name")


def _job_name(parser: _Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the FineTuneJob")
    add("-n", "--namespace", help="namespace of the job")
    add("--context", help="context of the kubeconfig")


def _model_and_data(parser: _Parser) -> None:
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="the model's config.json, or its folder")
    add("--parameters", metavar="SIZE", help="size of the model, such as 8B")
    add("--data", type=Path, metavar="FILE", help="a local JSON Lines, JSON or CSV file")
    add("--tokens", type=_count, metavar="COUNT",
        help="tokens of the longest row; of its prompt, where the model answers")  # fmt: skip


def _plan(parser: _Parser) -> None:
    _one_job(parser)
    add = parser.add_argument
    add("--what-if", action="append", default=[], type=_change, metavar="KEY=VALUE[,...]",
        help="compare with the job so changed: gpu=L4, memory=24Gi, count=2, adapter=qlora or any"
        " field, such as training.maxLength=8192; may be repeated")  # fmt: skip
    _model_and_data(parser)
    add("--rows", type=_count, metavar="COUNT", help="training rows")
    add("--price", action="append", default=[], type=_price, metavar="[GPU=]PRICE",
        help="price of one GPU-hour, of any GPU or of one such as L4; may be repeated")  # fmt: skip
    add("-o", "--output", choices=["text", "json", "yaml"], default="text", help="format")


def _status(parser: _Parser) -> None:
    _job_name(parser)
    parser.add_argument("-w", "--watch", action="store_true",
        help="follow the job until it is finished")  # fmt: skip


def _logs(parser: _Parser) -> None:
    _job_name(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the pod ends")


def _recommend(parser: _Parser) -> None:
    add = parser.add_argument
    add("--have", choices=["examples", "pairs", "labels", "prompts"],
        help="what the data is, when it is not in a local file")  # fmt: skip
    add("--reward", help="what scores answers: a built-in reward, or the source of a function")
    add("--reward-model", action="store_true", help="train a model that scores answers")
    add("--model", metavar="SOURCE", help="model to start from")
    add("--gpu", metavar="PRODUCT", help="GPU that you have, such as L4")
    add("--gpus", type=_count, default=1, metavar="COUNT", help="how many of them")
    add("--source", help="where the data is for the cluster")
    add("--name", default="my-job", help="name of the job")
    add("--claim", default="models", help="claim that receives the model")
    _model_and_data(parser)
    add("-o", "--output", type=Path, metavar="FILE", help="write the job to this file")


def _run(parser: _Parser) -> None:
    _one_job(parser)
    add = parser.add_argument
    add("--local", action="store_true", help="on this machine")
    add("--claim", action="append", default=[], metavar="NAME=FOLDER",
        help="folder that stands for a claim; may be repeated")  # fmt: skip
    add("--configmap", action="append", default=[], metavar="NAME=FILE",
        help="file or folder for a ConfigMap; may be repeated")  # fmt: skip
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="change the job, as plan --what-if does; may be repeated")  # fmt: skip
    add("--folder", type=Path, help="where the workspace is kept; NAME.local unless given")
    add("--profile", action="store_true",
        help="profile a few steps; see profile beside the report")  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1 up")
    return int(text)


def _change(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected KEY=VALUE")
    return text


def _price(text: str) -> tuple[str, float]:
    """Return a GPU, empty for any, and its price."""
    gpu, _, number = text.rpartition("=")
    try:
        price = float(number)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 up")
    return gpu, price
