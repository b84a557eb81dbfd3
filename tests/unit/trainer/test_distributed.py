"""Several processes train what one would, stop together, and go on where they stopped."""

import math
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import AutoModelForCausalLM

from finetune_api.failures import Reason
from finetune_api.status import Plan
from finetune_api.trainer import JobFailure, TrainerConfig
from finetune_trainer.device import choose_device
from finetune_trainer.distributed import check_processes
from finetune_trainer.methods.supported import check_supported
from unit.trainer.builders import chat_rows, make_config, make_plan
from unit.trainer.conftest import Site
from unit.trainer.processes import Interruption, start_process
from unit.trainer.ranks import (
    LIMIT_SECONDS,
    configure_deepspeed,
    free_port,
    load_beside_zero3,
    run_ranks,
    start_ranks,
    wait_for_a_late_first,
)

_SPEC: dict[str, Any] = {
    "dataset": {"source": "pvc://data/rows.jsonl", "evalFraction": 0.1},
    "training": {
        "maxSteps": 6,
        "batchSize": 4,
        "learningRate": 0.01,
        "evalEverySteps": 3,
        "checkpoint": {"everySteps": 3},
    },
    "evaluation": {"samplePrompts": ["What is 1 plus 1?"], "sampleMaxTokens": 4},
}


def _plan(strategy: str = "ddp", nodes: int = 1, **changes: Any) -> Plan:
    return make_plan(
        gpus=2,
        nodes=nodes,
        gpus_per_node=2 // nodes,
        strategy=strategy,
        gradient_accumulation_steps=1,
        **changes,
    )


def _new_site(root: Path, model: Path) -> Site:
    site = Site(root)
    shutil.copytree(model, site.model)
    site.write_data(chat_rows(40))
    return site


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Site:
    """Two processes that trained with DDP, in one pod."""
    site = _new_site(tmp_path_factory.mktemp("together"), tiny_model)
    assert run_ranks(site, site.job(_plan(), **_SPEC)) == [0, 0]
    return site


def _losses(site: Site) -> list[float]:
    keys = ("loss", "eval_loss")
    return [entry[key] for entry in site.metrics() for key in keys if key in entry]


def _tokens(site: Site) -> list[int]:
    return [entry["num_tokens"] for entry in site.metrics()]


def _parts(checkpoint: Path) -> set[int]:
    """Return in how many parts the weights of a sharded checkpoint lie."""
    listed = FileSystemReader(checkpoint / "pytorch_model_fsdp_0").read_metadata()
    weights: dict[str, Any] = listed.state_dict_metadata
    return {len(weight.chunks) for weight in weights.values()}


def test_two_processes_train_what_one_does(site: Site, together: Site) -> None:
    assert site.run(site.job(make_plan(), **_SPEC)) == 0
    assert _losses(together) == pytest.approx(_losses(site), rel=1e-4)
    assert _tokens(together) == _tokens(site)
    assert together.result().step == 6


def test_two_pods_train_what_one_does(site: Site, together: Site) -> None:
    config = site.job(_plan(nodes=2), **_SPEC)
    command = [sys.executable, "-m", "finetune_trainer.cli", *site.arguments("run", config)]
    shared = os.environ | {"FINETUNE_DEVICE": "cpu", "MASTER_PORT": str(free_port())}
    pods = [subprocess.Popen(command, env=shared | {"GROUP_RANK": str(rank)}) for rank in (0, 1)]
    assert [pod.wait(LIMIT_SECONDS) for pod in pods] == [0, 0]
    assert site.metrics() == together.metrics()


def test_sigterm_for_one_stops_all_at_the_same_step(site: Site, together: Site) -> None:
    config = site.job(_plan(), **_SPEC)
    assert run_ranks(site, config, Interruption("step", 4, signal.SIGTERM)) == [75, 75]
    assert "checkpoint 4 is complete" in site.result().message
    assert (site.paths.checkpoints / "checkpoint-4").exists()
    assert run_ranks(site, config) == [0, 0]
    assert site.metrics() == together.metrics()


def test_a_process_that_lost_another_leaves_the_word_to_that_one(
    site: Site, together: Site
) -> None:
    config = site.job(_plan(), **_SPEC)
    first, second = start_ranks(site, config, Interruption("step", 5))
    second.join(LIMIT_SECONDS)
    assert second.exitcode == -signal.SIGKILL
    first.join(2)
    assert first.is_alive()
    first.terminate()
    first.join(LIMIT_SECONDS)
    assert first.exitcode == 75
    assert run_ranks(site, config) == [0, 0]
    assert site.metrics() == together.metrics()


@pytest.mark.parametrize(("is_lost", "codes"), [(False, [0, 0]), (True, [3, 4])])
def test_the_first_process_may_take_longer_than_a_collective(
    is_lost: bool, codes: list[int]
) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        start_process(partial(wait_for_a_late_first, is_lost=is_lost), shared | {"RANK": rank})
        for rank in ("0", "1")
    ]
    for process in processes:
        process.join(LIMIT_SECONDS)
    assert [process.exitcode for process in processes] == codes


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"rng_state_{rank}.pth").touch()
    check_processes(tmp_path, 2)
    with pytest.raises(JobFailure, match="was written by 2 processes, but 1 would go on from it"):
        check_processes(tmp_path, 1)


def test_the_first_process_loads_the_base_alone_beside_zero3(site: Site) -> None:
    process = start_process(load_beside_zero3, _plan("zero3"), site.model)
    process.join(LIMIT_SECONDS)
    assert process.exitcode == 0


def test_sharded_processes_train_what_whole_ones_do(site: Site, together: Site) -> None:
    assert run_ranks(site, site.job(_plan("fsdp"), **_SPEC)) == [0, 0]
    assert _losses(site) == pytest.approx(_losses(together), rel=1e-4)
    learned = load_file(site.artifact / "adapter_model.safetensors")
    expected = load_file(together.artifact / "adapter_model.safetensors")
    torch.testing.assert_close(learned, expected, rtol=1e-2, atol=1e-4)


def test_a_whole_model_is_gathered_from_its_shards(
    site: Site, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    full = _SPEC | {"adapter": {"type": "full"}}
    config = site.job(_plan("fsdp"), **full)
    # Resumed, it evaluates and writes a checkpoint, and trains on: FSDP2 before torch 2.13 cannot.
    assert run_ranks(site, config, Interruption("step", 2, signal.SIGTERM)) == [75, 75]
    assert run_ranks(site, config) == [0, 0]
    alone = _new_site(tmp_path_factory.mktemp("alone"), tiny_model)
    assert alone.run(alone.job(make_plan(), **full)) == 0
    assert _losses(site) == pytest.approx(_losses(alone), rel=1e-4)
    assert type(AutoModelForCausalLM.from_pretrained(site.artifact)).__name__ == "LlamaForCausalLM"
    weights = load_file(site.artifact / "model.safetensors")
    expected = load_file(alone.artifact / "model.safetensors")
    torch.testing.assert_close(weights, expected, rtol=1e-2, atol=1e-3)


def test_a_copy_per_pod_trains_what_one_process_does(
    site: Site, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two pods of two processes, two micro-batches a step, stopped and resumed."""
    spec = _SPEC | {"adapter": {"type": "full"}}
    spec["training"] = _SPEC["training"] | {"batchSize": 8}
    plan = make_plan(
        gpus=4,
        nodes=2,
        gpus_per_node=2,
        strategy="hsdp",
        micro_batch_size=1,
        gradient_accumulation_steps=2,
    )
    config = site.job(plan, **spec)
    assert run_ranks(site, config, Interruption("step", 5, signal.SIGTERM)) == [75] * 4
    assert run_ranks(site, config) == [0] * 4
    straight = _new_site(tmp_path_factory.mktemp("straight"), tiny_model)
    assert run_ranks(straight, straight.job(plan, **spec)) == [0] * 4
    assert site.metrics() == straight.metrics()
    assert _parts(site.paths.checkpoints / "checkpoint-6") == {2}
    alone = _new_site(tmp_path_factory.mktemp("alone"), tiny_model)
    assert alone.run(alone.job(make_plan(gradient_accumulation_steps=4), **spec)) == 0
    assert _losses(site) == pytest.approx(_losses(alone), rel=1e-4)
    assert type(AutoModelForCausalLM.from_pretrained(site.artifact)).__name__ == "LlamaForCausalLM"
    weights = load_file(site.artifact / "model.safetensors")
    expected = load_file(alone.artifact / "model.safetensors")
    torch.testing.assert_close(weights, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_reference_of_a_sharded_model_is_the_model_itself(site: Site, precision: str) -> None:
    """In bf16, too: neither the model's log-probabilities nor the reference's are rounded to it."""
    pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(40)]
    site.write_data(pairs)
    training = {"maxSteps": 1, "batchSize": 4}
    spec = _SPEC | {"evaluation": {}, "training": training}
    plan = _plan("fsdp", precision=precision)
    config = site.job(plan, method="dpo", adapter={"type": "full"}, **spec)
    assert run_ranks(site, config) == [0, 0]
    # Policy and reference agree before the first step: -log(sigmoid(0)).
    assert _losses(site)[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_deepspeed_takes_its_configuration(strategy: str) -> None:
    process = start_process(configure_deepspeed, _plan(strategy))
    process.join(LIMIT_SECONDS)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("strategy", "spec", "message"),
    [
        ("fsdp", {"adapter": {"type": "qlora"}}, "cannot spread the quantised weights of qlora"),
        ("zero3", {"adapter": {"type": "qlora"}}, "cannot spread the quantised weights of qlora"),
        ("zero2", {"stability": {"policy": "Rollback"}}, "stability.policy is Rollback"),
        ("hsdp", {"adapter": {"type": "qlora"}}, "cannot spread the quantised weights of qlora"),
        ("hsdp", {"stability": {"policy": "Rollback"}}, "stability.policy is Rollback"),
        ("fsdp", {"method": "ebft"}, "method ebft needs the whole model in each process"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    strategy: str, spec: dict[str, Any], message: str
) -> None:
    config: TrainerConfig = make_config(_plan(strategy), **spec)
    with pytest.raises(JobFailure) as caught:
        check_supported(config.spec, config.plan)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert message in caught.value.message


def test_sharding_needs_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DEVICE", "cpu")
    with pytest.raises(JobFailure) as caught:
        choose_device(_plan("fsdp"), make_config().spec.training)
    assert "the strategy is fsdp, which needs GPUs" in caught.value.message
