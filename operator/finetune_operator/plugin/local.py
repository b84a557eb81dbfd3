"""kubectl finetune run --local: the trainer on this machine, with folders for claims."""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Plan, Preparation
from finetune_api.trainer import Result, TrainerConfig
from finetune_operator.planning import Inventory, PlanInfeasibleError, check_fit, make_plan
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.facts import Basis
from finetune_operator.plugin.manifests import Job, Manifest
from finetune_operator.plugin.overrides import overridden
from finetune_operator.plugin.plan_view import show
from finetune_operator.plugin.rules import accepted
from finetune_operator.plugin.scenarios import Scenario
from finetune_operator.plugin.terminal import console

_HIDDEN: Final = {"time", "level", "logger", "message", "traceback"}
_FLAGS: Final = {"pvc": "--claim", "configmap": "--configmap"}


@dataclass(frozen=True)
class Folders:
    """Where things are on this machine."""

    base: Path
    """Workspace, job.json and results; a second run in it goes on where the first stopped."""
    claims: Mapping[str, Path]
    config_maps: Mapping[str, Path]
    """Folder of a ConfigMap's keys, or the file that is its only key, by its name."""

    def arguments(self, claim: str) -> list[str]:
        """Return the trainer's flags for all folders; claim receives the model."""
        return [
            f"--config={self.base / 'job.json'}",
            f"--workspace={self.base / 'workspace'}",
            f"--sources={self.base / 'sources'}",
            f"--output={self.claims[claim]}",
            f"--termination-log={self.result}",
            "--port=0",
        ]

    @property
    def result(self) -> Path:
        """What the trainer says at the end."""
        return self.base / "result.json"

    @property
    def log(self) -> Path:
        """All that the trainer wrote."""
        return self.base / "trainer.log"


def named_folders(options: Sequence[str]) -> dict[str, Path]:
    """Return folders by name from NAME=FOLDER; PluginError when one is not of that form."""
    pairs = [option.partition("=") for option in options]
    for (name, separator, folder), option in zip(pairs, options, strict=True):
        if not (name and separator and folder):
            raise PluginError(f"{option!r} is not of the form NAME=FOLDER.")
    return {name: Path(folder) for name, _, folder in pairs}


def run_local(
    manifest: Manifest, changes: list[str], folders: Folders, *, profile: bool = False
) -> int:
    """Prepare, plan and train; return the trainer's exit code. PluginError before it starts."""
    for change in changes:
        manifest = overridden(manifest, change)
    job = _for_this_machine(accepted(manifest))
    _check_unchanged(job.spec, folders)
    with _refusals():
        check_fit(job.spec)
    _lay_out(job.spec, folders)
    trainer = _trainer()
    config = _config(job, folders)
    code, result = _attempt([trainer, "prepare"], config, folders)
    if code or result.preparation is None:
        return code
    plan = _plan(job, result.preparation)
    config = config.model_copy(update={"plan": plan, "preparation": result.preparation})
    return _train([trainer, "run", *(["--profile"] if profile else [])], config, folders)


def _train(command: list[str], config: TrainerConfig, folders: Folders) -> int:
    """Run attempts until one is not rolled back."""
    while True:
        code, result = _attempt(command, config, folders)
        if result.rollback is None:
            break
        rollbacks = [*config.rollbacks, result.rollback]
        update = {"rollbacks": rollbacks, "attempt": config.attempt + 1}
        config = config.model_copy(update=update)
    if code == 0:
        model = folders.claims[config.spec.output.claim] / (config.spec.output.path or config.name)
        console().print(f"The model is in {model}.", soft_wrap=True)
    return code


def _for_this_machine(job: Job) -> Job:
    """Return a job that trains on the CPU where there is no GPU and none was asked for."""
    count = job.spec.resources.gpu.count
    if shutil.which("nvidia-smi") or count == 0 or os.environ.get(names.DEVICE_ENV) == "cpu":
        return job
    if count != "auto":
        raise PluginError(
            f"resources.gpu.count is {count}, but this machine has no GPU (no nvidia-smi): --set"
            " resources.gpu.count=0 trains on the CPU."
        )
    gpu = job.spec.resources.gpu.model_copy(
        update={"count": 0, "product": "auto", "memory": "auto"}
    )
    resources = job.spec.resources.model_copy(update={"gpu": gpu})
    spec = job.spec.model_copy(update={"resources": resources})
    return Job(job.name, job.namespace, spec)


def _check_unchanged(spec: FineTuneJobSpec, folders: Folders) -> None:
    """Raise PluginError where another job has trained: what it left would pass for this one's."""
    known = folders.base / "job.json"
    if not known.exists():
        return
    try:
        before = TrainerConfig.read_json(known.read_text(encoding="utf-8"))
        is_other = before.plan is not None and before.spec != spec
    except ValueError:
        # Of another version, or cut off while it was written.
        is_other = True
    if is_other:
        raise PluginError(
            f"{folders.base} holds a job with another spec: name another folder with --folder, or"
            " remove that one."
        )


def _lay_out(spec: FineTuneJobSpec, folders: Folders) -> None:
    """Make the folders that a pod would have as mounts; PluginError when one is not given."""
    (folders.base / "workspace").mkdir(parents=True, exist_ok=True)
    sources = folders.base / "sources"
    if sources.exists():
        shutil.rmtree(sources)
    for source in (*_sources(spec), f"pvc://{spec.output.claim}/."):
        scheme, _, place = source.partition("://")
        if scheme == "job":
            raise PluginError(
                f"{source} is another job: run it first, and name its model with --set"
                " model.source=pvc://CLAIM/PATH."
            )
        if scheme in {"pvc", "configmap"}:
            _link(folders, sources, scheme, place.partition("/")[0])
    folders.claims[spec.output.claim].mkdir(parents=True, exist_ok=True)


def _sources(spec: FineTuneJobSpec) -> list[str]:
    mixture = [part.source for part in spec.dataset.mixture or ()]
    rewards = [each for reward in spec.rewards or () for each in (reward.model, reward.function)]
    found = [spec.model.source, spec.dataset.source, *mixture, *rewards]
    return [source for source in found if source is not None]


def _link(folders: Folders, sources: Path, scheme: str, name: str) -> None:
    known = folders.claims if scheme == "pvc" else folders.config_maps
    if name not in known:
        raise PluginError(
            f"the job uses {scheme}://{name}, but no folder stands for it: give"
            f" {_FLAGS[scheme]} {name}=FOLDER."
        )
    place = sources / scheme / name
    place.parent.mkdir(parents=True, exist_ok=True)
    target = known[name].resolve()
    if target.is_file():
        place.mkdir(exist_ok=True)
        place = place / target.name
    if not place.exists():
        place.symlink_to(target)


def _trainer() -> str:
    beside = Path(sys.executable).parent / "finetune-trainer"
    found = str(beside) if beside.exists() else shutil.which("finetune-trainer")
    if found is None:
        raise PluginError(
            "finetune-trainer is not installed: pip install 'finetune-operator[trainer]'."
        )
    return found


def _config(job: Job, folders: Folders) -> TrainerConfig:
    # The same in every run, so that a second one may go on with what the first left.
    uid = str(uuid.uuid5(uuid.NAMESPACE_URL, folders.base.resolve().as_uri()))
    return TrainerConfig(name=job.name, namespace=job.namespace, uid=uid, attempt=1, spec=job.spec)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what cannot be planned into the plugin's one sentence."""
    try:
        yield
    except PlanInfeasibleError as error:
        raise PluginError(str(error)) from error


def _plan(job: Job, preparation: Preparation) -> Plan:
    with _refusals():
        plan = make_plan(job.spec, preparation, Inventory())
    basis = Basis(preparation, ("What preparation measured.",))
    show(console(), [Scenario("", job, basis, plan)])
    return plan


def _attempt(command: list[str], config: TrainerConfig, folders: Folders) -> tuple[int, Result]:
    """Run one command of the trainer; say why it failed, if it did."""
    (folders.base / "job.json").write_text(json.dumps(config.to_json()), encoding="utf-8")
    code = _run([*command, *folders.arguments(config.spec.output.claim)], folders.log)
    text = folders.result.read_text(encoding="utf-8") if folders.result.exists() else ""
    if not text:
        raise PluginError(f"{command[1]} ended with exit code {code} and no word: {folders.log}.")
    result = Result.read_json(text)
    if code and result.rollback is None:
        reason = f"{result.reason}: {result.message}"
        sys.stderr.write(f"{reason}\nThe whole log is {folders.log}.\n")
    return code, result


def _run(command: list[str], log: Path) -> int:
    """Run a command; at Ctrl-C it is asked to end at its next step, with a checkpoint."""
    with (
        log.open("a", encoding="utf-8") as kept,
        subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as run,
    ):
        previous = signal.signal(signal.SIGINT, lambda *_: run.terminate())
        try:
            for line in run.stderr or ():
                kept.write(line)
                sys.stdout.write(readable(line))
                sys.stdout.flush()
            return run.wait()
        finally:
            signal.signal(signal.SIGINT, previous)


def readable(line: str) -> str:
    """Return a line of the trainer's log for people; what is no JSON stays as it is."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict) or "message" not in entry:
        return line
    time = str(entry.get("time", ""))[11:19]
    fields = " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in entry.items()
        if name not in _HIDDEN and not isinstance(value, dict)
    )
    return f"{time} {entry['message']} {fields}".rstrip() + "\n"
