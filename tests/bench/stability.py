"""How well the stability guard finds faults: precision, recall and the step of detection.

Made-up metrics (bench.series) show every rule at work at the lengths of real runs; real training of
tiny models shows that the metrics are those of TRL, and that clean runs stay clean.

Usage: PYTHONPATH=tests python -m bench.stability [--seeds 20] [--series-only]
"""

import argparse
import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.series import FAULTS, PLACES, clean
from finetune_api.spec import Method
from finetune_trainer.stability.evaluator import Detection, Evaluator

Row = tuple[str, ...]


@dataclass
class Score:
    """How runs with one fault, or with none, were judged."""

    runs: int = 0
    faulty: bool = False
    found: int = 0
    """Runs in which a rule for the fault fired."""
    true: int = 0
    """Findings after the fault began; those of severity Info do not count."""
    false: int = 0
    """Findings before it, or in a clean run."""
    delays: list[int] = field(default_factory=list)
    """Steps from the first bad one to the finding; 0 is the same step."""

    def add(self, findings: list[tuple[str, int]], bad_step: int | None, rules: Any = ()) -> None:
        """Count one run's findings, as rule and step; bad_step is None for a clean run."""
        self.runs += 1
        self.faulty = bad_step is not None
        early = [step for _, step in findings if bad_step is None or step < bad_step]
        self.false += len(early)
        self.true += len(findings) - len(early)
        hits = [step for name, step in findings if name in rules and step not in early]
        if hits and bad_step is not None:
            self.found += 1
            self.delays.append(min(hits) - bad_step)

    def row(self, name: str) -> Row:
        """Return a line of the table."""
        steps = sorted({min(self.delays), max(self.delays)}) if self.delays else []
        found = f"{self.found} of {self.runs}" if self.faulty else f"{self.runs} clean runs"
        delay = " to ".join(str(step) for step in steps)
        return (name, found, delay, str(self.true), str(self.false))


def main() -> int:
    """Measure, print the tables, and return 1 when faults were missed or clean runs were not."""
    logging.disable(logging.WARNING)
    options = _parse()
    tables = {"Made-up metrics of 400 steps": _series(options.seeds)}
    if not options.series_only:
        tables["Real training of tiny models"] = _training(options.seeds)
    good = True
    for title, scores in tables.items():
        print(f"\n{title}\n")
        print("\n".join(_table(scores)))
        good &= all(not score.false for score in scores.values())
        good &= all(score.found >= 0.95 * score.runs for score in scores.values() if score.faulty)
    return 0 if good else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.stability", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="clean runs of each method")
    parser.add_argument("--series-only", action="store_true", help="train nothing")
    return parser.parse_args()


def _series(seeds: int) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    for name, fault in FAULTS.items():
        score = scores.setdefault(name, Score())
        for place in PLACES:
            for seed in range(seeds):
                series = fault.inject(clean(fault.method, seed), place, seed)
                score.add(_found(_observe(fault.method, series)), place + 1, fault.rules)
    for method in Method:
        score = scores.setdefault(f"none ({method})", Score())
        for seed in range(seeds):
            score.add(_found(_observe(method, clean(method, seed))), None)
    return scores


def _observe(method: Method, series: list[dict[str, float]]) -> list[Detection]:
    evaluator = Evaluator(method)
    found = []
    for step, values in enumerate(series, 1):
        found += evaluator.observe(step, values)
    return found


def _found(detections: list[Detection]) -> list[tuple[str, int]]:
    return [(one.rule.name, one.step) for one in detections if one.rule.severity != "Info"]


def _training(seeds: int) -> dict[str, Score]:
    from unit.trainer import faults
    from unit.trainer.builders import turning_rows

    scores: dict[str, Score] = {}
    changes: Mapping[str, tuple[Callable[[Any], Any], frozenset[str]]] = {
        "NaN loss": (faults.no_number, frozenset({"gradient-not-finite"})),
        "infinite gradient": (faults.infinite_gradient, frozenset({"gradient-not-finite"})),
        "x50 spike of the loss": (faults.fifty_times, frozenset({"loss-jump"})),
    }
    for name, (change, rules) in changes.items():
        for step in (15, 25, 35):
            with pytest.MonkeyPatch.context() as patch:
                faults.break_loss(patch, [step], change)
                scores.setdefault(name, Score()).add(_train(Method.SFT, 1), step, rules)
    for step in (41, 61, 81):
        rows = turning_rows(100 * 16, bad=range((step - 1) * 16, (step + 14) * 16))
        found = _train(Method.SFT, 1, rows)
        rules = FAULTS["data that turns bad"].rules
        scores.setdefault("data that turns bad", Score()).add(found, step, rules)
    for step in (6, 11, 16):
        found = _train(Method.GRPO, 1, reward=_REWARD.format(good=step - 1))
        rules = FAULTS["constant reward"].rules
        scores.setdefault("constant reward", Score()).add(found, step, rules)
    for method in (Method.SFT, Method.DPO, Method.GRPO):
        score = scores.setdefault(f"none ({method})", Score())
        for seed in range(seeds):
            score.add(_train(method, seed), None)
            print(f"  {method} seed {seed}: {score.false} false", file=sys.stderr)
    return scores


_REWARD = """
calls = 0
def short(completions, **_):
    global calls
    calls += 1
    return [-len(one) if calls <= {good} else 0.0 for one in completions]
"""
"""Short completions pay, but after a number of steps nothing does."""


def _train(
    method: Method,
    seed: int,
    rows: list[dict[str, Any]] | None = None,
    reward: str = _REWARD.format(good=10**9),
) -> list[tuple[str, int]]:
    """Train a tiny model and return what its guard found, but for Info."""
    from unit.trainer.builders import make_plan
    from unit.trainer.faults import run_here

    with _site() as site:
        site.write_reward(reward)
        spec = _specs(site, method, rows)
        spec["training"] |= {"seed": seed}
        config = site.job(make_plan(micro_batch_size=8, gradient_accumulation_steps=2), **spec)
        assert run_here(site, config) == 0, site.result().message
        evaluator = Evaluator(method)
        return _found(evaluator.replay(site.metrics(), until=10**9))


def _specs(site: Any, method: Method, rows: list[dict[str, Any]] | None) -> dict[str, Any]:
    from unit.trainer.builders import chat_rows, preference_rows

    data: dict[Method, list[dict[str, Any]]] = {
        Method.SFT: rows or chat_rows(400),
        Method.DPO: preference_rows(400),
        Method.GRPO: [{"prompt": f"Word {number}:"} for number in range(100)],
    }
    site.write_data(data[method])
    training: dict[str, Any] = {"maxSteps": 60, "batchSize": 16, "learningRate": 0.01}
    spec: dict[str, Any] = {"method": method.value, "training": training}
    if rows is not None:
        training |= {"maxSteps": 100, "extra": {"train_sampling_strategy": "sequential"}}
    if method is Method.GRPO:
        function = "configmap://rewards/rewards.py:short"
        spec["rewards"] = [{"name": "short", "function": function}]
        spec["generation"] = {"groupSize": 8, "maxCompletionLength": 16}
        training |= {"maxSteps": 40}
    return spec


@contextmanager
def _site() -> Iterator[Any]:
    from unit.trainer.builders import save_model
    from unit.trainer.conftest import Site

    root = Path(tempfile.mkdtemp())
    try:
        site = Site(root)
        for folder in (site.paths.workspace, site.paths.output, site.model.parent):
            folder.mkdir(parents=True)
        save_model(site.model)
        yield site
    finally:
        shutil.rmtree(root)


def _table(scores: dict[str, Score]) -> list[str]:
    total = Counter[str]()
    for score in scores.values():
        total["true"] += score.true
        total["false"] += score.false
        if score.faulty:
            total["found"] += score.found
            total["faults"] += score.runs
    head: Row = ("fault", "found", "after steps", "findings after", "findings before")
    lines = [head, ("---",) * len(head), *(score.row(name) for name, score in scores.items())]
    precision = total["true"] / max(1, total["true"] + total["false"])
    recall = total["found"] / max(1, total["faults"])
    return [
        *(f"| {' | '.join(line)} |" for line in lines),
        "",
        f"precision {precision:.3f}, recall {recall:.3f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
