"""kubectl finetune recommend: from what somebody has to a job file that fits."""

import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api import names
from finetune_api.formats import REFERENCES
from finetune_api.spec import Method
from finetune_operator.plugin.advice import (
    ADAPTERS,
    Situation,
    cheapest,
    check_prompts,
    check_recognised,
    choose_method,
    on_gpus,
)
from finetune_operator.plugin.columns import renamed_for_rewards
from finetune_operator.plugin.data_file import DataFile
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.facts import Known, basis
from finetune_operator.plugin.manifests import Manifest
from finetune_operator.plugin.plan_view import listed
from finetune_operator.plugin.rules import accepted
from finetune_operator.plugin.scenarios import Scenario

_CONFIG_MAP_BYTES: Final = 1 << 20
"""A ConfigMap holds no more."""
_COMPARING: Final = {"exact-match", "accuracy"}
"""Built-in rewards that read the known answer."""


@dataclass(frozen=True)
class Wish:
    """What somebody wants to train, on what, and where it should go."""

    situation: Situation
    model: str
    data: DataFile | None
    source: str | None
    gpu: str | None
    gpus: int
    name: str
    claim: str


@dataclass(frozen=True)
class Advice:
    """A job, why it is so, and what it needs."""

    manifest: Manifest
    reasons: tuple[str, ...]
    hardware: dict[str, Scenario]
    """By adapter type: the job on the least hardware that it fits, or on the most that there is."""


def advise(wish: Wish, known: Known) -> Advice:
    """Return a job for a wish; PluginError when nothing fits."""
    if wish.data is not None:
        check_recognised(wish.data)
        if wish.situation.reward is not None:
            check_prompts(wish.data)
    choice = choose_method(wish.situation)
    draft = _draft(wish, choice.method)
    lengths = _allow_length(draft, known)
    hardware = {adapter: _on(wish, draft, adapter, known) for adapter in ADAPTERS}
    adapter, why = _adapter(wish, hardware)
    _set_adapter(draft, adapter, hardware[adapter] if wish.gpu else None)
    reasons = (f"Method {choice.method}: {choice.why}.", f"Adapter {adapter}: {why}.")
    return Advice(draft, (*_seen(wish), *reasons, *lengths, *_unread(wish)), hardware)


def _seen(wish: Wish) -> Iterator[str]:
    if wish.data is not None:
        columns = ", ".join(sorted(wish.data.columns))
        yield f"Data: {wish.data.rows:,} rows with the columns {columns} ({wish.data.format})."


def _allow_length(draft: Manifest, known: Known) -> list[str]:
    """Raise maxLength where rows are longer than it allows unset, and return why; PluginError when
    preparation would refuse the job all the same.
    """
    facts = basis(accepted(draft).spec, known)
    if facts.enough is None:
        if facts.refusal:
            raise PluginError(facts.refusal)
        return []
    spec = draft["spec"]
    output = spec.pop("output")
    spec |= {"training": {"maxLength": facts.enough}, "output": output}
    return [f"training.maxLength {facts.enough}: unset, it would be too short for the longest row."]


def _unread(wish: Wish) -> Iterator[str]:
    """Yield that a reward has nothing to compare with."""
    reward, data = wish.situation.reward, wish.data
    if reward not in _COMPARING or data is None:
        return
    renames = renamed_for_rewards(data.columns)
    if {renames.get(name, name) for name in data.columns}.isdisjoint(REFERENCES):
        yield (
            f"Reward {reward} compares with column {', '.join(REFERENCES[:-1])} or"
            f" {REFERENCES[-1]}, but the rows have none of these: add one before you train."
        )


def _draft(wish: Wish, method: Method) -> Manifest:
    dataset: dict[str, Any] = {"source": wish.source or _source(wish)}
    if method is Method.GRPO and wish.data is not None:
        dataset |= {"columns": renamed_for_rewards(wish.data.columns)}
    spec: dict[str, Any] = {
        "method": method.value,
        "model": {"source": wish.model},
        "dataset": {key: value for key, value in dataset.items() if value},
    }
    if method is Method.GRPO:
        spec["rewards"] = [_reward(wish.situation.reward or "")]
    spec["output"] = {"claim": wish.claim}
    metadata = {"name": wish.name}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": metadata,
        "spec": spec,
    }


def _source(wish: Wish) -> str:
    if wish.data is None:
        return "pvc://data/rows.jsonl"
    file = wish.data.path
    if file.stat().st_size < _CONFIG_MAP_BYTES:
        return f"configmap://{wish.name}-data/{file.name}"
    return f"pvc://data/{file.name}"


def _reward(reward: str) -> dict[str, str]:
    if "://" in reward:
        kind = "function" if reward.startswith(("configmap://", "python://")) else "model"
        return {"name": "reward", kind: reward}
    return {"name": reward, "builtin": reward}


def _on(wish: Wish, draft: Manifest, adapter: str, known: Known) -> Scenario:
    if wish.gpu is None:
        return cheapest(draft, adapter, known)
    return on_gpus(draft, adapter, wish.gpu, wish.gpus, known)


def _adapter(wish: Wish, hardware: dict[str, Scenario]) -> tuple[str, str]:
    """Return the adapter type and why; PluginError when none fits."""
    if hardware["lora"].plan:
        return "lora", "nearly as good as training all weights, for a fraction of the memory"
    if hardware["qlora"].plan:
        where = f"on {wish.gpus} x {wish.gpu}" if wish.gpu else "on the GPUs that are known"
        return "qlora", f"with a base in bf16 it would not fit {where}"
    raise PluginError(hardware["qlora"].refusal)


def _set_adapter(draft: Manifest, adapter: str, chosen: Scenario | None) -> None:
    spec = draft["spec"]
    output = spec.pop("output")
    spec["adapter"] = {"type": adapter}
    if chosen is not None:
        gpu = chosen.job.spec.resources.gpu
        spec["resources"] = {"gpu": {"product": gpu.product}}
        if gpu.count != 1:
            spec["resources"]["gpu"]["count"] = gpu.count
    spec["output"] = output


def to_yaml(advice: Advice) -> str:
    """Return the job as a file, with why it is so as a comment."""
    comment = "\n".join(
        line
        for reason in advice.reasons
        for line in textwrap.wrap(reason, 96, initial_indent="# ", subsequent_indent="#   ")
    )
    return f"{comment}\n{yaml.safe_dump(advice.manifest, sort_keys=False, width=100)}"


def show(console: Console, advice: Advice, wish: Wish) -> None:
    """Print what is advised, and what to do first."""
    console.print(listed(advice.reasons))
    table = Table(show_edge=False, pad_edge=False)
    for column in ("adapter", "least hardware", "memory of each GPU", "checkpointing"):
        table.add_column(column)
    for adapter, scenario in advice.hardware.items():
        table.add_row(adapter, *_hardware(scenario, wish))
    console.print(Text(), table, Text())
    source = advice.manifest["spec"]["dataset"]["source"]
    if wish.source is None:
        # Not wrapped, so that the command can be copied.
        console.print(f"- {_put(source, wish)}", soft_wrap=True)


def _hardware(scenario: Scenario, wish: Wish) -> tuple[str, str, str]:
    if scenario.plan is None:
        return f"not on {f'{wish.gpus} x {wish.gpu}' if wish.gpu else 'one node'}", "", ""
    plan = scenario.plan
    memory = f"{plan.memory.total:.1f} of {scenario.gpu_memory:.0f} GiB"
    return f"{plan.gpus} x {plan.gpu_product}", memory, plan.gradient_checkpointing


def _put(source: str, wish: Wish) -> str:
    if source.startswith("configmap://") and wish.data is not None:
        name, file = f"{wish.name}-data", shlex.quote(str(wish.data.path))
        command = f"kubectl create configmap {name} --from-file={file}"
        return f"Put the data into ConfigMap {name}:\n  {command}"
    return f"Put the data at {source}, and create that claim if there is none."
