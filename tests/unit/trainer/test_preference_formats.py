"""Every shape of preference data is recognised and split into prompt and answers as it should be."""
# ruff: noqa: E501 - one case per line reads best

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_api.formats import recognise
from finetune_api.spec import DatasetFormat, Method
from finetune_trainer.data.cells import RowError
from finetune_trainer.data.examples import read_demonstration
from finetune_trainer.data.preferences import read_comparison, read_judgement
from finetune_trainer.data.questions import read_question
from finetune_trainer.data.records import Completion, Pair
from finetune_trainer.data.render import Renderer
from unit.trainer.builders import CHAT_TEMPLATE, save_tokenizer

ASK = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "s"}
GOOD, BAD = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
ASKED = "<|user|>hi<|end|><|assistant|>"
TOLD = f"<|system|>s<|end|>{ASKED}"
ANSWERS = ("yes<|end|>", "no<|end|>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        ({"prompt": "hi ", "chosen": "yes", "rejected": "no"}, "hi ", ANSWERS),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, ASKED, ANSWERS),
        ({"prompt": [ASK], "chosen": "yes", "rejected": "no"}, ASKED, ANSWERS),
        ({"prompt": "hi", "chosen": [GOOD], "rejected": [BAD]}, ASKED, ANSWERS),
        ({"prompt": "hi", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, ASKED, ANSWERS),
        ({"prompt": "hi", "system": "s", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, TOLD, ANSWERS),
        ({"prompt": "hi", "system": "s", "chosen": "yes", "rejected": "no"}, TOLD, ANSWERS),
        ({"prompt": [SYSTEM], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, TOLD, ANSWERS),
        ({"prompt": [{"role": "user", "content": "a"}, BAD], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "<|user|>a<|end|><|assistant|>no<|end|>" + ASKED, ANSWERS),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, ASKED, ANSWERS),
        ({"chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]}, TOLD, ANSWERS),
        ({"chosen": "hi yes", "rejected": "hi no"}, "hi", (" yes<|end|>", " no<|end|>")),
        ({"prompt": "hi ", "chosen": '{"a": 1}', "rejected": '["a"]'}, "hi ", ('{"a": 1}<|end|>', '["a"]<|end|>')),
        ({"prompt": json.dumps([ASK]), "chosen": json.dumps([GOOD]), "rejected": json.dumps(BAD)}, ASKED, ANSWERS),
        ({"messages": [ASK], "chosen": GOOD, "rejected": BAD}, ASKED, ANSWERS),
        ({"instruction": "hi", "chosen_response": "yes", "rejected_response": "no"}, ASKED, ANSWERS),
        ({"instruction": "a", "input": "b", "chosen": "yes", "rejected": "no"}, "<|user|>a\n\nb<|end|><|assistant|>", ANSWERS),
        ({"system": "s", "question": "hi", "chosen": "yes", "rejected": "no"}, TOLD, ANSWERS),
        ({"system_prompt": "s", "question": "hi", "chosen": "yes", "rejected": "no"}, TOLD, ANSWERS),
        ({"input": "hi", "chosen": "yes", "rejected": "no"}, ASKED, ANSWERS),
        ({"prompt": "hi ", "answers": [{"answer": "no", "rank": 7}, {"answer": "yes", "rank": 1}, {"answer": "so so", "rank": 2}]}, "hi ", ANSWERS),
    ],
)  # fmt: skip
def test_pairs(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], prompt: str, answers: tuple[str, str]
) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    shape = recognise(row.keys(), DatasetFormat.AUTO, Method.DPO, "data")
    assert shape.format is DatasetFormat.PREFERENCE
    pair = Renderer(tokenizer, 260, None).render(read_comparison(row, shape, has_template=True))
    assert isinstance(pair, Pair)
    texts = tokenizer.batch_decode([pair.prompt_ids, pair.chosen_ids, pair.rejected_ids])
    assert (texts[0], tuple(texts[1:])) == (prompt, answers)


def test_answers_of_the_same_rank_are_no_pair() -> None:
    row = {"prompt": "hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}
    shape = recognise(row.keys(), DatasetFormat.AUTO, Method.DPO, "data")
    with pytest.raises(RowError, match="all answers have the rank 1, expected a difference"):
        read_comparison(row, shape, has_template=True)


@pytest.mark.parametrize(
    ("row", "prompt", "label"),
    [
        ({"prompt": "hi ", "completion": "yes", "label": True}, "hi ", True),
        ({"completion": "yes", "label": False}, "", False),
        ({"prompt": [ASK], "completion": [GOOD], "label": 1}, ASKED, True),
        ({"completion": [ASK, GOOD], "label": "false"}, ASKED, False),
        ({"instruction": "hi", "completion": "yes", "label": "1"}, ASKED, True),
        ({"question": "hi", "completion": "yes", "label": 0.0}, ASKED, False),
    ],
)
def test_labelled_answers(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], prompt: str, label: bool
) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    shape = recognise(row.keys(), DatasetFormat.AUTO, Method.KTO, "data")
    assert shape.format is DatasetFormat.UNPAIRED_PREFERENCE
    record = Renderer(tokenizer, 260, None).render(read_judgement(row, shape, has_template=True))
    assert isinstance(record, Completion)
    texts = tokenizer.batch_decode([record.prompt_ids, record.completion_ids])
    assert (*texts, record.label) == (prompt, "yes<|end|>", label)


def test_questions_without_a_chat_template_become_sections(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = None
    row = {"question": "hi", "chosen": "yes", "rejected": "no"}
    shape = recognise(row.keys(), DatasetFormat.AUTO, Method.DPO, "data")
    pair = Renderer(tokenizer, 260, None).render(read_comparison(row, shape, has_template=False))
    assert isinstance(pair, Pair)
    assert tokenizer.decode(pair.prompt_ids) == "### Instruction:\nhi\n\n### Response:\n"


_READERS: dict[Method, Callable[..., Any]] = {
    Method.SFT: read_demonstration,
    Method.DPO: read_comparison,
    Method.KTO: read_judgement,
    Method.GRPO: read_question,
}
_ROWS = re.compile(r"^## .*`method: (\w+)|^({.*})$", re.MULTILINE)


def documented_rows() -> list[tuple[Method, dict[str, Any]]]:
    """Return the rows in the documentation with the method of the section that they stand in."""
    text = (Path(__file__).parents[3] / "docs/data-formats.md").read_text()
    rows, method = [], Method.SFT
    for name, row in _ROWS.findall(text):
        method = Method(name) if name else method
        rows += [(method, json.loads(row))] if row else []
    return rows


def test_rows_in_the_documentation_are_read_and_rendered(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    renderer = Renderer(tokenizer, 100_000, None)
    found = documented_rows()
    assert {method for method, _ in found} == set(_READERS) - {Method.KTO}
    for method, row in found:
        fitting = Method.KTO if "label" in row else method
        shape = recognise(row.keys(), DatasetFormat.AUTO, fitting, "data")
        assert renderer.render(_READERS[fitting](row, shape, has_template=True)).length > 1
