"""Rewards: what they are worth, and that nothing wrong with one is found late or passed over."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.methods import Generation
from finetune_api.status import ModelStart
from finetune_api.trainer import JobFailure, TrainerConfig
from finetune_trainer.rewards.answers import final_answer, same_answer
from finetune_trainer.rewards.builtin import builtin_reward
from finetune_trainer.rewards.checked import CheckedReward
from finetune_trainer.rewards.models import load_reward_model
from unit.trainer.builders import make_config, make_plan, save_tokenizer
from unit.trainer.conftest import Site

_CHAT = [{"role": "assistant", "content": "[1, 2]"}]
_DRAWN = {"name": "drawn", "function": "configmap://rewards/rewards.py:drawn"}


@pytest.mark.parametrize(
    ("name", "completion", "columns", "value"),
    [
        ("exact-match", " yes\n", {"answer": ["yes"]}, 1),
        ("exact-match", "Yes", {"answer": ["yes"]}, 0),
        ("exact-match", "4", {"solution": [4]}, 1),
        ("exact-match", "4", {"answer": [None], "solution": ["4"]}, None),
        ("accuracy", "It is 1/2, so 0.5", {"ground_truth": [r"thus \boxed{\frac{1}{2}}"]}, 1),
        ("accuracy", "<think>7</think> 8", {"answer": ["long way #### 7"]}, 0),
        ("format", "<think>\nhm\n</think>\nyes", {}, 1),
        ("format", "yes", {}, 0),
        ("json", '{"a": 1}', {}, 1),
        ("json", '```json\n{"a": 1}\n```', {}, 1),
        ("json", 'here: {"a": 1}', {}, 0),
        ("json", "5", {}, 0),
        ("json", "[" * 100_000, {}, 0),
        ("json", _CHAT, {}, 1),
    ],
)
def test_a_built_in_reward(name: str, completion: Any, columns: Any, value: float | None) -> None:
    assert builtin_reward(name, Generation())(completions=[completion], **columns) == [value]


def test_the_length_reward_falls_over_the_last_fifth() -> None:
    reward = builtin_reward("length", Generation(max_completion_length=100))
    tokens = [[1] * length for length in (1, 80, 90, 100)]
    assert reward(completions=[""] * 4, completion_ids=tokens) == [0, 0, -0.5, -1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{\frac{1}{2}} holds", "0.5"),
        ("#### 1,234", "1234"),
        ("The answer is **5** apples.", "5"),
        ("first 7, then 8.", "8"),
        ("The answer is 1,2", "1,2"),
        ("left with 10-4", "4"),
        ("The answer is -4.", "-4"),
        ("so 1,234,567 in all", "1234567"),
        ("Answer: (B)", "b"),
        ("answer is x = 7.", "7"),
        (r"\boxed{50\%}", "50"),
        (r"\boxed{\text{ Paris }}", "paris."),
    ],
)
def test_answers_that_are_the_same(text: str, expected: str) -> None:
    assert same_answer(final_answer(text), final_answer(expected, is_reference=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{5^2}", "5"),
        ("8, no, 7", "8"),
        ("The answer is 1,2", "12"),
        ("left with 10-4", "-4"),
        ("Answer: C", "B"),
        ("", "0"),
        (r"\boxed{1e999999999}", "3"),
        (r"\boxed{1/0}", "0"),
    ],
)
def test_answers_that_differ(text: str, expected: str) -> None:
    assert not same_answer(final_answer(text), final_answer(expected, is_reference=True))


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "returned NoneType, expected a list with one number per completion"),
        ([1.0], "returned 1 values for 2 completions, expected one number each"),
        ([1.0, "2"], "returned '2', expected a finite number, or None where it does not apply"),
        ([float("nan"), 1], "returned nan, expected a finite number"),
    ],
)
def test_what_no_reward_may_return(returned: Any, problem: str) -> None:
    reward = CheckedReward("tone", lambda **_: returned)
    with pytest.raises(JobFailure) as failure:
        reward(completions=["a", "b"])
    assert failure.value.reason is Reason.CONFIG_INVALID
    assert failure.value.message.startswith(f"rewards[tone] {problem}")


def test_arrays_booleans_and_none_are_rewards() -> None:
    import numpy as np

    for returned in (np.array([1, 0]), [True, False], (1.0, np.float32(0))):
        reward = CheckedReward("tone", lambda returned=returned, **_: returned)
        assert reward(completions=["a", "b"]) == [1.0, 0.0]
    assert CheckedReward("tone", lambda **_: [None, 1])(completions=["a", "b"]) == [None, 1.0]


def _config(*rewards: dict[str, Any], **changes: Any) -> TrainerConfig:
    defaults: dict[str, Any] = {
        "method": "grpo",
        "adapter": {"type": "full"},
        "rewards": list(rewards),
        "generation": {"groupSize": 4, "maxCompletionLength": 8},
        "dataset": {"source": "pvc://data/prompts.jsonl"},
        "training": {"maxSteps": 2, "batchSize": 8},
    }
    plan = make_plan(micro_batch_size=8, gradient_accumulation_steps=1)
    return make_config(plan, **(defaults | changes))


@pytest.fixture
def prompts(site: Site) -> Site:
    rows = [{"prompt": f"Word {number}:", "level": number} for number in range(6)]
    site.write_data(rows, "prompts.jsonl")
    return site


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (
            "def drawn(completions, **kwargs):\n    return 1 / 0",
            "raised ZeroDivisionError: division by zero (",
        ),
        ("def drawn(completions, **kwargs):\n    return 1", "returned int, expected a list"),
        (
            "def drawn(completions, **kwargs):\n    return kwargs['answer']",
            "raised KeyError: 'answer' (",
        ),
        (
            "def drawn(completions):\n    return [1]",
            "names def drawn(completions), expected def drawn(completions, **kwargs)",
        ),
        (
            "async def drawn(completions, **kwargs):\n    return [1]",
            "names async def drawn(completions, **kwargs), expected def drawn(",
        ),
        (
            "def drown(completions, **kwargs):\n    return [1]",
            "names configmap://rewards/rewards.py:drawn, but there is no function drawn: fou",
        ),
        ("import nowhere", "which cannot be imported: ModuleNotFoundError: No module named"),
        ("def drawn(", "which cannot be imported: SyntaxError: "),
    ],
)
def test_a_broken_function_is_found_in_preparation(prompts: Site, code: str, problem: str) -> None:
    prompts.write_reward(code)
    with pytest.raises(JobFailure) as failure:
        prompts.prepare(_config(_DRAWN))
    assert failure.value.reason is Reason.CONFIG_INVALID
    assert failure.value.message.startswith("rewards[drawn] ")
    assert problem in failure.value.message


@pytest.mark.parametrize("name", ["completions", "completion_ids", "images", "log_metric"])
def test_a_column_whose_name_is_taken_is_refused(prompts: Site, name: str) -> None:
    prompts.write_data([{"prompt": "Say:", name: "x"}] * 6, "prompts.jsonl")
    with pytest.raises(JobFailure, match=f"the rows have the column {name}, a name with a mean"):
        prompts.prepare(_config({"name": "short", "builtin": "length"}))


def test_the_trial_keeps_a_column_back_as_training_does(prompts: Site) -> None:
    prompts.write_data([{"prompt": "Say:", "completion": "x"}] * 6, "prompts.jsonl")
    prompts.write_reward("def drawn(completions, completion=None, **kwargs): return completion")
    with pytest.raises(JobFailure, match="returned NoneType"):
        prompts.prepare(_config(_DRAWN))


def test_a_function_that_is_not_there(prompts: Site) -> None:
    with pytest.raises(JobFailure, match=r"rewards\[drawn\].function is .*does not exist"):
        prompts.prepare(_config(_DRAWN))


def test_a_built_in_reward_without_its_column(prompts: Site) -> None:
    with pytest.raises(JobFailure) as failure:
        prompts.prepare(_config({"name": "right", "builtin": "accuracy"}))
    assert failure.value.message.startswith(
        "rewards[right] compares with column answer, solution or ground_truth, but the rows have "
    )


def test_fewer_prompts_than_a_step_takes(prompts: Site) -> None:
    training = {"maxSteps": 2, "batchSize": 32}
    config = _config({"name": "short", "builtin": "length"}, training=training)
    with pytest.raises(JobFailure, match="6 training prompts, but a step takes 8 of them"):
        prompts.prepare(config)


def test_a_function_that_fails_in_training_ends_the_attempt(prompts: Site) -> None:
    prompts.write_reward(
        "def drawn(completions, **kwargs):\n"
        "    assert 'made up' in completions[0], 'cannot score this'\n"
        "    return [1 for _ in completions]"
    )
    config = _config(_DRAWN)
    prompts.prepare(config)
    assert prompts.run(config) == 70
    result = prompts.result()
    # What it needs, such as a service, may be back for the next attempt.
    assert result.reason == "InternalError"
    assert "rewards[drawn] raised AssertionError: cannot score this (" in result.message


def test_functions_of_the_image_and_weights(prompts: Site) -> None:
    prompts.write_reward(
        "def drawn(prompts, completions, completion_ids, level, **kwargs):\n"
        "    kwargs['log_metric']('mean_level', sum(level) / len(level))\n"
        "    return [float(number) for number in level]"
    )
    config = _config(
        _DRAWN | {"weight": 2},
        {"name": "image", "function": "python://trl.rewards:think_format_reward", "weight": -1},
        {"name": "short", "builtin": "length", "weight": 0.5},
        dataset={"source": "pvc://data/chats.jsonl"},
    )
    chats = [
        {"prompt": [{"role": "user", "content": "Hi"}], "level": number} for number in range(6)
    ]
    prompts.write_data(chats, "chats.jsonl")
    prompts.prepare(config)
    assert prompts.run(config) == 0
    entry = prompts.metrics()[0]
    assert entry["rewards/drawn/mean"] == entry["mean_level"]
    expected = 2 * entry["rewards/drawn/mean"] + 0.5 * entry["rewards/short/mean"]
    assert entry["rewards/image/mean"] == 0
    assert entry["reward"] == pytest.approx(expected)


def _save_reward_model(folder: Path, labels: int = 1, chat_template: str | None = None) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    config.num_labels = labels
    LlamaForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder, chat_template)


def _judged() -> TrainerConfig:
    return _config({"name": "judge", "model": "pvc://models/judge"})


def test_a_reward_model_scores_completions(prompts: Site) -> None:
    _save_reward_model(prompts.model.with_name("judge"))
    config = _judged()
    prompts.prepare(config)
    assert prompts.run(config) == 0
    entry = prompts.metrics()[0]
    assert entry["rewards/judge/mean"] == entry["reward"] != 0
    assert entry["rewards/judge/std"] > 0


def test_models_that_are_no_reward_models(prompts: Site) -> None:
    judge = prompts.model.with_name("judge")
    shutil.copytree(prompts.model, judge)
    with pytest.raises(JobFailure, match="judge, which holds LlamaForCausalLM, expected a sequ"):
        prompts.prepare(_judged())
    shutil.rmtree(judge)
    _save_reward_model(judge, labels=3)
    shutil.rmtree(prompts.paths.rewards)
    with pytest.raises(JobFailure, match="ForSequenceClassification with 3 outputs, expected"):
        prompts.prepare(_judged())


def test_a_reward_model_without_its_head(prompts: Site) -> None:
    from safetensors.torch import load_file, save_file

    judge = prompts.model.with_name("judge")
    _save_reward_model(judge)
    weights = load_file(judge / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, judge / "model.safetensors", {"format": "pt"})
    with pytest.raises(JobFailure, match=r"whose weights lack score\.weight"):
        prompts.prepare(_judged())


def test_a_reward_model_that_reads_no_chats(prompts: Site) -> None:
    _save_reward_model(prompts.model.with_name("judge"))
    prompts.write_data([{"prompt": [{"role": "user", "content": "Hi"}]}] * 6, "prompts.jsonl")
    with pytest.raises(JobFailure, match="no chat template, but the prompts are messages"):
        prompts.prepare(_judged())


def test_a_reward_model_that_another_job_made(prompts: Site) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(prompts.model, num_labels=1)
    made = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, init_lora_weights=False))
    artifact = prompts.paths.sources / "pvc/out/judge"
    made.save_pretrained(str(artifact))
    AutoTokenizer.from_pretrained(prompts.model).save_pretrained(artifact)
    start = ModelStart(base="pvc://models/tiny", merge=["pvc://out/judge"])
    config = _config({"name": "judge", "model": "job://judge"})
    prompts.prepare(config.model_copy(update={"starts": {"job://judge": start}}))
    merged, _ = load_reward_model(prompts.paths.rewards / "judge", torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(merged.eval()(ids).logits, made.eval()(ids).logits)
