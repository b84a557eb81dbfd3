"""The command finetune-trainer: where every error becomes a Result and an exit code."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure, Result, TrainerConfig
from finetune_trainer import environment, launcher, logs, message, server
from finetune_trainer.failures import as_failure
from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.paths import Paths
from finetune_trainer.progress import ProgressBoard
from finetune_trainer.stability.failure import RolledBack
from finetune_trainer.termination import Terminated, Termination

log = logging.getLogger(__name__)

_KILLED = 128
"""Exit codes above are those of processes that a signal ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (finetune_api.failures)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    # Of several processes the first speaks for all.
    logs.configure(logging.INFO if environment.is_first_process() else logging.WARNING)
    if not environment.is_launched():
        options.termination_log.write_text("")
    try:
        config = read_config(options.config)
    except JobFailure as failure:
        return _end(options.termination_log, _failed(failure), failure)
    plan = config.plan
    if options.command == "run" and plan is not None and launcher.needs_launch(plan):
        environment.set_up(plan.cpu, plan.gpus_per_node)
        code = launcher.launch(plan, arguments)
        if code > _KILLED:
            # It could not say so, and what the others said follows from it.
            options.termination_log.write_text("")
        return code
    environment.set_up(plan.cpu if plan else None)
    if options.command == "run":
        environment.go_offline()
    return _guarded(COMMANDS[options.command], config, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune-trainer", description="Prepares and trains one FineTuneJob."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "prepare": "fetch model and data into the workspace and check them",
        "run": "train on what prepare left in the workspace and write the model to the output",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, default=Path(names.CONFIG_FILE))
        command.add_argument("--workspace", type=Path, default=Path(names.WORKSPACE_DIR))
        command.add_argument("--output", type=Path, default=Path(names.OUTPUT_DIR))
        command.add_argument("--sources", type=Path, default=Path(names.SOURCES_DIR))
        command.add_argument(
            "--termination-log", type=Path, default=Path(names.TERMINATION_MESSAGE_FILE)
        )
        command.add_argument("--port", type=int, default=names.METRICS_PORT)
        if name == "run":
            command.add_argument(
                "--profile",
                action="store_true",
                help="profile a few steps; the folder profile beside the report has what was seen",
            )
    return parser


def read_config(path: Path) -> TrainerConfig:
    """Return job.json. Raises JobFailure that names the first field that is wrong."""
    try:
        return TrainerConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise JobFailure(
            Reason.CONFIG_INVALID, f"--config {path} cannot be read: {error.strerror}."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "it"
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"{path.name} is no trainer config: {field}: {first['msg']}.",
        ) from error


Command = Callable[[TrainerConfig, argparse.Namespace, ProgressBoard, Termination], Result]


def _guarded(command: Command, config: TrainerConfig, options: argparse.Namespace) -> int:
    """Run a command; whatever it raises ends up in the termination message."""
    board, termination = ProgressBoard(), Termination()
    termination.install()
    try:
        return _end(options.termination_log, command(config, options, board, termination))
    except Terminated:
        step = board.progress.checkpoint_step
        kept = "nothing was trained yet" if step is None else f"checkpoint {step} is complete"
        failure = JobFailure(Reason.PREEMPTED, f"stopped by SIGTERM; {kept}.")
    except JobFailure as error:
        failure = error
    except Exception as error:
        failure = as_failure(error)
        log.exception("failed", extra=logs.fields(reason=failure.reason.value))
    return _end(options.termination_log, _failed(failure, board, options.workspace), failure)


def _prepare(
    config: TrainerConfig,
    options: argparse.Namespace,
    _board: ProgressBoard,
    _termination: Termination,
) -> Result:
    from finetune_trainer.prepare import prepare

    logs.quiet_libraries()
    return prepare(config, _paths(options))


def _run(
    config: TrainerConfig,
    options: argparse.Namespace,
    board: ProgressBoard,
    termination: Termination,
) -> Result:
    if environment.is_first_process():
        # Not `job`: Prometheus gives every series a label of that name.
        job = {"namespace": config.namespace, "finetunejob": config.name}
        server.start(board, job, options.port)
    from finetune_trainer.run import run

    logs.quiet_libraries()
    return run(config, _paths(options), board, termination, profiles=options.profile)


def _paths(options: argparse.Namespace) -> Paths:
    return Paths(options.workspace, options.output, options.sources)


COMMANDS: dict[str, Command] = {"prepare": _prepare, "run": _run}


def _failed(
    failure: JobFailure, board: ProgressBoard | None = None, workspace: Path | None = None
) -> Result:
    """Return a failure's result; what was measured until then goes with it."""
    measured = {}
    # Without torch nothing was trained, and loading it only for this would take seconds.
    if board is not None and workspace is not None and "finetune_trainer.run" in sys.modules:
        from finetune_trainer.record import record

        measured = record(board, MetricsLog(Paths(workspace, workspace, workspace).metrics))
    return Result.failed(
        failure.reason,
        failure.message,
        checkpoint_step=board.progress.checkpoint_step if board is not None else None,
        rollback=failure.rollback if isinstance(failure, RolledBack) else None,
        **measured,
    )


def _end(termination_log: Path, result: Result, failure: JobFailure | None = None) -> int:
    log.info("ended", extra=logs.fields(reason=result.reason, detail=result.message))
    if failure is not None:
        # Of several processes the first failure counts: those of the others follow from it.
        message.leave(termination_log, result, only_first=True)
        return failure.exit_code
    if environment.is_first_of_pod():
        message.leave(termination_log, result, only_first=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
