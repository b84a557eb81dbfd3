"""What a step holds beside its states, at the moments when it holds most."""

from dataclasses import dataclass
from typing import Final

from finetune_api.spec import ONLINE, FineTuneJobSpec, Generation, Method
from finetune_api.status import ModelFacts
from finetune_operator.planning.memory import experts, layers
from finetune_operator.planning.memory.adapters import adapted_experts, adapter_copies, kinds
from finetune_operator.planning.memory.candidate import Batch, Candidate
from finetune_operator.planning.memory.states import States

TILE_TOKENS: Final = 4096
TILE_COLUMNS: Final = 32768
"""The output head is worked through in tiles of so many tokens and logits (TRL 1.16,
kernels/chunked_logprob.py), or of other ones that take no more (finetune_trainer/head.py)."""


@dataclass(frozen=True)
class Moment:
    """Bytes held at one moment of the step, beside the states."""

    gradients: float
    activations: float
    logits: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.gradients + self.activations + self.logits


def fullest(
    spec: FineTuneJobSpec,
    model: ModelFacts,
    candidate: Candidate,
    batch: Batch,
    held: States,
) -> Moment:
    """Return the moment of the step at which one GPU holds most.

    Going back through the layers frees what each has saved and makes its gradients, at a steady
    rate: most is held at the output head, in the last layer, in the first, or at the step itself.
    """
    step = _Step(spec, model, candidate, batch, held)
    moments = [step.head(), step.last_layer(), step.first_layer(), step.last()]
    if spec.method in {Method.DPO, Method.KTO}:
        moments.append(step.reference())
    return max(moments, key=lambda moment: moment.total)


class _Step:
    """One forward and backward pass."""

    def __init__(
        self,
        spec: FineTuneJobSpec,
        model: ModelFacts,
        candidate: Candidate,
        batch: Batch,
        held: States,
    ) -> None:
        self.spec, self.model, self.candidate, self.batch = spec, model, candidate, batch
        self.held = held
        self.full = spec.adapter.type == "full"
        copies = adapter_copies(spec, model, candidate) / model.layers
        per_token = {
            sparse: layers.saved(spec, model, candidate, batch, sparse=sparse)
            for sparse in kinds(model)
        }
        each = {sparse: size * batch.tokens + copies for sparse, size in per_token.items()}
        if True in each:
            each[True] += adapted_experts(spec, model, candidate)
        self.layer = max(each.values())
        self.kept = self._kept()
        self.saved = model.layers * self.kept
        if candidate.checkpointing == "none":
            self.saved = sum(count * each[sparse] for sparse, count in kinds(model).items())

    def _kept(self) -> float:
        """Return what is kept of each layer until the backward pass comes to it."""
        hidden, tokens = self.candidate.width * self.model.hidden_size, self.batch.tokens
        if self.model.experts:
            # The router's logits, for the loss that balances the experts.
            hidden += self.candidate.width * self.model.experts.count
        if self.candidate.checkpointing == "full":
            return float(hidden * tokens)
        if self.candidate.checkpointing == "selective":
            # The output of attention, and its logarithmic sums.
            attention = self.candidate.width * self.model.heads * self.model.head_dim
            return float((hidden + attention + 4 * self.model.heads) * tokens)
        return self.layer

    def _tail(self) -> float:
        """Return what is saved outside of the layers: the last norm, and hidden states, 6H or 8H.

        A frozen embedding needs no gradient, so that the first layer's first norm saves nothing.
        """
        norm = 4 if self.candidate.precision == "bf16" or self.full else 2
        factor = norm + (4 if self.full else 2)
        if not self.full and self.candidate.checkpointing == "none":
            factor -= 4
        return float(factor * self.model.hidden_size + 160) * self.batch.tokens

    def head(self) -> Moment:
        """At the output head, when nothing has been freed."""
        gradients = self.held.kept_gradients
        return Moment(gradients, self.saved + self._tail(), self._logits())

    def last_layer(self) -> Moment:
        """In the backward pass of the last layer."""
        gradients = max(self.held.kept_gradients, self._head_gradient(2))
        return Moment(gradients, self.saved + self._working())

    def first_layer(self) -> Moment:
        """In the backward pass of the first layer."""
        gradients = self.held.gradients
        if self.full:
            # Its own, and those of an embedding that is not the output head, come after it.
            embedding = self._head_gradient(2)
            outside = embedding if self.model.tied_embeddings else 2 * embedding
            later = (self.held.gradients - outside) / self.model.layers + outside - embedding
            gradients = max(self.held.kept_gradients, gradients - later)
        return Moment(gradients, self.kept + self._working())

    def last(self) -> Moment:
        """At the end, where the gradient of an embedding is added to that of the head it shares."""
        again = self._head_gradient(2) if self.model.tied_embeddings else 0.0
        return Moment(self.held.gradients + again, 0.0)

    def reference(self) -> Moment:
        """While the reference model runs: the policy has run before."""
        sizes = experts.running(self.model, adapter=False)
        running = self.candidate.width * sizes * self.batch.tokens
        activations = self.saved + self._tail() + running
        return Moment(self.held.kept_gradients, activations)

    def _working(self) -> float:
        """Return what the backward pass of one layer holds, with checkpointing also what it
        computes again.
        """
        again = self.candidate.checkpointing != "none"
        passing = max(
            experts.passing(self.spec, self.model, sparse=sparse, again=again)
            for sparse in kinds(self.model)
        )
        held = self.candidate.width / 2 * passing * self.batch.tokens
        return held + (self.layer if again else 0.0)

    def _logits(self) -> float:
        """Return what output head and loss hold at most."""
        tokens, vocabulary = self.batch.tokens, self.model.vocabulary
        hidden = self.model.hidden_size
        # The backward pass of the last norm, in float32.
        norm = 18.0 * hidden * tokens
        if self.spec.method is Method.REWARD:
            return norm
        if self.spec.method is Method.ORPO:
            return self._whole_logits()
        if self.candidate.gpus == 0:
            # Without Triton each tile goes through about seven copies in float32.
            scored, width = tokens, 4.0 * TILE_COLUMNS + 29 * min(vocabulary, TILE_COLUMNS)
        else:
            scored, width = self._scored(), 2.0 * TILE_COLUMNS
        tile = min(scored, TILE_TOKENS) * width
        # Gradients of hidden states and weights are made in float32, and then turned into bf16.
        both = 6 if self.candidate.width == 2 else 4
        return max(norm, tile + 6.0 * hidden * scored + self._head_gradient(both))

    def _whole_logits(self) -> float:
        """Return what ORPO holds, which keeps the logits of all tokens in bf16.

        With Triton their gradient is made beside them, 2 bytes each, while the likelihood of the
        chosen, half of the tokens, still has its logarithmic softmax and two gradients of that in
        float32. Without it all of them are turned into float32, and there is a softmax of each.
        """
        logits = float(self.batch.tokens * self.model.vocabulary)
        if self.candidate.gpus == 0:
            return 18 * logits + self._head_gradient(2)
        return max(10 * logits, 4 * logits + self._head_gradient(2))

    def _scored(self) -> int:
        """Return the tokens whose likelihood is computed: all, or those that the model wrote."""
        if self.spec.method not in ONLINE:
            return self.batch.tokens
        written = (self.spec.generation or Generation()).max_completion_length
        return self.candidate.micro_batch_size * min(written, self.candidate.max_length)

    def _head_gradient(self, width: int) -> float:
        """Return the gradient of the output head, where it is trained."""
        trains = self.full and self.spec.method is not Method.REWARD
        return float(width * self.model.vocabulary * self.model.hidden_size) if trains else 0.0
