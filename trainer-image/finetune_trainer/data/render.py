"""Renders examples into tokens and labels."""

from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from finetune_api.failures import Reason
from finetune_api.spec import DatasetFormat
from finetune_api.trainer import JobFailure
from finetune_trainer.data.examples import (
    Chat,
    Continuation,
    Example,
    Exchange,
    Message,
    RowError,
    Tokens,
)
from finetune_trainer.tokenizer import chat_template, training_template

IGNORED = -100
"""Label of tokens that are read but not learned, as in torch's cross entropy."""


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

    def render(self, example: Example) -> Tokens:
        """Return tokens with labels, not yet cut to any length. Raises RowError."""
        tokens = self._tokens(example)
        if not tokens.input_ids:
            raise RowError("there are no tokens in it")
        if all(label == IGNORED for label in tokens.labels):
            raise RowError("there is nothing in it to learn: every label is masked")
        if not 0 <= min(tokens.input_ids) <= max(tokens.input_ids) < self.vocabulary:
            raise RowError(
                f"token {max(tokens.input_ids)} is not in the model's vocabulary of "
                f"{self.vocabulary}"
            )
        return tokens

    def _tokens(self, example: Example) -> Tokens:
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
        whole: list[int] = self.tokenizer(example.prompt + example.completion)["input_ids"]
        if whole[-1:] != [self.tokenizer.eos_token_id]:
            whole = [*whole, self.tokenizer.eos_token_id]
        given = self.tokenizer(example.prompt)["input_ids"] if example.prompt else []
        return self._split(given, whole)

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
        """Mask what given and whole share: tokens may merge across the border of the two texts."""
        if not self.completion_only:
            return Tokens(whole, list(whole))
        shared = 0
        for left, right in zip(given, whole, strict=False):
            if left != right:
                break
            shared += 1
        return Tokens(whole, [IGNORED] * shared + whole[shared:])


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
