"""Models of the spec, as they are or put together from what other jobs have made."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.failures import Reason
from finetune_api.status import ModelStart
from finetune_api.trainer import JobFailure
from finetune_trainer.durable import publish, remove, size_of, write_json
from finetune_trainer.logs import fields
from finetune_trainer.sources.fetch import MARKER, fetch, is_fetched
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted, adapter_files, model_files

log = logging.getLogger(__name__)

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

    def wanted(self, part: str, choose: Callable[[Sequence[str]], list[str]]) -> Wanted:
        """Return what to take from one part; messages name the field, and the job if there is one.

        What part is called is for messages: base or adapter.
        """
        job = self.source.startswith(_JOB)
        field = f"the {part} of {self.field} {self.source}" if job else self.field
        return Wanted(field, Reason.MODEL_NOT_FOUND, choose)


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
    """Make target hold the model with the adapters in `merge` merged, and the newest tokenizer.

    What is there already is left alone. Raises JobFailure when a part is missing, forbidden, out
    of reach or does not fit the others.
    """
    start = request.start
    base = Source.parse(start.base, request.field)
    with_code = request.with_code
    whole = request.wanted("base", lambda names: model_files(names, with_code=with_code))
    adapters = [*start.merge, *([start.adapter] if start.adapter else [])]
    if not adapters:
        fetch(base, target, whole, mounts)
        return
    identity = " + ".join([start.base, *adapters])
    if is_fetched(target, identity):
        log.info("model is already in the workspace", extra=fields(source=request.source))
        return
    below = target.with_name(f".{target.name}.base")
    fetch(base, below, whole, mounts)
    folders = [
        fetch_adapter(request, uri, target.with_name(f".{target.name}.adapter-{index}"), mounts)
        for index, uri in enumerate(adapters)
    ]
    staging = below
    if start.merge:
        staging = target.with_name(f".{target.name}.merged")
        remove(staging)
        log.info("merging", extra=fields(adapters=start.merge, bytes_in_memory=size_of(below)))
        _merge(request, below, folders[: len(start.merge)], staging)
    _take_tokenizer(folders[-1], staging, with_code=with_code)
    write_json(staging / MARKER, {"uri": identity})
    remove(target)
    publish(staging, target)
    for folder in [below, *folders]:
        remove(folder)


def fetch_adapter(request: ModelRequest, uri: str, target: Path, mounts: Path) -> Path:
    """Make target hold an adapter that a job has made, and return it. Raises JobFailure."""
    source = Source.parse(uri, request.field)
    fetch(source, target, request.wanted("adapter", adapter_files), mounts)
    return target


def _merge(request: ModelRequest, base: Path, adapters: Sequence[Path], target: Path) -> None:
    """Write the base with the adapters merged, in the number format that the base is stored in."""
    # torch and its friends take seconds: only who merges loads them.
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kinds = {str(PeftConfig.from_pretrained(str(folder)).task_type) for folder in adapters}
    options = {"dtype": "auto", "trust_remote_code": request.with_code}
    if kinds == {"SEQ_CLS"}:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **options)
    elif kinds == {"CAUSAL_LM"}:
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    else:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"{request.field} is {request.source}, whose adapters are of the kinds "
            f"{', '.join(sorted(kinds))}: a reward model and a model that writes cannot be merged.",
        )
    for folder in adapters:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    model.save_pretrained(target)


def _take_tokenizer(adapter: Path, target: Path, *, with_code: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter, trust_remote_code=with_code)
    tokenizer.save_pretrained(target)
