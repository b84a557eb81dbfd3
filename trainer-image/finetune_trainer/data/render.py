"""Renders examples into tokens and labels."""

import json
from dataclasses import dataclass, field
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from finetune_api.failures import Reason
from finetune_api.spec import DatasetFormat
from finetune_api.trainer import JobFailure
from finetune_trainer.data.cells import Message, RowError, name_of
from finetune_trainer.data.examples import Chat, Continuation, Demonstration, Exchange, Text
from finetune_trainer.data.preferences import Comparison, Judgement
from finetune_trainer.data.questions import Question
from finetune_trainer.data.records import IGNORED, Completion, Pair, Prompt, Record, Tokens
from finetune_trainer.tokenizer import chat_template, training_template

Example = Demonstration | Comparison | Judgement | Question


@dataclass(frozen=True)
class Renderer:
    """Turns examples into tokens for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    """Rows of the model's embedding."""
    assistant_template: str | None
    """Template that marks the assistant's turns; None: all of a chat is learned."""
    completion_only: bool = True
    """Whether prompts are read without being learned."""

    template_options: dict[str, Any] = field(default_factory=dict)
    """What prompts are rendered with while training, beside messages."""

    def render(self, example: Example) -> Record:
        """Return the row that is stored, not yet cut to any length. Raises RowError."""
        match example:
            case Question():
                return self._prompt(example)
            case Comparison():
                return self._pair(example)
            case Judgement():
                return self._completion(example)
            case _:
                return self._demonstration(example)

    def _demonstration(self, example: Demonstration) -> Tokens:
        tokens = self._tokens(example)
        if not tokens.input_ids:
            raise RowError("there are no tokens in it")
        if all(label == IGNORED for label in tokens.labels):
            raise RowError("there is nothing in it to learn: every label is masked")
        self._check_vocabulary(tokens.input_ids)
        return tokens

    def _check_vocabulary(self, ids: list[int]) -> None:
        if not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise RowError(
                f"token {max(ids)} is not in the model's vocabulary of {self.vocabulary}"
            )

    def _prompt(self, question: Question) -> Prompt:
        ids = self._ids(question.prompt, add_generation_prompt=True, **self.template_options)
        columns = question.columns | {"prompt": question.prompt}
        return Prompt(
            columns=json.dumps({name: _json(name, value) for name, value in columns.items()}),
            is_chat=not isinstance(question.prompt, str),
            tokens=len(ids),
        )

    def _pair(self, example: Comparison) -> Pair:
        given = self._ids(example.prompt, add_generation_prompt=True, **example.extras)
        chosen = self._whole(example.prompt, example.chosen, example.extras)
        rejected = self._whole(example.prompt, example.rejected, example.extras)
        # The prompt must be the same before both.
        border = min(_shared(given, chosen), _shared(given, rejected))
        if chosen == rejected:
            raise RowError("the better and the worse answer are the same tokens")
        return Pair(chosen[:border], chosen[border:], rejected[border:])

    def _completion(self, example: Judgement) -> Completion:
        given = self._ids(example.prompt, add_generation_prompt=True, **example.extras)
        whole = self._whole(example.prompt, example.completion, example.extras)
        border = _shared(given, whole)
        return Completion(whole[:border], whole[border:], example.label)

    def _whole(self, prompt: Text, completion: Text, extras: dict[str, Any]) -> list[int]:
        """Return the tokens of prompt and completion together, which are of one sort."""
        if isinstance(prompt, str):
            ids = self._ended(prompt + str(completion))
        else:
            ids = self._ids([*prompt, *completion], **extras)
        self._check_vocabulary(ids)
        return ids

    def _ended(self, content: str) -> list[int]:
        """Return the tokens of text, with an end-of-sequence token where there is none."""
        ids: list[int] = self.tokenizer(content)["input_ids"]
        end = self.tokenizer.eos_token_id
        return ids if ids[-1:] == [end] else [*ids, end]

    def _ids(self, content: Text, **options: Any) -> list[int]:
        """Return the tokens of text as it is, or of turns by the chat template."""
        if isinstance(content, str):
            ids: list[int] = self.tokenizer(content)["input_ids"]
        else:
            ids = self._apply(content, **options)["input_ids"]
        return ids

    def _tokens(self, example: Demonstration) -> Tokens:
        match example:
            case Tokens():
                return example
            case Continuation():
                return self._continuation(example)
            case Exchange():
                return self._exchange(example)
            case Chat():
                return self._chat(example)

    def _continuation(self, example: Continuation) -> Tokens:
        given = self.tokenizer(example.prompt)["input_ids"] if example.prompt else []
        return self._split(given, self._ended(example.prompt + example.completion))

    def _exchange(self, example: Exchange) -> Tokens:
        given = self._apply(example.prompt, add_generation_prompt=True, **example.extras)
        whole = self._apply(example.prompt + example.completion, **example.extras)
        return self._split(given["input_ids"], whole["input_ids"])

    def _chat(self, example: Chat) -> Tokens:
        if self.assistant_template is None:
            ids = self._apply(example.messages, **example.extras)["input_ids"]
            return Tokens(ids, list(ids))
        marked = self._apply(
            example.messages,
            chat_template=self.assistant_template,
            return_assistant_tokens_mask=True,
            **example.extras,
        )
        ids, mask = marked["input_ids"], marked["assistant_masks"]
        return Tokens(
            ids, [token if bit else IGNORED for token, bit in zip(ids, mask, strict=True)]
        )

    def _apply(self, messages: list[Message], **options: Any) -> Any:
        if chat_template(self.tokenizer) is None:
            raise JobFailure(
                Reason.CONFIG_INVALID,
                "the rows are chats, but the model has no chat template, as base models have none: "
                "give one in model.chatTemplate, or choose the model's instruct version.",
            )
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, **options
            )
        except jinja2.TemplateSyntaxError as error:
            raise JobFailure(
                Reason.CONFIG_INVALID,
                f"the chat template is not valid Jinja ({error}): correct model.chatTemplate.",
            ) from error
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise RowError(f"the chat template refuses the messages ({error})") from error

    def _split(self, given: list[int], whole: list[int]) -> Tokens:
        if not self.completion_only:
            return Tokens(whole, list(whole))
        border = _shared(given, whole)
        return Tokens(whole, [IGNORED] * border + whole[border:])


def _shared(given: list[int], whole: list[int]) -> int:
    """Return how many tokens both begin with: some may merge across the border of two texts."""
    shared = 0
    for left, right in zip(given, whole, strict=False):
        if left != right:
            break
        shared += 1
    return shared


def _json(column: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise RowError(
            f"column {column} holds {name_of(value)}, which JSON cannot: convert it to text"
        ) from error


def assistant_template(
    tokenizer: PreTrainedTokenizerBase, format_: DatasetFormat, wanted: bool | None
) -> str | None:
    """Return the template that marks what is learned, or None to learn all of a chat.

    wanted is training.assistantOnlyLoss; unset means yes when the template can mark turns.
    """
    if format_ is not DatasetFormat.CHAT:
        if wanted:
            raise JobFailure(
                Reason.CONFIG_INVALID,
                "training.assistantOnlyLoss is true, which is for chats, but the rows are "
                f"{format_.value}: leave it out; prompts are never learned.",
            )
        return None
    marking = None if wanted is False else training_template(tokenizer)
    if wanted and marking is None:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            "training.assistantOnlyLoss is true, but the chat template does not mark the "
            "assistant's turns: put them between {% generation %} and {% endgeneration %} in "
            "model.chatTemplate, or leave assistantOnlyLoss out.",
        )
    return marking
