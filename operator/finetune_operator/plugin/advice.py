"""Which method, adapter and hardware fit what somebody has: a decision tree, then the planner.

The tree is that of Axolotl's guide "Which Fine-Tuning Method Should I Use?": a reward leads to
grpo, pairs to dpo, marked answers to kto, examples to sft.
"""

from dataclasses import dataclass
from typing import Final

from finetune_api.spec import FORMATS, DatasetFormat, Method
from finetune_operator.planning.products import PRODUCTS
from finetune_operator.plugin.data_file import DataFile
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.facts import Known
from finetune_operator.plugin.manifests import Manifest
from finetune_operator.plugin.scenarios import Scenario, planned

ADAPTERS: Final = ("lora", "qlora", "full")

HAVE: Final = {
    "examples": DatasetFormat.CHAT,
    "pairs": DatasetFormat.PREFERENCE,
    "labels": DatasetFormat.UNPAIRED_PREFERENCE,
    "prompts": DatasetFormat.PROMPT,
}
"""What people say they have, and a format that it is."""

_GPUS: Final = ("NVIDIA-L4", "NVIDIA-L40S", "NVIDIA-H100-80GB-HBM3", "NVIDIA-H200")
"""One product for each common size of memory."""

_COUNTS: Final = (1, 2, 4, 8)

_WHY: Final = {
    Method.GRPO: "a reward scores the model's own answers, so it learns from what it writes itself",
    Method.REWARD: "pairs teach a model to score answers, as a reward for grpo",
    Method.DPO: "pairs show the better and the worse answer to the same prompt; orpo is the"
    " alternative where no sft was done before",
    Method.KTO: "answers are marked good or bad one by one, without pairs",
    Method.SFT: "examples show the answers that are wanted; it is the simplest method and the"
    " usual first step",
}


@dataclass(frozen=True)
class Situation:
    """What somebody has and wants."""

    format: DatasetFormat | None
    """What the rows are."""
    reward: str | None = None
    """A built-in reward or the source of a reward function, if answers can be scored."""
    wants_reward_model: bool = False


@dataclass(frozen=True)
class Choice:
    """What is advised, and why."""

    method: Method
    why: str


def choose_method(situation: Situation) -> Choice:
    """Return the method for a situation; PluginError when there is nothing to learn from."""
    if situation.wants_reward_model:
        method = Method.REWARD
    elif situation.reward is not None:
        method = Method.GRPO
    else:
        method = _by_format(situation.format)
    if situation.format is not None and method is not Method.GRPO:
        _check_format(method, situation.format)
    return Choice(method, _WHY[method])


def _by_format(found: DatasetFormat | None) -> Method:
    if found is DatasetFormat.PREFERENCE:
        return Method.DPO
    if found is DatasetFormat.UNPAIRED_PREFERENCE:
        return Method.KTO
    if found in FORMATS[Method.SFT]:
        return Method.SFT
    what = "prompts alone are" if found is DatasetFormat.PROMPT else "there is"
    raise PluginError(
        f"{what} nothing to learn from: give --reward if answers can be scored, or make data first,"
        " such as answers that you want, or pairs that a stronger model has judged."
    )


def _check_format(method: Method, found: DatasetFormat) -> None:
    if found not in FORMATS[method]:
        raise PluginError(
            f"a reward model needs pairs (chosen, rejected), and data of the format {found} has"
            " none: collect pairs first."
        )


def check_recognised(data: DataFile) -> None:
    """Raise PluginError when rows have columns that no method knows."""
    if data.format is None:
        raise PluginError(
            f"{data.path} has the columns {', '.join(sorted(data.columns))}, which are no known"
            " format: rename them, for example to prompt and completion."
        )


def check_prompts(data: DataFile) -> None:
    """Raise PluginError when rows have no column that could be a prompt for grpo."""
    usable = {DatasetFormat.PROMPT, DatasetFormat.PROMPT_COMPLETION, DatasetFormat.INSTRUCTION}
    if data.format not in usable:
        found = ", ".join(sorted(data.columns))
        raise PluginError(
            f"{data.path} has the columns {found}, but grpo needs a column of prompts, and one of"
            " answers if the reward compares with them: write such a file."
        )


def on_gpus(manifest: Manifest, adapter: str, gpu: str, count: int, known: Known) -> Scenario:
    """Return the job with an adapter on so many GPUs of a product."""
    return planned(manifest, f"adapter={adapter},gpu={gpu},count={count}", known)


def cheapest(manifest: Manifest, adapter: str, known: Known) -> Scenario:
    """Return the job on the hardware with the least memory in all that it fits, else on the most.

    Of the same memory in all, fewer GPUs are simpler.
    """
    choices = sorted(
        (PRODUCTS[gpu].mebibytes * count, count, gpu) for gpu in _GPUS for count in _COUNTS
    )
    for _, count, gpu in choices[:-1]:
        scenario = on_gpus(manifest, adapter, gpu, count, known)
        if scenario.plan is not None:
            return scenario
    _, count, gpu = choices[-1]
    return on_gpus(manifest, adapter, gpu, count, known)
