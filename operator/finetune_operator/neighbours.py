"""What other jobs mean to a job, from the store: what it waits for, and what waits for it."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_operator.lifecycle import Job, awaits, chain_of
from finetune_operator.store import Key, Store


@dataclass(frozen=True)
class Neighbours:
    """Other jobs of the namespace, as they were last seen."""

    chain: Mapping[str, Job]
    """The jobs that it waits for, and those that they wait for, by name."""
    awaited: bool
    """Whether another job has yet to look up its model, and its TTL matters for that."""


def neighbours_of(store: Store, key: Key, job: Job) -> Neighbours:
    """Return a job's neighbours; ValidationError when one that it waits for breaks the contract."""

    def find(name: str) -> Job | None:
        body = store.job((job.namespace, name))
        return None if body is None else Job.parse(body)

    expires = job.spec.run_policy.ttl_seconds_after_finished is not None
    return Neighbours(chain_of(job, find), expires and _awaited(store, key))


def _awaited(store: Store, key: Key) -> bool:
    bodies = [store.job(dependant) for dependant in store.dependants(key)]
    for body in bodies:
        try:
            if body is not None and awaits(Job.parse(body), key[1]):
                return True
        except ValidationError:
            # A job that this operator does not understand never looks anything up.
            continue
    return False
