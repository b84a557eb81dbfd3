"""What kubectl finetune makes of what people type and write."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.plugin.rules import problems
from unit.operator.plugin_process import EXAMPLES, Plugin, Run, manifest_of, server_cases

SFT = EXAMPLES / "sft.yaml"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plugin:
    return Plugin(monkeypatch, capsys)


def _error(run: Run) -> str:
    """Return the one sentence of a command that could not do what it should."""
    assert (run.code, run.output) == (2, "")
    assert run.errors.startswith("error: ")
    assert run.errors.count("\n") == 1
    return run.errors


def _written(folder: Path, *jobs: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text("\n---\n".join(json.dumps(job) for job in jobs))
    return path


def test_without_arguments_it_says_what_there_is(plugin: Plugin) -> None:
    run = plugin()
    assert run.code == 0
    commands = {"plan", "validate", "status", "logs", "report", "recommend", "run"}
    assert commands <= set(run.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paln"], "COMMAND: invalid choice: 'paln'"),
        (["plan"], "are required: -f/--filename: see kubectl finetune plan -h."),
        (["plan", "-f", SFT, "--whatif", "gpu=L4"], "--whatif means nothing to plan"),
        (["plan", "-f", SFT, "-o", "xml"], "-o/--output: invalid choice: 'xml'"),
        (["plan", "-f", SFT, "--rows", 0], "--rows: found '0', expected a whole number from 1 up"),
        (["plan", "-f", SFT, "--tokens", "2k"], "--tokens: found '2k', expected a whole number"),
        (["plan", "-f", SFT, "--price", "nan"], "--price: found 'nan', expected a number from 0"),
        (["status"], "are required: NAME: see kubectl finetune status -h."),
        (["run", "-f", SFT], "run is for this machine: give --local"),
        (["recommend"], "--model is not given"),
    ],
)
def test_what_is_typed_wrong_is_one_sentence(
    plugin: Plugin, arguments: list[object], words: str
) -> None:
    assert words in _error(plugin(*arguments))


@pytest.mark.parametrize("case", server_cases("refused.yaml"))
def test_what_the_api_server_refuses_gets_no_plan(
    plugin: Plugin, tmp_path: Path, case: dict[str, Any]
) -> None:
    job = manifest_of(case)
    path = _written(tmp_path, job)
    first = problems(job)[0]
    assert _error(plugin("plan", "-f", path)).startswith(f"error: {first}")
    assert plugin("validate", "-f", path).output.splitlines()[0].endswith(f": {first}")


@pytest.mark.parametrize(
    ("product", "words"),
    [
        (
            "NVIDIA-A100-SXM4-80GB",
            "spec.resources.gpu.product is NVIDIA-A100-SXM4-80GB, which cannot multiply in float8",
        ),
        # As nodes may call one.
        ("H100", "is valid"),
    ],
)
def test_a_gpu_that_cannot_train_the_job_is_not_valid(
    plugin: Plugin, tmp_path: Path, product: str, words: str
) -> None:
    job = yaml.safe_load(SFT.read_text())
    job["spec"]["resources"] = {"gpu": {"product": product}}
    job["spec"]["training"] = {"precision": "float8"}
    run = plugin("validate", "-f", _written(tmp_path, job))
    assert run.code == (0 if words == "is valid" else 2)
    assert f": {words}" in run.output


def test_a_change_that_the_api_server_refuses_is_named(plugin: Plugin) -> None:
    run = plugin("plan", "-f", SFT, "--what-if", "gpu=L4", "--what-if", "training.precision=float8,"
                 "adapter=full")  # fmt: skip
    assert "error: with training.precision=float8,adapter=full: spec.training" in _error(run)


def test_numbers_are_those_of_kubectl(plugin: Plugin, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"{SFT.read_text()}  training: {{learningRate: 2e-4}}\n")
    assert plugin("validate", "-f", tmp_path / "job.yaml").code == 0
    assert plugin("plan", "-f", SFT, "--what-if", "training.learningRate=2e-4").code == 0


def test_a_value_may_have_commas(plugin: Plugin) -> None:
    change = "adapter.lora.targetModules=[q_proj,v_proj],resources.nodeSelector.node-pool=a,count=2"
    run = plugin("plan", "-f", SFT, "-o", "json", "--what-if", change)
    assert [each["plan"]["gpus"] for each in json.loads(run.output)] == [1, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": "first"}, 'found metadata "first", expected an object'),
        ({"metadata": {}}, "metadata.name: required, but not given"),
        ({"metadata": {"name": 7}}, "metadata.name: found 7, expected text"),
        ({"metadata": {"name": "a", "namespace": 7}}, "metadata.namespace: found 7, expected text"),
        ({"spec": None}, "spec: found null, expected an object"),
        ({"spec": [1]}, "spec: found [1], expected an object"),
        ({"specs": {}}, "specs: unknown field; did you mean spec?"),
    ],
)
def test_what_is_around_the_spec_is_checked(
    plugin: Plugin, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    job = yaml.safe_load(SFT.read_text()) | change
    assert words in _error(plugin("plan", "-f", _written(tmp_path, job)))


def test_a_job_without_a_spec_lacks_only_that(plugin: Plugin, tmp_path: Path) -> None:
    job = yaml.safe_load(SFT.read_text())
    del job["spec"]
    path = _written(tmp_path, job)
    assert plugin("validate", "-f", path).output == "support-sft: spec: required, but not given\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: List\nitems: 5", "holds nothing"),
        ("- a", "holds an object without kind"),
        ("a: &a [*a]", "is not YAML: JSON cannot hold it"),
        ("a:\n\t- b", "is not YAML: line 2: "),
        ("kind: FineTuneJob\nkind: Pod", "is not YAML: line 2: kind is there twice: keep one."),
        ("a: \0", "is not YAML: unacceptable character"),
    ],
)
def test_no_file_is_a_fault_of_the_plugin(
    plugin: Plugin, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    assert words in _error(plugin("plan", "-f", tmp_path / "job.yaml"))


def test_a_folder_is_no_file(plugin: Plugin, tmp_path: Path) -> None:
    assert "cannot be read: Is a directory." in _error(plugin("plan", "-f", tmp_path))


def test_a_job_comes_from_standard_input(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(SFT.read_text()))
    assert plugin("validate", "-f", "-").output == "support-sft: is valid\n"


def test_what_is_there_by_a_merge_may_be_given_again(plugin: Plugin, tmp_path: Path) -> None:
    merged = "  training: {<<: {seed: 1, batchSize: 8}, seed: 2}\n"
    (tmp_path / "job.yaml").write_text(SFT.read_text() + merged)
    assert plugin("validate", "-f", tmp_path / "job.yaml").code == 0


def test_standard_input_is_named(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "error: standard input holds nothing" in _error(plugin("validate", "-f", "-"))


def test_all_files_are_read(plugin: Plugin, tmp_path: Path) -> None:
    job = yaml.safe_load(SFT.read_text())
    second = _written(tmp_path, job | {"metadata": {"name": "second"}})
    run = plugin("validate", "-f", SFT, "-f", second)
    assert run.output == "support-sft: is valid\nsecond: is valid\n"


def test_one_of_several_jobs_is_chosen_by_name(plugin: Plugin, tmp_path: Path) -> None:
    job = yaml.safe_load(SFT.read_text())
    path = _written(tmp_path, job, {"kind": "ConfigMap"}, job | {"metadata": {"name": "second"}})
    run = plugin("run", "--local", "-f", path)
    assert "several FineTuneJobs, support-sft, second: choose one with --name" in _error(run)
    run = plugin("plan", "-f", path, "--name", "second", "-o", "json")
    assert json.loads(run.output)["name"] == "second"


def test_a_place_that_cannot_be_written_is_named(plugin: Plugin, tmp_path: Path) -> None:
    job = tmp_path / "nowhere/job.yaml"
    asked = ("recommend", "--have", "pairs", "--model", "hf://Qwen/Qwen3-8B", "--gpu", "L40S")
    run = plugin(*asked, "-o", job)
    assert (run.code, run.errors) == (
        2,
        f"error: -o {job} cannot be written: No such file or directory.\n",
    )


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


def test_without_flags_it_asks(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("n\ny\nn\nhf://Qwen/Qwen3-8B\nL4\n"))
    assert plugin("recommend", "-o", tmp_path / "job.yaml").code == 0
    spec = yaml.safe_load((tmp_path / "job.yaml").read_text())["spec"]
    assert (spec["method"], spec["model"]["source"]) == ("dpo", "hf://Qwen/Qwen3-8B")
    assert spec["resources"] == {"gpu": {"product": "NVIDIA-L4"}}


def test_who_does_not_answer_gets_no_job(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert plugin("recommend").code == 130


def test_a_plan_loads_nothing_that_takes_long() -> None:
    program = (
        "import atexit, sys; from finetune_operator.plugin import main;"
        " atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    command = [sys.executable, "-c", program, "plan", "-f", str(SFT)]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stderr.split()
    assert "finetune_operator.plugin.rules" in loaded
    assert not {"torch", "kubernetes", "aiohttp", "typer", "prompt_toolkit"} & set(loaded)
