"""What a real model of 135M weights learns by each method in a few minutes on a CPU."""

from typing import Any

import pytest

from quality.conftest import Job, Quality

pytestmark = pytest.mark.quality

PAIRS = {"maxSteps": 16, "batchSize": 4, "learningRate": 3e-4}
DIRECT = '''
def direct(completions, **kwargs):
    """Reward answers that do not repeat whose function it is."""
    return [float("Python" not in completion[0]["content"]) for completion in completions]
'''


def prefers(job: Job) -> tuple[float, float]:
    """Return how often the model prefers the docstring to the chatter, before and after."""
    from quality import judge

    return judge.preferred(job.site.model, job.site.artifact, job.questions)


def test_sft_learns_to_answer_by_docstrings(quality: Quality) -> None:
    job = quality.train(
        "sft", "demonstrations", {"maxSteps": 30, "batchSize": 4, "learningRate": 1e-3}
    )
    loss = job.gain("eval_loss")
    assert loss.after < 0.75 * loss.before


def test_dpo_learns_to_prefer_docstrings_to_chatter(quality: Quality) -> None:
    job = quality.train("dpo", "preferences", PAIRS)
    rewards = job.gain("eval_rewards/accuracies")
    taste = job.gain("prefers the chosen answer", *prefers(job))
    assert rewards.after > 0.9
    assert taste.after > taste.before + 0.3


def test_orpo_learns_the_same_without_a_reference(quality: Quality) -> None:
    # Its reward is how likely the answer is, which starts with the chatter ahead.
    training = PAIRS | {"maxSteps": 32, "learningRate": 1e-3}
    job = quality.train("orpo", "preferences", training, orpo={"beta": 1.0})
    rewards = job.gain("eval_rewards/accuracies")
    taste = job.gain("prefers the chosen answer", *prefers(job))
    assert rewards.after > 0.6
    assert taste.after > taste.before + 0.3


def test_kto_learns_the_same_from_single_judgements(quality: Quality) -> None:
    job = quality.train("kto", "judgements", PAIRS | {"batchSize": 8})
    margin = job.gain("eval_rewards/margins")
    taste = job.gain("prefers the chosen answer", *prefers(job))
    assert margin.after > margin.before
    assert taste.after > taste.before


def test_a_reward_model_learns_which_answer_fits_the_question(quality: Quality) -> None:
    from quality import judge

    job = quality.train("reward", "matches", PAIRS | {"maxSteps": 40})
    accuracy = job.gain("eval_accuracy")
    assert 0.25 < accuracy.before < 0.75
    assert accuracy.after > 0.8
    loaded = judge.scored(job.site.model, job.site.artifact, job.questions)
    assert loaded == pytest.approx(accuracy.after, abs=0.05)


ONLINE: dict[str, Any] = {
    "maxSteps": 12,
    "batchSize": 16,
    "learningRate": 3e-4,
    "extra": {"num_generations_eval": 2},
}


def test_grpo_learns_what_a_reward_asks_for(quality: Quality) -> None:
    quality.write_config_map("rewards", "direct.py", DIRECT)
    job = quality.train(
        "grpo",
        "prompts",
        ONLINE,
        rewards=[{"name": "direct", "function": "configmap://rewards/direct.py:direct"}],
        generation={"groupSize": 8, "maxCompletionLength": 16},
    )
    reward = job.gain("eval_reward")
    assert reward.before < 0.4
    assert reward.after > reward.before + 0.3


def test_ebft_draws_answers_towards_the_docstrings(quality: Quality) -> None:
    job = quality.train(
        "ebft",
        "demonstrations",
        ONLINE,
        ebft={"pooling": "completion_mean", "diversityCoefficient": 0.5},
        generation={"groupSize": 8, "maxCompletionLength": 24},
    )
    reward = job.gain("eval_reward")
    alignment = job.gain("eval_ebft/alignment")
    assert reward.after > reward.before
    assert alignment.after > alignment.before
