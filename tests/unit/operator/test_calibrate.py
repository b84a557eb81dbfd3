"""How the planner's constants follow from what was measured."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.calibrate import BEGIN, DOCUMENT, END, FOLDER, STEADY, calibrate, fitted, told
from bench.gpu import SUITES
from bench.gpu_cases import Case
from bench.gpu_models import SHAPES
from bench.measured_runs import slack_of, tensors
from finetune_api.status import ModelFacts
from finetune_operator.planning.architecture import facts_of_config, facts_of_name
from finetune_operator.planning.calibration import parse
from unit.operator.builders import make_preparation

H100 = FOLDER / "h100.yaml"
CONSTANTS = yaml.safe_load(H100.read_text())["constants"]
RUN = {
    "model": "Llama-3.2-1B", "method": "sft", "adapter": "lora", "rank": 16, "length": 2048,
    "microBatch": 4, "checkpointing": "none", "compiled": False,
}  # fmt: skip


def facts_of(model: str) -> ModelFacts:
    """Return what preparation finds in a saved model of bench.gpu."""
    return facts_of_config(SHAPES[model].config().to_dict())


def result(case: Case, reserved: float, **facts: Any) -> dict[str, Any]:
    """Return what bench.gpu writes of a case."""
    length = case.length + (case.completion if case.method == "grpo" else 0)
    preparation = make_preparation(**(facts_of(case.model).model_dump() | facts))
    dataset = preparation.dataset.model_copy(update={"max_tokens": length, "mean_tokens": length})
    ours = {
        "preparation": preparation.model_copy(update={"dataset": dataset}).to_json(),
        "reserved": reserved,
        "allocated": reserved - 0.1,
        "tokens_per_second": 1234.5,
        "steps": [1.0] * case.steps,
    }
    return {
        "case": case.name,
        "settings": asdict(case),
        "device": "NVIDIA H100 80GB HBM3",
        "image": "torch 2.13.0",
        "ours": ours,
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with the calibration files, and a document for the tables."""
    for path in FOLDER.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "memory.md").write_text(f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n")
    return tmp_path


def run_with(files: Path, *results: dict[str, Any]) -> dict[str, Any]:
    """Calibrate with these results, and return the file of the H100."""
    measured = files / "measured.json"
    measured.write_text(json.dumps(results))
    calibrate([measured], files, files / "memory.md")
    content: dict[str, Any] = yaml.safe_load((files / "h100.yaml").read_text())
    return content


def results_of(share: float) -> list[dict[str, Any]]:
    """Return runs that needed that many times what the formulas say."""
    lengths = range(256, 4096, 256)
    cases = [Case("Llama-3.2-1B", "sft", "lora", length, 2, compile="never") for length in lengths]
    needed = [tensors(RUN | {"length": length, "microBatch": 2}, CONSTANTS) for length in lengths]
    return [result(case, size * share) for case, size in zip(cases, needed, strict=True)]


def test_the_slack_is_what_the_fitted_runs_needed_beyond_the_formulas(files: Path) -> None:
    content = run_with(files, *results_of(1.04))
    parse(content)
    assert content["constants"]["slack"] == pytest.approx(0.04, abs=0.003)
    assert content["constants"]["contextGib"] == 0.75


def test_nothing_is_fitted_to_what_is_held_out(files: Path) -> None:
    first = run_with(files, *results_of(1.04))
    held_out = [bool(run.get("heldOut")) for run in first["runs"]]
    assert 0.25 <= sum(held_out) / len(held_out) <= 0.75
    worse = [
        row if seen else reliable
        for row, reliable, seen in zip(results_of(1.3), results_of(1.04), held_out, strict=True)
    ]
    again = run_with(files, *worse)
    assert again["constants"] == first["constants"]
    table = (files / "memory.md").read_text()
    assert f"| held out | {sum(held_out)} | 19.9 % | -19.9 % | 100 % |" in table


def test_one_run_that_needs_more_than_the_rest_raises_the_slack() -> None:
    usual = [needing(share) for share in (1.01, 1.02, 1.03)]
    assert fitted(usual, CONSTANTS) == {"slack": pytest.approx(0.02, abs=0.001)}
    beyond = fitted([*usual, needing(1.1)], CONSTANTS)
    assert beyond == {"slack": pytest.approx(1.1 / 1.01 - 1, abs=0.001)}


def test_what_frees_memory_in_pieces_has_a_slack_of_its_own() -> None:
    again = {"checkpointing": "full"}
    runs = [needing(1.01), needing(1.06, **again)]
    expected = {"slack": pytest.approx(0.01), "slackInPieces": pytest.approx(0.06)}
    assert fitted(runs, CONSTANTS) == expected


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "slack"),
        ({"compiled": True, "checkpointing": "full"}, "slack"),
        ({"checkpointing": "selective"}, "slackInPieces"),
        ({"method": "orpo"}, "slackInPieces"),
        ({"method": "reward"}, "slack"),
        ({"method": "reward", "adapter": "full", "rank": 0}, "slackInPieces"),
        ({"adapter": "qlora"}, "slack"),
        ({"adapter": "qlora", "compiled": True}, "slackInPieces"),
        ({"precision": "float8", "compiled": True}, "slackInPieces"),
    ],
)
def test_which_slack_a_run_has(change: dict[str, Any], name: str) -> None:
    assert slack_of(RUN | change) == name


def needing(share: float, **change: Any) -> dict[str, Any]:
    """Return a run that needed that many times what the formulas say."""
    run = RUN | change
    return run | {"reserved": tensors(run, CONSTANTS) * share}


def test_every_setting_that_memory_depends_on_is_kept(files: Path) -> None:
    cases = [
        Case("Llama-3.2-1B", "sft", "qlora", 2048, 4, STEADY, 2, rank=64, compile="always"),
        Case("Qwen3-1.7B", "grpo", "full", 512, 8, completion=64, compile="never"),
        Case("gemma-3-1b", "sft", "lora", 8192, 1, packed=True, precision="float8"),
    ]
    runs = run_with(files, *results_of(1.0), *(result(case, 9.0) for case in cases))["runs"]
    kept = [{name: run[name] for name in run if name != "heldOut"} for run in runs[-3:]]
    same = {"reserved": 9.0, "allocated": 8.9, "tokensPerSecond": 1234, "checkpointing": "none"}
    assert kept == [
        same
        | {"model": "Llama-3.2-1B", "method": "sft", "adapter": "qlora", "rank": 64}
        | {"length": 2048, "microBatch": 4, "accumulation": 2, "compiled": True},
        same
        | {"model": "Qwen3-1.7B", "method": "grpo", "adapter": "full", "rank": 0}
        | {"length": 576, "microBatch": 8, "completion": 64, "compiled": False},
        same
        | {"model": "gemma-3-1b", "method": "sft", "adapter": "lora", "rank": 16, "length": 8192}
        | {"microBatch": 1, "packed": True, "precision": "float8", "compiled": True},
    ]


def test_a_gpu_that_was_never_measured_gets_a_file_of_its_own(files: Path) -> None:
    before = (files / "h100.yaml").read_text()
    other = [row | {"device": "NVIDIA L4"} for row in results_of(1.1)]
    run_with(files, *other)
    assert parse(yaml.safe_load((files / "nvidia-l4.yaml").read_text())).products == ("NVIDIA-L4",)
    runs = yaml.safe_load(before)["runs"]
    assert yaml.safe_load((files / "h100.yaml").read_text())["runs"] == runs


def test_a_run_that_failed_is_left_out(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = results_of(1.0)
    failed = good[0] | {"case": "too large", "ours": {"error": "OutOfMemoryError: 80 GiB"}}
    assert len(run_with(files, failed, *good[1:])["runs"]) == len(good) - 1
    assert "left out: too large: OutOfMemoryError" in capsys.readouterr().err


def test_the_tables_replace_those_of_last_time(files: Path) -> None:
    run_with(files, *results_of(1.0))
    text = (files / "memory.md").read_text()
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert "old" not in text.split()
    assert "| Llama-3.2-1B | sft lora r16 |" in text
    calibrate([], files, files / "memory.md")
    assert (files / "memory.md").read_text() == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compile": "auto"}, "compile is auto: expected always or never"),
        ({"model": "tiny"}, "model is tiny: expected one of catalogue.json"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    change: dict[str, Any], message: str, files: Path
) -> None:
    row = results_of(1.0)[0]
    with pytest.raises(ValueError, match=message):
        run_with(files, row | {"settings": row["settings"] | change})


def test_what_is_no_measurement_on_a_gpu_is_refused(files: Path) -> None:
    row = results_of(1.0)[0]
    with pytest.raises(ValueError, match="-eager is cpu: expected a GPU"):
        run_with(files, row | {"device": "cpu"})
    with pytest.raises(ValueError, match="a result has no image"):
        run_with(files, {name: value for name, value in row.items() if name != "image"})
    with pytest.raises(ValueError, match="expected the same of all"):
        run_with(files, row, row | {"image": "torch 2.11.0"})
    with pytest.raises(ValueError, match="is no file of"):
        calibrate([files / "memory.md"], files, files / "memory.md")


def test_a_model_of_another_shape_is_refused(files: Path) -> None:
    case = Case("Llama-3.2-1B", "sft", "lora", 2048, 4, compile="never")
    with pytest.raises(ValueError, match="layers of the run is 17: expected 16"):
        run_with(files, result(case, 15.0, layers=17))


def test_the_document_says_what_the_files_say() -> None:
    contents = [
        yaml.safe_load(path.read_text())
        for path in sorted(FOLDER.glob("*.yaml"))
        if path.stem != "cpu"
    ]
    between = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    expected = "\n\n".join(told(content) for content in contents)
    assert between == expected, "run python -m bench.calibrate after a change of the formulas"


def test_runs_can_be_estimated_again_by_the_names_of_their_models() -> None:
    for model in {case.model for case in SUITES["calibration"]}:
        named = facts_of_name(f"hf://{model}")
        assert named is not None
        ignored = {"max_positions", "architecture", "weights_bytes", "dtype"}
        assert named[1].model_dump(exclude=ignored) == facts_of(model).model_dump(exclude=ignored)
