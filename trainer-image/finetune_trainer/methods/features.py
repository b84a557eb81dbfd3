"""Features of texts in the hidden states of a frozen model, and how well completions match them.

Formulas: Jelassi et al., "Matching Features, Not Tokens", arXiv 2603.12248.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from finetune_api.methods import Ebft

Text = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens of a prompt, and of what follows it."""


@dataclass(frozen=True)
class Features:
    """Makes one vector of unit length from a text."""

    options: Ebft
    batch_size: int
    """Texts that the model reads at once."""
    pad_token: int

    def of(self, decoder: Any, texts: Sequence[Text], device: torch.device) -> Tensor:
        """Return features of shape (texts, size) in float32; equal texts are read once."""
        different = list(dict.fromkeys(texts))
        read = [
            self._read(decoder, different[start : start + self.batch_size], device)
            for start in range(0, len(different), self.batch_size)
        ]
        row = {text: index for index, text in enumerate(different)}
        return torch.cat(read)[[row[text] for text in texts]]

    @torch.no_grad()
    def _read(self, decoder: Any, texts: Sequence[Text], device: torch.device) -> Tensor:
        whole = [torch.tensor(prompt + completion) for prompt, completion in texts]
        lengths = torch.tensor([len(tokens) for tokens in whole], device=device)
        starts = torch.tensor([len(prompt) for prompt, _ in texts], device=device)
        # On the right, so that positions count from 0 and the last token is at length - 1.
        ids = pad_sequence(whole, batch_first=True, padding_value=self.pad_token).to(device)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        states = decoder(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
        ).hidden_states
        layers = [states[index] for index in self._layers(len(states) - 1)]
        pooled = [self._pooled(layer.float(), lengths, starts) for layer in layers]
        # Each layer counts the same, however large its states are.
        return normalize(torch.cat([normalize(vectors, dim=-1) for vectors in pooled], -1), dim=-1)

    def _layers(self, count: int) -> list[int]:
        """Return indices of hidden states, without the embedding at 0."""
        depths = self.options.feature_layers
        return list(dict.fromkeys(max(1, round(depth * count)) for depth in depths))

    def _pooled(self, states: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        """Return (texts, size) from states of shape (texts, tokens, size)."""
        rows = torch.arange(len(states), device=states.device)
        match self.options.pooling:
            case "last_token":
                return states[rows, lengths - 1]
            case "mean_pooling":
                return _mean(states, torch.zeros_like(starts), lengths)
            case "completion_mean":
                # Of an empty completion, the prompt's last token.
                return _mean(states, torch.minimum(starts, lengths - 1), lengths)
            case "concat":
                quarters = [states[rows, lengths * part // 4] for part in (1, 2, 3)]
                return torch.cat(quarters, dim=-1)


def _mean(states: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    places = torch.arange(states.shape[1], device=states.device)
    weights = ((places >= starts[:, None]) & (places < ends[:, None])).to(states.dtype)
    return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class Match:
    """How well the completions of each prompt match its ground truth."""

    alignment: Tensor
    """Cosine of each completion to the ground truth, (prompts, completions)."""
    similarity: Tensor
    """Mean cosine of each completion to the others of its prompt, (prompts, completions)."""
    distance: Tensor
    """Squared distance of the completions' mean to the ground truth, (prompts,): eq. 2."""

    def rewards(self, options: Ebft) -> Tensor:
        """Return the reward of each completion, (prompts, completions): eq. 7."""
        aligned = 2 * options.alignment_coefficient * self.alignment
        return aligned - 2 * options.diversity_coefficient * self.similarity


def match(completions: Tensor, truth: Tensor, *, whitening: bool) -> Match:
    """Compare unit vectors of shape (prompts, completions, size) with those of (prompts, size)."""
    if whitening:
        completions, truth = _whitened(completions, truth)
    count = completions.shape[1]
    products = completions @ completions.transpose(1, 2)
    own = products.diagonal(dim1=1, dim2=2)
    others = (products.sum(-1) - own) / max(count - 1, 1)
    return Match(
        alignment=(completions @ truth[..., None]).squeeze(-1),
        similarity=others,
        distance=(completions.mean(1) - truth).square().sum(-1),
    )


def _whitened(completions: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return both times the inverse root of the completions' second moments, of unit length.

    Directions that the completions do not have are dropped (the pseudo-inverse).
    """
    left, scales, right = torch.linalg.svd(completions, full_matrices=False)
    kept = scales > 1e-5 * scales.amax(-1, keepdim=True)
    inverse = torch.where(kept, 1 / scales.clamp(min=1e-12), 0.0)
    white = (left * kept[:, None].to(left.dtype)) @ right
    projected = (truth[:, None] @ right.transpose(1, 2)) * inverse[:, None]
    return normalize(white, dim=-1), normalize((projected @ right).squeeze(1), dim=-1)
