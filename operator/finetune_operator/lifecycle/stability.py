"""What follows from how stable training is: Events about findings, and rollbacks."""

from finetune_api.failures import Reason
from finetune_api.status import Checkpoint, Rollback, Stability
from finetune_operator.lifecycle.draft import Draft
from finetune_operator.lifecycle.outcome import Outcome


def show_stability(draft: Draft, stability: Stability | None) -> None:
    """Show what the stability guard says, with an Event for each new finding that is worth one."""
    if stability is None:
        return
    before = draft.status.stability
    known = {(one.rule, one.step) for one in before.findings} if before else set()
    for finding in stability.findings:
        if finding.severity != "Info" and (finding.rule, finding.step) not in known:
            words = f"{finding.rule} at step {finding.step}: {finding.message} {finding.advice}"
            draft.event(f"Stability{finding.severity}", words, warning=True)
    draft.update(stability=stability)


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
