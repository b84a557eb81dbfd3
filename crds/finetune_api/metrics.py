"""The catalogue of the trainer's Prometheus metrics: names, units and meanings, stable over time.

What TRL logs is exported under a name of ours, so that dashboards outlive a new version of TRL;
what is not in the catalogue is not exported. Every metric has the labels namespace and finetunejob.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from finetune_api.spec import ONLINE, Method
from finetune_api.stability import SKIPPED

_SFT, _DPO, _KTO, _ORPO = Method.SFT, Method.DPO, Method.KTO, Method.ORPO
_REWARD, _GRPO, _EBFT = Method.REWARD, Method.GRPO, Method.EBFT
_ALL = tuple(Method)
_PAIRED = (_DPO, _ORPO)
_PREFERENCE = (_DPO, _KTO, _ORPO)

EVALUATION = "eval_"
"""How TRL begins the names of what it measures on held-out data."""

Part = Literal["data", "rollout", "forward", "backward", "sync", "optimizer", "logging", "other"]
"""What the time of a training step is spent on."""

PARTS: Final[tuple[Part, ...]] = get_args(Part)

SECONDS: Final = "seconds/"
"""How the logged names of a step's parts begin."""


@dataclass(frozen=True)
class LoggedMetric:
    """A metric that TRL logs; held-out values have the same name after finetune_eval_."""

    key: str
    """TRL's name; the part between rewards/ and the last slash may be a reward's name."""
    name: str
    """What follows finetune_."""
    help: str
    methods: tuple[Method, ...] = _ALL


@dataclass(frozen=True)
class OwnMetric:
    """A metric that the trainer measures itself."""

    name: str
    """The full name."""
    help: str
    kind: Literal["gauge", "counter"] = "gauge"
    labels: tuple[str, ...] = ()
    """Labels beside namespace and finetunejob."""


def _statistics(
    key: str, name: str, what: str, methods: tuple[Method, ...], kinds: Mapping[str, str]
) -> tuple[LoggedMetric, ...]:
    return tuple(
        LoggedMetric(key.format(kind), name.format(kind), f"{words} {what}", methods)
        for kind, words in kinds.items()
    )


_CHOSEN = {"chosen": "chosen", "rejected": "rejected"}
_EXTREMES = {"mean": "Mean", "min": "Smallest", "max": "Largest"}

LOGGED: Final[tuple[LoggedMetric, ...]] = (
    LoggedMetric("loss", "loss", "Newest loss."),
    LoggedMetric("learning_rate", "learning_rate", "Learning rate of the newest step."),
    LoggedMetric("grad_norm", "grad_norm", "Norm of the newest gradient before clipping."),
    LoggedMetric(SKIPPED, SKIPPED, "Steps since the last log skipped for a non-finite gradient."),
    LoggedMetric(
        "entropy",
        "entropy_nats",
        "Mean entropy of the model's next-token distribution.",
        (_SFT, _DPO, _KTO, *ONLINE),
    ),
    LoggedMetric(
        "mean_token_accuracy",
        "mean_token_accuracy",
        "Share of label tokens that the model ranks first.",
        (_SFT, _DPO),
    ),
    LoggedMetric("aux_loss", "aux_loss", "Load-balancing loss of a mixture of experts."),
    *(
        LoggedMetric(
            f"{key}/{kind}",
            f"{key}_{kind}",
            f"Mean {what} of {kind} answers.",
            _PREFERENCE,
        )
        for key, what in {
            "rewards": "implicit reward",
            "logps": "log-probability",
            "logits": "logit",
        }.items()
        for kind in _CHOSEN
    ),
    LoggedMetric(
        "rewards/margins",
        "rewards_margins",
        "Mean implicit reward of chosen over rejected answers.",
        _PREFERENCE,
    ),
    LoggedMetric(
        "rewards/accuracies",
        "rewards_accuracies",
        "Share of pairs whose chosen answer has the higher implicit reward.",
        _PAIRED,
    ),
    LoggedMetric("nll_loss", "nll_loss", "Negative log-likelihood of chosen answers.", (_ORPO,)),
    LoggedMetric("log_odds_ratio", "log_odds_ratio", "Odds-ratio term of the loss.", (_ORPO,)),
    LoggedMetric(
        "log_odds_chosen", "log_odds_chosen", "Log odds of chosen against rejected.", (_ORPO,)
    ),
    LoggedMetric(
        "kl", "kl_nats", "Divergence of the policy from the reference model.", (_KTO, *ONLINE)
    ),
    *_statistics("{}_reward", "{}_reward", "score of an answer.", (_REWARD,), _EXTREMES),
    LoggedMetric(
        "accuracy", "accuracy", "Share of pairs whose chosen answer scores higher.", (_REWARD,)
    ),
    LoggedMetric("margin", "margin", "Mean score of chosen over rejected answers.", (_REWARD,)),
    LoggedMetric("reward", "reward", "Mean weighted reward of completions.", ONLINE),
    LoggedMetric("reward_std", "reward_std", "Standard deviation of rewards.", ONLINE),
    LoggedMetric(
        "frac_reward_zero_std",
        "reward_zero_std_ratio",
        "Share of groups in which every completion has the same reward.",
        ONLINE,
    ),
    LoggedMetric("rewards/*/mean", "reward_function_mean", "Mean of one reward.", ONLINE),
    LoggedMetric(
        "rewards/*/std", "reward_function_std", "Standard deviation of one reward.", ONLINE
    ),
    *_statistics(
        "completions/{}_length", "completion_{}_tokens", "completion length.", ONLINE, _EXTREMES
    ),
    *_statistics(
        "completions/{}_terminated_length",
        "completion_terminated_{}_tokens",
        "length of completions that ended by themselves.",
        ONLINE,
        _EXTREMES,
    ),
    LoggedMetric(
        "completions/clipped_ratio",
        "completion_clipped_ratio",
        "Share of completions that hit the length limit.",
        ONLINE,
    ),
    *_statistics(
        "clip_ratio/{}",
        "clip_{}_ratio",
        "share of tokens whose update is clipped.",
        ONLINE,
        {
            "low_mean": "Mean low",
            "low_min": "Smallest low",
            "high_mean": "Mean high",
            "high_max": "Largest high",
            "region_mean": "Mean",
        },
    ),
    LoggedMetric(
        "cispo_clip_ratio",
        "cispo_clip_ratio",
        "Share of tokens whose weight is clipped (loss cispo).",
        (_GRPO,),
    ),
    LoggedMetric(
        "vespo/phi_seq_mean",
        "vespo_weight_mean",
        "Mean weight of a sequence (loss vespo).",
        (_GRPO,),
    ),
    LoggedMetric("policy_loss", "policy_loss", "Loss without the entropy bonus.", (_GRPO,)),
    LoggedMetric("entropy_coef", "entropy_coefficient", "Weight of the entropy bonus.", (_GRPO,)),
    *_statistics(
        "sampling/sampling_logp_difference/{}",
        "sampling_logp_difference_{}",
        "log-probability difference of the sampling and the learning policy.",
        (_GRPO,),
        {"mean": "Mean", "max": "Largest"},
    ),
    *_statistics(
        "sampling/importance_sampling_ratio/{}",
        "importance_sampling_{}_ratio",
        "probability ratio of the learning and the sampling policy.",
        (_GRPO,),
        _EXTREMES,
    ),
    LoggedMetric("tools/call_frequency", "tool_call_ratio", "Tool calls per completion.", (_GRPO,)),
    LoggedMetric(
        "tools/failure_frequency", "tool_failure_ratio", "Share of tool calls that fail.", (_GRPO,)
    ),
    LoggedMetric(
        "ebft/alignment",
        "ebft_alignment",
        "Similarity of completions to the reference in feature space.",
        (_EBFT,),
    ),
    LoggedMetric(
        "ebft/diversity",
        "ebft_diversity",
        "Similarity of a prompt's completions to each other in feature space.",
        (_EBFT,),
    ),
    LoggedMetric("ebft/cfm_loss", "ebft_cfm_loss", "Feature matching loss.", (_EBFT,)),
    LoggedMetric("ebft/reward", "ebft_reward", "Feature matching reward.", (_EBFT,)),
)

STEP = OwnMetric("finetune_step", "Optimizer steps done.")
TOTAL_STEPS = OwnMetric("finetune_total_steps", "Optimizer steps planned.")
EPOCH = OwnMetric("finetune_epoch", "Passes over the data.")
EVAL_LOSS_BEFORE = OwnMetric("finetune_eval_loss_before", "Held-out loss before training.")
TOKENS = OwnMetric(
    "finetune_trained_tokens_total",
    "Tokens trained on since the process started, but for its first step.",
    "counter",
)
TOKENS_PER_SECOND = OwnMetric(
    "finetune_tokens_per_second", "Trained tokens a second over all GPUs."
)
STEP_SECONDS = OwnMetric("finetune_step_seconds", "Duration of the newest step.")
PART_SECONDS = OwnMetric(
    "finetune_step_part_seconds",
    f"Mean seconds of a step since the log before, by what they went into: {', '.join(PARTS)}.",
    labels=("part",),
)
ETA_SECONDS = OwnMetric("finetune_eta_seconds", "Estimated seconds to the last step.")
MODEL_FLOPS_UTILIZATION = OwnMetric(
    "finetune_model_flops_utilization_ratio",
    "Share of the GPUs' peak bfloat16 arithmetic that training the model takes.",
)
CHECKPOINT_STEP = OwnMetric("finetune_checkpoint_step", "Step of the newest complete checkpoint.")
CHECKPOINT_TIMESTAMP = OwnMetric(
    "finetune_checkpoint_timestamp_seconds",
    "When the newest checkpoint was written, in seconds since 1970; its age is time() minus this.",
)
GPU_MEMORY = OwnMetric(
    "finetune_gpu_memory_peak_bytes",
    "Peak GPU memory of this process: allocated to tensors, or reserved by the allocator.",
    labels=("kind",),
)
GPU_MEMORY_USED = OwnMetric(
    "finetune_gpu_memory_used_bytes", "GPU memory in use now, by whatever process."
)
HOST_MEMORY = OwnMetric("finetune_host_memory_peak_bytes", "Peak memory of this process.")
FINDINGS = OwnMetric(
    "finetune_stability_findings_total",
    "Stability findings of the run so far; every rule of the method is there from the start.",
    "counter",
    ("rule", "severity"),
)
VERDICT = OwnMetric(
    "finetune_stability_verdict", "0 is Stable, 1 is Warning, 2 is Unstable: the worst finding."
)

OWN: Final = (
    STEP,
    TOTAL_STEPS,
    EPOCH,
    EVAL_LOSS_BEFORE,
    TOKENS,
    TOKENS_PER_SECOND,
    STEP_SECONDS,
    PART_SECONDS,
    ETA_SECONDS,
    MODEL_FLOPS_UTILIZATION,
    CHECKPOINT_STEP,
    CHECKPOINT_TIMESTAMP,
    GPU_MEMORY,
    GPU_MEMORY_USED,
    HOST_MEMORY,
    FINDINGS,
    VERDICT,
)

_BY_KEY = {metric.key: metric for metric in LOGGED}


@dataclass(frozen=True)
class Exported:
    """How one logged value is exported."""

    name: str
    help: str
    reward: str | None = None
    """Value of the label reward."""


def exported(key: str) -> Exported | None:
    """Return how a value that TRL logs is exported, by its key; None when it is not."""
    is_evaluation = key.startswith(EVALUATION)
    plain = key.removeprefix(EVALUATION)
    metric, reward = _BY_KEY.get(plain), None
    parts = plain.split("/")
    if metric is None and len(parts) == 3:
        metric, reward = _BY_KEY.get(f"{parts[0]}/*/{parts[2]}"), parts[1]
    if metric is None:
        return None
    name = f"finetune_eval_{metric.name}" if is_evaluation else f"finetune_{metric.name}"
    help_text = f"{metric.help} On held-out data." if is_evaluation else metric.help
    return Exported(name, help_text, reward)
