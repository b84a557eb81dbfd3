"""The status of a FineTuneJob: what the operator knows. Conditions are the truth, not phase."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Measurement


class Phase(StrEnum):
    """One word for people; derived from conditions, attempts and pods."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    PLANNED = "Planned"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    EXPORTING = "Exporting"
    RECOVERING = "Recovering"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """The closed set of condition types."""

    SOURCES_READY = "SourcesReady"
    """The jobs that this one starts from have made their models."""
    PREPARED = "Prepared"
    """Model and data are in the workspace and fit the method."""
    PLANNED = "Planned"
    """status.plan is made."""
    POD_PROBLEM = "PodProblem"
    """True while a pod cannot start: unschedulable, image, volume."""
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    READY = "Ready"
    """kstatus: the model is there."""
    RECONCILING = "Reconciling"
    """kstatus: work goes on."""
    STALLED = "Stalled"
    """kstatus: no progress without the user."""


class Condition(ApiModel):
    """One observation, by the Kubernetes API conventions."""

    type: ConditionType
    """What is observed."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=128)]
    """CamelCase reason, from a closed set."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """One sentence for people."""
    observed_generation: int
    """metadata.generation that this was observed for."""
    last_transition_time: datetime
    """When status last changed."""


class Experts(ApiModel):
    """The feed-forward blocks of a mixture of experts, of which a router chooses for each token."""

    count: int = Field(ge=1)
    """Experts of a layer that the router chooses among."""
    per_token: int = Field(ge=1)
    """Experts that a token passes through."""
    size: int = Field(ge=1)
    """Width of one expert."""
    shared_size: int = Field(default=0, ge=0)
    """Width of the expert that every token passes through; 0 when there is none."""
    layers: int = Field(ge=1)
    """Decoder layers that have experts."""


class ModelFacts(ApiModel):
    """What preparation read from the model's own files."""

    architecture: str
    """Class name, such as LlamaForCausalLM."""
    model_type: str
    """Transformers model_type, such as llama."""
    parameters: int = Field(ge=0)
    """Number of weights."""
    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""
    intermediate_size: int = Field(ge=1)
    """Width of the feed-forward layers."""
    experts: Experts | None = None
    """What a mixture of experts has instead; unset for a dense model."""
    layers: int = Field(ge=1)
    """Decoder layers."""
    heads: int = Field(ge=1)
    """Attention heads."""
    kv_heads: int = Field(ge=1)
    """Key and value heads."""
    head_dim: int = Field(ge=1)
    """Width of one head."""
    vocabulary: int = Field(ge=1)
    """Rows of the embedding."""
    max_positions: int = Field(ge=1)
    """Longest sequence the model knows."""
    tied_embeddings: bool
    """Whether the output head shares the embedding."""
    weights_bytes: int = Field(ge=0)
    """Size of the weight files."""
    dtype: str = "float32"
    """Number format of the weight files."""


class DatasetFacts(ApiModel):
    """What preparation measured on the data."""

    format: str
    """The format that was recognised."""
    rows: int = Field(ge=0)
    """Training rows."""
    eval_rows: int = Field(ge=0)
    """Held-out rows."""
    tokens: int = Field(ge=0)
    """Training tokens in all."""
    max_tokens: int = Field(ge=0)
    """Longest row in tokens; of prompts with the longest completion that the model may write."""
    mean_tokens: float = Field(ge=0)
    """Mean row in tokens."""
    p95_tokens: int = Field(ge=0)
    """95th percentile of the rows' tokens."""
    padded_tokens: list[float] = Field(default_factory=list)
    """Mean row in tokens, padded to the longest of 2, 4, 8, 16 and 32 rows drawn at random."""
    dropped: int = Field(default=0, ge=0)
    """Rows left out because they were too long."""


class Preparation(ApiModel):
    """Facts that the plan rests on."""

    model: ModelFacts
    """What preparation read from the model's own files."""
    dataset: DatasetFacts
    """What preparation measured on the data."""


class Memory(ApiModel):
    """Memory of one GPU in GiB at the moment when most is held, by what holds it."""

    weights: float
    """Model weights, quantised or not."""
    quantization: float = 0.0
    """Quantisation constants, and the layer that is dequantised at the moment."""
    adapter: float = 0.0
    """Adapter weights."""
    gradients: float
    """Gradients of what is trained."""
    optimizer: float
    """Optimizer states."""
    activations: float
    """What the backward pass needs, at the micro-batch of the plan."""
    logits: float = 0.0
    """Output head and loss."""
    reference: float = 0.0
    """Frozen copy of the model that the method compares with."""
    rollout: float = 0.0
    """Writing completions, as far as it needs more than training on them; all that vLLM takes of
    the trainer's GPUs where it does not sleep."""
    context: float = 0.0
    """CUDA context and communication; on the CPU the process itself."""
    slack: float = 0.0
    """What cuBLAS works in, and what the allocator holds beyond what it is asked for."""
    total: float
    """All of it."""


class RolloutPlan(ApiModel):
    """The vLLM servers that write completions: on GPUs of their own, or on those of the trainer."""

    mode: Literal["server", "colocate"]
    """server: GPUs of their own; colocate: inside the trainer's processes."""
    replicas: int = Field(ge=1)
    """Servers, each with all weights."""
    tensor_parallel_size: int = Field(ge=1)
    """GPUs of each server, over which its weights are split."""
    gpus: int = Field(ge=0)
    """GPUs of all servers, of the trainer's product, on top of plan.gpus; 0 with colocate."""
    gpu_memory_utilization: float = Field(gt=0, le=1)
    """Share of a GPU's memory that a server takes."""
    max_model_length: int = Field(ge=1)
    """Longest prompt with its completion, in tokens."""
    weights: float
    """Weights on one GPU, in GiB."""
    kv_cache: float
    """Room for keys and values on one GPU, in GiB."""
    kv_tokens: int = Field(ge=0)
    """Tokens whose keys and values a server has room for."""
    sequences: int = Field(ge=1)
    """Sequences of maxModelLength that a server writes at once."""
    writing_seconds: float = Field(ge=0)
    """Seconds to write a batch of completions, each as long as it may be: computed from what is
    assumed of vLLM's speed, not measured."""
    training_seconds: float = Field(ge=0)
    """Seconds to train on that batch, grpo.iterations times: computed, not measured."""
    reasons: list[str] = Field(default=[])
    """Why, in words."""


class Plan(ApiModel):
    """What the operator decided for everything that was auto, and why."""

    summary: str
    """One line, such as 1 x NVIDIA-H100-80GB-HBM3, lora, micro-batch 4 x 4."""
    gpu_product: str | None = None
    """GPU model; unset when any will do or none is used."""
    gpus: int = Field(ge=0)
    """GPUs in all; 0 is CPU."""
    nodes: int = Field(ge=1)
    """Trainer pods."""
    gpus_per_node: int = Field(ge=0)
    """GPUs of each trainer pod."""
    strategy: Literal["single", "ddp", "fsdp", "hsdp", "zero2", "zero3"]
    """How weights and gradients are spread over GPUs."""
    micro_batch_size: int = Field(ge=1)
    """Sequences per GPU and forward pass."""
    gradient_accumulation_steps: int = Field(ge=1)
    """Forward passes per optimizer step."""
    max_length: int = Field(ge=1)
    """Longest sequence in tokens."""
    precision: Literal["bf16", "float32", "float8"]
    """Number format of the base model."""
    gradient_checkpointing: Literal["none", "selective", "full"]
    """What is recomputed in the backward pass."""
    compile: bool
    """Whether decoder layers are compiled."""
    cpu: str
    """CPU request of each trainer pod."""
    host_memory: str
    """Memory request of each trainer pod."""
    memory: Memory
    """Estimated memory of one GPU (of the process, on CPU)."""
    rollout: RolloutPlan | None = None
    """The vLLM servers that write completions; unset when the trainer writes them itself, and for
    methods that write none."""
    reasons: list[str] = Field(default=[])
    """Why, in words."""


class Progress(ApiModel):
    """Where training is, as read from the trainer."""

    activity: Literal["Loading", "Training", "Evaluating", "Exporting", "Done"]
    """What the trainer does."""
    steps: str = ""
    """Done and planned optimizer steps, such as 24/40."""
    step: int = Field(default=0, ge=0)
    """Optimizer steps done."""
    total_steps: int = Field(default=0, ge=0)
    """Optimizer steps planned."""
    epoch: float = 0.0
    """Passes over the data."""
    loss: Measurement = None
    """Newest training loss."""
    eval_loss: Measurement = None
    """Newest held-out loss."""
    eval_loss_before: Measurement = None
    """Held-out loss before training."""
    learning_rate: Measurement = None
    """Current learning rate."""
    grad_norm: Measurement = None
    """Newest norm of the gradient, before clipping."""
    tokens_per_second: Measurement = None
    """Trained tokens per second over all GPUs."""
    eta_seconds: int | None = None
    """Estimated seconds to the last step."""
    checkpoint_step: int | None = None
    """Step of the newest complete checkpoint."""
    updated: datetime | None = None
    """When the trainer wrote this."""


class Finding(ApiModel):
    """One stability rule that fired."""

    rule: str
    """Name of the rule."""
    severity: Literal["Info", "Warning", "Critical"]
    """How bad it is."""
    step: int
    """Optimizer step at which it fired."""
    message: str
    """What was seen."""
    advice: str
    """What to do."""


class Stability(ApiModel):
    """What the stability guard says."""

    verdict: Literal["Stable", "Warning", "Unstable"]
    """The worst of the findings."""
    findings: list[Finding] = Field(default=[], max_length=16)
    """Findings, oldest first; of too many the gravest and newest."""


class Attempt(ApiModel):
    """One try: a preparation, or a training run with all its pods."""

    role: Literal["prepare", "trainer"]
    """What was tried."""
    number: int = Field(ge=1)
    """Counts up per role; part of the pods' names."""
    state: Literal["Active", "Succeeded", "Failed", "Stopped"]
    """Stopped: ended by the operator, for suspension or a changed spec."""
    reason: str | None = None
    """Why it ended."""
    message: str | None = None
    """What the trainer said."""
    exit_code: int | None = None
    """Exit code of the first container that failed."""
    start_time: datetime
    """When its pods were made."""
    finish_time: datetime | None = None
    """When it ended."""
    step: int | None = None
    """Last optimizer step that it reached."""
    plan: str | None = None
    """What a training run ran with: the summary of the plan at that time."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs that its pods ask for, all together; unset for preparations."""
    placed_time: datetime | None = None
    """When the first of its pods was bound to a node; unset where no GPUs are asked for."""
    gpu_hours: float | None = Field(default=None, ge=0)
    """GPUs times hours, from when the first of its pods was bound to a node until it ended."""


class Measured(ApiModel):
    """What a training attempt measured, beside what its plan had estimated."""

    attempt: int = Field(ge=1)
    """Number of the attempt."""
    gpu_memory_gib: Measurement = None
    """Most that PyTorch had reserved on one GPU, in GiB; without the CUDA context."""
    host_memory_gib: Measurement = None
    """Most that one process held of the pod's memory, in GiB."""
    tokens_per_second: Measurement = None
    """Trained tokens per second over all GPUs, mean of the attempt without its first step."""
    estimated_memory_gib: Measurement = None
    """What the plan had estimated for the same: on GPUs plan.memory.total without
    plan.memory.context, to be held against gpuMemoryGib; on the CPU plan.memory.total, against
    hostMemoryGib. Unset when what was planned for a GPU ran without one."""
    memory_error: Measurement = None
    """Estimate / measured - 1: 0.02 is an estimate that was 2 % too high. Of an attempt that ran
    out of GPU memory it tells the least error: it would have taken more than was measured."""


class Usage(ApiModel):
    """What training has taken of GPUs, over all attempts; as of the newest status."""

    gpu_hours: float = Field(default=0.0, ge=0)
    """GPUs times hours in which pods of training held them; pods that wait for a node hold none."""
    expected_gpu_hours: Measurement = None
    """GPU-hours that the training steps should take, without padding, start, evaluation and export.
    Unset for methods that write completions, and for GPU products that are not known."""
    expected_basis: Literal["Measured", "Arithmetic"] | None = None
    """What that rests on. Measured: the speed of a like run on this GPU product; Arithmetic: 40 %
    of the peak of its data sheet."""
    cost: float | None = Field(default=None, ge=0)
    """gpuHours at the price of the plan's GPU product; unset when the operator knows no price."""
    currency: str | None = None
    """Currency of the cost."""


class Checkpoint(ApiModel):
    """The newest complete checkpoint."""

    step: int
    """Its optimizer step."""


class Artifact(ApiModel):
    """The model that the job made."""

    uri: str
    """Where it is, as a source of other jobs: pvc://CLAIM/PATH."""
    kind: Literal["adapter", "model"]
    """adapter: LoRA weights beside the name of their base; model: all weights."""
    merged_uri: str | None = None
    """The merged model, when output.merged asked for it."""
    size_bytes: int = Field(default=0, ge=0)
    """Size of all files."""


class ModelStart(ApiModel):
    """A model that another FineTuneJob made, resolved to where its parts are."""

    base: str
    """The model whose weights are loaded: hf://, pvc:// or s3://."""
    secret: str | None = None
    """Secret for the base."""
    merge: list[str] = Field(default=[], max_length=16)
    """Adapters, as pvc://, that are merged into the base, in this order."""
    weights_bytes: int | None = Field(default=None, ge=0)
    """Size of the weights that adapters are merged into; unset when none are."""
    adapter: str | None = None
    """Adapter, as pvc://, that training continues."""


class Rollback(ApiModel):
    """One return to an earlier checkpoint."""

    rule: str
    """Stability rule that fired."""
    step: int = Field(ge=1)
    """Step at which it fired; training goes on after it, its data is not seen again."""
    to_step: int = Field(ge=0)
    """Step of the checkpoint whose weights training goes on from."""
    learning_rate_factor: float = Field(gt=0, le=1)
    """Factor on the learning rate from then on, over all rollbacks so far."""


class FineTuneJobStatus(ApiModel):
    """What the operator knows about the job."""

    phase: Phase = Phase.PENDING
    """One word for people; conditions are the truth."""
    message: str = ""
    """One sentence: what is going on, or what went wrong and what to do."""
    observed_generation: int | None = None
    """metadata.generation that this status was made for."""
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """What holds, by type."""
    start_time: datetime | None = None
    """When the job first became active, or active again after a suspension."""
    finish_time: datetime | None = None
    """When it succeeded or failed."""
    starts: dict[str, ModelStart] = Field(default={}, max_length=17)
    """What each source of the form job://NAME stood for when the job began, by that source."""
    preparation: Preparation | None = None
    """Facts that the plan rests on."""
    plan: Plan | None = None
    """What the operator decided for everything that was auto, and why."""
    progress: Progress | None = None
    """Where training is."""
    stability: Stability | None = None
    """What the stability guard says."""
    rollbacks: list[Rollback] = Field(default=[], max_length=10)
    """Returns to an earlier checkpoint, oldest first (stability.policy Rollback)."""
    attempts: list[Attempt] = Field(default=[], max_length=64)
    """Every try, oldest first; the oldest are dropped beyond 64."""
    measured: Measured | None = None
    """What the newest training attempt measured that got as far as to train, failed ones too."""
    usage: Usage | None = None
    """GPU-hours and cost; from the first training attempt on GPUs on."""
    failures: int = Field(default=0, ge=0)
    """Attempts that count against runPolicy.backoffLimit."""
    checkpoint: Checkpoint | None = None
    """The newest complete checkpoint."""
    artifact: Artifact | None = None
    """The model that the job made."""
