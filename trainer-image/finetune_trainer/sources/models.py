"""Models of the spec, as they are or put together from what other jobs have made."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.failures import Reason
from finetune_api.status import ModelStart
from finetune_api.trainer import JobFailure
from finetune_trainer.durable import publish, remove, size_of, write_json
from finetune_trainer.logs import fields
from finetune_trainer.sources.fetch import MARKER, fetch, is_fetched
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted, adapter_files, model_files

log = logging.getLogger(__name__)

ADAPTER = "adapter"
"""Folder of the adapter that training continues, beside the model's."""

_JOB = "job://"


@dataclass(frozen=True)
class ModelRequest:
    """One model that the spec names."""

    source: str
    """What the user wrote."""
    field: str
    """Field of the spec, for messages."""
    starts: Mapping[str, ModelStart]
    """What each job://NAME stands for."""
    with_code: bool = False
    """Whether its Python code is fetched and run."""

    @property
    def start(self) -> ModelStart:
        """What the source stands for: any but job://NAME for itself."""
        return start_of(self.source, self.starts, self.field)

    def base(self) -> Wanted:
        """Return what to take from the source of the weights."""
        return Wanted(
            self._part("base"),
            Reason.MODEL_NOT_FOUND,
            lambda names: model_files(names, with_code=self.with_code),
        )

    def adapter(self) -> Wanted:
        """Return what to take from an adapter that a job has made."""
        return Wanted(self._part("adapter"), Reason.MODEL_NOT_FOUND, adapter_files)

    def _part(self, name: str) -> str:
        is_job = self.source.startswith(_JOB)
        return f"the {name} of {self.field} {self.source}" if is_job else self.field


def start_of(source: str, starts: Mapping[str, ModelStart], field: str) -> ModelStart:
    """Return what a model source stands for. Raises JobFailure for a job that is not resolved."""
    if not source.startswith(_JOB):
        return ModelStart(base=source)
    if source not in starts:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"{field} is {source}, but job.json does not say what that job has made: expected "
            f"starts[{source!r}].",
        )
    return starts[source]


def fetch_model(request: ModelRequest, target: Path, mounts: Path) -> None:
    """Make target hold the model, and target's neighbour `adapter` the adapter to continue, if any.

    The model has the adapters in `merge` merged and the tokenizer of the newest adapter. What is
    there already is left alone. Raises JobFailure when a part is missing, forbidden, out of reach
    or does not fit the others.
    """
    start = request.start
    if start.merge or start.adapter:
        _put_together(request, start, target, mounts)
    else:
        fetch(Source.parse(start.base, request.field), target, request.base(), mounts)


def _put_together(request: ModelRequest, start: ModelStart, target: Path, mounts: Path) -> None:
    continued = target.with_name(ADAPTER)
    if start.adapter:
        fetch(Source.parse(start.adapter, request.field), continued, request.adapter(), mounts)
    identity = " + ".join([start.base, *start.merge, *([start.adapter] if start.adapter else [])])
    if is_fetched(target, identity):
        log.info("model is already in the workspace", extra=fields(source=request.source))
        return
    base = target.with_name(f".{target.name}.base")
    fetch(Source.parse(start.base, request.field), base, request.base(), mounts)
    adapters = [target.with_name(f".{target.name}.{index}") for index in range(len(start.merge))]
    for uri, folder in zip(start.merge, adapters, strict=True):
        fetch(Source.parse(uri, request.field), folder, request.adapter(), mounts)
    staging = target.with_name(f".{target.name}.whole")
    remove(staging)
    if adapters:
        _merge(request, base, adapters, staging)
    else:
        base.rename(staging)
    _tokenizer(continued if start.adapter else adapters[-1], request).save_pretrained(staging)
    write_json(staging / MARKER, {"uri": identity})
    remove(target)
    publish(staging, target)
    for folder in [base, *adapters]:
        remove(folder)


def _merge(request: ModelRequest, base: Path, adapters: Sequence[Path], target: Path) -> None:
    """Write the base with the adapters merged, in the number format that the base is stored in.

    It is in memory whole.
    """
    # torch and its friends take seconds: only who merges loads them.
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kinds = {str(PeftConfig.from_pretrained(str(folder)).task_type) for folder in adapters}
    log.info("merging", extra=fields(adapters=len(adapters), bytes_in_memory=size_of(base)))
    options = {"dtype": "auto", "trust_remote_code": request.with_code}
    if kinds == {"SEQ_CLS"}:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **options)
        model.config.pad_token_id = _tokenizer(adapters[-1], request).pad_token_id
    elif kinds == {"CAUSAL_LM"}:
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    else:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"{request.field} is {request.source}, whose adapters are of the kinds "
            f"{', '.join(sorted(kinds))}: a reward model and a model that writes cannot be merged.",
        )
    for folder in adapters:
        # Each stands on what the ones before it have made.
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    model.save_pretrained(target)


def _tokenizer(adapter: Path, request: ModelRequest) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(adapter, trust_remote_code=request.with_code)
