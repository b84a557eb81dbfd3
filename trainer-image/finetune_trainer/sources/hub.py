"""hf://: the Hugging Face hub, or a mirror that HF_ENDPOINT names; HF_TOKEN is honoured."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure
from finetune_trainer.durable import remove
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted


def fetch(source: Source, target: Path, wanted: Wanted) -> None:
    """Download the wanted files of one commit; files of an earlier try are kept."""
    kind = "model" if wanted.missing is Reason.MODEL_NOT_FOUND else "dataset"
    with _errors(source, wanted):
        api = HfApi()
        commit = api.repo_info(source.place, repo_type=kind, revision=source.revision).sha
        names = api.list_repo_files(source.place, repo_type=kind, revision=commit)
        chosen = wanted.choose(names)
        if not chosen:
            raise JobFailure(
                wanted.missing,
                f"{wanted.field} is {source.uri}, which holds no usable file "
                f"({len(names)} files found).",
            )
        snapshot_download(
            source.place,
            repo_type=kind,
            revision=commit,
            local_dir=target,
            allow_patterns=chosen,
        )
    remove(target / ".cache")


@contextmanager
def _errors(source: Source, wanted: Wanted) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        raise _http_failure(error, source, wanted) from error
    except OfflineModeIsEnabled as error:
        raise JobFailure(
            Reason.SOURCE_UNAVAILABLE,
            f"{wanted.field} is {source.uri}, but HF_HUB_OFFLINE is set: use pvc:// or s3://, or "
            "remove it from trainer.env.",
        ) from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise _unavailable(error, source, wanted) from error


def _http_failure(error: HfHubHTTPError, source: Source, wanted: Wanted) -> JobFailure:
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return JobFailure(
            wanted.missing,
            f"{wanted.field} is {source.uri}, but the repository has no such revision.",
        )
    denied = isinstance(error, GatedRepoError) or status in {401, 403}
    if denied and (get_token() or isinstance(error, GatedRepoError) or status == 403):
        return JobFailure(
            Reason.SOURCE_UNAUTHORIZED,
            f"{wanted.field} is {source.uri}, and the hub refused access: name a Secret with an "
            f"HF_TOKEN that may read it in {wanted.secret}, and accept the model's terms if it is "
            "gated.",
        )
    if isinstance(error, RepositoryNotFoundError) or status in {401, 404}:
        return JobFailure(
            wanted.missing,
            f"{wanted.field} is {source.uri}, which does not exist or is private: correct "
            f"the name, or name a Secret with an HF_TOKEN in {wanted.secret}.",
        )
    return _unavailable(error, source, wanted)


def _unavailable(error: Exception, source: Source, wanted: Wanted) -> JobFailure:
    reason = str(error).strip().splitlines()
    return JobFailure(
        Reason.SOURCE_UNAVAILABLE,
        f"{wanted.field} is {source.uri}, but the hub did not answer: "
        f"{reason[0] if reason else type(error).__name__}",
    )
