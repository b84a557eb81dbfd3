"""GRPO: the model learns what its rewards ask for, and a killed run ends like another."""

import signal
from typing import Any

import pytest

from finetune_api.trainer import TrainerConfig
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site
from unit.trainer.processes import Interruption

_REWARDS = """
def vowels(completions, **kwargs):
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(text.count(v) for v in "aeiou") / max(len(text), 1) for text in texts]
"""
_SPEC: dict[str, Any] = {
    "method": "grpo",
    "adapter": {"type": "full"},
    "rewards": [{"name": "vowels", "function": "configmap://rewards/rewards.py:vowels"}],
    "generation": {"groupSize": 8, "maxCompletionLength": 12},
    "dataset": {"source": "pvc://data/prompts.jsonl", "evalFraction": 0.2},
    "training": {"maxSteps": 30, "batchSize": 16, "learningRate": 0.01, "warmupRatio": 0},
}
_SHORT = {"maxSteps": 3, "batchSize": 16, "learningRate": 0.01}
_CHAT = [{"prompt": [{"role": "user", "content": f"Word {number}?"}]} for number in range(10)]


def grpo_job(site: Site, rows: list[dict[str, Any]] | None = None, **changes: Any) -> TrainerConfig:
    """Prepare a job whose reward is the share of vowels."""
    text = [{"prompt": f"Word {number}:"} for number in range(10)]
    site.write_data(rows or text, "prompts.jsonl")
    site.write_reward(_REWARDS)
    plan = make_plan(micro_batch_size=8, gradient_accumulation_steps=2)
    return site.job(changes.pop("plan", plan), **(_SPEC | changes))


def test_the_mean_reward_rises_in_training_and_on_held_out_prompts(site: Site) -> None:
    assert site.run(grpo_job(site)) == 0
    rewards = [entry["reward"] for entry in site.metrics() if "reward" in entry]
    assert sum(rewards[:5]) / 5 < 0.05
    assert sum(rewards[-5:]) / 5 > 0.5
    held_out = [entry["eval_reward"] for entry in site.metrics() if "eval_reward" in entry]
    assert held_out[0] < 0.05
    assert held_out[-1] > 0.5
    assert site.metrics()[-1]["eval_rewards/vowels/mean"] == held_out[-1]


@pytest.mark.parametrize(
    ("adapter", "changes"),
    [
        ({"type": "lora", "lora": {"rank": 4}}, {"grpo": {"beta": 0.1, "loss": "grpo"}}),
        ({"type": "full"}, {"grpo": {"beta": 0.1, "iterations": 2}}),
        ({"type": "qlora", "lora": {"rank": 4}}, {"grpo": {"maskTruncatedCompletions": True}}),
    ],
    ids=["lora", "full", "qlora"],
)
def test_chats_are_learned_with_every_adapter(
    site: Site, adapter: dict[str, Any], changes: dict[str, Any]
) -> None:
    plan = make_plan(
        micro_batch_size=4, gradient_accumulation_steps=4, gradient_checkpointing="full"
    )
    config = grpo_job(site, _CHAT, adapter=adapter, plan=plan, training=_SHORT, **changes)
    assert site.run(config) == 0
    assert site.result().step == 3
    assert ("kl" in site.metrics()[1]) == ("beta" in changes["grpo"])


@pytest.mark.parametrize(
    ("iterations", "step"),
    [
        pytest.param(1, 3, id="in the first epoch"),
        pytest.param(1, 8, id="in the second epoch"),
        pytest.param(3, 6, id="while completions are used again"),
    ],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    site: Site, iterations: int, step: int
) -> None:
    training = _SHORT | {"maxSteps": 10, "checkpoint": {"everySteps": 2}, "evalEverySteps": 3}
    adapter = {"type": "lora", "lora": {"rank": 4, "dropout": 0.2}}
    changes: dict[str, Any] = {
        "training": training,
        "adapter": adapter,
        "grpo": {"iterations": iterations},
    }
    config = grpo_job(site, **changes)
    assert site.run(config, Interruption("step", step)) == -signal.SIGKILL
    assert site.run(config) == 0
    resumed = _measured(site)
    site.clear()
    assert site.run(grpo_job(site, **changes)) == 0
    assert _measured(site) == resumed


def test_completions_in_use_are_sampled_anew_for_other_micro_batches(site: Site) -> None:
    """As after an attempt that ran out of memory."""
    training = _SHORT | {"maxSteps": 8, "checkpoint": {"everySteps": 2}}
    config = grpo_job(site, training=training, grpo={"iterations": 3})
    assert site.run(config, Interruption("step", 5)) == -signal.SIGKILL
    halved = make_plan(micro_batch_size=4, gradient_accumulation_steps=4)
    assert site.run(config.model_copy(update={"plan": halved})) == 0
    assert site.result().step == 8


def _measured(site: Site) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if name != "step_time"}
        for entry in site.metrics()
    ]


@pytest.mark.parametrize("method", ["grpo", "ebft"])
def test_two_processes_share_groups(site: Site, method: str) -> None:
    """Each gives its half of a group the rewards that one process gives the whole group."""
    halves = {"micro_batch_size": 4, "gradient_accumulation_steps": 1}
    plan = make_plan(gpus=2, gpus_per_node=2, strategy="ddp", **halves)
    rows = [{"prompt": f"Word {number}:", "completion": "yes" * number} for number in range(1, 11)]
    changes: dict[str, Any] = {
        "method": method,
        "training": _SHORT | {"maxSteps": 4, "batchSize": 8, "evalEverySteps": 2},
        "rewards": _SPEC["rewards"] if method == "grpo" else None,
        # Next to nothing is left to chance, of which each process has its own.
        "generation": _SPEC["generation"] | {"temperature": 1e-4},
    }
    config = grpo_job(site, rows, plan=plan, **changes)
    environment = {"FINETUNE_DEVICE": "cpu"}
    assert site.run(config, environment=environment) == 0
    found = _rewards(site)
    site.clear()
    whole = make_plan(micro_batch_size=8, gradient_accumulation_steps=1)
    assert site.run(grpo_job(site, rows, plan=whole, **changes)) == 0
    assert found == pytest.approx(_rewards(site), abs=1e-3)


def _rewards(site: Site) -> dict[str, float]:
    keys = ("reward", "eval_reward")
    return {f"{key} {e['step']}": e[key] for e in site.metrics() for key in keys if key in e}
