"""README.md of the artifact: what was trained, on what, how, with what result, how to load it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from finetune_api.spec import DatasetPart, Lora
from finetune_api.status import DatasetFacts
from finetune_api.trainer import TrainerConfig

_LIBRARIES = ("trl", "transformers", "peft", "torch", "datasets")

_CARD = """---
{front_matter}
---

# {name}

{base} fine-tuned with {method} ({adapter}) by the FineTuneJob `{namespace}/{name}`.

## Result

| | before | after |
|---|---|---|
| held-out loss | {before} | {after} |
| training loss, last step | | {loss} |

{run}

Every logged step is in `metrics.jsonl`{samples}.

## How to load it

```python
{loading}
```
{merged}
## Data

{data}

{rows} training rows ({tokens} tokens, format {format}) and {eval_rows} held-out rows.

## Hyperparameters

```json
{hyperparameters}
```

Made on {date} with {libraries}.
"""

_LOAD_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")"""

_LOAD_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")"""

_MERGED = """
The whole model, with the adapter merged into its weights, is in `merged/` and needs no PEFT:

```python
{loading}
```
"""


@dataclass(frozen=True)
class Trained:
    """What training came to, wherever the plan meant it to run."""

    metrics: dict[str, float]
    learning_rate: float
    """Peak learning rate."""
    steps: int
    batch: int
    """Rows of one step, over all processes."""
    epochs: float
    rows_seen: int
    """Rows of all steps, packed ones with packing; a row counts each time that it was seen."""
    device: str
    dtype: str
    tokens_per_second: float | None
    """Of the last process's steps; None when it had no more than one."""

    @property
    def sentence(self) -> str:
        """What was done, where and how fast."""
        speed = self.tokens_per_second
        speed_text = "" if speed is None else f", {speed:.0f} tokens per second"
        return (
            f"{self.steps} steps of {self.batch} rows: {self.rows_seen} rows seen, "
            f"{self.epochs:.2f} epochs, on {self.device} in {self.dtype}{speed_text}."
        )


def model_card(
    config: TrainerConfig,
    base: str,
    parts: list[DatasetPart],
    facts: DatasetFacts,
    trained: Trained,
) -> str:
    """Return the card as Markdown. base is the model's name as libraries know it."""
    spec = config.spec
    is_adapter = spec.adapter.type != "full"
    metrics = trained.metrics
    whole = _LOAD_MODEL.format(path="PATH/merged" if is_adapter else "PATH")
    return _CARD.format(
        front_matter=_front_matter(base, spec.method.value, is_adapter=is_adapter),
        name=config.name,
        namespace=config.namespace,
        base=base,
        method=spec.method.value,
        adapter=spec.adapter.type,
        before=_number(metrics.get("eval_loss_before")),
        after=_number(metrics.get("eval_loss")),
        loss=_number(metrics.get("loss")),
        samples=", answers before and after in `samples.json`"
        if spec.evaluation.sample_prompts
        else "",
        run=trained.sentence,
        loading=_LOAD_ADAPTER.format(base=_loadable(base)) if is_adapter else whole,
        merged=_MERGED.format(loading=whole) if is_adapter and spec.output.merged else "",
        data="\n".join(f"- {part.source}, split {part.split}" for part in parts),
        rows=facts.rows,
        tokens=facts.tokens,
        format=facts.format,
        eval_rows=facts.eval_rows,
        hyperparameters=json.dumps(_hyperparameters(config, trained), indent=1),
        date=datetime.now(UTC).date().isoformat(),
        libraries=", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    )


def _front_matter(base: str, method: str, *, is_adapter: bool) -> str:
    lines = [
        f"base_model: {base}",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in ("finetune-operator", "trl", method)),
    ]
    return "\n".join(lines)


def _hyperparameters(config: TrainerConfig, trained: Trained) -> dict[str, Any]:
    spec, plan = config.spec, config.plan
    adapter = spec.adapter.to_json()
    if spec.adapter.type != "full":
        adapter["lora"] = (spec.adapter.lora or Lora()).to_json()
    planned = plan.to_json() if plan else {}
    kept = ("microBatchSize", "gradientAccumulationSteps", "maxLength")
    training = spec.training.to_json()
    if spec.training.max_steps is not None:
        # Steps decide, and the default of epochs says nothing.
        training.pop("epochs")
    used = {"learningRate": trained.learning_rate, "precision": trained.dtype}
    return {
        "adapter": adapter,
        "training": training | used,
        "plan": {name: planned[name] for name in kept if name in planned},
    }


def _loadable(base: str) -> str:
    """Return what from_pretrained takes: a name of the hub, or where to fill in a path."""
    return f"PATH OF {base}" if "://" in base else base


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
