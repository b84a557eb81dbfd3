"""Options of the single methods, by the meaning and defaults of TRL 1.16."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ApiModel, CountOrAuto, Form, ObjectName, Rule, forbidden, rules
from finetune_api.sources import SECRET_NEEDS_REMOTE, ModelSource

DpoLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


class Dpo(ApiModel):
    """Direct preference optimisation (arXiv 2305.18290)."""

    model_config = rules(
        Rule(
            "!has(self.lossWeights) || self.lossWeights.size() == self.losses.size()",
            "lossWeights has {self.lossWeights.size()} entries, but losses has"
            " {self.losses.size()}: give one weight per loss",
            ".lossWeights",
        ),
        Rule(
            "!('exo_pair' in self.losses) || self.labelSmoothing > 0.0",
            "the loss exo_pair needs labelSmoothing above 0; its authors take 0.001",
            ".labelSmoothing",
        ),
    )

    beta: float = Field(default=0.1, ge=0, le=100)
    """How strongly the policy is held to the reference model."""
    losses: list[DpoLoss] = Field(default=["sigmoid"], min_length=1, max_length=8)
    """Losses that are added up, by their TRL names."""
    loss_weights: list[Annotated[float, Field(ge=0, le=1000)]] | None = Field(
        default=None, min_length=1, max_length=8
    )
    """Weight of each loss; unset: all 1."""
    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """Assumed share of wrongly labelled pairs; at one half they would say nothing."""


class Kto(ApiModel):
    """Kahneman-Tversky optimisation (arXiv 2402.01306)."""

    beta: float = Field(default=0.1, ge=0, le=100)
    """How strongly the policy is held to the reference model."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """The loss."""
    desirable_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of desirable examples."""
    undesirable_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of undesirable examples."""


class Orpo(ApiModel):
    """Odds-ratio preference optimisation (arXiv 2403.07691)."""

    beta: float = Field(default=0.1, ge=0, le=100)
    """Weight of the odds-ratio term (lambda in the paper)."""


class Reward(ApiModel):
    """Bradley-Terry reward model."""

    center_rewards_coefficient: float | None = Field(default=None, ge=0, le=10)
    """Keeps rewards near zero on average (arXiv 2312.09244); 0.01 is a good value."""


class Grpo(ApiModel):
    """Group-relative policy optimisation (arXiv 2402.03300)."""

    model_config = rules(
        Rule(
            "self.loss != 'cispo' || has(self.epsilonHigh)",
            "loss cispo cuts every ratio at epsilonHigh itself, so that the 0.2 of other losses"
            " would cut all of them: give epsilonHigh, such as 5.0",
            ".epsilonHigh",
            required=True,
        ),
    )

    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    """How token losses are formed and averaged: dapo, grpo, dr_grpo, bnpo, cispo, sapo, luspo or
    vespo."""
    beta: float = Field(default=0.0, ge=0, le=100)
    """Weight of the KL term against the reference model; 0 needs no reference model."""
    epsilon: float = Field(default=0.2, gt=0, le=10)
    """Lower (and, unless epsilonHigh is given, upper) clip range of the ratio."""
    epsilon_high: float | None = Field(default=None, gt=0, le=10)
    """Upper clip range of the ratio; for loss cispo the largest ratio."""
    iterations: int = Field(default=1, ge=1, le=64)
    """Optimisation passes over each batch of completions."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Over what advantages are divided by the standard deviation."""
    mask_truncated_completions: bool = False
    """Leave completions that hit the length limit out of the loss."""


class Ebft(ApiModel):
    """Energy-based fine-tuning (arXiv 2603.12248), structured mode only: whole completions are
    compared with the known answers. The paper's strided mode and its cross-entropy term are not
    there.
    """

    feature_layers: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.25, 0.5, 0.75], min_length=1, max_length=16
    )
    """Depths of the layers whose hidden states are matched, as shares of all layers."""
    pooling: Literal["last_token", "mean_pooling", "completion_mean", "concat"] = "last_token"
    """How hidden states become one feature vector: last_token, mean_pooling (over prompt and
    completion), completion_mean, or concat (those at a quarter, half and three quarters)."""
    alignment_coefficient: float = Field(default=1.0, ge=0, le=100)
    """Weight of the similarity to the known answer."""
    diversity_coefficient: float = Field(default=1.0, ge=0, le=100)
    """Weight of the penalty on similar completions."""
    whitening: bool = False
    """Whiten the features of each group; then only equal completions count as similar."""


_ONE_REWARD = "[has(self.builtin), has(self.__function__), has(self.model)].filter(given, given)"


class RewardFunction(ApiModel):
    """One reward: built in, a Python function, or a reward model."""

    model_config = rules(
        Rule(
            f"{_ONE_REWARD}.size() == 1",
            f"give exactly one of builtin, function and model, found {{{_ONE_REWARD}.size()}}",
        ),
        forbidden("has(self.model)", "secret is only for a reward model", ".secret"),
        Rule(
            f"!has(self.model) || {SECRET_NEEDS_REMOTE.expression}".replace(
                "self.source", "self.model"
            ),
            SECRET_NEEDS_REMOTE.message,
            ".secret",
        ),
    )

    name: Annotated[
        str,
        Field(max_length=63),
        Form(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "lower-case letters, digits and '-'"),
    ]
    """Name in metrics and reports."""
    weight: float = Field(default=1.0, ge=-1000, le=1000)
    """Factor in the sum."""
    builtin: Literal["exact-match", "format", "length", "json", "accuracy"] | None = None
    """A reward that the trainer brings: exact-match (the text is the known answer), accuracy (so is
    the final answer of a solution), format (think tags come first), json (it is JSON), or length
    (a penalty near generation.maxCompletionLength)."""
    function: (
        Annotated[
            str,
            Field(max_length=512),
            Form(
                r"configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9_.-]+:[A-Za-z_][A-Za-z0-9_]*"
                r"|python://[A-Za-z0-9_.]+:[A-Za-z_][A-Za-z0-9_]*",
                "configmap://NAME/FILE.py:FUNCTION or python://MODULE:FUNCTION",
            ),
        ]
        | None
    ) = None
    """A Python function of completions and columns: configmap://NAME/FILE.py:FUNCTION, or
    python://MODULE:FUNCTION from the image."""
    model: ModelSource | None = None
    """A reward model: a sequence classifier with one output, by its source."""
    secret: ObjectName | None = None
    """Secret whose keys become environment variables while the reward model is fetched."""


class Generation(ApiModel):
    """How completions are sampled."""

    group_size: int = Field(default=8, ge=2, le=1024)
    """Completions per prompt (num_generations)."""
    max_prompt_length: int | None = Field(default=None, ge=1, le=1_048_576)
    """Longest prompt in tokens; longer ones are handled by dataset.tooLong."""
    max_completion_length: int = Field(default=512, ge=1, le=1_048_576)
    """Longest completion in tokens."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; below 1 it biases the importance-sampling ratio."""
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """Sample from the k likeliest tokens; 0 is all."""


class ImportanceSampling(ApiModel):
    """Correction for rollouts from an older or numerically different policy."""

    mode: Literal["off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "sequence_mask"
    )
    """What is corrected, and how ratios above the cap are treated: off, token_truncate,
    token_mask, sequence_truncate or sequence_mask."""
    cap: float = Field(default=3.0, gt=0, le=1000)
    """Largest ratio."""


class Rollout(ApiModel):
    """Where completions are sampled: beside the trainer, or in vLLM Deployments of their own."""

    model_config = rules(
        Rule(
            "!self.sleep || self.mode in ['auto', 'colocate']",
            "sleep is only for vLLM on the trainer's GPUs (mode colocate), found mode {self.mode}",
            ".sleep",
        ),
        Rule(
            "self.mode in ['auto', 'server'] || self.replicas == 'auto' || self.replicas == 1",
            "replicas is only for vLLM Deployments (mode server), found mode {self.mode}",
            ".replicas",
        ),
        Rule(
            "self.prefetch == 0 || self.mode in ['auto', 'server']",
            "prefetch is only for vLLM Deployments (mode server), found mode {self.mode}",
            ".prefetch",
        ),
        Rule(
            "self.maxStaleness >= self.prefetch",
            "with prefetch {self.prefetch} completions are up to {self.prefetch} policy versions"
            " behind, but maxStaleness is {self.maxStaleness}: raise it to {self.prefetch}",
            ".maxStaleness",
        ),
    )

    mode: Literal["auto", "server", "colocate", "local"] = "auto"
    """server: vLLM Deployments; colocate: vLLM inside the trainer; local: the trainer's own
    generate."""
    replicas: CountOrAuto = "auto"
    """vLLM Deployments' replicas."""
    tensor_parallel_size: CountOrAuto = "auto"
    """GPUs per replica."""
    sleep: bool = False
    """vLLM gives its GPU memory back while the trainer steps."""
    weight_sync: Literal["auto", "lora", "full"] = "auto"
    """What goes to vLLM after each step: the adapter or all weights."""
    prefetch: int = Field(default=0, ge=0, le=16)
    """Batches of completions sampled ahead."""
    max_staleness: int = Field(default=0, ge=0, le=64)
    """Policy versions that a completion may be behind."""
    importance_sampling: ImportanceSampling = ImportanceSampling()
    """Correction for rollouts from an older or numerically different policy."""
