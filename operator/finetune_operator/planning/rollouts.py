"""The vLLM servers of a job that has its completions written by them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from finetune_api.spec import ONLINE, FineTuneJobSpec, Rollout
from finetune_api.status import ModelFacts, Plan, Preparation, RolloutPlan
from finetune_operator.planning.candidates import counts, longest_sequence, nodes_of
from finetune_operator.planning.duration import REACHED
from finetune_operator.planning.inventory import Inventory, PlanInfeasibleError, gpu_memory
from finetune_operator.planning.memory import Candidate
from finetune_operator.planning.memory.rollout import colocated
from finetune_operator.planning.products import UNKNOWN
from finetune_operator.planning.step_time import BANDWIDTH_REACHED, Speed, StepBatch, has_speed
from finetune_operator.planning.vllm import (
    UTILIZATION,
    Server,
    server_of,
    tensor_parallel_sizes,
)

_NO_ROLLOUT: Final = Rollout()
_MOST_REPLICAS: Final = 1024
"""That the spec can ask for."""


def check_rollout(spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory) -> None:
    """Raise PlanInfeasibleError when no vLLM can write the completions as is asked for."""
    rollout = _asked(spec)
    if rollout is None:
        return
    if spec.resources.gpu.count == 0:
        raise PlanInfeasibleError(
            f"rollout.mode is {rollout.mode}, whose vLLM is planned on GPUs only, but"
            " resources.gpu.count is 0: set rollout.mode to local, or ask for GPUs."
        )
    model, size = preparation.model, rollout.tensor_parallel_size
    legal = tensor_parallel_sizes(model, inventory.gpus_per_node)
    if size != "auto" and size not in legal:
        raise PlanInfeasibleError(
            f"rollout.tensorParallelSize is {size}, but over the GPUs of one node vLLM can split"
            f" this model by {_in_words(legal)} only: choose one of these, or auto."
        )
    if rollout.mode == "server":
        _servers(spec, model, inventory, longest_sequence(spec, preparation))
    elif size != "auto":
        _check_divides(size, spec, inventory)


def hosts(spec: FineTuneJobSpec, candidate: Candidate) -> bool:
    """Tell whether the GPUs that vLLM is split over come out even on the trainer's nodes."""
    rollout = _asked(spec)
    if rollout is None or rollout.mode == "server" or rollout.tensor_parallel_size == "auto":
        return True
    return candidate.gpus // candidate.nodes % rollout.tensor_parallel_size == 0


def plan_rollout(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory, plan: Plan
) -> RolloutPlan | None:
    """Return the vLLM servers beside a planned trainer; None when it writes completions itself."""
    rollout = _asked(spec)
    if rollout is None:
        return None
    planner = _Planner(spec, rollout, preparation, inventory, plan)
    return planner.beside_trainer() if rollout.mode == "colocate" else planner.servers()


@dataclass(frozen=True)
class _Way:
    """So many servers of one size."""

    replicas: int
    server: Server
    share: int
    """Sequences of a batch that one of them writes, in whole groups."""
    writing: float
    """Seconds."""
    gpu_seconds: float
    """GPUs, with the trainer's, times seconds of a step."""

    @property
    def gpus(self) -> int:
        """GPUs of all of them."""
        return self.replicas * self.server.tensor_parallel_size


class _Planner:
    """The choice of servers for one trainer."""

    def __init__(
        self,
        spec: FineTuneJobSpec,
        rollout: Rollout,
        preparation: Preparation,
        inventory: Inventory,
        plan: Plan,
    ) -> None:
        self.spec, self.rollout, self.plan = spec, rollout, plan
        self.inventory, self.model = inventory, preparation.model
        self.gpu_gib = gpu_memory(spec, inventory)
        self.batch = StepBatch.of(spec, preparation, plan)
        self.speed = Speed.of(spec.resources.gpu.product)
        self.training = self.batch.training_seconds(plan.gpus, self.speed)

    def servers(self) -> RolloutPlan:
        """Return servers on GPUs of their own, with the least GPU-time for a step."""
        ways = list(self._ways())
        possible = [way for way in ways if self._has_room(way)]
        fewest = min(ways, key=lambda way: way.gpus)
        best = min(possible or [fewest], key=lambda way: (way.gpu_seconds, way.gpus))
        reasons = [self._why(best), self._why_memory(best)]
        if not possible:
            reasons.append(
                "Servers: the nodes have no room for them beside the trainer, so more have to be"
                " added."
            )
        return self._plan(best.server, best.replicas, best.gpus, best.writing, reasons)

    def beside_trainer(self) -> RolloutPlan:
        """Return vLLM in the trainer's processes."""
        server = colocated(self.spec, self.model, Candidate.of(self.plan))
        size = server.tensor_parallel_size
        share = math.ceil(self.batch.sequences * size / self.plan.gpus)
        writing = self.batch.writing_seconds(server, share, self.speed)
        kept = "gives back but a little while training" if self.rollout.sleep else "keeps"
        memory = f"vLLM takes {server.taken_gib:.1f} GiB of each of the trainer's GPUs, which it"
        reasons = [f"Rollout colocate: {memory} {kept}."]
        return self._plan(server, self.plan.gpus // size, 0, writing, reasons)

    def _ways(self) -> Iterator[_Way]:
        """Yield what could be, fewest GPUs of a server first."""
        asked, batch = self.rollout.replicas, self.batch
        numbers = _even_counts(batch.groups) if asked == "auto" else [asked]
        for server in _servers(self.spec, self.model, self.inventory, batch.longest):
            for replicas in numbers:
                share = math.ceil(batch.groups / replicas) * batch.group_size
                writing = batch.writing_seconds(server, share, self.speed)
                gpus = self.plan.gpus + replicas * server.tensor_parallel_size
                yield _Way(replicas, server, share, writing, gpus * self._step(writing))

    def _step(self, writing: float) -> float:
        """Return the seconds of a step: with prefetch the next batch is written meanwhile."""
        return max(writing, self.training) if self.rollout.prefetch else writing + self.training

    def _has_room(self, way: _Way) -> bool:
        """Tell whether the nodes have room for servers, each on one node, beside the trainer."""
        nodes, most = self.inventory.most_nodes, self.inventory.gpus_per_node
        if nodes is None:
            return True
        size, plan = way.server.tensor_parallel_size, self.plan
        beside = plan.nodes * ((most - plan.gpus_per_node) // size)
        return way.replicas <= beside + (nodes - plan.nodes) * (most // size)

    def _why(self, way: _Way) -> str:
        asked = {self.rollout.replicas, self.rollout.tensor_parallel_size}
        size = way.server.tensor_parallel_size
        step = f"{self._step(way.writing):.1f} s on {self.plan.gpus} + {way.gpus} GPUs"
        chosen = f"a step takes the least GPU-time with them, {step}"
        if "auto" not in asked:
            chosen = "as asked for"
        elif len(asked) > 1:
            chosen = f"as asked for in part, and {chosen}"
        together = "at the same time" if self.rollout.prefetch else "one after the other"
        return (
            f"Servers {way.replicas}, on {size} {'GPU' if size == 1 else 'GPUs'} each: {chosen};"
            f" writing a batch takes {way.writing:.1f} s and training on it {self.training:.1f} s,"
            f" {together} (rollout.prefetch {self.rollout.prefetch})."
        )

    def _why_memory(self, way: _Way) -> str:
        fitting = way.server.sequences(self.batch.longest)
        number = f"all {way.share}" if fitting >= way.share else f"{fitting} of the {way.share}"
        return (
            f"Server memory: {UTILIZATION:.0%} of each GPU; weights take"
            f" {way.server.weights_gib:.1f} GiB, and the rest holds keys and values of {number}"
            f" sequences that a server writes for a batch, of up to {self.batch.longest} tokens."
        )

    def _plan(
        self, server: Server, replicas: int, gpus: int, writing: float, reasons: list[str]
    ) -> RolloutPlan:
        own = math.ceil(100 * server.taken_gib / self.gpu_gib) / 100
        return RolloutPlan(
            mode="server" if self.rollout.mode == "server" else "colocate",
            replicas=replicas,
            tensor_parallel_size=server.tensor_parallel_size,
            gpus=gpus,
            gpu_memory_utilization=UTILIZATION if self.rollout.mode == "server" else min(1.0, own),
            max_model_length=self.batch.longest,
            weights=round(server.weights_gib, 2),
            kv_cache=round(server.kv_gib, 2),
            kv_tokens=server.kv_tokens,
            sequences=server.sequences(self.batch.longest),
            writing_seconds=round(writing, 2),
            training_seconds=round(self.training, 2),
            reasons=[*reasons, self._basis()],
        )

    def _basis(self) -> str:
        product = self.spec.resources.gpu.product
        gpu = product if has_speed(product) else f"{UNKNOWN}, as the GPU's own are not known"
        return (
            "Times of writing and training are computed, not measured: each completion at its"
            f" longest, {REACHED:.0%} of the arithmetic and {BANDWIDTH_REACHED:.0%} of the memory"
            f" bandwidth of {gpu}."
        )


def _asked(spec: FineTuneJobSpec) -> Rollout | None:
    """Return the rollout of a job that vLLM writes for; auto is the trainer's own generate()."""
    rollout = spec.rollout or _NO_ROLLOUT
    vllm = spec.method in ONLINE and rollout.mode in {"server", "colocate"}
    return rollout if vllm else None


def _even_counts(groups: int) -> list[int]:
    """Return the numbers of servers to try, fewest first: those in between, and more than there are
    groups, do not make the largest share smaller.
    """
    found = {math.ceil(groups / share) for share in range(1, groups + 1)}
    return sorted(count for count in found if count <= _MOST_REPLICAS)


def _servers(
    spec: FineTuneJobSpec, model: ModelFacts, inventory: Inventory, length: int
) -> list[Server]:
    """Return the servers that hold a sequence of a length, on fewest GPUs first; vLLM itself would
    not start otherwise.
    """
    asked, gib = (spec.rollout or _NO_ROLLOUT).tensor_parallel_size, gpu_memory(spec, inventory)
    legal = tensor_parallel_sizes(model, inventory.gpus_per_node)
    servers = [server_of(model, gib, size) for size in legal]
    fitting = [server for server in servers if server.sequences(length)]
    found = [one for one in fitting if asked in {"auto", one.tensor_parallel_size}]
    if found:
        return found
    size = legal[-1] if asked == "auto" else asked
    if fitting:
        ways = f"choose {_in_words([one.tensor_parallel_size for one in fitting])}, or auto"
    else:
        ways = (
            f"nor can any size that vLLM can split this model by on one node ({_in_words(legal)}):"
            " choose GPUs with more memory, or rollout.mode local"
        )
    raise PlanInfeasibleError(
        f"rollout.tensorParallelSize is {asked}, but {size} {'GPUs' if size > 1 else 'GPU'} of"
        f" {gib:.0f} GiB cannot hold {server_of(model, gib, size).weights_gib:.1f} GiB of weights"
        f" on each and the keys and values of one sequence of {length} tokens: {ways}."
    )


def _check_divides(size: int, spec: FineTuneJobSpec, inventory: Inventory) -> None:
    """Raise PlanInfeasibleError when no number of trainer GPUs on a node is a multiple of it."""
    each = sorted({gpus // nodes_of(spec, inventory, gpus) for gpus in counts(spec, inventory)})
    if not any(gpus % size == 0 for gpus in each):
        raise PlanInfeasibleError(
            f"rollout.tensorParallelSize is {size}, but the trainer has {_in_words(each)} GPUs on a"
            " node, which vLLM in its processes cannot share evenly: choose a divisor, or auto."
        )


def _in_words(sizes: list[int]) -> str:
    *some, last = map(str, sizes)
    return f"{', '.join(some)} or {last}" if some else last
