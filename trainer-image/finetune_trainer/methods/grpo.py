"""Group-relative policy optimisation by TRL's GRPOTrainer; the model writes its own completions."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from finetune_api.methods import Generation, Grpo
from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.methods.setup import Setup
from finetune_trainer.rewards.rewards import load_rewards

CONFIGURATION = GRPOConfig
"""Whose fields training.extra may name."""


class _PromptOrder(Sampler[int]):
    """TRL's order of prompts, which only the seed and the epoch decide.

    TRL's own goes on from the epoch before, which a resumed process has not seen.
    """

    def __init__(self, order: Any) -> None:
        self._order: RepeatSampler = order

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch."""
        self._order.generator.manual_seed((self._order.seed or 0) + epoch)

    def __iter__(self) -> Iterator[int]:
        """Yield rows, each once for every use of its completions."""
        return iter(self._order)

    def __len__(self) -> int:
        """Return how many there are in an epoch."""
        return len(self._order)


class OnlineTrainer(GRPOTrainer):
    """TRL's trainer, whose evaluations can be compared and whose data order can be resumed."""

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return _PromptOrder(super()._get_train_sampler(dataset))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate with the same random numbers each time, so that only the model differs."""
        torch.manual_seed(self.args.seed + self.args.process_index)
        return super().evaluation_loop(*args, **kwargs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        # Compiled layers would be compiled anew for the cache of each layer, until torch gives up
        # on them and training is not compiled either. Adapters in float32 take activations in bf16
        # under autocast only.
        with torch.compiler.set_stance("force_eager"), self.accelerator.autocast():
            return super()._generate_single_turn(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what was measured; TRL would log None for what no completion had."""
        for measured in self._metrics.values():
            for name in [key for key, values in measured.items() if all(map(math.isnan, values))]:
                del measured[name]
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # With one iteration every optimizer step begins with new completions.
        if self.num_iterations > 1:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            held = {"batch": self._batch, "completions": self._buffered_inputs}
            torch.save(held, self._completions_file(folder))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        # Micro-batches so far: they tell when new completions are due.
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        # There are none to go on with where new completions are due, as after a rollback.
        if checkpoint is not None and self._completions_file(Path(checkpoint)).exists():
            held = torch.load(self._completions_file(Path(checkpoint)), self.args.device)
            # Cut into other micro-batches they are of no use: TRL samples anew.
            if held["batch"] == self._batch:
                self._buffered_inputs = held["completions"]

    @property
    def _batch(self) -> tuple[int, int]:
        """Rows and number of the micro-batches that completions are cut into."""
        arguments: Any = self.args
        return arguments.per_device_train_batch_size, arguments.steps_per_generation

    def _completions_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"completions-{self.args.process_index}.pt"


class ResumableGrpoTrainer(ResumableTrainer, OnlineTrainer):
    """TRL's trainer with our checkpoints."""


def build(setup: Setup) -> ResumableGrpoTrainer:
    """Return the trainer with its adapter and rewards in place."""
    rewards = load_rewards(setup.spec, setup.paths, setup.device.dtype)
    return ResumableGrpoTrainer(
        model=setup.model,
        reward_funcs=[reward.scorer for reward in rewards],
        reward_processing_classes=[reward.tokenizer for reward in rewards],
        args=GRPOConfig(
            **online_arguments(setup), reward_weights=[reward.weight for reward in rewards]
        ),
        train_dataset=setup.train,
        eval_dataset=setup.held_out,
        processing_class=setup.tokenizer,
        peft_config=setup.adapter,
    )


def online_arguments(setup: Setup) -> dict[str, Any]:
    """Return the configuration's fields, all but the rewards."""
    spec, plan = setup.spec, setup.plan
    options, generation = spec.grpo or Grpo(), spec.generation or Generation()
    evaluated = spec.training.extra.get("num_generations_eval") or generation.group_size
    return setup.arguments() | {
        # Whole groups: advantages are taken within them.
        "per_device_eval_batch_size": math.ceil(plan.micro_batch_size / evaluated) * evaluated,
        # New completions with each step: a checkpoint never falls into the use of a batch.
        "steps_per_generation": plan.gradient_accumulation_steps,
        "num_generations": generation.group_size,
        "max_completion_length": generation.max_completion_length,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "loss_type": options.loss,
        "beta": options.beta,
        "epsilon": options.epsilon,
        "epsilon_high": options.epsilon_high,
        "num_iterations": options.iterations,
        "scale_rewards": options.scale_rewards,
        "mask_truncated_completions": options.mask_truncated_completions,
        # TRL reads the reference model itself when all weights are trained and beta is not 0.
        "trust_remote_code": spec.model.trust_remote_code,
        # TRL counts them: what a step is given has no tokens yet.
        "include_num_input_tokens_seen": "no",
    }
