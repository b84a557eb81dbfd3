"""Fetches one source into a folder of the workspace, once."""

import hashlib
import logging
from pathlib import Path

from finetune_trainer.durable import publish, read_json, remove, size_of, write_json
from finetune_trainer.logs import fields
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted

log = logging.getLogger(__name__)

MARKER = ".source.json"


def fetch(source: Source, target: Path, wanted: Wanted, mounts: Path) -> None:
    """Make target hold the source's wanted files, whole; one that already does is left alone.

    Raises JobFailure when the source is missing, forbidden or out of reach.
    """
    if is_fetched(target, source.uri):
        log.info("source is already in the workspace", extra=fields(source=source.uri))
        return
    # Named after the source: what an earlier try left of another source is never mixed in.
    digest = hashlib.sha256(source.uri.encode()).hexdigest()[:12]
    staging = target.with_name(f".{target.name}.{digest}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    log.info("fetching", extra=fields(source=source.uri))
    _fetch_into(source, staging, wanted, mounts)
    write_json(staging / MARKER, {"uri": source.uri})
    remove(target)
    publish(staging, target)
    log.info("fetched", extra=fields(source=source.uri, bytes=size_of(target)))


def is_fetched(target: Path, uri: str) -> bool:
    """Tell whether target holds, whole, what uri names."""
    return bool((read_json(target / MARKER) or {}).get("uri") == uri)


def _fetch_into(source: Source, staging: Path, wanted: Wanted, mounts: Path) -> None:
    # Each client library costs a second to import: only the one that is needed is.
    if source.scheme == "hf":
        from finetune_trainer.sources import hub

        hub.fetch(source, staging, wanted)
    elif source.scheme == "s3":
        from finetune_trainer.sources import objects

        objects.fetch(source, staging, wanted)
    else:
        from finetune_trainer.sources import mounted

        mounted.fetch(source, staging, wanted, mounts)
