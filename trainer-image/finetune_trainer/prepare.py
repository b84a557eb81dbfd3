"""finetune-trainer prepare: fetches model and data, checks both, and reports the plan's facts."""

import hashlib
import json
import logging

from finetune_api.failures import Reason
from finetune_api.lengths import row_limit
from finetune_api.methods import Generation
from finetune_api.spec import ONLINE, FineTuneJobSpec
from finetune_api.status import DatasetFacts, ModelFacts, Preparation
from finetune_api.trainer import JobFailure, Result, TrainerConfig
from finetune_trainer.adapter import check_targets
from finetune_trainer.architecture import check_writes, read_facts
from finetune_trainer.continued import check_continued
from finetune_trainer.data.dataset import TRAIN, DatasetBuilder, load_rows, saved_facts
from finetune_trainer.data.parts import FetchedPart, parts_of
from finetune_trainer.durable import read_json, remove, write_json
from finetune_trainer.export import check_output, finished_result
from finetune_trainer.logs import fields
from finetune_trainer.methods import module_of
from finetune_trainer.methods.extra import check_extra
from finetune_trainer.methods.supported import check_supported
from finetune_trainer.packing import check_packs
from finetune_trainer.paths import Paths
from finetune_trainer.rewards.rewards import fetch_rewards, try_rewards
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.models import ModelRequest, fetch_model
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted, dataset_files
from finetune_trainer.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

_IDENTITY = ".job.json"
"""Beside the data: what it was made from."""


def prepare(config: TrainerConfig, paths: Paths) -> Result:
    """Fill the workspace and return facts; a second call does only what the first did not finish.

    What is cheap to check is checked first. Raises JobFailure.
    """
    spec = config.spec
    check_supported(spec, None)
    check_extra(spec.training.extra, module_of(spec.method).CONFIGURATION)
    _check_evaluation(spec)
    if finished_result(config, paths) is None:
        check_output(config, paths)
    model = _fetch_model(config, paths)
    dataset = _dataset_facts(spec, model, paths)
    if spec.method in ONLINE:
        _check_prompts(spec, dataset)
        _fetch_rewards(config, paths)
    log.info("prepared", extra=fields(model=model.to_json(), dataset=dataset.to_json()))
    return Result.succeeded(
        message=f"{model.architecture} with {model.parameters:,} weights; {dataset.rows:,} rows "
        f"({dataset.format}) of at most {dataset.max_tokens:,} tokens",
        preparation=Preparation(model=model, dataset=dataset),
    )


def _check_evaluation(spec: FineTuneJobSpec) -> None:
    held_out = spec.dataset.eval_split or spec.dataset.eval_fraction
    if spec.training.eval_every_steps is not None and not held_out:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"training.evalEverySteps is {spec.training.eval_every_steps}, but no rows are held "
            "out: set dataset.evalFraction or dataset.evalSplit.",
        )


def _fetch_model(config: TrainerConfig, paths: Paths) -> ModelFacts:
    spec, source = config.spec, config.spec.model.source
    with_code = spec.model.trust_remote_code
    request = ModelRequest(source, "model.source", config.starts, with_code)
    fetch_model(request, paths.model, paths.sources)
    if request.start.adapter is not None:
        check_continued(spec, paths.adapter)
    facts = read_facts(paths.model, source, trust_remote_code=with_code)
    check_writes(spec, facts)
    check_packs(spec, paths.model)
    row_limit(spec, facts.max_positions)
    check_targets(spec.adapter, paths.model)
    return facts


def _dataset_facts(spec: FineTuneJobSpec, model: ModelFacts, paths: Paths) -> DatasetFacts:
    identity = _identity(spec)
    facts = saved_facts(paths.data)
    if facts is not None and read_json(paths.data / _IDENTITY) == identity:
        log.info("data is already in the workspace")
        return facts
    tokenizer = load_tokenizer(paths.model, spec.model)
    parts = _fetch_parts(spec, paths)
    shapes = [part.shape(spec) for part in parts]
    for part, shape in zip(parts, shapes, strict=True):
        log.info(
            "format is recognised",
            extra=fields(source=part.part.source, format=shape.format.value),
        )
    facts = DatasetBuilder(spec, model, tokenizer, parts, shapes).build(paths.data)
    write_json(paths.data / _IDENTITY, identity)
    remove(paths.fetched)
    return facts


def _check_prompts(spec: FineTuneJobSpec, facts: DatasetFacts) -> None:
    size = (spec.generation or Generation()).group_size
    prompts = spec.training.batch_size // size
    if facts.rows < prompts:
        raise JobFailure(
            Reason.DATA_INVALID,
            f"there are {facts.rows} training prompts, but a step takes {prompts} of them "
            f"(training.batchSize {spec.training.batch_size} / generation.groupSize {size}): add "
            "rows, or lower training.batchSize.",
        )


def _fetch_rewards(config: TrainerConfig, paths: Paths) -> None:
    fetch_rewards(config, paths)
    rows = load_rows(paths.data, TRAIN)
    if rows is not None and config.spec.rewards:
        try_rewards(config.spec, paths, rows, load_tokenizer(paths.model, config.spec.model))


def _identity(spec: FineTuneJobSpec) -> str:
    """Return a digest of all that the rows depend on."""
    training = spec.training
    parts = [
        spec.method,
        spec.dataset.to_json(),
        spec.model.source,
        spec.model.chat_template,
        training.max_length,
        training.assistant_only_loss,
        training.seed,
        training.extra.get("completion_only_loss"),
        training.extra.get("chat_template_kwargs"),
        spec.generation and spec.generation.to_json(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fetch_parts(spec: FineTuneJobSpec, paths: Paths) -> list[FetchedPart]:
    fetched = []
    for index, (field, part) in enumerate(parts_of(spec)):
        wanted = Wanted(
            field=f"{field}.source", missing=Reason.DATASET_NOT_FOUND, choose=dataset_files
        )
        folder = paths.fetched / str(index)
        fetch(Source.parse(part.source, wanted.field), folder, wanted, paths.sources)
        fetched.append(FetchedPart(part, folder, field))
    return fetched
