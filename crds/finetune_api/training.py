"""How a job trains: what is trained, by which hyperparameters, and what is shown of it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, CountOrAuto, Rule, forbidden, rules


class Lora(ApiModel):
    """Low-rank adaptation (arXiv 2106.09685)."""

    model_config = rules(
        Rule(
            "!('all-linear' in self.targetModules) || self.targetModules.size() == 1",
            "all-linear stands for every layer: give it alone, or name layers",
            ".targetModules",
        ),
    )

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank r of the update matrices."""
    alpha: float = Field(default=32, gt=0, le=4096)
    """Scale: the update is multiplied by alpha / rank, or alpha / sqrt(rank) with rsLora."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input. Above zero it costs memory. TRL switches all dropout off in
    methods dpo, kto, orpo and reward, unless training.extra has disable_dropout: false."""
    target_modules: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        default=["all-linear"], min_length=1, max_length=64
    )
    """Names of the layers that get an adapter; all-linear is every linear layer but the output
    head, and leaves out the routers and experts of a mixture of experts."""
    rs_lora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732)."""
    dora: bool = False
    """Weight-decomposed adaptation (arXiv 2402.09353). vLLM cannot load such adapters."""


class Quantization(ApiModel):
    """Quantisation of the frozen base model, by bitsandbytes."""

    bits: Literal[4, 8] = 4
    """4 (NF4, arXiv 2305.14314) or 8 (LLM.int8, arXiv 2208.07339)."""
    double_quant: bool = True
    """Quantise the quantisation constants too; only 4 bits have them."""


class Adapter(ApiModel):
    """What is trained: a LoRA adapter, one on a quantised base, or all weights."""

    model_config = rules(
        forbidden(
            "self.type != 'full'",
            "lora options are only for adapter types lora and qlora, found type {self.type}",
            ".lora",
        ),
        forbidden(
            "self.type == 'qlora'",
            "quantization is only for adapter type qlora, found type {self.type}",
            ".quantization",
        ),
    )

    type: Literal["lora", "qlora", "full"] = "lora"
    """lora: low-rank adapter on a bf16 base; qlora: on a quantised base; full: every weight."""
    lora: Lora | None = None
    """Options of the low-rank adapter."""
    quantization: Quantization | None = None
    """Options of the quantised base."""


class Checkpointing(ApiModel):
    """Checkpoints in the workspace, from which training resumes."""

    every_steps: int = Field(default=100, ge=1, le=1_000_000)
    """Optimizer steps between checkpoints."""
    keep: int = Field(default=2, ge=1, le=100)
    """Newest checkpoints to keep."""


class Training(ApiModel):
    """Hyperparameters. What is not here goes through extra."""

    model_config = rules(
        Rule(
            "type(self.microBatchSize) != int || self.microBatchSize < 1"
            " || self.batchSize % self.microBatchSize == 0",
            "batchSize {self.batchSize} must be a multiple of microBatchSize {self.microBatchSize}",
            ".microBatchSize",
        ),
    )

    epochs: float = Field(default=1.0, gt=0, le=1000)
    """Passes over the data, when maxSteps is not given."""
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps; wins over epochs."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate. Unset, with lora and qlora: 2e-4 for sft and reward, 2e-5 for dpo, kto
    and orpo, 1e-5 for grpo and ebft; a tenth of that when all weights are trained."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate over the steps."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    """Gradients are clipped to this norm."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Sequences per optimizer step over all GPUs (micro-batch x GPUs x accumulation)."""
    micro_batch_size: CountOrAuto = "auto"
    """Sequences per GPU and forward pass; auto is what fits."""
    max_length: int | None = Field(default=None, ge=8, le=1_048_576)
    """Longest sequence in tokens. Unset: the longest row, up to 4096 and the model's own limit."""
    packing: bool = False
    """Fill rows of maxLength tokens with several documents (sft only)."""
    assistant_only_loss: bool | None = None
    """Chat data: learn only the assistant's turns (sft only). Unset: yes when the chat template
    can mark them."""
    precision: Literal["auto", "bf16", "float32", "float8"] = "auto"
    """Number format of the base model; float8, for adapter type lora on GPUs that have it (Ada,
    Hopper, Blackwell), is faster and no smaller; auto is bf16 on GPUs and float32 on CPUs."""
    gradient_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """Recompute activations in the backward pass; auto is the cheapest that fits."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile decoder layers; auto does so when the run is long enough to pay for it."""
    checkpoint: Checkpointing = Checkpointing()
    """Checkpoints in the workspace, from which training resumes."""
    eval_every_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    """Optimizer steps between evaluations. Unset: before the first and after the last step only."""
    log_every_steps: int = Field(default=1, ge=1, le=10_000)
    """Optimizer steps between logged metrics."""
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Seed of data order, initialisation and dropout."""
    extra: dict[str, Any] = Field(default={}, max_length=64)
    """Further fields of the method's TRL configuration, by their TRL names; unknown names fail
    during preparation."""


class Evaluation(ApiModel):
    """What is shown of the model before and after training."""

    sample_prompts: list[Annotated[str, Field(min_length=1, max_length=2048)]] = Field(
        default=[], max_length=16
    )
    """Prompts that the model answers before and after training; the answers go to the log and to
    samples.json in the output."""
    sample_max_tokens: int = Field(default=64, ge=1, le=4096)
    """Longest answer in tokens."""
