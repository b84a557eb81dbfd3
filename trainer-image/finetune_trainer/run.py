"""finetune-trainer run: from prepared data to a model in the output claim."""

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    PreTrainedTokenizerBase,
    TrainerState,
    set_seed,
)

from finetune_api.failures import Reason
from finetune_api.status import DatasetFacts, ModelStart, Plan
from finetune_api.trainer import JobFailure, Result, TrainerConfig
from finetune_trainer import distributed, export
from finetune_trainer.callbacks.guard import StabilityGuard
from finetune_trainer.callbacks.profile import ProfileCallback
from finetune_trainer.callbacks.report import ReportCallback
from finetune_trainer.callbacks.stop import StopCallback
from finetune_trainer.checkpoints import Checkpoints, step_of
from finetune_trainer.continued import load_start
from finetune_trainer.data.dataset import EVAL, TRAIN, load_rows, saved_facts
from finetune_trainer.data.parts import parts_of
from finetune_trainer.device import Device, choose_device
from finetune_trainer.durable import read_json, write_json
from finetune_trainer.logs import fields
from finetune_trainer.methods import module_of
from finetune_trainer.methods.setup import Setup, learning_rate
from finetune_trainer.methods.supported import check_supported
from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.model import load_whole
from finetune_trainer.model_card import model_card
from finetune_trainer.paths import Paths
from finetune_trainer.progress import ProgressBoard
from finetune_trainer.record import record
from finetune_trainer.report.data import ReportData, Sample, Trained, group_size, rows_seen
from finetune_trainer.report.measures import held_out
from finetune_trainer.report.page import render
from finetune_trainer.samples import answer
from finetune_trainer.sources.models import start_of
from finetune_trainer.sources.uri import Source
from finetune_trainer.stability.rollback import carry_out
from finetune_trainer.termination import Terminated, Termination
from finetune_trainer.tokenizer import load_tokenizer
from finetune_trainer.utilization import flops_budget

log = logging.getLogger(__name__)


def run(
    config: TrainerConfig,
    paths: Paths,
    board: ProgressBoard,
    termination: Termination,
    *,
    profiles: bool = False,
) -> Result:
    """Train and hand over. Raises JobFailure, or Terminated after SIGTERM."""
    finished = export.finished_result(config, paths)
    if finished is not None:
        log.info("the model was already handed over by an earlier process")
        return finished
    if config.plan is None:
        raise JobFailure(Reason.CONFIG_INVALID, "job.json has no plan: run prepares nothing.")
    check_supported(config.spec, config.plan)
    device = choose_device(config.plan, config.spec.training)
    distributed.join(device)
    # Before the adapter is initialised.
    set_seed(config.spec.training.seed)
    with distributed.after_the_cause():
        training = build(config, config.plan, paths, board, device)
        training.before()
        if profiles:
            training.trainer.add_callback(ProfileCallback(paths.profile))
        training.train(termination)
        training.after()
        return training.hand_over()


def build(
    config: TrainerConfig, plan: Plan, paths: Paths, board: ProgressBoard, device: Device
) -> "Training":
    """Load model, tokenizer and data, and put the trainer together."""
    facts = saved_facts(paths.data)
    train = load_rows(paths.data, TRAIN)
    if facts is None or train is None:
        raise JobFailure(
            Reason.CONFIG_INVALID, "the workspace holds no prepared data: run prepare first."
        )
    setup = Setup(
        config=config,
        plan=plan,
        device=device,
        paths=paths,
        model=load_start(config, plan, paths, device),
        tokenizer=load_tokenizer(paths.model, config.spec.model),
        train=train,
        held_out=load_rows(paths.data, EVAL),
        longest=facts.max_tokens,
    )
    setup.prepare()
    trainer = setup.finish(module_of(config.spec.method).build(setup))
    metrics = MetricsLog(paths.metrics)
    checkpoints = Checkpoints(paths.checkpoints, config.spec.training.checkpoint.keep)
    guard = StabilityGuard(config, board, checkpoints, metrics)
    trainer.attend(checkpoints, metrics, guard, ReportCallback(board, metrics))
    board.peak_tokens_per_second = flops_budget(config, device.name)
    log.info(
        "model is loaded",
        extra=fields(
            device=str(trainer.args.device),
            dtype=str(device.dtype),
            precision=plan.precision,
            compiled=plan.compile,
            packed=config.spec.training.packing,
            rows=len(train),
        ),
    )
    return Training(
        config, plan, facts, paths, board, device, trainer, setup.tokenizer, metrics, checkpoints
    )


@dataclass
class Training:
    """One process's part of one training run."""

    config: TrainerConfig
    plan: Plan
    facts: DatasetFacts
    paths: Paths
    board: ProgressBoard
    device: Device
    trainer: Any
    tokenizer: PreTrainedTokenizerBase
    metrics: MetricsLog
    checkpoints: Checkpoints
    answers: list[str] = field(default_factory=list)
    """Of the trained model, to the sample prompts."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all share."""
        return bool(self.trainer.is_world_process_zero())

    def before(self) -> None:
        """Measure the model as it came; of several processes train() does so once it is spread."""
        if distributed.has_several(self.plan):
            self.trainer.add_callback(distributed.OncePrepared(self._measure_before))
        else:
            self._measure_before()

    def _measure_before(self) -> None:
        """Measure the model, unless an earlier process has."""
        self._evaluate_once(0)
        self.board.update(eval_loss_before=self.metrics.find(0, "eval_loss"))
        if distributed.first_says(self.paths.answers_before.exists()):
            return
        answers = self._answers()
        if self.is_main:
            write_json(self.paths.answers_before, answers)
        distributed.wait_for_first()

    def _answers(self) -> list[str]:
        """Return the answers to the sample prompts; a sharded model takes all processes."""
        answers = answer(self.trainer.model, self.tokenizer, self.config.spec.evaluation)
        prompts = self.config.spec.evaluation.sample_prompts
        for prompt, text in zip(prompts, answers, strict=True):
            log.info("sample", extra=fields(prompt=prompt, answer=text))
        return answers

    def train(self, termination: Termination) -> None:
        """Train from the newest complete checkpoint to the last step."""
        stop = StopCallback(termination)
        self.trainer.add_callback(stop)
        checkpoint = self._newest_checkpoint()
        if checkpoint is not None:
            log.info("resuming", extra=fields(checkpoint=checkpoint.name))
            self.board.update(checkpoint_step=step_of(checkpoint))
        alone = not distributed.has_several(self.plan)
        if checkpoint is not None and alone and self._load_finished(checkpoint):
            return
        with termination.deferred(), suppress(distributed.AlreadyTrainedError):
            self.trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        stopped = stop.stopped or termination.requested
        if distributed.any_process(stopped, self.trainer.args.device):
            distributed.leave()
            raise Terminated

    def _newest_checkpoint(self) -> Path | None:
        """Return the checkpoint that all ranks resume from; the first checks and cleans."""
        if self.is_main:
            carry_out(self.config.rollbacks, self.checkpoints, self.metrics)
        found = self.checkpoints.newest_complete() if self.is_main else None
        if found is not None:
            distributed.check_processes(found, self.trainer.args.world_size)
        distributed.wait_for_first()
        checkpoint: Path | None = distributed.first_says(found)
        return checkpoint

    def _evaluate_once(self, step: int) -> None:
        """Evaluate, unless the metrics log has this step's evaluation."""
        if self.trainer.eval_dataset is None:
            return
        if distributed.first_says(self.metrics.find(step, "eval_loss")) is None:
            self.trainer.evaluate()

    def _load_finished(self, checkpoint: Path) -> bool:
        """Load a checkpoint of the last step; Trainer would train one step more."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return False
        self.trainer.load_weights(checkpoint)
        self.trainer.state = state
        self.metrics.rewind(state.global_step)
        self.trainer.guard.recall(state.global_step)
        self.board.update(
            step=state.global_step,
            total_steps=state.max_steps,
            steps=f"{state.global_step}/{state.max_steps}",
            epoch=float(state.epoch or 0),
        )
        return True

    def after(self) -> None:
        """Measure the trained model, unless its last step was evaluated."""
        self._evaluate_once(self.trainer.state.global_step)
        self.answers = self._answers()
        self.board.update(activity="Exporting")

    def hand_over(self) -> Result:
        """Write the artifact and return the result; other ranks only give their part of it."""
        weights = distributed.gather_weights(self.trainer, self.plan, self.device.dtype)
        result = self._export(weights) if self.is_main else Result.succeeded()
        distributed.wait_for_first()
        self.board.update(activity="Done")
        distributed.leave()
        return result

    def _export(self, weights: dict[str, torch.Tensor] | None) -> Result:
        folder = export.stage(self.config, self.paths)
        self._write_report(folder)
        self._write_weights(folder, weights)
        result = Result.succeeded(
            message=self._summary(),
            artifact=export.artifact_of(self.config, folder),
            **record(self.board, self.metrics),
        )
        export.hand_over(self.config, self.paths, folder, result)
        return result

    @property
    def _start(self) -> ModelStart:
        return start_of(self.config.spec.model.source, self.config.starts, "model.source")

    def _write_report(self, folder: Path) -> None:
        data = self._report_data()
        (folder / "README.md").write_text(model_card(data))
        (folder / "report.html").write_text(render(data))
        export.write_measured(self.paths, folder)
        if data.samples:
            write_json(folder / "samples.json", [asdict(sample) for sample in data.samples])

    def _report_data(self) -> ReportData:
        result = record(self.board, self.metrics)
        return ReportData(
            config=self.config,
            plan=self.plan,
            parts=[part for _, part in parts_of(self.config.spec)],
            facts=self.facts,
            trained=self._trained(),
            entries=self.metrics.entries,
            measured=result["measured"],
            stability=result.get("stability"),
            samples=self._samples(),
        )

    def _trained(self) -> Trained:
        state, arguments = self.trainer.state, self.trainer.args
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
        count = f"{arguments.world_size} x " if arguments.world_size > 1 else ""
        return Trained(
            metrics=self.metrics.summary(),
            learning_rate=learning_rate(self.config.spec),
            steps=state.global_step,
            batch=batch * arguments.world_size,
            epochs=state.epoch,
            rows_seen=rows_seen(
                state.global_step,
                state.epoch,
                rows=len(self.trainer.train_dataset),
                of_a_step=batch * arguments.world_size // group_size(self.config.spec),
            ),
            device=f"{count}{self.device.name}",
            dtype=_precision_in_words(self.plan, self.device),
            tokens_per_second=self.board.tokens_per_second,
        )

    def _samples(self) -> list[Sample]:
        prompts = self.config.spec.evaluation.sample_prompts
        if not prompts:
            return []
        answers = zip(prompts, read_json(self.paths.answers_before), self.answers, strict=True)
        return [Sample(prompt, before, after) for prompt, before, after in answers]

    def _write_weights(self, folder: Path, weights: dict[str, torch.Tensor] | None) -> None:
        base = Source.parse(self._start.base, "model.source").model_name
        if self._start.merge:
            # That model is nowhere but in the workspace: the adapter must not load on another.
            base = self.config.spec.model.source
        card = (folder / "README.md").read_bytes()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        export.write_model(model, self.tokenizer, folder, base, weights)
        # PEFT writes a card of its own.
        (folder / "README.md").write_bytes(card)
        merges = self.config.spec.output.merged or self._start.merge
        if merges and self.config.spec.adapter.type != "full":
            is_whole = weights is None and not self._is_quantised
            merged = model if is_whole else self._unquantised(folder)
            stored = AutoConfig.from_pretrained(
                self.paths.model, trust_remote_code=self._trust
            ).dtype
            export.write_merged(merged, self.tokenizer, folder / export.MERGED, stored)

    @property
    def _trust(self) -> bool:
        return self.config.spec.model.trust_remote_code

    @property
    def _is_quantised(self) -> bool:
        return self.config.spec.adapter.type == "qlora" or self.plan.precision == "float8"

    def _unquantised(self, adapter: Path) -> Any:
        """Return the adapter on the base as stored: few bits would lose what it learned."""
        distributed.load_alone()
        base = load_whole(self.paths.model, self.config.spec, self.device.dtype)
        return PeftModel.from_pretrained(base, str(adapter))

    def _summary(self) -> str:
        text = f"trained {self.trainer.state.global_step} steps"
        for measure in held_out(self.metrics.summary(), self.config.spec.method)[:1]:
            if measure.before is not None:
                label, before, after = measure.meaning.label, measure.before, measure.after
                text += f"; {label} {before:.4f} before, {after:.4f} after"
        return text


def _precision_in_words(plan: Plan, device: Device) -> str:
    """Return the number formats of training, for people."""
    whole = str(device.dtype).removeprefix("torch.")
    return f"{whole} with frozen layers in float8" if plan.precision == "float8" else whole
