"""Answers of the model to the job's sample prompts."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from finetune_api.spec import Evaluation
from finetune_trainer.tokenizer import chat_template


def answer(model: Any, tokenizer: PreTrainedTokenizerBase, evaluation: Evaluation) -> list[str]:
    """Return the greedy answer to each prompt, as a chat when there is a template."""
    model.eval()
    # As in training: adapters in float32 take the base's activations in bf16 under autocast only.
    reduced = model.dtype is torch.bfloat16
    with (
        torch.no_grad(),
        # Layers compiled for training would be compiled anew for each layer's cache.
        torch.compiler.set_stance("force_eager"),
        torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=reduced),
    ):
        return [
            _answer(model, tokenizer, prompt, evaluation.sample_max_tokens)
            for prompt in evaluation.sample_prompts
        ]


def _answer(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int) -> str:
    if chat_template(tokenizer) is None:
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    output = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max_tokens,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = output[0][inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()
