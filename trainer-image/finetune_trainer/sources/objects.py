"""s3://: any object store that speaks S3; boto3 reads credentials and AWS_ENDPOINT_URL itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted

_UNAUTHORIZED = {
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "403",
}
_MISSING = {"NoSuchBucket", "NoSuchKey", "404"}


def fetch(source: Source, target: Path, wanted: Wanted) -> None:
    """Download the wanted objects below the prefix; complete ones of an earlier try are kept."""
    with _errors(source, wanted):
        client = boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))
        sizes = _list(client, source)
        names = list(sizes)
        single = names == [Path(source.path).name]
        chosen = names if single else wanted.choose(names)
        if not chosen:
            raise JobFailure(
                wanted.missing,
                f"{wanted.field} is {source.uri}, but no usable object has that prefix "
                f"({len(names)} objects found).",
            )
        for name in chosen:
            key = source.path if single else f"{source.path}/{name}"
            _download(client, source.place, key, target / name, sizes[name])


def _list(client: Any, source: Source) -> dict[str, int]:
    """Return sizes by name relative to the prefix; an object of exactly that key is alone."""
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=source.place, Prefix=source.path
    )
    objects = {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}
    if source.path in objects:
        return {Path(source.path).name: objects[source.path]}
    start = f"{source.path}/"
    relative = {
        key.removeprefix(start): size for key, size in objects.items() if key.startswith(start)
    }
    return {
        name: size
        for name, size in relative.items()
        if name and not name.endswith("/") and ".." not in Path(name).parts
    }


def _download(client: Any, bucket: str, key: str, target: Path, size: int) -> None:
    if target.exists() and target.stat().st_size == size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.partial")
    client.download_file(bucket, key, str(staging))
    staging.replace(target)


@contextmanager
def _errors(source: Source, wanted: Wanted) -> Iterator[None]:
    try:
        yield
    except NoCredentialsError as error:
        raise JobFailure(
            Reason.SOURCE_UNAUTHORIZED,
            f"{wanted.field} is {source.uri}, but there are no credentials: name a Secret with "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        ) from error
    except ClientError as error:
        raise _client_failure(error, source, wanted) from error
    except BotoCoreError as error:
        raise JobFailure(
            Reason.SOURCE_UNAVAILABLE, f"{wanted.field} is {source.uri}: {error}"
        ) from error


def _client_failure(error: ClientError, source: Source, wanted: Wanted) -> JobFailure:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _UNAUTHORIZED:
        return JobFailure(
            Reason.SOURCE_UNAUTHORIZED,
            f"{wanted.field} is {source.uri}, and the store refused the credentials ({code}): "
            "correct the Secret, or allow it to list and read the bucket.",
        )
    if code in _MISSING:
        return JobFailure(
            wanted.missing, f"{wanted.field} is {source.uri}, but there is no such bucket ({code})."
        )
    return JobFailure(Reason.SOURCE_UNAVAILABLE, f"{wanted.field} is {source.uri}: {error}")
