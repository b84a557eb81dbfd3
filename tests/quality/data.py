"""Data that a small chat model can learn from in minutes, made from the docstrings of Python.

    PYTHONPATH=tests python -m quality.data FOLDER [QUESTIONS]

writes FOLDER/NAME/{train,test}.jsonl for every method's kind of rows. Preferences teach a taste: a
docstring by itself is a good answer, the same docstring after some chatter is not. Matches teach
which docstring answers the question.
"""

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.prepare_demo import DATA, default_folder, make_data

HELD_OUT = 32
"""Questions of the test split; no training row has one of them."""
_LONGEST_ANSWER = 100
"""Characters: few tokens, for a CPU."""

_OPENINGS = (
    "In Python, {call} does the following. ",
    "Great question! I am happy to help you with that. ",
    "Sure, here is what {call} does: ",
    "The standard library has many useful functions, and {call} is one of them. ",
    "Let me explain this step by step. ",
    "As you may know, Python comes with {call}. ",
)


@dataclass(frozen=True)
class Question:
    """One question about a function, and its docstring."""

    text: str
    docstring: str
    other: str
    """The docstring of another function."""

    @property
    def call(self) -> str:
        """The function, as the question writes it."""
        return self.text.removeprefix("What does Python's ").removesuffix(" do?")

    @property
    def chatter(self) -> str:
        """The docstring with chatter before it; always the same for one question."""
        choice = random.Random(self.text)  # noqa: S311 - a choice, not a secret
        return choice.choice(_OPENINGS).format(call=self.call) + self.docstring


Row = dict[str, Any]


def _user(question: Question) -> list[Row]:
    return [{"role": "user", "content": question.text}]


def _assistant(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def demonstration(question: Question) -> Row:
    """Return a row for sft and ebft."""
    return {"prompt": _user(question), "completion": _assistant(question.docstring)}


def preference(question: Question) -> Row:
    """Return a row for dpo and orpo."""
    return {
        "prompt": _user(question),
        "chosen": _assistant(question.docstring),
        "rejected": _assistant(question.chatter),
    }


def match(question: Question) -> Row:
    """Return a row for reward.

    Every docstring is chosen once and rejected once: what looks at answers alone stays at chance.
    """
    return {
        "prompt": _user(question),
        "chosen": _assistant(question.docstring),
        "rejected": _assistant(question.other),
    }


def judgement(question: Question) -> Row:
    """Return a row for kto: about half of the answers are good ones."""
    good = random.Random(question.docstring).random() < 0.5  # noqa: S311 - a choice, not a secret
    answer = question.docstring if good else question.chatter
    return {"prompt": _user(question), "completion": _assistant(answer), "label": good}


def prompt(question: Question) -> Row:
    """Return a row for grpo."""
    return {"prompt": _user(question)}


KINDS: dict[str, Callable[[Question], Row]] = {
    "demonstrations": demonstration,
    "preferences": preference,
    "matches": match,
    "judgements": judgement,
    "prompts": prompt,
}


def read_questions(docstrings: Path) -> list[Question]:
    """Return the questions of the demo's data that have a short answer."""
    rows = [json.loads(line) for line in docstrings.read_text().splitlines()]
    known = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows]
    short = [(text, answer) for text, answer in known if len(answer) <= _LONGEST_ANSWER]
    held_out, training = short[:HELD_OUT], short[HELD_OUT:]
    return [*_questions(held_out), *_questions(training)]


def _questions(answers: list[tuple[str, str]]) -> Iterator[Question]:
    others = [*answers[1:], answers[0]]
    for (text, docstring), (_, other) in zip(answers, others, strict=True):
        yield Question(text, docstring, other)


def write(folder: Path, questions: list[Question]) -> None:
    """Write train.jsonl and test.jsonl of every kind."""
    for name, row in KINDS.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        _write_rows(place / "train.jsonl", map(row, questions[HELD_OUT:]))
        _write_rows(place / "test.jsonl", map(row, questions[:HELD_OUT]))


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(folder: Path, count: int | None = None) -> None:
    """Write the data for so many questions, or all."""
    docstrings = default_folder() / DATA
    if not docstrings.exists():
        docstrings.parent.mkdir(parents=True, exist_ok=True)
        make_data(docstrings)
    write(folder, read_questions(docstrings)[:count])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
