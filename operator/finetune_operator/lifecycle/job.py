"""A FineTuneJob as the state machine sees it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from finetune_api.spec import TRAINING_FIELDS, FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus


@dataclass(frozen=True)
class Job:
    """One job as it was last seen."""

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    spec: FineTuneJobSpec
    status: FineTuneJobStatus

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """Return the job of an API object; ValidationError when it breaks the contract."""
        metadata = body["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata["generation"],
            resource_version=metadata["resourceVersion"],
            deleting="deletionTimestamp" in metadata,
            spec=FineTuneJobSpec.model_validate(body["spec"]),
            status=FineTuneJobStatus.read(body.get("status") or {}),
        )


def parse_time(text: str) -> datetime:
    """Return a Kubernetes timestamp."""
    return datetime.fromisoformat(text)


def same_training(one: FineTuneJobSpec, other: FineTuneJobSpec) -> bool:
    """Return whether two specs train the same model; the run policy does not matter.

    Parsed, for a field that a newer CRD added with a default is no change.
    """
    fields = FineTuneJobSpec.model_fields.items()
    training = [name for name, field in fields if field.alias in TRAINING_FIELDS]
    return all(getattr(one, name) == getattr(other, name) for name in training)
