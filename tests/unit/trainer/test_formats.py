"""Every format of supervised data is recognised by its columns and labelled as it should be."""
# ruff: noqa: E501 - one case per line reads best

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_api.formats import recognise
from finetune_api.spec import DatasetFormat, Method
from finetune_api.trainer import JobFailure
from finetune_trainer.data.cells import RowError
from finetune_trainer.data.examples import read_demonstration
from finetune_trainer.data.records import Tokens
from finetune_trainer.data.render import Renderer, assistant_template
from unit.trainer.builders import CHAT_TEMPLATE, MARKED_TEMPLATE, save_tokenizer

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
CHAT = "<|user|>hi<|end|><|assistant|>yo<|end|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    row: dict[str, Any],
    template: str | None = CHAT_TEMPLATE,
    assistant_only: bool | None = None,
) -> tuple[str, str, str]:
    """Return the format, all of the text, and the part of it that is learned."""
    tokenizer.chat_template = template
    shape = recognise(row.keys(), DatasetFormat.AUTO, Method.SFT, "data")
    renderer = Renderer(tokenizer, 260, assistant_template(tokenizer, shape.format, assistant_only))
    tokens = renderer.render(read_demonstration(row, shape, has_template=template is not None))
    assert isinstance(tokens, Tokens)
    learned = [token for token in tokens.labels if token != -100]
    texts = tokenizer.batch_decode([tokens.input_ids, learned])
    return shape.format.value, texts[0], texts[1]


@pytest.mark.parametrize(
    ("row", "format_", "text", "learned"),
    [
        ({"messages": TURNS}, "chat", CHAT, CHAT),
        ({"conversations": SHAREGPT}, "chat", CHAT, CHAT),
        ({"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]'}, "chat", CHAT, CHAT),
        ({"messages": [TURNS[0], {"role": "assistant", "content": [{"type": "text", "text": "yo"}]}]}, "chat", CHAT, CHAT),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt-completion", CHAT, "yo<|end|>"),
        ({"prompt": "a ", "completion": "b"}, "prompt-completion", "a b<|end|>", "b<|end|>"),
        ({"prompt": json.dumps(TURNS[:1]), "completion": json.dumps(TURNS[1:])}, "prompt-completion", CHAT, "yo<|end|>"),
        ({"prompt": "[1] ", "completion": '[{"a": 1}]'}, "prompt-completion", '[1] [{"a": 1}]<|end|>', '[{"a": 1}]<|end|>'),
        ({"instruction": "hi", "input": "", "output": "yo"}, "instruction", CHAT, "yo<|end|>"),
        ({"instruction": "hi", "output": "yo"}, "instruction", CHAT, "yo<|end|>"),
        ({"instruction": "a", "input": "b", "output": "c"}, "instruction", "<|user|>a\n\nb<|end|><|assistant|>c<|end|>", "c<|end|>"),
        ({"instruction": "a", "context": "b", "response": "c", "category": "x"}, "instruction", "<|user|>a\n\nb<|end|><|assistant|>c<|end|>", "c<|end|>"),
        ({"system_prompt": "s", "question": "a", "response": "c"}, "instruction", "<|system|>s<|end|><|user|>a<|end|><|assistant|>c<|end|>", "c<|end|>"),
        ({"question": "a", "context": "b", "answer": "c"}, "instruction", "<|user|>b\n\na<|end|><|assistant|>c<|end|>", "c<|end|>"),
        ({"instruction": "a", "input": "b", "response": "c"}, "instruction", "<|user|>a\n\nb<|end|><|assistant|>c<|end|>", "c<|end|>"),
        ({"article": "b", "question": "a", "answer": "c"}, "instruction", "<|user|>b\n\na<|end|><|assistant|>c<|end|>", "c<|end|>"),
        ({"article": "hi", "summary": "yo"}, "instruction", CHAT, "yo<|end|>"),
        ({"query": "hi", "response": "yo"}, "instruction", CHAT, "yo<|end|>"),
        ({"text": "abc"}, "completion", "abc<|end|>", "abc<|end|>"),
        ({"text": "abc<|end|>"}, "completion", "abc<|end|>", "abc<|end|>"),
        ({"input_ids": [1, 0]}, "tokenized", "<|user|><|end|>", "<|user|><|end|>"),
        ({"input_ids": [1, 0, 3], "labels": [-100, 0, 3], "attention_mask": [1, 1, 0]}, "tokenized", "<|user|><|end|>", "<|end|>"),
    ],
)  # fmt: skip
def test_formats(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], format_: str, text: str, learned: str
) -> None:
    assert rendered(tokenizer, row) == (format_, text, learned)


def test_the_format_that_the_method_trains_on_is_preferred() -> None:
    columns = {"problem", "solution", "messages"}
    found = {
        m: recognise(columns, DatasetFormat.AUTO, m, "data").format
        for m in (Method.SFT, Method.GRPO)
    }
    assert found == {Method.SFT: DatasetFormat.CHAT, Method.GRPO: DatasetFormat.INSTRUCTION}


@pytest.mark.parametrize("method", [Method.SFT, Method.GRPO, Method.EBFT])
def test_answers_that_may_be_bad_are_not_taken_for_demonstrations(method: Method) -> None:
    with pytest.raises(JobFailure, match=r"or name another format in dataset\.format"):
        recognise({"prompt", "completion", "label"}, DatasetFormat.AUTO, method, "data")


def test_a_prompt_of_messages_with_a_completion_of_text_is_refused(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(RowError, match="one of prompt and completion is messages"):
        rendered(tokenizer, {"prompt": TURNS[:1], "completion": "yo"})


def test_instructions_without_a_chat_template_become_sections(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    row = {"instruction": "a", "input": "b", "output": "c"}
    _, text, learned = rendered(tokenizer, row, template=None)
    assert text == "### Instruction:\na\n\n### Input:\nb\n\n### Response:\nc<|end|>"
    assert learned == "c<|end|>"


@pytest.mark.parametrize(
    ("template", "wanted", "learned"),
    [
        (MARKED_TEMPLATE, None, "yo<|end|>"),
        (MARKED_TEMPLATE, True, "yo<|end|>"),
        (MARKED_TEMPLATE, False, CHAT),
        (CHAT_TEMPLATE, None, CHAT),
        (CHAT_TEMPLATE, False, CHAT),
    ],
)
def test_assistant_only_loss(
    tokenizer: PreTrainedTokenizerBase, template: str, wanted: bool | None, learned: str
) -> None:
    assert rendered(tokenizer, {"messages": TURNS}, template, wanted)[2] == learned


def test_prompts_are_learned_when_completion_only_loss_is_off(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    row = {"prompt": "a ", "completion": "b"}
    shape = recognise(row.keys(), DatasetFormat.AUTO, Method.SFT, "data")
    renderer = Renderer(tokenizer, 260, None, completion_only=False)
    tokens = renderer.render(read_demonstration(row, shape, has_template=True))
    assert isinstance(tokens, Tokens)
    assert tokens.labels == tokens.input_ids


def test_tools_reach_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    template = "{{ tools[0].name }}" + CHAT_TEMPLATE
    row = {"messages": TURNS, "tools": '[{"name": "clock"}]'}
    assert rendered(tokenizer, row, template)[1] == f"clock{CHAT}"
