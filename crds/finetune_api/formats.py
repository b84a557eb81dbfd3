"""Recognises the format of a dataset by its columns."""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from finetune_api.failures import Reason
from finetune_api.spec import FORMATS, DatasetFormat, Method
from finetune_api.trainer import JobFailure


@dataclass(frozen=True)
class Instruction:
    """Columns of one family of instruction data."""

    question: str
    answer: str = ""
    """Empty for questions whose answers are elsewhere: in pairs, or none."""
    context: str | None = None
    """Optional column with what the question is about."""
    system: str | None = None
    """Optional column with a system prompt."""
    context_first: bool = False
    """Whether the context is read before the question, as an article is."""


INSTRUCTIONS = (
    Instruction("instruction", "output", "input", "system"),
    Instruction("instruction", "response", "context", "system"),
    Instruction("instruction", "response", "input", "system"),
    Instruction("INSTRUCTION", "RESPONSE"),
    Instruction("question", "response", system="system_prompt"),
    Instruction("question", "answer", "context", context_first=True),
    Instruction("question", "answer", "article", context_first=True),
    Instruction("question", "output", "context", context_first=True),
    Instruction("article", "summary"),
    Instruction("document", "summary"),
    Instruction("message_1", "message_2"),
    Instruction("prompt", "generation"),
    Instruction("prompt", "response", system="system"),
    Instruction("query", "response", system="system"),
    Instruction("problem", "solution"),
    Instruction("input", "output", system="system"),
)
"""Known families; the first whose question and answer are there is taken, or one whose context is
there too."""

QUESTIONS = (
    Instruction("prompt", system="system"),
    Instruction("instruction", context="input", system="system"),
    Instruction("question", context="context", system="system", context_first=True),
    Instruction("question", system="system_prompt"),
    Instruction("input", system="system"),
    Instruction("messages"),
)
"""What preferences are about; chosen as INSTRUCTIONS are."""

RANKED, COMPLETION, LABEL = "answers", "completion", "label"
PAIRS = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
REFERENCES = ("answer", "solution", "ground_truth")
"""Columns of the known answer that rewards compare with; the first that is there is read."""
CHAT_COLUMNS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class Shape:
    """A recognised format and the columns that carry it."""

    format: DatasetFormat
    chat_column: str | None = None
    instruction: Instruction | None = None
    """Columns of the question; None for preferences whose prompt is the start of both answers."""
    judged: tuple[str, ...] = ()
    """Columns of answers that are told apart: the better and the worse one, or a single one."""


@dataclass(frozen=True)
class _Kind:
    """What is known of one format."""

    looks_like: str
    needs: str
    match: Callable[[AbstractSet[str]], Shape | None]


def _columns(format_: DatasetFormat, *needed: str) -> Callable[[AbstractSet[str]], Shape | None]:
    return lambda columns: Shape(format_) if columns >= set(needed) else None


def _chat(columns: AbstractSet[str]) -> Shape | None:
    found = next((name for name in CHAT_COLUMNS if name in columns), None)
    return Shape(DatasetFormat.CHAT, chat_column=found) if found else None


def _family(families: Iterable[Instruction], columns: AbstractSet[str]) -> Instruction | None:
    fitting = [
        family
        for family in families
        if family.question in columns and (not family.answer or family.answer in columns)
    ]
    optional = (family for family in fitting if {family.context, family.system} & columns)
    return next(optional, fitting[0] if fitting else None)


def _instruction(columns: AbstractSet[str]) -> Shape | None:
    family = _family(INSTRUCTIONS, columns)
    return Shape(DatasetFormat.INSTRUCTION, instruction=family) if family else None


def _preference(columns: AbstractSet[str]) -> Shape | None:
    question = _family(QUESTIONS, columns)
    ranked = (RANKED,) if question and RANKED in columns else None
    judged = next((pair for pair in PAIRS if columns >= set(pair)), ranked)
    return Shape(DatasetFormat.PREFERENCE, None, question, judged) if judged else None


def _unpaired(columns: AbstractSet[str]) -> Shape | None:
    if not columns >= {COMPLETION, LABEL}:
        return None
    question = _family(QUESTIONS, columns)
    return Shape(DatasetFormat.UNPAIRED_PREFERENCE, None, question, (COMPLETION,))


# In the order of recognition: what names more of its own comes first.
KINDS: dict[DatasetFormat, _Kind] = {
    DatasetFormat.TOKENIZED: _Kind(
        "token rows (input_ids)",
        "input_ids [, labels, attention_mask]",
        _columns(DatasetFormat.TOKENIZED, "input_ids"),
    ),
    DatasetFormat.PREFERENCE: _Kind(
        "paired preferences (prompt, chosen, rejected)",
        "[prompt,] chosen, rejected",
        _preference,
    ),
    DatasetFormat.UNPAIRED_PREFERENCE: _Kind(
        "unpaired preferences (prompt, completion, label)",
        "prompt, completion, label",
        _unpaired,
    ),
    DatasetFormat.CHAT: _Kind("chats (messages)", "messages", _chat),
    DatasetFormat.PROMPT_COMPLETION: _Kind(
        "prompts with completions (prompt, completion)",
        "prompt, completion",
        _columns(DatasetFormat.PROMPT_COMPLETION, "prompt", "completion"),
    ),
    DatasetFormat.INSTRUCTION: _Kind(
        "instructions (instruction, output)",
        "instruction, [input,] output",
        _instruction,
    ),
    DatasetFormat.COMPLETION: _Kind(
        "plain text (text)", "text", _columns(DatasetFormat.COMPLETION, "text")
    ),
    DatasetFormat.PROMPT: _Kind(
        "bare prompts (prompt)", "prompt", _columns(DatasetFormat.PROMPT, "prompt")
    ),
}


def format_of(columns: AbstractSet[str]) -> DatasetFormat | None:
    """Return the format of rows with these columns; None when it is none that is known."""
    shapes = (shape for kind in KINDS.values() if (shape := kind.match(columns)))
    return next((shape.format for shape in shapes), None)


def recognise(
    columns: AbstractSet[str], wanted: DatasetFormat, method: Method, source: str
) -> Shape:
    """Return the shape of rows with these columns. Raises JobFailure when it does not fit."""
    found = ", ".join(sorted(columns)) or "none"
    if wanted is DatasetFormat.AUTO:
        shape = _automatic(columns, method)
    else:
        shape = KINDS[wanted].match(columns)
    if shape is None and wanted is not DatasetFormat.AUTO:
        raise _failure(
            f"dataset.format is {wanted.value}, which needs the columns {KINDS[wanted].needs}, but "
            f"{source} has {found}: correct format, or rename columns with dataset.columns."
        )
    if shape is None:
        raise _failure(
            f"{source} has the columns {found}, which are no known format; method {method.value} "
            f"needs {needs(method)}: rename columns with dataset.columns."
        )
    kind = KINDS[shape.format]
    if shape.format not in FORMATS[method]:
        others = " or ".join(other.value for other in Method if shape.format in FORMATS[other])
        raise _failure(
            f"the rows of {source} look like {kind.looks_like}, which method {others} needs; "
            f"method {method.value} needs {needs(method)}: change method or the data, or name "
            "another format in dataset.format."
        )
    return shape


def _automatic(columns: AbstractSet[str], method: Method) -> Shape | None:
    """Return the first shape that fits, if it can be one that the method trains on."""
    shapes = [shape for kind in KINDS.values() if (shape := kind.match(columns))]
    # Answers that are told apart may be bad: nobody meant them to be learned as they are.
    if not shapes or shapes[0].judged:
        return shapes[0] if shapes else None
    return next((shape for shape in shapes if shape.format in FORMATS[method]), shapes[0])


def needs(method: Method) -> str:
    """Return the columns that a method can be trained on, for messages."""
    return " or ".join(
        f"({kind.needs})" for format_, kind in KINDS.items() if format_ in FORMATS[method]
    )


def _failure(message: str) -> JobFailure:
    return JobFailure(Reason.DATA_INVALID, message)
