"""Chains: jobs that start from the models of other jobs (job://NAME); what is there, and what not.

The models are looked up once and kept in status.starts, so that a retry starts from the same ones
although the jobs that made them are gone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from finetune_api.failures import Reason
from finetune_api.sources import JOB_SCHEME
from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import ConditionType, ModelStart, Phase
from finetune_operator.lifecycle.draft import Draft
from finetune_operator.lifecycle.job import Job
from finetune_operator.lifecycle.settle import fail

Chain = Mapping[str, Job]
"""The jobs that a job waits for, and those that they wait for, by name."""

WAITING: Final = "WaitingForJob"
FAILED: Final = "JobFailed"
_NOT_FOUND: Final = "JobNotFound"
_REFUSED: Final = Reason.CONFIG_INVALID.value
_MODEL: Final = "model.source"


@dataclass(frozen=True)
class _Wait:
    """Why the model of another job is not there yet."""

    reason: str
    message: str


def named_jobs(spec: FineTuneJobSpec) -> dict[str, str]:
    """Return the names of the jobs whose models a job asks for, by the field that names them."""
    sources = {_MODEL: spec.model.source}
    sources |= {f"rewards[{one.name}].model": one.model for one in spec.rewards or [] if one.model}
    return {
        field: source.removeprefix(JOB_SCHEME)
        for field, source in sources.items()
        if source.startswith(JOB_SCHEME)
    }


def chain_of(job: Job, find: Callable[[str], Job | None]) -> Chain:
    """Return all that a job depends on, by a function that finds a job of its namespace."""
    found: dict[str, Job] = {}
    wanted = _asked_for(job)
    while wanted:
        name = wanted.pop()
        other = None if name in found else find(name)
        if other is not None:
            found[name] = other
            wanted += _asked_for(other)
    return found


def awaits(job: Job, name: str) -> bool:
    """Return whether a job has yet to look up the model of another."""
    return name in _unresolved(job) and job.status.finish_time is None and not job.deleting


def sources_ready(draft: Draft) -> bool:
    """Look up the models that the job starts from; otherwise say what it waits for."""
    if draft.status.plan is not None:
        return True
    named = named_jobs(draft.job.spec)
    starts = {
        source: start
        for source, start in draft.status.starts.items()
        if source.removeprefix(JOB_SCHEME) in named.values() and not _other_use(draft, source)
    }
    draft.update(starts=starts)
    missing = {field: name for field, name in named.items() if JOB_SCHEME + name not in starts}
    if missing and not _look_up(draft, missing):
        return False
    if named or draft.condition(ConditionType.SOURCES_READY) is not None:
        if not draft.conditions.true(ConditionType.SOURCES_READY):
            draft.event("SourcesReady", _found(named))
        draft.conditions.set(ConditionType.SOURCES_READY, True, "Found", _found(named))
    return True


def refusal(job: Job, chain: Chain) -> str | None:
    """Return why what a job asks for can never be there; None when it can."""
    circle = _circle(job, chain)
    if circle:
        return (
            f"Each of these jobs waits for the model of the next: {' -> '.join(circle)}."
            " Let one of them start from another model."
        )
    for field, name in named_jobs(job.spec).items():
        message = _misfit(job, field, chain[name]) if name in chain else None
        if message is not None:
            return message
    return None


def unblocked(draft: Draft) -> bool:
    """Return whether a job was refused for what other jobs were, and they have changed."""
    condition = draft.condition(ConditionType.SOURCES_READY)
    refused = condition is not None and condition.reason == _REFUSED
    return refused and refusal(draft.job, draft.chain) is None


def without_found(draft: Draft) -> dict[str, ModelStart]:
    """Return the models that can only be known from an earlier look-up: their jobs are gone."""
    starts = draft.status.starts.items()
    return {one: start for one, start in starts if one.removeprefix(JOB_SCHEME) not in draft.chain}


def _other_use(draft: Draft, source: str) -> bool:
    """Return whether the adapter of another job was found for another use than it now has.

    As long as that job is there to be asked again. An edit of anything else leaves the models.
    """
    job = draft.job
    edited = job.generation != draft.status.observed_generation
    continues = draft.status.starts[source].adapter is not None
    asked_again = source.removeprefix(JOB_SCHEME) in draft.chain
    return edited and asked_again and continues != _goes_on(job, source)


def _goes_on(job: Job, source: str) -> bool:
    """Return whether the adapter of another job is trained on, and not merged."""
    return source == job.spec.model.source and job.spec.model.job_adapter == "continue"


def _asked_for(job: Job) -> list[str]:
    return [] if job.status.plan is not None else sorted(set(named_jobs(job.spec).values()))


def _unresolved(job: Job) -> list[str]:
    return [name for name in _asked_for(job) if JOB_SCHEME + name not in job.status.starts]


def _circle(job: Job, chain: Chain) -> list[str]:
    """Return the names along which a job waits for itself; empty when it does not."""
    paths = [[job.name, name] for name in _unresolved(job)]
    seen: set[str] = set()
    while paths:
        path = paths.pop()
        last = path[-1]
        if last == job.name:
            return path
        if last in chain and last not in seen:
            seen.add(last)
            paths += [[*path, name] for name in _unresolved(chain[last])]
    return []


def _misfit(job: Job, field: str, other: Job) -> str | None:
    scores = other.spec.method is Method.REWARD
    if field != _MODEL and not scores:
        return (
            f"{field} is job://{other.name}, a job of method {other.spec.method.value}: a reward"
            " model is made by a job of method reward."
        )
    if field == _MODEL and scores and job.spec.method is not Method.REWARD:
        return (
            f"{field} is job://{other.name}, a job of method reward, whose model gives scores and"
            f" no text: method {job.spec.method.value} needs the job of another method."
        )
    return None


def _look_up(draft: Draft, missing: Mapping[str, str]) -> bool:
    refused = refusal(draft.job, draft.chain)
    if refused is not None:
        draft.conditions.set(ConditionType.SOURCES_READY, False, _REFUSED, refused)
        fail(draft, Reason.CONFIG_INVALID, refused, advised=True)
        return False
    waits = [_wait(draft.job, field, draft.chain.get(name)) for field, name in missing.items()]
    left = [wait for wait in waits if wait is not None]
    if left:
        _say(draft, left)
        return False
    starts = dict(draft.status.starts)
    for name in missing.values():
        source = JOB_SCHEME + name
        starts[source] = _start(draft.chain[name], go_on=_goes_on(draft.job, source))
    draft.update(starts=starts)
    return True


def _wait(job: Job, field: str, other: Job | None) -> _Wait | None:
    """Return why the model of another job is not there; None when it is."""
    if other is None:
        name = named_jobs(job.spec)[field]
        return _Wait(
            _NOT_FOUND,
            f"{field} is the model of job {name}, which is not there: apply it to namespace"
            f" {job.namespace}, or make this job anew with the right name.",
        )
    if other.status.phase is Phase.FAILED:
        return _Wait(
            FAILED,
            f"{field} is the model of job {other.name} (Failed): delete that job and apply it"
            " corrected.",
        )
    if other.status.artifact is None:
        phase = other.status.phase.value
        return _Wait(WAITING, f"Waiting for the model of job {other.name} ({phase}).")
    return None


def _say(draft: Draft, waits: list[_Wait]) -> None:
    worst = min(waits, key=lambda wait: (FAILED, _NOT_FOUND, WAITING).index(wait.reason))
    message = " ".join(wait.message for wait in waits)
    before = draft.condition(ConditionType.SOURCES_READY)
    draft.say(Phase.PENDING, message)
    # The clock of the deadline runs while the job can do something.
    draft.update(start_time=None)
    draft.conditions.set(ConditionType.SOURCES_READY, False, worst.reason, message)
    if worst.reason == FAILED and (before is None or before.reason != FAILED):
        draft.event(FAILED, message, warning=True)
    elif before is None or before.status == "True":
        draft.event(WAITING, message)


def _start(other: Job, *, go_on: bool) -> ModelStart:
    """Return where the parts of the model are that a job made; go_on: its adapter is not merged."""
    artifact = other.status.artifact
    if artifact is None:
        raise ValueError(f"job {other.name} has made no model")
    if artifact.kind == "model":
        return ModelStart(base=artifact.uri)
    if artifact.merged_uri is not None and not go_on:
        return ModelStart(base=artifact.merged_uri)
    # An adapter that the other job went on with is part of the one that it made.
    own = _own_start(other)
    if go_on:
        return own.model_copy(update={"adapter": artifact.uri})
    facts = other.status.preparation
    return ModelStart(
        base=own.base,
        secret=own.secret,
        merge=[*own.merge, artifact.uri],
        weights_bytes=facts.model.weights_bytes if facts is not None else own.weights_bytes,
    )


def _own_start(job: Job) -> ModelStart:
    source = job.spec.model.source
    if source.startswith(JOB_SCHEME):
        return job.status.starts[source]
    return ModelStart(base=source, secret=job.spec.model.secret)


def _found(named: Mapping[str, str]) -> str:
    if not named:
        return "The job starts from no other job's model."
    jobs = ", ".join(sorted(set(named.values())))
    return f"The models of other jobs are there: {jobs}."
