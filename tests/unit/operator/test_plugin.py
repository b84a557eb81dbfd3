"""kubectl finetune plan, validate and recommend, as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.planning import Expected
from finetune_operator.plugin import scenarios
from finetune_operator.plugin.rules import problems
from unit.operator.plugin_process import EXAMPLES, Plugin, Run, manifest_of, server_cases

SFT = EXAMPLES / "sft.yaml"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plugin:
    return Plugin(monkeypatch, capsys)


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a JSON Lines file."""

    def write(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def _error(run: Run) -> str:
    """Return the one sentence of a command that could not do what it should."""
    assert (run.code, run.output) == (2, "")
    assert run.errors.startswith("error: ")
    assert run.errors.count("\n") == 1
    return run.errors


def test_a_plan_says_what_and_why_and_what_it_rests_on(plugin: Plugin) -> None:
    run = plugin("plan", "-f", SFT)
    assert run.code == 0
    for words in (
        "support-sft",
        "1 x 80 GiB GPU, lora",
        "weights 15",
        "Why",
        "GPUs 1: the fewest",
    ):
        assert words in run.output
    assert "8.19B weights in 36 layers of width 4096, as Qwen/Qwen3-8B in the catalogue" in (
        run.output
    )
    assert "GPU-hours not known: name resources.gpu.product" in " ".join(run.output.split())
    assert (
        "1,000 rows, the longest of 2,048 tokens, 1,024 on average, all assumed; give --data"
        in (run.output)
    )


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_a_plan_for_programs(plugin: Plugin, form: str, read: Callable[[str], Any]) -> None:
    document = read(plugin("plan", "-f", SFT, "-o", form).output)
    assert document["plan"]["gpus"] == 1
    assert document["preparation"]["model"]["parameters"] == 8_190_735_360


def test_with_a_price_a_plan_says_what_an_hour_costs(plugin: Plugin) -> None:
    job = ("plan", "-f", SFT, "--what-if", "count=2")
    assert [one["cost"]["perHour"] for one in _plans(plugin, *job, "--price", 3.5)] == [3.5, 7.0]
    assert all("cost" not in one for one in _plans(plugin, *job))
    assert "7.00 an hour" in plugin(*job, "--price", 3.5).output
    refused = plugin("plan", "-f", SFT, "--price", -1)
    assert refused.code == 2
    assert "--price" in refused.errors


def test_each_gpu_may_have_its_own_price(plugin: Plugin) -> None:
    job = ("plan", "-f", SFT, "--what-if", "gpu=L4", "--what-if", "gpu=H200")
    prices = ("--price", "L4=0.5", "--price", "H200=4")
    costs = [one.get("cost", {}).get("perHour") for one in _plans(plugin, *job, *prices)]
    assert costs == [None, 0.5, 4.0]
    assert "no --price for it" in plugin(*job, *prices).output
    costs = [one["cost"]["perHour"] for one in _plans(plugin, *job, *prices, "--price", 2)]
    assert costs == [2.0, 0.5, 4.0]


def _plans(plugin: Plugin, *arguments: object) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = json.loads(plugin(*arguments, "-o", "json").output)
    return documents


def test_where_the_time_is_known_a_plan_says_the_cost_of_all(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "expected_time", lambda *_: Expected(10.0, "Measured"))
    output = plugin("plan", "-f", SFT, "--price", 3.5).output
    assert "about 10.00 (by the speed of a like run" in output
    assert "3.50 an hour, about 35.00 in all" in output
    document = json.loads(plugin("plan", "-f", SFT, "--price", 3.5, "-o", "json").output)
    assert document["expectedGpuHours"] == 10.0
    assert document["expectedBasis"] == "Measured"
    assert document["cost"] == {"perHour": 3.5, "expected": 35.0}
    monkeypatch.setattr(scenarios, "expected_time", lambda *_: Expected(0.0042, "Measured"))
    output = plugin("plan", "-f", SFT, "--price", 3.5).output
    assert "about 0.0042 (by the speed of a like run" in output
    assert "about 0.0147 in all" in output


def test_what_if_compares(plugin: Plugin) -> None:
    run = plugin(
        "plan", "-f", SFT, "--what-if", "gpu=L4", "--what-if", "gpu=A10,adapter=full,count=1"
    )
    assert run.code == 0
    assert "1 x NVIDIA-L4" in run.output
    assert "no plan" in run.output
    assert "With gpu=A10,adapter=full,count=1: " in run.output


def test_changes_that_are_too_long_for_a_line_are_numbered(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["gpu=L4,adapter=qlora", "gpu=L4,adapter=qlora,length=1024", "gpu=H100-PCIe"]
    asked = [part for change in changes for part in ("--what-if", change)]
    wide = plugin("plan", "-f", SFT, *asked).output.splitlines()
    assert all(change in wide[1] for change in changes)
    monkeypatch.setenv("COLUMNS", "80")
    narrow = plugin("plan", "-f", SFT, *asked).output.splitlines()
    assert narrow[1:4] == [f"{number}: {change}" for number, change in enumerate(changes, 1)]
    assert narrow[4].replace("┃", " ").split() == ["as", "it", "is", "1", "2", "3"]
    assert "…" not in "".join(narrow)


def test_what_hours_rest_on_is_said_once_below_a_comparison(plugin: Plugin) -> None:
    output = plugin("plan", "-f", SFT, "--what-if", "gpu=L4", "--what-if", "gpu=H200").output
    assert output.count(", computed") == 2
    assert output.count("by arithmetic, at 40 % of the GPUs' peak") == 1
    assert "GPU-hours not known: name resources.gpu.product." in output


def test_no_line_ends_with_spaces(plugin: Plugin) -> None:
    for more in ([], ["--what-if", "gpu=L4"]):
        lines = plugin("plan", "-f", SFT, *more).output.splitlines()
        assert [line for line in lines if line != line.rstrip()] == []


def test_a_comparison_leaves_out_parts_of_nothing(plugin: Plugin) -> None:
    run = plugin("plan", "-f", SFT, "--what-if", "adapter.lora.targetModules=[q_proj]")
    assert "[q_proj]" in run.output
    assert " 0.0 " not in run.output


def test_what_if_takes_any_field(plugin: Plugin) -> None:
    run = plugin("plan", "-f", SFT, "-o", "json", "--what-if", "training.maxLength=512")
    plans = [each["plan"]["maxLength"] for each in json.loads(run.output)]
    assert plans == [2048, 512]


def test_a_job_that_does_not_fit_has_exit_code_1(plugin: Plugin, tmp_path: Path) -> None:
    job = yaml.safe_load(SFT.read_text())
    job["spec"]["resources"] = {"gpu": {"count": 1, "memory": "8Gi"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run = plugin("plan", "-f", tmp_path / "job.yaml")
    assert run.code == 1
    assert "needs about" in run.output


def test_a_plan_from_a_config_and_a_data_file(
    plugin: Plugin, tmp_path: Path, data: Callable[..., Path]
) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = data({"text": "x" * 300}, {"text": "y" * 900})
    run = plugin("plan", "-f", SFT, "-o", "json", "--config", tmp_path, "--data", rows)
    preparation = json.loads(run.output)["preparation"]
    assert preparation["model"]["parameters"] == 134_515_008
    assert (preparation["dataset"]["rows"], preparation["dataset"]["maxTokens"]) == (2, 300)
    assert preparation["dataset"]["format"] == "completion"


def test_almost_a_billion_weights_are_a_billion(plugin: Plugin, tmp_path: Path) -> None:
    job = yaml.safe_load(SFT.read_text())
    job["spec"]["model"]["source"] = "hf://google/gemma-3-1b-it"
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    run = plugin("plan", "-f", path, "--tokens", 1024, "--rows", 5)
    assert " 1B weights" in run.output


def test_a_size_is_enough_for_a_plan(plugin: Plugin) -> None:
    run = plugin("plan", "-f", SFT, "--parameters", "70B", "--tokens", 1024, "--rows", 5)
    assert "70B weights" in run.output
    assert "5 rows (given), the longest of 1,024 tokens (given)" in run.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-f", "nowhere.yaml"], "nowhere.yaml cannot be read: No such file or directory"),
        (
            ["-f", EXAMPLES / "chain.yaml", "--name", "x"],
            "--name is x, expected the name of a job: chain-sft, chain-dpo",
        ),
        (["-f", SFT, "-f", EXAMPLES / "full.yaml"], "error: maths-full: model.source hf://acme"),
        (["-f", SFT, "--what-if", ""], "--what-if: found '', expected KEY=VALUE"),
        (
            ["-f", SFT, "--what-if", "gpu=A100-80GB"],
            "GPU A100-80GB may be NVIDIA-A100-SXM4-80GB or NVIDIA-A100-80GB-PCIe: name one",
        ),
        (["-f", SFT, "--price", 1, "--price", 2], "--price is there twice for any GPU: keep one"),
        (["-f", SFT, "--what-if", "gpu=L4,gpu=H200"], "gpu is there twice in gpu=L4,gpu=H200"),
        (["-f", SFT, "--what-if", "gpu=H9000"], "GPU H9000 is not known, expected one of Tesla-T4"),
        (["-f", SFT, "--what-if", "L4"], "'L4' is no change: expected KEY=VALUE"),
        (["-f", SFT, "--what-if", "training.rank=8"], "spec.training.rank: unknown field"),
        (["-f", SFT, "--what-if", "method.x=8"], "method.x cannot be set: method is 'sft'"),
        (["-f", SFT, "--parameters", "8"], "'8' is not a number of weights"),
        (["-f", SFT, "--config", "nowhere"], "--config nowhere cannot be read"),
        (["-f", SFT, "--data", "nowhere"], "nowhere cannot be read"),
        (["-f", EXAMPLES / "full.yaml"], "hf://acme/maths-8b@v2 is not in the catalogue"),
        (
            ["-f", SFT, "--what-if", "model.source=job://elsewhere"],
            "job://elsewhere is another job's model",
        ),
        (["-f", SFT, "--what-if", "trainin.seed=1"], "did you mean training?\n"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    plugin: Plugin, arguments: list[object], words: str
) -> None:
    assert words in _error(plugin("plan", *arguments))


def test_jobs_of_one_file_are_planned_in_turn_on_the_models_of_each_other(plugin: Plugin) -> None:
    chain = ("plan", "-f", EXAMPLES / "chain.yaml")
    found = _plans(plugin, *chain, "-o", "json")
    assert [one["name"] for one in found] == [
        "chain-sft",
        "chain-dpo",
        "chain-reward",
        "chain-grpo",
    ]
    sizes = [one["preparation"]["model"]["parameters"] // 10**8 for one in found]
    assert sizes == [81, 81, 5, 81]
    titles = [line for line in plugin(*chain).output.splitlines() if line.startswith("chain-")]
    assert titles[1] == "chain-dpo: dpo of job://chain-sft, lora"
    assert len(titles) == 4


def test_one_job_without_a_plan_is_exit_code_1_for_all(plugin: Plugin, tmp_path: Path) -> None:
    job = yaml.safe_load(SFT.read_text())
    job["spec"]["resources"] = {"gpu": {"count": 1, "memory": "8Gi"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert plugin("plan", "-f", tmp_path / "job.yaml", "-f", SFT).code == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML: line 1: "),
        ("", "holds nothing, expected an object of kind FineTuneJob"),
        ("kind: Pod", "holds Pod, expected an object of kind FineTuneJob"),
        ("kind: FineTuneJob\napiVersion: v2", "is v2, expected finetune.dev/v1alpha1"),
    ],
)
def test_what_is_no_job_is_one_sentence(
    plugin: Plugin, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    assert words in _error(plugin("plan", "-f", tmp_path / "job.yaml"))


@pytest.mark.parametrize("case", server_cases("accepted.yaml"))
def test_what_the_api_server_accepts_is_valid(case: dict[str, Any]) -> None:
    assert problems(manifest_of(case)) == []


@pytest.mark.parametrize("case", server_cases("refused.yaml"))
def test_what_the_api_server_refuses_is_refused_for_the_same_field(case: dict[str, Any]) -> None:
    fields = [problem.partition(": ")[0] for problem in problems(manifest_of(case))]
    expected = case.get("field") or case["says"].split('"')[1]
    # The API server points to the second of two that may not be the same.
    assert expected.removesuffix("[1]") in fields


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_valid(plugin: Plugin, path: Path) -> None:
    run = plugin("validate", "-f", path)
    assert run.code == 0
    assert set(run.output.splitlines()) == {
        f"{job['metadata']['name']}: is valid"
        for job in yaml.safe_load_all(path.read_text())
        if job["kind"] == "FineTuneJob"
    }


def test_all_that_is_wrong_is_said(plugin: Plugin, tmp_path: Path) -> None:
    job = yaml.safe_load(SFT.read_text())
    job["spec"] |= {"methd": "dpo", "training": {"batch_size": 4, "microBatchSize": 0}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run = plugin("validate", "-f", tmp_path / "job.yaml")
    assert run.code == 2
    assert run.output.splitlines() == [
        (
            "support-sft: spec.training.microBatchSize: found 0, expected auto or a whole number"
            " greater than or equal to 1"
        ),
        "support-sft: spec.training.batch_size: unknown field; did you mean batchSize?",
        "support-sft: spec.methd: unknown field; did you mean method?",
    ]


def _recommended(plugin: Plugin, *arguments: object) -> tuple[dict[str, Any], str]:
    """Return the job that is recommended, and what was said before."""
    run = plugin("recommend", "--model", "hf://Qwen/Qwen3-8B", *arguments)
    assert run.code == 0, run.errors
    words, _, job = run.output.partition("apiVersion")
    return yaml.safe_load(f"apiVersion{job}"), words


CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("row", "flags", "method"),
    [
        (CHAT, [], "sft"),
        ({"text": "a"}, [], "sft"),
        ({"instruction": "a", "output": "b"}, [], "sft"),
        (PAIR, [], "dpo"),
        (PAIR, ["--reward-model"], "reward"),
        ({"prompt": "a", "completion": "b", "label": True}, [], "kto"),
        ({"prompt": "a"}, ["--reward", "length"], "grpo"),
        ({"question": "a", "answer": "b"}, ["--reward", "accuracy"], "grpo"),
    ],
)
def test_the_columns_and_the_reward_decide_the_method(
    plugin: Plugin, data: Callable[..., Path], row: dict[str, Any], flags: list[str], method: str
) -> None:
    job, _ = _recommended(plugin, "--data", data(row), *flags)
    assert job["spec"]["method"] == method


@pytest.mark.parametrize(
    ("have", "method"), [("examples", "sft"), ("pairs", "dpo"), ("labels", "kto")]
)
def test_without_a_file_what_one_has_decides(plugin: Plugin, have: str, method: str) -> None:
    job, words = _recommended(plugin, "--have", have, "--source", "hf://acme/rows")
    assert job["spec"]["method"] == method
    assert job["spec"]["dataset"] == {"source": "hf://acme/rows"}
    assert "Put the data" not in words


def test_rewards_that_compare_find_their_reference(
    plugin: Plugin, data: Callable[..., Path]
) -> None:
    rows = data({"instruction": "1 + 1", "output": "2"})
    job, words = _recommended(plugin, "--data", rows, "--reward", "exact-match", "--name", "sums")
    assert job["spec"]["dataset"] == {
        "source": "configmap://sums-data/rows.jsonl",
        "columns": {"instruction": "prompt", "output": "answer"},
    }
    command = f"kubectl create configmap sums-data --from-file={rows}"
    assert f"- Put the data into ConfigMap sums-data:\n  {command}\n" in words


def test_lora_unless_only_qlora_fits(plugin: Plugin) -> None:
    roomy, _ = _recommended(plugin, "--have", "examples", "--gpu", "H200", "--gpus", 1)
    tight, words = _recommended(plugin, "--have", "examples", "--gpu", "L4", "--parameters", "14B")
    assert roomy["spec"]["adapter"] == {"type": "lora"}
    assert tight["spec"]["adapter"] == {"type": "qlora"}
    assert tight["spec"]["resources"]["gpu"] == {"product": "NVIDIA-L4"}
    assert "Adapter qlora: with a base in bf16 it would not fit on 1 x L4" in words


def test_the_job_that_is_written_is_valid(plugin: Plugin, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    arguments = ["--have", "pairs", "--model", "hf://Qwen/Qwen3-8B", "--gpu", "L4"]
    run = plugin("recommend", *arguments, "--output", file)
    assert f"{file} is written: kubectl apply -f {file}" in run.output
    assert file.read_text().startswith("# Method dpo: pairs show")
    assert plugin("validate", "-f", file).output == "my-job: is valid\n"


def test_a_file_that_is_there_is_kept(plugin: Plugin, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("mine")
    run = plugin("recommend", "--have", "pairs", "--model", "hf://Qwen/Qwen3-8B", "-o", file)
    assert f"-o {file} is there already: name another file, or remove it." in _error(run)
    assert file.read_text() == "mine"


def test_where_an_adapter_gets_no_plan_is_said(plugin: Plugin) -> None:
    _, anywhere = _recommended(plugin, "--have", "examples", "--parameters", "70B")
    assert "not on one node" in anywhere
    _, there = _recommended(plugin, "--have", "examples", "--gpu", "L4")
    assert "not on 1 x L4" in there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--have", "prompts"], "prompts alone are nothing to learn from: give --reward"),
        (["--have", "examples", "--reward-model"], "a reward model needs pairs"),
        (["--have", "examples", "--name", "My_Job"], "metadata.name: is My_Job"),
        (["--have", "prompts", "--reward", "nice"], 'spec.rewards[0].builtin: found "nice"'),
        (["--have", "pairs", "--parameters", "405B", "--gpu", "L4"], "adapter type qlora needs"),
        (["--have", "pairs", "--gpu", "T4"], "Tesla-T4, which cannot compute in bf16"),
    ],
)
def test_what_cannot_be_recommended_is_one_sentence(
    plugin: Plugin, arguments: list[str], words: str
) -> None:
    run = plugin("recommend", "--model", "hf://Qwen/Qwen3-8B", *arguments)
    assert words in _error(run)


def test_columns_that_no_method_knows_are_named(plugin: Plugin, data: Callable[..., Path]) -> None:
    run = plugin("recommend", "--model", "hf://Qwen/Qwen3-8B", "--data", data({"a": 1, "b": 2}))
    assert "has the columns a, b, which are no known format" in _error(run)


def test_padding_is_counted_from_the_rows_of_a_local_file(plugin: Plugin, tmp_path: Path) -> None:
    answers = ["b " * 4000, *["b " * 40] * 20]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": "a", "completion": each}) for each in answers))
    run = plugin("plan", "-f", EXAMPLES / "sft.yaml", "--data", data, "-o", "json")
    assert run.code == 0, run.errors
    facts = json.loads(run.output)["preparation"]["dataset"]
    mean, padded, longest = (facts[name] for name in ("meanTokens", "paddedTokens", "maxTokens"))
    short = (21 * mean - longest) / 20
    expected = [longest - (longest - short) * (20 / 21) ** rows for rows in (2, 4, 8, 16, 32)]
    assert padded == pytest.approx(expected, abs=0.1)
