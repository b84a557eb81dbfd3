"""README.md of the artifact: what was trained, on what, how, with what result, how to load it."""

import json

from huggingface_hub import ModelCardData

from finetune_api.spec import Method
from finetune_trainer.report.data import ReportData
from finetune_trainer.report.measures import ONLINE, Measure, number

_CARD = """---
{front_matter}
---

# {name}

{base} fine-tuned with {method} ({adapter}) by the FineTuneJob `{namespace}/{name}`.

## Result

| | before | after |
|---|---|---|
{results}

{run}

{stability} Curves and everything else that was measured are in [report.html](report.html), every
logged step is in `metrics.jsonl`{samples}.

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

_MERGED = """
The whole model, with the adapter merged into its weights, is in `merged/` and needs no PEFT:

```python
{loading}
```
"""


def model_card(data: ReportData) -> str:
    """Return the card as Markdown, with front matter as model hubs read it."""
    spec, facts = data.spec, data.facts
    return _CARD.format(
        front_matter=_front_matter(data),
        name=data.config.name,
        namespace=data.config.namespace,
        base=data.base,
        method=spec.method.value,
        adapter=spec.adapter.type,
        results="\n".join(_results(data)),
        run=data.training_sentence,
        stability=data.stability_sentence,
        samples=", answers before and after in `samples.json`" if data.samples else "",
        loading=_load_adapter(data) if data.is_adapter else _load_model(data, "PATH"),
        merged=_MERGED.format(loading=_load_model(data, "PATH/merged")) if _is_merged(data) else "",
        data="\n".join(f"- {part.source}, split {part.split}" for part in data.parts),
        rows=facts.rows,
        tokens=facts.tokens,
        format=facts.format,
        eval_rows=facts.eval_rows,
        hyperparameters=json.dumps(data.hyperparameters(), indent=1),
        date=data.made.date().isoformat(),
        libraries=", ".join(f"{name} {version}" for name, version in data.versions.items()),
    )


def _front_matter(data: ReportData) -> str:
    is_reward = data.spec.method is Method.REWARD
    card = ModelCardData(
        # Hubs take only their own names for a base model.
        base_model=None if "://" in data.base else data.base,
        library_name="peft" if data.is_adapter else "transformers",
        pipeline_tag="text-classification" if is_reward else "text-generation",
        tags=["finetune-operator", "trl", data.spec.method.value],
    )
    return str(card.to_yaml())


def _results(data: ReportData) -> list[str]:
    rows = [_row(measure) for measure in data.measures] or ["| held-out rows | none | none |"]
    if data.spec.method in ONLINE:
        return rows
    loss = data.trained.metrics.get("loss")
    return [*rows, f"| training loss, last step | | {_decimal(loss)} |"]


def _row(measure: Measure) -> str:
    note = f" ({measure.meaning.note})" if measure.meaning.note else ""
    before, after = _decimal(measure.before), _decimal(measure.after)
    return f"| {measure.meaning.label}{note} | {before} | {after} |"


def _decimal(value: float | None) -> str:
    return number(None) if value is None else f"{value:.4f}"


def _is_merged(data: ReportData) -> bool:
    # What other jobs' adapters were merged into is nowhere else.
    return data.is_adapter and bool(data.spec.output.merged or data.start.merge)


def _load_adapter(data: ReportData) -> str:
    """Return how to put the adapter on its base, and first what was merged into that."""
    kind, options = _class(data)
    lines = [
        "from peft import PeftModel",
        f"from transformers import {kind}, AutoTokenizer",
        "",
        f'base = {kind}.from_pretrained("{_loadable(data.base)}"{options})',
    ]
    for merged in data.start.merge:
        adapted = f'PeftModel.from_pretrained(base, "{_loadable(merged)}")'
        lines.append(f"base = {adapted}.merge_and_unload()")
    lines += [
        'model = PeftModel.from_pretrained(base, "PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
    ]
    return "\n".join(lines)


def _load_model(data: ReportData, path: str) -> str:
    kind, _ = _class(data)
    return "\n".join(
        [
            f"from transformers import {kind}, AutoTokenizer",
            "",
            f'model = {kind}.from_pretrained("{path}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{path}")',
        ]
    )


def _class(data: ReportData) -> tuple[str, str]:
    """Return the class that loads such models, and what a base model needs to become one."""
    if data.spec.method is Method.REWARD:
        return "AutoModelForSequenceClassification", ", num_labels=1"
    return "AutoModelForCausalLM", ""


def _loadable(base: str) -> str:
    """Return what from_pretrained takes: a name of the hub, or where to fill in a path."""
    return f"PATH OF {base}" if "://" in base else base
