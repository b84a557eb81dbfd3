"""The state machine: from a job and its pods as they are to what is to be done; pure, no I/O."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from finetune_api.trainer import ProgressReport
from finetune_operator.lifecycle.accounts import Prices, accounted
from finetune_operator.lifecycle.advance import advance
from finetune_operator.lifecycle.chains import awaits, chain_of
from finetune_operator.lifecycle.draft import Decision, Draft, Event
from finetune_operator.lifecycle.finish import conclude, expire, reopened
from finetune_operator.lifecycle.job import Job
from finetune_operator.lifecycle.pods import Pod
from finetune_operator.lifecycle.refusal import rejected
from finetune_operator.lifecycle.settle import adopt, settle
from finetune_operator.planning import Inventory

__all__ = [
    "Decision",
    "Event",
    "Job",
    "Pod",
    "Prices",
    "accounted",
    "awaits",
    "chain_of",
    "decide",
    "rejected",
]


def decide(
    job: Job,
    pods: Sequence[Pod],
    *,
    now: datetime,
    report: ProgressReport | None = None,
    confirmed: bool = False,
    chain: Mapping[str, Job] | None = None,
    awaited: bool = False,
    inventory: Inventory | None = None,
) -> Decision:
    """Return what is to be done about a job.

    Args:
        job: The job as it was last seen.
        pods: All its pods as they were last seen.
        now: The time, with time zone.
        report: What the trainer said last about its progress.
        confirmed: Whether pods was just listed from the API server, so that absence is a fact.
        chain: The jobs that it waits for, and those that they wait for, by name.
        awaited: Whether another job has yet to look up its model.
        inventory: What GPUs there are.
    """
    draft = Draft(
        job,
        pods,
        now=now,
        report=report,
        confirmed=confirmed,
        chain=chain,
        awaited=awaited,
        inventory=inventory,
    )
    if job.deleting:
        return draft.unchanged()
    if not draft.finished or reopened(draft):
        adopt(draft)
        settle(draft)
        if not draft.finished and not draft.confirm:
            advance(draft)
        if draft.confirm:
            return draft.unsure()
    if draft.finished:
        expire(draft)
    conclude(draft)
    return draft.decision()
