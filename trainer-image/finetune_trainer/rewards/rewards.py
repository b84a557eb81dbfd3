"""The rewards of a job: fetched and tried by preparation, loaded by training."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerState

from finetune_api.failures import Reason
from finetune_api.methods import Generation, RewardFunction
from finetune_api.spec import FineTuneJobSpec
from finetune_api.trainer import TrainerConfig
from finetune_trainer.logs import fields
from finetune_trainer.paths import Paths
from finetune_trainer.rewards.builtin import builtin_reward
from finetune_trainer.rewards.checked import CheckedReward, named
from finetune_trainer.rewards.functions import fetch_function, load_function
from finetune_trainer.rewards.models import check_reward_model, load_reward_model
from finetune_trainer.sources.models import ModelRequest, fetch_model

log = logging.getLogger(__name__)

_MADE_UP = "This answer was made up to try the reward."
_KEPT_BACK = {"prompt", "completion"}
"""Columns that TRL passes to no reward under these names."""


@dataclass(frozen=True)
class LoadedReward:
    """One reward as TRL takes it."""

    scorer: Any
    """A function of completions and columns, or a sequence classifier."""
    tokenizer: Any
    """The classifier's tokenizer; None for a function."""
    weight: float


def fetch_rewards(config: TrainerConfig, paths: Paths) -> None:
    """Fetch what rewards need into the workspace, one folder each. Raises JobFailure."""
    for reward in config.spec.rewards or []:
        field, folder = f"rewards[{reward.name}]", paths.rewards / reward.name
        if reward.function is not None:
            fetch_function(reward.function, f"{field}.function", folder, paths.sources)
        if reward.model is not None:
            request = ModelRequest(reward.model, f"{field}.model", config.starts)
            fetch_model(request, folder, paths.sources)


def try_rewards(
    spec: FineTuneJobSpec, paths: Paths, rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Call each function with a made-up completion of two rows, and check each reward model.

    Raises JobFailure, so that what is wrong with a reward is said before a GPU is taken.
    """
    examples = [rows[index] for index in range(min(2, len(rows)))]
    is_chat = not isinstance(examples[0]["prompt"], str)
    trial = _trial(examples, tokenizer, is_chat=is_chat)
    for reward in spec.rewards or []:
        folder = paths.rewards / reward.name
        if reward.model is not None:
            with named(reward.name):
                check_reward_model(folder, reward.model, scores_chats=is_chat)
        else:
            values = _function(reward, folder, spec.generation)(**trial)
            log.info("reward was tried", extra=fields(reward=reward.name, values=values))


def _trial(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, is_chat: bool
) -> dict[str, Any]:
    """Return what TRL would give a reward function for one completion of each row."""
    completion = [{"role": "assistant", "content": _MADE_UP}] if is_chat else _MADE_UP
    ids = tokenizer(_MADE_UP, add_special_tokens=False)["input_ids"]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in _KEPT_BACK}
    return {
        "prompts": [row["prompt"] for row in rows],
        "completions": [completion] * len(rows),
        "completion_ids": [ids] * len(rows),
        **columns,
        "trainer_state": TrainerState(),
        "log_extra": lambda _name, _values: None,
        "log_metric": lambda _name, _value: None,
    }


def load_rewards(spec: FineTuneJobSpec, paths: Paths, dtype: torch.dtype) -> list[LoadedReward]:
    """Return the job's rewards, ready for use. Raises JobFailure."""
    loaded = []
    for reward in spec.rewards or []:
        folder = paths.rewards / reward.name
        if reward.model is not None:
            model, tokenizer = load_reward_model(folder, dtype)
            loaded.append(LoadedReward(model, tokenizer, reward.weight))
        else:
            # It passed its trial: what it needs, such as a service, may be back later.
            function = _function(reward, folder, spec.generation, Reason.INTERNAL_ERROR)
            loaded.append(LoadedReward(function, None, reward.weight))
    return loaded


def _function(
    reward: RewardFunction,
    folder: Path,
    generation: Generation | None,
    raised: Reason = Reason.CONFIG_INVALID,
) -> CheckedReward:
    if reward.function is None:
        function = builtin_reward(str(reward.builtin), generation or Generation())
    else:
        with named(reward.name):
            function = load_function(reward.function, folder)
    return CheckedReward(reward.name, function, raised)
