"""Source URIs of the spec, taken apart."""

from dataclasses import dataclass
from typing import Self

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure


@dataclass(frozen=True)
class Source:
    """One source: what the user wrote, and its parts."""

    uri: str
    scheme: str
    """hf, pvc, s3 or configmap."""
    place: str
    """ORG/NAME, claim, bucket or ConfigMap."""
    path: str = ""
    """Path in the claim, prefix in the bucket, key in the ConfigMap."""
    revision: str | None = None
    """Revision of a hub repository."""

    @classmethod
    def parse(cls, uri: str, field: str) -> Self:
        """Return the parts of a URI that the API server has checked; field is for messages."""
        scheme, _, rest = uri.partition("://")
        if scheme == "job":
            raise JobFailure(
                Reason.CONFIG_INVALID,
                f"{field} is {uri}, but here a place of files is needed: name that job's artifact "
                "as pvc://CLAIM/PATH.",
            )
        if scheme == "hf":
            place, _, revision = rest.partition("@")
            return cls(uri, scheme, place, revision=revision or None)
        place, _, path = rest.partition("/")
        return cls(uri, scheme, place, path.strip("/"))

    @property
    def model_name(self) -> str:
        """The name under which libraries know the model: ORG/NAME of the hub, else the URI."""
        return self.place if self.scheme == "hf" else self.uri
