"""Where the time of a training step goes, measured without waiting for the GPU."""
# ruff: noqa: ARG002 - the signatures are those of TrainerCallback

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.metrics import PARTS, SECONDS, Part


class StepClock:
    """Shares the time between the parts of a step: from one mark to the next, one part has it.

    On a GPU the marks are CUDA events in the stream that computes. So a part has the time in which
    the GPU worked for it or waited for it, and what the CPU does ahead of the GPU costs nothing.
    Events are read once they have passed; only when a log is due is one waited for, and by then
    the loss was waited for.

    What runs at the same time cannot be told apart. DDP and FSDP reduce gradients during the
    backward pass: "backward" has what that makes it longer, and the wait for the slowest process.
    FSDP and ZeRO-3 gather weights in "forward" and "backward" alike, and DeepSpeed clips and steps
    in "backward". "sync" is what comes after: the gradient's norm, and clipping where that is not
    done by the optimizer.

    A process measures from the end of its first step: that one warms caches up and compiles.
    Evaluations and checkpoints belong to no step.
    """

    def __init__(self, *, cuda: bool = False) -> None:
        self._now: type[_Event | _Instant] = _Event if cuda else _Instant
        self._marks: deque[tuple[Part | None, Any]] = deque()
        """What began when; None is what belongs to no step."""
        self._part: Part | None = None
        self._seconds: dict[Part, float] = {part: 0.0 for part in PARTS if part != "rollout"}
        self._steps = 0

    def enter(self, part: Part) -> None:
        """Give the time from now on to a part, unless the clock stands still."""
        if self._part is not None:
            self._mark(part)

    @contextmanager
    def part(self, part: Part | None) -> Iterator[None]:
        """Give the time within to a part, and then again to the part before; None: to no step."""
        before = self._part
        if before is None:
            yield
            return
        self._mark(part)
        try:
            yield
        finally:
            self._mark(before)

    def end_step(self) -> None:
        """Count a step, or begin after the first; what follows until the next is logging."""
        self._steps += self._part is not None
        self._mark("logging")
        self._add_up()

    def take(self) -> dict[str, float]:
        """Return each part's mean seconds of the steps since the call before, to be logged."""
        if not self._steps:
            return {}
        now = self._now()
        self._marks.append((self._part, now))
        now.wait()
        self._add_up()
        means = {
            f"{SECONDS}{part}": round(seconds / self._steps, 6)
            for part, seconds in self._seconds.items()
        }
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._steps = 0
        return means

    def _mark(self, part: Part | None) -> None:
        if part != self._part:
            self._part = part
            self._marks.append((part, self._now()))

    def _add_up(self) -> None:
        """Add what has passed to the sums, without waiting."""
        while len(self._marks) > 1 and self._marks[1][1].has_passed():
            part, begin = self._marks.popleft()
            if part is not None:
                spent = self._marks[0][1].seconds_since(begin)
                self._seconds[part] = self._seconds.get(part, 0.0) + spent


class _Instant:
    """Now, by the CPU's clock."""

    def __init__(self) -> None:
        self.at = perf_counter()

    def has_passed(self) -> bool:
        return True

    def wait(self) -> None:
        """Return at once."""

    def seconds_since(self, earlier: "_Instant") -> float:
        return self.at - earlier.at


class _Event:
    """The moment at which the GPU has done what it was given until now."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def has_passed(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: "_Event") -> float:
        return float(earlier.event.elapsed_time(self.event)) / 1000


class TimingCallback(TrainerCallback):
    """Tells the clock of the first process what Trainer calls back for; before other callbacks."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the optimizer's part, which ends with the step."""
        self.clock.enter("optimizer")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End a step."""
        if state.is_world_process_zero:
            self.clock.end_step()
