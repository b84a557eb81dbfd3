"""What follows from how stable training is: Events about findings, and rollbacks."""

from typing import Final

from finetune_api.failures import Reason
from finetune_api.stability import stability_of
from finetune_api.status import Checkpoint, Rollback, Stability
from finetune_operator.lifecycle.draft import Draft
from finetune_operator.lifecycle.outcome import Outcome

_VERDICTS: Final = ("Stable", "Warning", "Unstable")


def show_stability(draft: Draft, stability: Stability | None) -> None:
    """Show what the stability guard says, with an Event for each new finding that is worth one."""
    if stability is None:
        return
    before = draft.status.stability
    known = {(one.rule, one.step) for one in before.findings} if before else set()
    for finding in stability.findings:
        if finding.severity != "Info" and (finding.rule, finding.step) not in known:
            words = (
                f"{finding.rule} at step {finding.step}: {finding.message} Advice: {finding.advice}"
            )
            draft.event(f"Stability{finding.severity}", words, warning=True)
    draft.update(stability=stability)


def show_last_words(draft: Draft, stability: Stability | None) -> None:
    """Show what a result says: its message has room for few findings, so those known stay.

    Unless it is better than what is known: then it is of a run that went back before those.
    """
    before = draft.status.stability
    if stability is not None and before is not None and not _is_better(stability, before):
        findings = {(one.rule, one.step): one for one in (*before.findings, *stability.findings)}
        kept = stability_of(sorted(findings.values(), key=lambda one: one.step)).findings
        stability = stability.model_copy(update={"findings": kept})
    show_stability(draft, stability)


def _is_better(one: Stability, other: Stability) -> bool:
    return _VERDICTS.index(one.verdict) < _VERDICTS.index(other.verdict)


def roll_back(draft: Draft, outcome: Outcome) -> str | None:
    """Have the next attempt start from an earlier checkpoint; return why not when it cannot."""
    rollback = outcome.result.rollback if outcome.result is not None else None
    limit = draft.job.spec.stability.max_rollbacks
    if rollback is None:
        return f"{outcome.message} The trainer did not say to which checkpoint to go back."
    if len(draft.status.rollbacks) >= limit:
        return f"{outcome.message} Gave up after {limit} rollbacks (stability.maxRollbacks)."
    rollbacks = [*draft.status.rollbacks, rollback]
    draft.update(rollbacks=rollbacks, checkpoint=Checkpoint(step=rollback.to_step))
    words = f"{_words(rollback)} Rollback {len(rollbacks)} of at most {limit}."
    draft.event(Reason.ROLLED_BACK.value, words, warning=True)
    return None


def _words(rollback: Rollback) -> str:
    return (
        f"{rollback.rule} at step {rollback.step}: training goes on after that step from the"
        f" weights of step {rollback.to_step}, with {rollback.learning_rate_factor:g} x the"
        " learning rate."
    )
