"""What plan and recommend make of the lengths and columns of data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from unit.operator.plugin_process import EXAMPLES, Plugin

Write = Callable[..., Path]

TOO_LONG = "but training.maxLength is unset, which allows 4096 (the model knows 40960 positions)"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plugin:
    return Plugin(monkeypatch, capsys)


@pytest.fixture
def data(tmp_path: Path) -> Write:
    """Writes rows to a JSON Lines file."""

    def write(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def _planned(plugin: Plugin, example: str, *arguments: object) -> list[dict[str, Any]]:
    """Return the document of each plan, with the exit code of the first."""
    run = plugin("plan", "-f", EXAMPLES / f"{example}.yaml", "-o", "json", *arguments)
    read = json.loads(run.output)
    documents: list[dict[str, Any]] = read if isinstance(read, list) else [read]
    assert run.code == (0 if "plan" in documents[0] else 1)
    return documents


@pytest.mark.parametrize(
    ("example", "arguments", "refusal"),
    [
        (
            "sft",
            ["--tokens", 9000],
            (
                f"the longest row has 9000 tokens, {TOO_LONG}: raise training.maxLength to 9000, or"
                " set dataset.tooLong to truncate or drop."
            ),
        ),
        (
            "sft",
            ["--tokens", 50_000],
            (
                f"the longest row has 50000 tokens, {TOO_LONG}: set dataset.tooLong to truncate or"
                " drop."
            ),
        ),
        (
            "grpo",
            ["--tokens", 3585],
            (
                "the longest row has 3585 tokens, but training.maxLength is unset, which allows"
                " 4096 and generation.maxCompletionLength is 512 (the model knows 40960 positions):"
                " raise training.maxLength to 4097, or set dataset.tooLong to drop."
            ),
        ),
    ],
)
def test_rows_that_preparation_would_refuse_get_no_plan(
    plugin: Plugin, example: str, arguments: list[object], refusal: str
) -> None:
    [document] = _planned(plugin, example, *arguments)
    assert document["refusal"] == refusal
    assert "plan" not in document


@pytest.mark.parametrize(
    ("example", "change", "refusal"),
    [
        (
            "sft",
            "training.maxLength=100000",
            (
                "training.maxLength is 100000, but the model knows only 40960 positions: lower it"
                " to 40960."
            ),
        ),
        (
            "grpo",
            "training.maxLength=400",
            (
                "training.maxLength is 400 and generation.maxCompletionLength is 512, which leaves"
                " no room for a prompt: lower maxCompletionLength."
            ),
        ),
        (
            "grpo",
            "generation.maxPromptLength=512",
            (
                "the longest row has 1024 tokens, but generation.maxPromptLength is 512 (the model"
                " knows 40960 positions): raise generation.maxPromptLength to 1024, or set"
                " dataset.tooLong to drop."
            ),
        ),
    ],
)
def test_a_change_that_preparation_would_refuse_gets_no_plan(
    plugin: Plugin, example: str, change: str, refusal: str
) -> None:
    as_it_is, changed = _planned(plugin, example, "--tokens", 1024, "--what-if", change)
    assert as_it_is["plan"]
    assert changed["refusal"] == refusal


def test_lengths_by_a_file_are_refused_as_an_estimate(plugin: Plugin, data: Write) -> None:
    rows = data({"text": "x" * 27_000}, {"text": "y"})
    [document] = _planned(plugin, "sft", "--data", rows)
    assert document["refusal"].startswith(
        "the longest row of rows.jsonl has about 9000 tokens at 3 characters to a token (give"
        f" --tokens if you know better), {TOO_LONG}"
    )
    [better] = _planned(plugin, "sft", "--data", rows, "--tokens", 4000)
    assert better["plan"]["maxLength"] == 4000


def test_rows_that_are_assumed_are_refused_by_no_limit(plugin: Plugin) -> None:
    [document] = _planned(plugin, "sft", "--what-if", "training.maxLength=512")[1:]
    assert document["plan"]["maxLength"] == 512
    assert document["preparation"]["dataset"]["meanTokens"] == 256
    [prompts] = _planned(plugin, "grpo", "--what-if", "generation.maxPromptLength=512")[1:]
    assert prompts["plan"]["maxLength"] == 1024


def test_a_size_says_nothing_of_positions(plugin: Plugin) -> None:
    length = ("--what-if", "training.maxLength=100000")
    changed = _planned(plugin, "sft", "--parameters", "1B", *length)[1]
    assert "plan" in changed


def test_rows_that_are_cut_or_left_out_are_planned_so(plugin: Plugin) -> None:
    change = ("--what-if", "dataset.tooLong=truncate")
    document = _planned(plugin, "sft", "--tokens", 9000, *change)[1]
    assert document["plan"]["maxLength"] == 4096
    assert document["preparation"]["dataset"]["maxTokens"] == 4096
    assert "dataset.tooLong truncate: cuts rows of more than 4,096 tokens." in document["notes"]


@pytest.mark.parametrize(
    ("example", "row", "tokens"),
    [
        ("sft", {"prompt": "a" * 30, "completion": "b" * 60}, 30),
        ("sft", {"text": "a" * 30, "source": "b" * 60}, 10),
        ("sft", {"input_ids": [1, 2, 3, 4]}, 4),
        ("dpo", {"prompt": "a" * 30, "chosen": "b" * 60, "rejected": "c" * 90}, 40),
        (
            "dpo",
            {
                "prompt": "a" * 30,
                "chosen": [{"content": "a" * 30}, {"content": "b" * 60}],
                "rejected": [{"content": "a" * 30}, {"content": "c" * 30}],
            },
            30,
        ),
        (
            "dpo",
            {
                "prompt": "a" * 30,
                "answers": [{"answer": "b" * 60, "rank": 1}, {"answer": "c" * 30, "rank": 2}],
            },
            30,
        ),
        ("kto", {"prompt": "a" * 30, "completion": "b" * 60, "label": True}, 30),
        ("grpo", {"question": "a" * 30, "answer": "b" * 60_000}, 10 + 512),
        ("ebft", {"messages": [{"content": "a" * 30}, {"content": "b" * 60}]}, 10 + 512),
    ],
)
def test_a_row_is_as_long_as_what_its_method_reads(
    plugin: Plugin, data: Write, example: str, row: dict[str, Any], tokens: int
) -> None:
    [document] = _planned(plugin, example, "--data", data(row), "--parameters", "1B")
    assert document["preparation"]["dataset"]["maxTokens"] == tokens


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (
            ["--rows", 12_000, "--tokens", 2048],
            "12,000 rows (given), the longest of 2,048 tokens (given), 1,024 on average (assumed).",
        ),
        (
            ["--tokens", 1024],
            (
                "1,000 rows (assumed), the longest of 1,024 tokens (given), 512 on average"
                " (assumed); give --data, or --rows and --tokens."
            ),
        ),
        (
            [],
            (
                "1,000 rows, the longest of 2,048 tokens, 1,024 on average, all assumed; give"
                " --data, or --rows and --tokens."
            ),
        ),
    ],
)
def test_the_note_on_data_says_what_is_given_and_what_is_assumed(
    plugin: Plugin, arguments: list[object], note: str
) -> None:
    [document] = _planned(plugin, "sft", *arguments)
    assert document["notes"][1] == f"Data: {note}"


def test_of_prompts_the_note_says_so(plugin: Plugin, data: Write) -> None:
    [given] = _planned(plugin, "grpo", "--rows", 10, "--tokens", 1024)
    assert "the longest prompt of 1,024 tokens (given), 512 on average" in given["notes"][1]
    [read] = _planned(plugin, "grpo", "--data", data({"prompt": "a" * 30}))
    assert read["notes"][1] == (
        "Data: 1 row, the longest prompt of 10 tokens, 10 on average, all by rows.jsonl at 3"
        " characters to a token."
    )


PAIR = {"prompt": "a", "chosen": "b" * 60_000, "rejected": "c"}


def test_data_that_does_not_fit_the_method_is_noted(plugin: Plugin, data: Write) -> None:
    [document] = _planned(plugin, "sft", "--data", data(PAIR))
    assert document["notes"][-1].startswith(
        "The data does not fit: the rows of rows.jsonl look like paired preferences (prompt,"
        " chosen, rejected), which method dpo or kto or orpo or reward needs; method sft needs"
    )
    [fits] = _planned(plugin, "dpo", "--data", data(PAIR), "--tokens", 1024)
    assert fits["notes"][1:] == [
        (
            "Data: 1 row (by rows.jsonl), the longest of 1,024 tokens (given), 1,024 on average (by"
            " rows.jsonl at 3 characters to a token)."
        )
    ]


def test_columns_are_renamed_as_the_job_says(plugin: Plugin, tmp_path: Path, data: Write) -> None:
    job = yaml.safe_load((EXAMPLES / "sft.yaml").read_text())
    job["spec"]["dataset"]["columns"] = {"body": "text"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    rows = data({"body": "a" * 30, "prompt": "b"})
    run = plugin("plan", "-f", tmp_path / "job.yaml", "-o", "json", "--data", rows)
    document = json.loads(run.output)
    assert document["preparation"]["dataset"]["format"] == "completion"
    assert len(document["notes"]) == 2


def _recommended(plugin: Plugin, *arguments: object) -> tuple[str, dict[str, Any]]:
    run = plugin("recommend", "--model", "hf://Qwen/Qwen3-8B", "--gpu", "H200", *arguments)
    assert run.code == 0, run.errors
    words, _, job = run.output.partition("apiVersion")
    return words, yaml.safe_load(f"apiVersion{job}")


def test_a_job_that_is_recommended_takes_its_longest_row(plugin: Plugin, data: Write) -> None:
    words, job = _recommended(plugin, "--data", data({"text": "x" * 27_000}))
    assert job["spec"]["training"] == {"maxLength": 9000}
    assert "training.maxLength 9000: unset, it would be too short" in words
    _, short = _recommended(plugin, "--data", data({"text": "x" * 27_000}), "--tokens", 4096)
    assert "training" not in short["spec"]


def test_no_job_is_recommended_for_rows_that_the_model_cannot_read(
    plugin: Plugin, data: Write
) -> None:
    rows = data({"text": "x" * 270_000})
    run = plugin("recommend", "--model", "hf://Qwen/Qwen3-8B", "--data", rows)
    assert (run.code, run.output) == (2, "")
    assert "the longest row of rows.jsonl has about 90000 tokens" in run.errors


@pytest.mark.parametrize(
    ("row", "reward", "is_noted"),
    [
        ({"prompt": "a"}, "accuracy", True),
        ({"prompt": "a"}, "length", False),
        ({"prompt": "a", "solution": "b"}, "accuracy", False),
        ({"question": "a", "answer": "b"}, "exact-match", False),
        ({"prompt": "a", "completion": "b"}, "exact-match", False),
    ],
)
def test_a_reward_without_answers_to_compare_with_is_noted(
    plugin: Plugin, data: Write, row: dict[str, Any], reward: str, *, is_noted: bool
) -> None:
    words, _ = _recommended(plugin, "--data", data(row), "--reward", reward)
    assert ("but the rows have none of these" in " ".join(words.split())) is is_noted
