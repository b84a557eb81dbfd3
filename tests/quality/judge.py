"""Which of two answers a model prefers, measured on the artifact as its users load it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from quality.data import Question


def preferred(base: Path, artifact: Path, questions: Sequence[Question]) -> tuple[float, float]:
    """Return how often the docstring is likelier per token than the chatter, before and after."""
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(loaded, str(artifact)).eval()
    with torch.no_grad():
        with model.disable_adapter():
            before = _share(model, tokenizer, questions)
        return before, _share(model, tokenizer, questions)


def _share(model: Any, tokenizer: Any, questions: Sequence[Question]) -> float:
    wins = [
        _likelihood(model, tokenizer, question.text, question.docstring)
        > _likelihood(model, tokenizer, question.text, question.chatter)
        for question in questions
    ]
    return sum(wins) / len(wins)


def _likelihood(model: Any, tokenizer: Any, question: str, answer: str) -> float:
    """Return the mean log probability of the answer's tokens."""
    whole, start = _tokens(tokenizer, question, answer)
    logits = model(input_ids=whole).logits[0, start - 1 : -1]
    chosen = logits.log_softmax(-1).gather(-1, whole[0, start:, None])
    return float(chosen.mean())


def _tokens(tokenizer: Any, question: str, answer: str) -> tuple[torch.Tensor, int]:
    """Return the conversation, and where the answer begins in it."""
    prompt = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    said = [*prompt, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(said, return_dict=True, return_tensors="pt")
    return whole["input_ids"], len(asked["input_ids"])


def scored(base: Path, artifact: Path, questions: Sequence[Question]) -> float:
    """Return how often a reward model scores the right docstring higher than the other."""
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    loaded = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    model = PeftModel.from_pretrained(loaded, str(artifact)).eval()
    wins = []
    with torch.no_grad():
        for question in questions:
            good, bad = (
                float(model(_tokens(tokenizer, question.text, answer)[0]).logits)
                for answer in (question.docstring, question.other)
            )
            wins.append(good > bad)
    return sum(wins) / len(wins)
