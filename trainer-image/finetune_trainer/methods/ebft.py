"""Energy-based fine-tuning, structured mode: GRPO whose reward is how well features match.

Features are those of the model before training; see finetune_trainer.methods.features.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.grpo_config import GRPOConfig

from finetune_api.methods import Ebft
from finetune_trainer.data.questions import REFERENCE
from finetune_trainer.methods.features import Features, Match, Text, match
from finetune_trainer.methods.grpo import OnlineTrainer, online_arguments
from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.methods.setup import Setup

CONFIGURATION = GRPOConfig
"""Whose fields training.extra may name."""


class FeatureMatchingTrainer(OnlineTrainer):
    """GRPO with feature matching as its only reward."""

    def __init__(self, *, options: Ebft, frozen: Any, **arguments: Any) -> None:
        """Take a copy of the model's decoder in `frozen`, or None when it trains an adapter."""
        super().__init__(reward_funcs=[self.feature_matching], **arguments)
        self.options = options
        self.features = Features(
            options, self.args.per_device_train_batch_size, self._tokenizer.pad_token_id
        )
        self.frozen = frozen and self.accelerator.prepare_model(frozen, evaluation_mode=True)

    def feature_matching(
        self,
        prompts: list[Any],
        completion_ids: list[list[int]],
        log_metric: Any,
        **columns: Any,
    ) -> list[float | None]:
        """Return each completion's reward; logs what it is made of, as means over all processes."""
        given = [tuple(ids) for ids in self._tokenize_prompts(prompts)[0]]
        written = [self._without_end(ids) for ids in completion_ids]
        known = [self._known(text) for text in columns[REFERENCE]]
        found = self._match(
            list(zip(given, written, strict=True)), list(zip(given, known, strict=True))
        )
        rewards = found.rewards(self.options)
        log_metric("ebft/alignment", found.alignment.mean().item())
        log_metric("ebft/diversity", found.similarity.mean().item())
        log_metric("ebft/cfm_loss", found.distance.mean().item())
        log_metric("ebft/reward", rewards.mean().item())
        start = self.accelerator.process_index * len(prompts)
        own: list[float | None] = rewards.flatten()[start : start + len(prompts)].tolist()
        return own

    def _match(self, completions: Sequence[Text], truths: Sequence[Text]) -> Match:
        """Compare over all processes: one prompt's completions may be spread over several."""
        model: Any = self.model
        count = self.num_generations if model.training else self.num_generations_eval
        with self._before_training() as decoder:
            device = self.accelerator.device
            vectors = [self.features.of(decoder, each, device) for each in (completions, truths)]
        written, known = (self.accelerator.gather(each) for each in vectors)
        groups = written.unflatten(0, (-1, count))
        return match(groups, known[::count], whitening=self.options.whitening)

    @contextmanager
    def _before_training(self) -> Iterator[Any]:
        """Give the decoder as it was before training, and without dropout."""
        if self.frozen is not None:
            yield self.frozen
            return
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model.get_base_model().get_decoder()
        finally:
            model.train(was_training)

    def _without_end(self, ids: list[int]) -> tuple[int, ...]:
        # Whether a completion ends is no feature of its text, and truncated ones do not.
        return tuple(ids[:-1] if ids and ids[-1] in self.eos_token_ids else ids)

    def _known(self, text: str) -> tuple[int, ...]:
        """Return the ground truth's tokens, no more of them than a completion can have."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(ids[: self.max_completion_length])


class ResumableEbftTrainer(ResumableTrainer, FeatureMatchingTrainer):
    """Feature matching with our checkpoints."""


def build(setup: Setup) -> ResumableEbftTrainer:
    """Return the trainer with its adapter in place."""
    is_full = setup.spec.adapter.type == "full"
    return ResumableEbftTrainer(
        options=setup.spec.ebft or Ebft(),
        frozen=_frozen(setup.model) if is_full else None,
        model=setup.model,
        args=GRPOConfig(**online_arguments(setup)),
        train_dataset=setup.train,
        eval_dataset=setup.held_out,
        processing_class=setup.tokenizer,
        peft_config=setup.adapter,
    )


def _frozen(model: Any) -> torch.nn.Module:
    decoder: torch.nn.Module = copy.deepcopy(model.get_decoder())
    return decoder.eval().requires_grad_(requires_grad=False)
