"""Where and when a job runs: GPUs, nodes, volumes, retries, deadlines."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import (
    ApiModel,
    CountOrAuto,
    Form,
    GpuCountOrAuto,
    ObjectName,
    Quantity,
    Rule,
    forbidden,
    rules,
)

# A bound that no real policy reaches keeps sums with timestamps free of overflow.
TEN_YEARS_IN_SECONDS = 10 * 365 * 24 * 3600
DEFAULT_WORKSPACE_SIZE = "50Gi"


class Gpu(ApiModel):
    """Which GPUs, and how many."""

    model_config = rules(
        Rule(
            "self.count != 0 || (self.product == 'auto' && self.memory == 'auto')",
            "product and memory are for GPUs, but count is 0: leave them out, or ask for a GPU",
            ".product",
        ),
    )

    count: GpuCountOrAuto = "auto"
    """GPUs in all; 0 trains on the CPU."""
    product: str = Field(default="auto", min_length=1, max_length=128)
    """GPU model, as in the node label nvidia.com/gpu.product; auto is the cheapest that fits."""
    memory: Annotated[
        str,
        Field(max_length=32),
        Form(
            r"auto|[1-9][0-9]*(\.[0-9]+)?(M|G|T|Mi|Gi|Ti)", "auto or a size with its unit, as 80Gi"
        ),
    ] = "auto"
    """Memory of one GPU, such as 80Gi; auto is what the nodes or the product say, else 80Gi."""


class Toleration(ApiModel):
    """A node taint that the job's pods tolerate."""

    model_config = rules(
        Rule(
            "has(self.key) || self.operator == 'Exists'",
            "a toleration without key tolerates every taint: it needs operator Exists",
            ".key",
            required=True,
        ),
        forbidden("self.operator == 'Equal'", "value is only for operator Equal", ".value"),
        forbidden(
            "(has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds is only for effect NoExecute",
            ".tolerationSeconds",
        ),
    )

    key: str | None = Field(default=None, min_length=1, max_length=317)
    """Key of the taint; unset with operator Exists tolerates all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How key and value are compared."""
    value: str | None = Field(default=None, max_length=63)
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; unset is any."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=TEN_YEARS_IN_SECONDS)
    """Seconds that a NoExecute taint is tolerated; unset is for ever."""


class Workspace(ApiModel):
    """Volume for the fetched model, the data and the checkpoints; new unless a claim is named."""

    model_config = rules(
        forbidden(
            "!has(self.claim)",
            "storageClassName is for a new claim: leave it out, claim names an existing one",
            ".storageClassName",
        ),
        # Both always have a value; one that is not the default was given by the user.
        Rule(
            f"!has(self.claim) || self.size == '{DEFAULT_WORKSPACE_SIZE}'",
            "size is for a new claim: leave it out, claim names an existing one",
            ".size",
        ),
        Rule(
            "!has(self.claim) || self.accessMode == 'ReadWriteOnce'",
            "accessMode is for a new claim: leave it out, claim names an existing one",
            ".accessMode",
        ),
    )

    claim: ObjectName | None = None
    """Existing PersistentVolumeClaim to use; the job has its own folder in it."""
    size: Quantity = DEFAULT_WORKSPACE_SIZE
    """Size of the new claim."""
    storage_class_name: ObjectName | None = None
    """Storage class of the new claim; unset is the cluster's default."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    """Access mode of the new claim; several nodes need ReadWriteMany."""


class Resources(ApiModel):
    """Hardware; everything that is auto is planned."""

    model_config = rules(
        Rule(
            "type(self.gpu.count) != int || type(self.nodes) != int || self.gpu.count == 0"
            " || self.nodes < 1 || self.gpu.count % self.nodes == 0",
            "gpu.count {self.gpu.count} must be a multiple of nodes {self.nodes}:"
            " every node gets the same number of GPUs",
            ".nodes",
        ),
        Rule(
            "self.gpu.count != 0 || type(self.nodes) != int || self.nodes <= 1",
            "nodes is {self.nodes}, but training on the CPU (gpu.count 0) has one node",
            ".nodes",
        ),
        Rule(
            "type(self.gpu.count) != int || self.gpu.count > 1 || self.strategy == 'auto'",
            "strategy {self.strategy} is for several GPUs, but gpu.count is {self.gpu.count}: leave"
            " strategy out",
            ".strategy",
        ),
        Rule(
            "self.strategy != 'hsdp' || type(self.nodes) != int || self.nodes < 1"
            " || (self.nodes > 1 && (type(self.gpu.count) != int || self.gpu.count > self.nodes))",
            "strategy hsdp is for several nodes with several GPUs each, but nodes is {self.nodes}"
            " and gpu.count {self.gpu.count}: use fsdp",
            ".strategy",
        ),
        Rule(
            "type(self.nodes) != int || self.nodes <= 1 || has(self.workspace.claim)"
            " || self.workspace.accessMode == 'ReadWriteMany'",
            "workspace.accessMode {self.workspace.accessMode} is for one node, but nodes is"
            " {self.nodes}: use ReadWriteMany",
            ".workspace.accessMode",
        ),
    )

    gpu: Gpu = Gpu()
    """Which GPUs, and how many."""
    nodes: CountOrAuto = "auto"
    """Nodes, one trainer pod each."""
    strategy: Literal["auto", "ddp", "fsdp", "hsdp", "zero2", "zero3"] = "auto"
    """How weights and gradients are spread over GPUs: auto, ddp, fsdp, hsdp, zero2 or zero3."""
    cpu: Quantity | None = None
    """CPU request of each trainer pod. Unset: planned."""
    memory: Quantity | None = None
    """Memory request and limit of each trainer pod. Unset: planned."""
    workspace: Workspace = Workspace()
    """Volume for the fetched model, the data and the checkpoints."""
    node_selector: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)
    ] = Field(default={})
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field(default=[], max_length=16)
    """Node taints that the job's pods tolerate."""
    image: (
        Annotated[
            str, Field(max_length=512), Form(r"[^\s@:/]\S*", "the reference of a container image")
        ]
        | None
    ) = None
    """Trainer image in place of the operator's own."""


class RunPolicy(ApiModel):
    """When the job runs, how often it is tried and how long it is kept."""

    suspend: bool = False
    """Stop at the next step with a checkpoint and free the GPUs; false again continues from
    there."""
    backoff_limit: int = Field(default=3, ge=0, le=100)
    """Failed attempts that are followed by another; preempted attempts do not count."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=TEN_YEARS_IN_SECONDS)
    """The job fails when it has been active for so long."""
    termination_grace_period_seconds: int = Field(default=120, ge=1, le=3600)
    """Seconds that a trainer pod has to finish its step and write a checkpoint when it is asked to
    end."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=TEN_YEARS_IN_SECONDS)
    """Seconds after which a finished job and its new workspace are deleted; the output is kept. A
    job whose model another job waits for stays until that one has looked it up."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    scheduler_name: ObjectName | None = None
    """Scheduler of the pods."""
    queue: Annotated[ObjectName, Field(max_length=63)] | None = None
    """Kueue LocalQueue that admits the job."""
