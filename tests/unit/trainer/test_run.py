"""What a whole run hands over: adapters, merged and full models that load and answer."""

import json
import socket
import time
import urllib.request
from typing import Any

import pytest
import torch

from finetune_api.trainer import ProgressReport
from unit.trainer.builders import chat_rows, make_config, make_plan
from unit.trainer.conftest import Site
from unit.trainer.faults import run_here
from unit.trainer.processes import start_trainer

PROMPT = "What is 3 plus 1?"
LEARNED = {
    "dataset": {"source": "pvc://data/rows.jsonl", "evalFraction": 0.1},
    "training": {"maxSteps": 40, "batchSize": 4, "learningRate": 0.01},
    "evaluation": {"samplePrompts": [PROMPT], "sampleMaxTokens": 8},
}


def answer(model: Any, tokenizer: Any) -> str:
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=8, pad_token_id=0)
    new = output[0][inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def sample_after(site: Site) -> str:
    samples = json.loads((site.artifact / "samples.json").read_text())
    return str(samples[0]["after"])


def test_an_adapter_and_its_merged_model_load_and_answer_alike(site: Site) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plan = make_plan(micro_batch_size=4, gradient_accumulation_steps=1)
    config = site.job(plan, **LEARNED, output={"claim": "out", "merged": True})
    assert site.run(config) == 0
    result = site.result()
    assert result.artifact is not None
    assert (result.artifact.kind, result.artifact.uri) == ("adapter", "pvc://out/tiny")
    assert result.artifact.merged_uri == "pvc://out/tiny/merged"
    assert result.artifact.size_bytes > 300_000
    assert result.metrics["eval_loss"] < result.metrics["eval_loss_before"] - 0.5
    assert result.measured.keys() == {"host_memory_gib", "tokens_per_second"}
    tokenizer = AutoTokenizer.from_pretrained(site.artifact)
    base = AutoModelForCausalLM.from_pretrained(site.model)
    adapted = PeftModel.from_pretrained(base, str(site.artifact))
    merged = AutoModelForCausalLM.from_pretrained(site.artifact / "merged")
    assert merged.config.use_cache
    assert answer(adapted, tokenizer) == answer(merged, tokenizer) == sample_after(site) != ""
    named = json.loads((site.artifact / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == "pvc://models/tiny"
    card = (site.artifact / "README.md").read_text()
    assert f"| held-out loss | {result.metrics['eval_loss_before']:.4f} |" in card
    assert "pvc://data/rows.jsonl, split train" in card
    assert PROMPT in (site.artifact / "report.html").read_text()
    speed = round(result.measured["tokens_per_second"])
    assert (
        "40 steps of 4 rows: 160 rows seen, 4.44 epochs, on cpu in float32, "
        f"{speed} tokens per second."
    ) in card
    assert 'AutoModelForCausalLM.from_pretrained("PATH/merged")' in card
    hyperparameters = json.loads(card.split("```json")[1].split("```")[0])
    assert hyperparameters["training"]["maxSteps"] == 40
    assert hyperparameters["training"]["precision"] == "float32"
    assert "epochs" not in hyperparameters["training"]


def test_full_fine_tuning_hands_over_a_model(site: Site) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = LEARNED | {"training": {"epochs": 3, "batchSize": 8, "learningRate": 0.01}}
    config = site.job(
        make_plan(micro_batch_size=8, gradient_accumulation_steps=1),
        **spec,
        adapter={"type": "full"},
    )
    assert site.run(config) == 0
    result = site.result()
    assert result.step == 15
    assert result.artifact is not None
    assert (result.artifact.kind, result.artifact.merged_uri) == ("model", None)
    tokenizer = AutoTokenizer.from_pretrained(site.artifact)
    model = AutoModelForCausalLM.from_pretrained(site.artifact)
    assert answer(model, tokenizer) == sample_after(site)


def test_qlora_trains_a_quantised_base_and_merges_into_the_whole_one(site: Site) -> None:
    from safetensors.torch import load_file

    adapter = {"type": "qlora", "lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]}}
    config = site.job(make_plan(), adapter=adapter, output={"claim": "out", "merged": True})
    assert site.run(config) == 0
    merged = load_file(site.artifact / "merged/model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}


@pytest.mark.parametrize(("adapter", "is_told"), [("lora", False), ("qlora", True)])
def test_where_trained_weights_are_in_bf16_the_optimizer_is_asked_how_it_rounds(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    adapter: str,
    is_told: bool,
) -> None:
    # On the CPU none can be rounded at random.
    monkeypatch.setenv("FINETUNE_DEVICE", "cpu")
    assert run_here(site, site.job(make_plan(), adapter={"type": adapter})) == 0
    told = "AdamW may round weights of bf16 to the nearest"
    assert any(message.startswith(told) for message in caplog.messages) == is_told


def test_a_plan_for_shorter_rows_cuts_them(site: Site) -> None:
    plan = make_plan(max_length=16, micro_batch_size=4, gradient_accumulation_steps=1)
    assert site.run(site.job(plan)) == 0
    assert site.metrics()[0]["num_tokens"] == 4 * 16


def test_checkpointing_and_layers_that_are_recomputed(site: Site) -> None:
    assert site.run(site.job(make_plan(gradient_checkpointing="selective"))) == 0


def test_gpus_that_cuda_does_not_see(site: Site) -> None:
    plan = make_plan(gpus=1, gpus_per_node=1, precision="bf16")
    config = site.job(plan)
    assert site.run(config, environment={"CUDA_VISIBLE_DEVICES": ""}) == 78
    assert site.result().reason == "DeviceUnavailable"
    assert "the plan has 1 GPUs in this pod, but CUDA sees 0" in site.result().message
    environment = {"FINETUNE_DEVICE": "cpu"}
    assert site.run(config, environment=environment) == 0


def test_two_processes_train_together(site: Site) -> None:
    plan = make_plan(gpus=2, gpus_per_node=2, strategy="ddp", gradient_accumulation_steps=1)
    environment = {"FINETUNE_DEVICE": "cpu"}
    # The last step is evaluated within training: no process may do it twice.
    training = {"maxSteps": 10, "batchSize": 4, "evalEverySteps": 5}
    config = site.job(plan, **(LEARNED | {"training": training}))
    assert site.run(config, environment=environment) == 0
    assert site.result().step == 10
    assert [entry["step"] for entry in site.metrics() if "eval_loss" in entry] == [0, 5, 10]


def test_an_output_that_was_taken_meanwhile(site: Site) -> None:
    config = site.job()
    site.artifact.mkdir()
    (site.artifact / "notes.txt").write_text("mine")
    assert site.run(config) == 73
    result = site.result()
    assert (result.reason, result.step) == ("OutputConflict", 6)
    assert result.metrics["loss"] > 0


def test_run_without_prepare(site: Site) -> None:
    assert site.run(make_config(make_plan())) == 64
    assert "run prepare first" in site.result().message


def test_progress_and_metrics_are_served_while_training(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    training = {"maxSteps": 400, "batchSize": 4, "checkpoint": {"everySteps": 5}}
    arguments = site.arguments("run", site.job(make_plan(), training=training))
    process = start_trainer([*arguments, f"--port={port}"])
    progress = _progress_at(port, step=6)
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz").status == 200
    process.terminate()
    process.join(60)
    assert process.exitcode == 75
    assert (progress.activity, progress.total_steps) == ("Training", 400)
    assert progress.steps == f"{progress.step}/400"
    assert progress.checkpoint_step is not None
    assert progress.loss is not None
    assert progress.tokens_per_second is not None
    assert progress.eta_seconds is not None
    assert 'finetune_loss{finetunejob="tiny",namespace="test"}' in metrics
    for name in (
        "step",
        "grad_norm",
        "learning_rate",
        "checkpoint_timestamp_seconds",
        "step_seconds",
    ):
        assert f"finetune_{name}{{" in metrics


def _progress_at(port: int, step: int) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            body = urllib.request.urlopen(f"http://127.0.0.1:{port}/progress").read()
        except OSError:
            time.sleep(0.02)
            continue
        progress = ProgressReport.model_validate_json(body).progress
        if progress.step >= step:
            return progress
    raise TimeoutError(f"no step {step}")


def test_a_job_whose_config_is_wrong(site: Site) -> None:
    arguments = site.arguments("run", make_config(make_plan()))
    job = site.root / "job.json"
    job.write_text(job.read_text().replace('"uid"', '"uuid"'))
    from unit.trainer.processes import run_trainer

    assert run_trainer(arguments) == 64
    assert site.result().reason == "ConfigInvalid"


def test_a_few_rows_are_learned_by_heart(site: Site) -> None:
    site.write_data(chat_rows(4))
    training = {"maxSteps": 60, "batchSize": 4, "learningRate": 0.01, "warmupRatio": 0}
    plan = make_plan(micro_batch_size=4, gradient_accumulation_steps=1)
    assert site.run(site.job(plan, training=training, adapter={"type": "full"})) == 0
    assert site.result().metrics["loss"] < 0.5


def test_an_adapter_on_a_bf16_model_answers_prompts(site: Site) -> None:
    """Outside of training nothing casts for the adapter, whose weights stay float32."""
    config = site.job(
        make_plan(precision="bf16"),
        training={"maxSteps": 1, "batchSize": 4, "precision": "bf16"},
        evaluation={"samplePrompts": ["What is 1 plus 1?"], "sampleMaxTokens": 4},
    )
    assert site.run(config) == 0, site.result().message
    assert len(json.loads((site.artifact / "samples.json").read_text())) == 1
