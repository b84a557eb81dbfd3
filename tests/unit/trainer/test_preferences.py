"""Preference methods on tiny models: they learn, their models load, and resumed runs end alike."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from unit.trainer.builders import chat_rows, make_plan
from unit.trainer.conftest import Site
from unit.trainer.processes import Interruption

METHODS = ("dpo", "kto", "orpo", "reward")


def pairs(count: int) -> list[dict[str, Any]]:
    """Return questions whose better answer is a word of a's, and whose worse one is of b's."""
    return [
        {"question": f"number {number}", "chosen": "a" * (3 + number % 4), "rejected": "b" * 4}
        for number in range(count)
    ]


def spec(method: str, **fields: Any) -> dict[str, Any]:
    return {
        "method": method,
        "dataset": {"source": "pvc://data/rows.jsonl", "evalFraction": 0.1},
        "training": {"maxSteps": 16, "batchSize": 4, "learningRate": 0.01},
    } | fields


ACCURACY = {
    "dpo": "eval_rewards/accuracies",
    "orpo": "eval_rewards/accuracies",
    "reward": "eval_accuracy",
    "kto": "eval_rewards/margins",
}


@pytest.mark.parametrize("method", METHODS)
def test_held_out_answers_are_told_apart(site: Site, method: str) -> None:
    site.write_data(pairs(40))
    assert site.run(site.job(make_plan(), **spec(method))) == 0, site.result().message
    print(site.result().metrics)
    print(site.metrics()[1])
