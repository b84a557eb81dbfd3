"""The decision tree as questions, in the guide's order."""

from typing import Final

from rich.prompt import Confirm, Prompt

from finetune_operator.plugin.advice import HAVE, Situation
from finetune_operator.plugin.errors import PluginError

_QUESTIONS: Final = {
    "pairs": "Do you have pairs: a better and a worse answer to the same prompt?",
    "labels": "Do you have answers that are marked good or bad?",
    "examples": "Do you have examples: prompts with the answers that you want, or plain text?",
}


def ask_situation() -> Situation:
    """Return what a person answers; PluginError when there is nothing to learn from."""
    if Confirm.ask("Can answers be scored, by a function or a model?", default=False):
        reward = Prompt.ask(
            "Which reward: exact-match, accuracy, format, json, length, or a function's source",
            default="accuracy",
        )
        return Situation(HAVE["prompts"], reward)
    for have, question in _QUESTIONS.items():
        if Confirm.ask(question, default=False):
            return Situation(HAVE[have], wants_reward_model=have == "pairs" and _wants_model())
    raise PluginError(
        "there is nothing to learn from yet: make data first, such as answers that you want, pairs"
        " that a stronger model has judged, or a function that scores answers."
    )


def _wants_model() -> bool:
    return Confirm.ask("Should the result be a model that scores answers?", default=False)


def ask_model() -> str:
    """Return the source of the model to start from."""
    return Prompt.ask("Which model", default="hf://Qwen/Qwen3-4B")


def ask_gpu() -> str | None:
    """Return the GPU that a person has; None for any."""
    question = "Which GPU do you have, such as L4 (empty: any)"
    return Prompt.ask(question, default="", show_default=False) or None
