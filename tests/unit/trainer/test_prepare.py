"""What prepare leaves behind, what it reports, and what it says about bad input."""
# ruff: noqa: E501 - one case per line reads best

import csv
import json
import re
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import load_from_disk

from finetune_api.failures import Reason
from finetune_api.lengths import padded_tokens
from finetune_api.trainer import JobFailure
from finetune_trainer.data.dataset import load_rows
from unit.trainer.builders import (
    CHAT_TEMPLATE,
    MARKED_TEMPLATE,
    chat_rows,
    make_config,
    save_tokenizer,
    write_rows,
)
from unit.trainer.conftest import Site


def texts(count: int, length: int = 3) -> list[dict[str, Any]]:
    return [{"text": "x" * length} for _ in range(count)]


def training(**fields: Any) -> dict[str, Any]:
    return {"training": {"maxSteps": 2, **fields}}


def dataset(**fields: Any) -> dict[str, Any]:
    return {"dataset": {"source": "pvc://data/rows.jsonl", **fields}}


def failure_of(site: Site, **spec: Any) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        site.prepare(make_config(**spec))
    return caught.value


def test_facts_of_model_and_data(site: Site) -> None:
    result = site.prepare(make_config(dataset={"source": "pvc://data/rows.jsonl"}))
    facts = result.preparation
    assert facts is not None
    assert (facts.model.architecture, facts.model.model_type) == ("LlamaForCausalLM", "llama")
    assert (facts.model.layers, facts.model.heads, facts.model.kv_heads) == (2, 4, 2)
    assert (facts.model.head_dim, facts.model.max_positions) == (16, 512)
    assert (facts.model.tied_embeddings, facts.model.dtype) == (True, "float32")
    assert facts.model.parameters == 90_688
    assert (facts.dataset.format, facts.dataset.rows, facts.dataset.eval_rows) == ("chat", 40, 0)
    rows = load_from_disk(str(site.paths.data / "train"))
    lengths = [len(ids) for ids in rows["input_ids"]]
    assert facts.dataset.tokens == sum(lengths)
    assert facts.dataset.max_tokens == max(lengths)
    assert facts.dataset.mean_tokens == pytest.approx(sum(lengths) / 40, abs=0.1)
    assert facts.dataset.padded_tokens == padded_tokens(Counter(lengths))
    assert len(result.to_message()) < 4096


def test_a_second_prepare_fetches_nothing(site: Site) -> None:
    config = make_config()
    first = site.prepare(config)
    shutil.rmtree(site.paths.sources)
    assert site.prepare(config) == first


def test_prepare_after_a_crash_uses_what_was_finished(site: Site) -> None:
    config = make_config()
    first = site.prepare(config)
    shutil.rmtree(site.paths.data)
    shutil.rmtree(site.model)
    left = site.paths.workspace / ".data.partial/train"
    left.mkdir(parents=True)
    (left / "data.arrow").write_text("half")
    assert site.prepare(config) == first


def test_a_changed_source_is_fetched_again(site: Site) -> None:
    site.prepare(make_config())
    site.write_data(texts(3), "other.jsonl")
    result = site.prepare(make_config(dataset={"source": "pvc://data/other.jsonl"}))
    assert result.preparation is not None
    assert (result.preparation.dataset.format, result.preparation.dataset.rows) == ("completion", 3)


def test_held_out_rows(site: Site) -> None:
    result = site.prepare(make_config(**dataset(evalFraction=0.1)))
    assert result.preparation is not None
    assert (result.preparation.dataset.rows, result.preparation.dataset.eval_rows) == (36, 4)
    site.write_data(texts(7), "both/train.jsonl")
    site.write_data(texts(3), "both/test.jsonl")
    split = {"source": "pvc://data/both", "evalSplit": "test"}
    result = site.prepare(make_config(dataset=split))
    assert result.preparation is not None
    assert (result.preparation.dataset.rows, result.preparation.dataset.eval_rows) == (7, 3)


def test_splits_named_by_the_dataset_card(site: Site) -> None:
    site.write_data(texts(2), "card/a.jsonl")
    site.write_data(texts(5), "card/b.jsonl")
    card = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: b.jsonl}\n"
    (site.paths.sources / "pvc/data/card/README.md").write_text(f"---\n{card}---\n")
    result = site.prepare(make_config(dataset={"source": "pvc://data/card"}))
    assert result.preparation is not None
    assert result.preparation.dataset.rows == 5


def test_a_mixture_is_mixed_by_weight_without_repeating_rows(site: Site) -> None:
    site.write_data(texts(10), "few.jsonl")
    mixture = [
        {"source": "pvc://data/rows.jsonl", "weight": 3},
        {"source": "pvc://data/few.jsonl", "weight": 1},
    ]
    result = site.prepare(make_config(dataset={"mixture": mixture}))
    assert result.preparation is not None
    assert result.preparation.dataset.format == "chat+completion"
    assert result.preparation.dataset.rows == 30 + 10


def test_first_samples_only(site: Site) -> None:
    result = site.prepare(make_config(**dataset(maxSamples=5)))
    assert result.preparation is not None
    assert result.preparation.dataset.rows == 5


def test_renamed_columns(site: Site) -> None:
    site.write_data([{"body": "a"}, {"body": "b"}])
    result = site.prepare(make_config(**dataset(columns={"body": "text"})))
    assert result.preparation is not None
    assert result.preparation.dataset.format == "completion"


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz", "rows"])
def test_file_types(site: Site, name: str) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c,\n", "completion": '"d"'}]
    path = site.paths.sources / "pvc/data" / name
    if name == "rows.json":
        path.write_text(json.dumps(rows))
    elif name == "rows.csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(rows)
    elif name == "rows.parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif name == "rows.jsonl.gz":
        import gzip

        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        write_rows(path, rows)
    result = site.prepare(make_config(dataset={"source": f"pvc://data/{name}"}))
    assert result.preparation is not None
    assert (result.preparation.dataset.format, result.preparation.dataset.rows) == (
        "prompt-completion",
        2,
    )


def test_data_from_a_config_map(site: Site) -> None:
    write_rows(site.paths.sources / "configmap/small/rows.jsonl", texts(4))
    result = site.prepare(make_config(dataset={"source": "configmap://small/rows.jsonl"}))
    assert result.preparation is not None
    assert result.preparation.dataset.rows == 4


@pytest.mark.parametrize(("action", "rows", "dropped"), [("truncate", 3, 0), ("drop", 2, 1)])
def test_long_rows(site: Site, action: str, rows: int, dropped: int) -> None:
    site.write_data([*texts(2), *texts(1, length=40)])
    spec = dataset(tooLong=action) | training(maxLength=16)
    result = site.prepare(make_config(**spec))
    assert result.preparation is not None
    assert (result.preparation.dataset.rows, result.preparation.dataset.dropped) == (rows, dropped)
    assert result.preparation.dataset.max_tokens == (16 if action == "truncate" else 4)


CHAT_ROW = chat_rows(1)[0]

BAD_DATA: dict[str, tuple[list[Any] | str, dict[str, Any], Reason, str]] = {
    "empty": ([], {}, Reason.DATA_INVALID, "split train of pvc://data/rows.jsonl is empty: expected rows."),
    "not JSON": ('{"text": "a"}\n{"text"\n', {}, Reason.DATA_INVALID, r"line 2 of rows.jsonl is not valid JSON \(Expecting ':' delimiter at character 8\): correct the file"),
    "no object": ("3\n", {}, Reason.DATA_INVALID, "row 1 of rows.jsonl is a number, expected an object with columns"),
    "preferences": ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, Reason.DATA_INVALID, r"look like paired preferences \(prompt, chosen, rejected\), which method dpo or kto or orpo or reward needs; method sft needs .*\(messages\)"),
    "labelled": ([{"prompt": "a", "completion": "b", "label": True}], {}, Reason.DATA_INVALID, "look like unpaired preferences .* which method kto needs"),
    "prompts": ([{"prompt": "a"}], {}, Reason.DATA_INVALID, "look like bare prompts .* which method grpo needs"),
    "unknown columns": ([{"foo": "a", "bar": "b"}], {}, Reason.DATA_INVALID, "has the columns bar, foo, which are no known format; method sft needs .* dataset.columns"),
    "format does not fit": ([{"text": "a"}], dataset(format="chat"), Reason.DATA_INVALID, "dataset.format is chat, which needs the columns messages, but .* has text"),
    "null": ([{"text": "a"}, {"text": None}], {}, Reason.DATA_INVALID, "row 2 of rows.jsonl: column text is null, expected text; correct or remove the row"),
    "blank": ([{"text": " "}], {}, Reason.DATA_INVALID, "row 1 of rows.jsonl: column text is empty"),
    "missing": ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], {}, Reason.DATA_INVALID, "row 2 of rows.jsonl: column completion is missing"),
    "no messages": ([{"messages": []}], {}, Reason.DATA_INVALID, "column messages is an empty list"),
    "no role": ([{"messages": [{"content": "a"}]}], {}, Reason.DATA_INVALID, r"messages\[0\] has no role; found content"),
    "unknown role": ([CHAT_ROW] * 8 + [{"messages": [{"role": "customer", "content": "a"}]}], {}, Reason.DATA_INVALID, r"^row 9 of rows.jsonl: messages\[0\].role is 'customer', expected system, user, assistant or tool; correct or remove the row"),
    "unknown role in ShareGPT": ([{"conversations": [{"from": "customer", "value": "a"}]}], {}, Reason.DATA_INVALID, r"conversations\[0\].from is 'customer', expected"),
    "no answer": ([{"messages": [{"role": "user", "content": "a"}]}], {}, Reason.DATA_INVALID, "has no turn of the assistant"),
    "image": ([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], {}, Reason.DATA_INVALID, r"messages\[0\].content is a list, expected text: only text is trained"),
    "template refuses": ([CHAT_ROW], {"model": {"source": "pvc://models/tiny", "chatTemplate": "{{ raise_exception('roles must alternate') }}"}}, Reason.DATA_INVALID, r"row 1 of rows.jsonl: the chat template refuses the messages \(roles must alternate\)"),
    "template broken": ([CHAT_ROW], {"model": {"source": "pvc://models/tiny", "chatTemplate": "{% for %}"}}, Reason.CONFIG_INVALID, "the chat template is not valid Jinja .* correct model.chatTemplate"),
    "unknown token": ([{"input_ids": [1, 999]}], {}, Reason.DATA_INVALID, "token 999 is not in the model's vocabulary of 260"),
    "uneven tokens": ([{"input_ids": [1, 2], "labels": [1]}], {}, Reason.DATA_INVALID, "input_ids, labels and attention_mask have 2, 1 and 2 entries"),
    "nothing to learn": ([{"input_ids": [1], "labels": [-100]}], {}, Reason.DATA_INVALID, "every label is masked"),
    "longer than the model": ([*texts(1), *texts(1, 600)], {}, Reason.DATA_INVALID, r"row 2 of rows.jsonl has 601 tokens, but training.maxLength is unset, which allows 512 \(1 of 2 rows are longer; the model knows 512 positions\): set dataset.tooLong to truncate or drop"),
    "longer than maxLength": ([*texts(1), *texts(1, 40)], training(maxLength=16), Reason.DATA_INVALID, "has 41 tokens, but training.maxLength is 16 .*: raise training.maxLength to 41, or set dataset.tooLong"),
    "all dropped": (texts(2, 40), dataset(tooLong="drop") | training(maxLength=16), Reason.DATA_INVALID, "no training row is left"),
    "one row cannot be split": (texts(1), dataset(evalFraction=0.5), Reason.DATA_INVALID, "evalFraction is 0.5, but there is only one row"),
    "renamed column is not there": (texts(1), dataset(columns={"body": "text"}), Reason.DATA_INVALID, "dataset.columns renames body, but row 1 of rows.jsonl .* has only text"),
    "no such split": (texts(1), dataset(split="validation"), Reason.DATASET_NOT_FOUND, "dataset.split is validation, but pvc://data/rows.jsonl has only the split train"),
    "no such eval split": (texts(2), dataset(evalSplit="test"), Reason.DATASET_NOT_FOUND, "dataset.evalSplit is test"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data(site: Site, case: tuple[list[Any] | str, dict[str, Any], Reason, str]) -> None:
    content, spec, reason, message = case
    if isinstance(content, str):
        (site.paths.sources / "pvc/data/rows.jsonl").write_text(content)
    else:
        site.write_data(content)
    failure = failure_of(site, **spec)
    assert failure.reason is reason, failure.message
    assert re.search(message, failure.message), failure.message
    assert not site.paths.data.exists()


PAIR = {"prompt": "hi ", "chosen": "yes", "rejected": "no"}
DPO: dict[str, Any] = {"method": "dpo"}
KTO: dict[str, Any] = {"method": "kto"}
ONLINE: dict[str, Any] = {
    "method": "grpo",
    "rewards": [{"name": "long", "builtin": "length"}],
    "generation": {"maxCompletionLength": 32, "groupSize": 2},
    "training": {"batchSize": 2},
}
TURN = {"role": "user", "content": "hi"}

BAD_ROWS: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "chats for dpo": ([CHAT_ROW], DPO, r"look like chats \(messages\), which method sft or ebft needs; method dpo needs \(\[prompt,\] chosen, rejected\)"),
    "pairs for grpo": ([PAIR], ONLINE, "look like paired preferences .* which method dpo or kto or orpo or reward needs; method grpo needs"),
    "same answers": ([PAIR, PAIR | {"rejected": "yes"}], DPO, "row 2 of rows.jsonl: chosen and rejected are the same, expected a difference"),
    "no rejected": ([PAIR, {"prompt": "a", "chosen": "b"}], DPO, "row 2 of rows.jsonl: column rejected is missing"),
    "nothing in common": ([{"chosen": [TURN], "rejected": [{"role": "user", "content": "ho"}]}], DPO, "chosen and rejected have 0 of their 1 and 1 turns in common"),
    "nothing but the prompt": ([{"chosen": [TURN], "rejected": [TURN, TURN]}], DPO, "chosen and rejected have 1 of their 1 and 2 turns in common"),
    "no rank": ([{"prompt": "a", "answers": [{"answer": "b"}, {"answer": "c"}]}], DPO, r"answers\[0\] has no rank"),
    "one answer": ([{"prompt": "a", "answers": [{"answer": "b", "rank": 1}]}], DPO, "column answers is a list, expected a list of several answers"),
    "label": ([{"prompt": "a", "completion": "b", "label": "good"}], KTO, "column label is 'good', expected true or false"),
    "no label": ([{"prompt": "a", "completion": "b", "label": None}], KTO, "column label is None, expected true or false"),
    "no answer": ([{"completion": [TURN], "label": True}], KTO, "column completion does not end with an answer of the assistant"),
    "long pair": ([PAIR, PAIR | {"rejected": "n" * 40}], DPO | training(maxLength=16), "row 2 of rows.jsonl has 44 tokens, but training.maxLength is 16"),
    "long prompt": ([{"prompt": "p" * 500}], ONLINE, "has 500 tokens, but training.maxLength is unset, which allows 512 and generation.maxCompletionLength is 32 .*: set dataset.tooLong to drop"),
    "longer than maxPromptLength": ([{"prompt": "p" * 50}], ONLINE | {"generation": {"maxCompletionLength": 32, "maxPromptLength": 20, "groupSize": 2}}, "generation.maxPromptLength is 20 .*: raise generation.maxPromptLength to 50, or set dataset.tooLong to drop"),
    "no room for prompts": ([{"prompt": "a"}], ONLINE | {"generation": {"groupSize": 2}}, "which leaves no room for a prompt: lower maxCompletionLength"),
    "two sorts of prompts": ([{"prompt": "a"}, {"prompt": [TURN]}], ONLINE, "some prompts are text and others are lists of messages"),
    "tools for grpo": ([{"prompt": [TURN], "tools": [{"name": "clock"}]}], ONLINE, "column tools is not empty, but this method offers no tools"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_rows_of_other_methods(site: Site, case: tuple[list[Any], dict[str, Any], str]) -> None:
    rows, spec, message = case
    site.write_data(rows)
    failure = failure_of(site, **spec)
    assert re.search(message, failure.message), failure.message
    assert not site.paths.data.exists()


def test_pairs_too_long_are_cut_or_dropped(site: Site) -> None:
    long = "y" * 40
    rows = [
        PAIR,
        PAIR | {"chosen": long},
        # Nothing is left of the difference, and nothing of the answers.
        PAIR | {"chosen": f"{long}!", "rejected": long},
        PAIR | {"prompt": long},
    ]
    site.write_data(rows)
    config = make_config(**DPO | dataset(tooLong="truncate") | training(maxLength=16))
    result = site.prepare(config)
    assert result.preparation is not None
    assert (result.preparation.dataset.rows, result.preparation.dataset.dropped) == (2, 2)
    assert result.preparation.dataset.max_tokens == 16
    stored = load_from_disk(str(site.paths.data / "train"))
    assert [len(row["chosen_ids"]) for row in stored] == [4, 13]


def test_pairs_become_labelled_answers_and_stay_together(site: Site) -> None:
    site.write_data([PAIR | {"prompt": f"{number} "} for number in range(20)])
    result = site.prepare(make_config(**KTO | dataset(evalFraction=0.3)))
    assert result.preparation is not None
    assert (result.preparation.dataset.rows, result.preparation.dataset.eval_rows) == (28, 12)
    train, held_out = (load_from_disk(str(site.paths.data / name)) for name in ("train", "eval"))
    trained_on = {tuple(ids) for ids in train["prompt_ids"]}
    assert trained_on.isdisjoint(tuple(ids) for ids in held_out["prompt_ids"])
    assert sum(train["label"]) == 14
    # The neighbour that a row is compared with is to answer another prompt.
    for rows in (train, held_out):
        labels = list(rows["label"])
        assert any(left == right for left, right in pairwise(labels))


def test_prompts_keep_every_column_as_it_is(site: Site) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "answer": {"value": [1, None]}, "level": 1},
        {"prompt": "b", "answer": "text", "level": 2.5, "source": None},
        {"prompt": "c", "answer": ["x", 3]},
    ]
    site.write_data(rows)
    result = site.prepare(make_config(**ONLINE))
    assert result.preparation is not None
    assert result.preparation.dataset.max_tokens == 1 + 32
    loaded = load_rows(site.paths.data, "train")
    assert loaded is not None
    assert set(loaded.column_names) == {"prompt", "answer", "level", "source"}
    assert list(loaded) == [{"level": None, "source": None} | row for row in rows]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "a", "completion": "b"}, "a"),
        ({"prompt": [TURN], "completion": [{"role": "assistant", "content": "b"}]}, [TURN]),
        ({"question": "hi", "answer": "b"}, [TURN]),
    ],
)
def test_known_answers_become_the_ground_truth(
    site: Site, row: dict[str, Any], prompt: Any
) -> None:
    site.write_data([row])
    site.prepare(make_config(**ONLINE))
    loaded = load_rows(site.paths.data, "train")
    assert loaded is not None
    assert loaded[0] == row | {"prompt": prompt, "ground_truth": "b"}


def test_methods_mix_datasets_by_weight(site: Site) -> None:
    site.write_data([PAIR] * 10, "few.jsonl")
    site.write_data([{"input": "hi", "chosen": "yes", "rejected": "no"}] * 40)
    mixture = [
        {"source": "pvc://data/rows.jsonl", "weight": 3},
        {"source": "pvc://data/few.jsonl", "weight": 1},
    ]
    result = site.prepare(make_config(**DPO, dataset={"mixture": mixture}))
    assert result.preparation is not None
    assert result.preparation.dataset.rows == 40


BAD_SPECS: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "other job": ({"model": {"source": "job://first"}}, Reason.CONFIG_INVALID, "model.source is job://first, but job.json does not say what that job has made"),
    "unknown extra": (training(extra={"neftune_noise_alhpa": 5}), Reason.CONFIG_INVALID, r"training.extra.neftune_noise_alhpa is no field of TRL's SFTConfig: did you mean neftune_noise_alpha\?"),
    "owned extra of a method": (DPO | training(extra={"beta": 0.5}), Reason.CONFIG_INVALID, "training.extra.beta is set by the spec"),
    "order of kto": (KTO | training(extra={"train_sampling_strategy": "random"}), Reason.CONFIG_INVALID, "training.extra.train_sampling_strategy is set by the spec"),
    "reference that moves": (DPO | training(extra={"sync_ref_model": True}), Reason.CONFIG_INVALID, "training.extra.sync_ref_model is set by the spec: use nothing: the reference stays"),
    "extra of another method": (DPO | training(extra={"num_completions_to_print": 1}), Reason.CONFIG_INVALID, "training.extra.num_completions_to_print is no field of TRL's DPOConfig"),
    "owned extra": (training(extra={"max_steps": 5}), Reason.CONFIG_INVALID, "training.extra.max_steps is set by the spec: use training.maxSteps"),
    "wrong type": (training(extra={"adam_beta1": "high"}), Reason.CONFIG_INVALID, "training.extra.adam_beta1 is 'high', expected float"),
    "value that TRL refuses": (training(extra={"optim": "sgdd"}), Reason.CONFIG_INVALID, "training.extra: sgdd is not a valid OptimizerNames"),
    "no held-out rows": (training(evalEverySteps=1), Reason.CONFIG_INVALID, "training.evalEverySteps is 1, but no rows are held out"),
    "too long for the model": (training(maxLength=1024), Reason.CONFIG_INVALID, "training.maxLength is 1024, but the model knows only 512 positions: lower it to 512"),
    "unmarked template": (training(assistantOnlyLoss=True), Reason.CONFIG_INVALID, "training.assistantOnlyLoss is true, but the chat template does not mark"),
    "unknown layer": ({"adapter": {"lora": {"targetModules": ["q_porj"]}}}, Reason.CONFIG_INVALID, r'adapter.lora.targetModules: "q_porj" is no layer of the model: it has .*q_proj'),
    "output head": ({"adapter": {"lora": {"targetModules": ["lm_head"]}}}, Reason.CONFIG_INVALID, "lm_head is the output head"),
    "missing claim folder": ({"model": {"source": "pvc://models/huge"}}, Reason.MODEL_NOT_FOUND, "the claim models has no huge: it holds tiny"),
    "missing ConfigMap": ({"dataset": {"source": "configmap://chats/rows.jsonl"}}, Reason.DATASET_NOT_FOUND, "the ConfigMap chats does not exist or is empty: put rows.jsonl there"),
    "missing file": ({"dataset": {"source": "pvc://data/nope.jsonl"}}, Reason.DATASET_NOT_FOUND, "the claim data has no nope.jsonl: it holds rows.jsonl"),
    "not a model": ({"model": {"source": "pvc://data/docs"}}, Reason.MODEL_NOT_FOUND, "model.source is pvc://data/docs, which holds no usable file: found notes.md"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_bad_specs(site: Site, case: tuple[dict[str, Any], Reason, str]) -> None:
    spec, reason, message = case
    if spec.get("model", {}).get("source") == "pvc://data/docs":
        write_rows(site.paths.sources / "pvc/data/docs/notes.md", [])
    failure = failure_of(site, **spec)
    assert failure.reason is reason, failure.message
    assert re.search(message, failure.message), failure.message


def _no_tokenizer(model: Path) -> None:
    for file in model.glob("token*"):
        file.unlink()


def _no_template(model: Path) -> None:
    save_tokenizer(model, chat_template=None)
    (model / "chat_template.jinja").unlink(missing_ok=True)


def _config(**fields: Any) -> Any:
    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | fields))

    return change


def _truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])


def _unlink(name: str) -> Any:
    return lambda model: (model / name).unlink()


BAD_MODELS: dict[str, tuple[Any, Reason, str]] = {
    "no tokenizer": (_no_tokenizer, Reason.MODEL_UNSUPPORTED, "has no tokenizer that Transformers can load: expected tokenizer.json"),
    "no chat template": (_no_template, Reason.CONFIG_INVALID, "the rows are chats, but the model has no chat template, as base models have none: give one in model.chatTemplate"),
    "no config": (_unlink("config.json"), Reason.MODEL_NOT_FOUND, "has no config.json"),
    "no weights": (_unlink("model.safetensors"), Reason.MODEL_NOT_FOUND, "has a config.json but no weights"),
    "truncated weights": (_truncated, Reason.MODEL_UNSUPPORTED, "damaged weight file: model.safetensors"),
    "encoder": (_config(model_type="vit"), Reason.MODEL_UNSUPPORTED, "is a vit, which is no causal language model"),
    "unknown": (_config(model_type="zork"), Reason.MODEL_UNSUPPORTED, "has model_type zork, which this trainer's Transformers does not know"),
    "own code": (_config(model_type="zork", auto_map={"AutoConfig": "x.Y"}), Reason.MODEL_UNSUPPORTED, "needs Python code of its own .* set model.trustRemoteCode to true"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_bad_models(site: Site, case: tuple[Any, Reason, str]) -> None:
    change, reason, message = case
    change(site.model)
    failure = failure_of(site)
    assert failure.reason is reason, failure.message
    assert re.search(message, failure.message), failure.message


def test_a_model_that_cannot_become_a_reward_model(site: Site) -> None:
    _config(model_type="granite")(site.model)
    failure = failure_of(site, method="reward")
    assert failure.reason is Reason.MODEL_UNSUPPORTED, failure.message
    assert "is a granite, of which Transformers can make no sequence classifier" in failure.message


def test_a_chat_template_of_the_spec_wins(site: Site) -> None:
    _no_template(site.model)
    model = {"source": "pvc://models/tiny", "chatTemplate": MARKED_TEMPLATE}
    site.prepare(make_config(model=model))
    rows = load_from_disk(str(site.paths.data / "train"))
    assert rows[0]["labels"][0] == -100
    model["chatTemplate"] = CHAT_TEMPLATE
    site.prepare(make_config(model=model))
    rows = load_from_disk(str(site.paths.data / "train"))
    assert rows[0]["labels"] == rows[0]["input_ids"]


def test_a_taken_output_path_is_a_conflict(site: Site) -> None:
    site.artifact.mkdir()
    site.prepare(make_config())
    (site.artifact / "notes.txt").write_text("mine")
    failure = failure_of(site)
    assert failure.reason is Reason.OUTPUT_CONFLICT
    assert "output.path tiny of claim out is taken by something else" in failure.message
    owner = {"uid": "another", "name": "first", "namespace": "test", "result": {}}
    (site.artifact / ".finetune-job.json").write_text(json.dumps(owner))
    assert "is taken by the FineTuneJob first:" in failure_of(site).message
    # A job that was deleted and created again under the same name.
    (site.artifact / ".finetune-job.json").write_text(json.dumps(owner | {"name": "tiny"}))
    assert "is taken by an earlier FineTuneJob tiny:" in failure_of(site).message
