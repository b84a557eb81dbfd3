"""Objects of the contract with every field filled in."""

from datetime import UTC, datetime

from finetune_api.status import (
    Artifact,
    Attempt,
    Checkpoint,
    Condition,
    ConditionType,
    DatasetFacts,
    Finding,
    FineTuneJobStatus,
    Memory,
    ModelFacts,
    Phase,
    Plan,
    Preparation,
    Progress,
    Stability,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def preparation() -> Preparation:
    model = ModelFacts(
        architecture="LlamaForCausalLM",
        model_type="llama",
        parameters=8_030_261_248,
        hidden_size=4096,
        intermediate_size=14336,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocabulary=128256,
        max_positions=131072,
        tied_embeddings=False,
        weights_bytes=16_060_522_496,
        dtype="bfloat16",
    )
    dataset = DatasetFacts(
        format="chat",
        rows=10_000,
        eval_rows=100,
        tokens=5_000_000_000,
        max_tokens=4096,
        mean_tokens=512.5,
        p95_tokens=2048,
        dropped=3,
    )
    return Preparation(model=model, dataset=dataset)


def plan() -> Plan:
    memory = Memory(
        weights=16.0, gradients=0.1, optimizer=0.2, activations=20.5, context=2.0, total=38.8
    )
    return Plan(
        summary="1 x NVIDIA-H100-80GB-HBM3, lora, micro-batch 4 x 4",
        gpu_product="NVIDIA-H100-80GB-HBM3",
        gpus=1,
        nodes=1,
        gpus_per_node=1,
        strategy="single",
        micro_batch_size=4,
        gradient_accumulation_steps=4,
        max_length=4096,
        precision="bf16",
        gradient_checkpointing="none",
        compile=True,
        cpu="8",
        host_memory="64Gi",
        memory=memory,
        reasons=["fits one GPU with half of it to spare"],
    )


def progress() -> Progress:
    return Progress(
        activity="Training",
        steps="24/40",
        step=24,
        total_steps=40,
        epoch=0.6,
        loss=1.23456789,
        eval_loss=1.3,
        eval_loss_before=2.5,
        learning_rate=1.2345678e-05,
        grad_norm=0.75,
        tokens_per_second=14120.4,
        eta_seconds=90,
        checkpoint_step=20,
        updated=NOON,
    )


def stability() -> Stability:
    finding = Finding(
        rule="loss-spike",
        severity="Warning",
        step=12,
        message="the loss rose from 1.2 to 4.8 in one step",
        advice="lower training.learningRate",
    )
    return Stability(verdict="Warning", findings=[finding])


def full_status() -> FineTuneJobStatus:
    conditions = [
        Condition(
            type=kind,
            status="True",
            reason="AsExpected",
            message="A sentence.",
            observed_generation=2,
            last_transition_time=NOON,
        )
        for kind in ConditionType
    ]
    attempt = Attempt(
        role="trainer",
        number=1,
        state="Failed",
        reason="Killed",
        message="killed",
        exit_code=137,
        start_time=NOON,
        finish_time=NOON,
        step=20,
    )
    return FineTuneJobStatus(
        phase=Phase.RUNNING,
        message="Training on 1 GPU.",
        observed_generation=2,
        conditions=conditions,
        start_time=NOON,
        finish_time=NOON,
        preparation=preparation(),
        plan=plan(),
        progress=progress(),
        stability=stability(),
        attempts=[attempt],
        failures=1,
        checkpoint=Checkpoint(step=20),
        artifact=Artifact(
            uri="pvc://models/a",
            kind="adapter",
            merged_uri="pvc://models/a/merged",
            size_bytes=5_000_000_000,
        ),
    )
