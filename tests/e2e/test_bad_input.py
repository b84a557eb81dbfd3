"""Bad input ends in one clear sentence before a GPU is asked for; nothing hangs."""

from collections.abc import Callable
from typing import Any

import pytest

from e2e.site import SOURCES, Site, make_job

pytestmark = pytest.mark.e2e

NO_SECRET = {"source": "hf://acme/model", "secret": "no-such-secret"}

FAILING: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "preference-data": (
        {"dataset": {"source": f"pvc://{SOURCES}/pairs.jsonl"}},
        "DataInvalid",
        ("chosen", "rejected", "sft", "dpo"),
    ),
    "empty-data": (
        {"dataset": {"source": f"pvc://{SOURCES}/empty.jsonl"}}, "DataInvalid", ("empty.jsonl",),
    ),
    "broken-data": (
        {"dataset": {"source": f"pvc://{SOURCES}/broken.jsonl"}}, "DataInvalid", ("broken.jsonl",),
    ),
    "rows-longer-than-model": (
        {"dataset": {"source": f"pvc://{SOURCES}/long.jsonl"}}, "DataInvalid", ("512", "tooLong"),
    ),
    "no-such-model": (
        {"model": {"source": f"pvc://{SOURCES}/nothing"}}, "ModelNotFound", ("nothing",),
    ),
    "no-such-data": (
        {"dataset": {"source": f"pvc://{SOURCES}/nothing.jsonl"}},
        "DatasetNotFound",
        ("nothing.jsonl",),
    ),
    "unknown-training-field": (
        {"training": {"extra": {"adam_beta_1": 0.8}}},
        "ConfigInvalid",
        ("adam_beta_1", "adam_beta1"),
    ),
    "no-such-claim": ({"output": {"claim": "nowhere"}}, "ClaimNotFound", ("nowhere",)),
    "no-such-secret": ({"model": NO_SECRET}, "SecretNotFound", ("no-such-secret",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def applied(site: Site) -> Site:
    """All failing jobs at once: they wait for each other's memory, not for each other's end."""
    site.kubectl.apply(*(make_job(name, **spec) for name, (spec, _, _) in FAILING.items()))
    return site


@pytest.mark.parametrize("name", FAILING)
def test_job_fails_in_preparation_with_one_sentence(applied: Site, name: str) -> None:
    _, reason, words = FAILING[name]
    status = applied.finish(name)["status"]
    failed = condition(status, "Failed")
    assert (status["phase"], failed["status"], failed["reason"]) == ("Failed", "True", reason)
    assert [word for word in words if word not in failed["message"]] == [], failed["message"]
    assert "plan" not in status
    assert not applied.trainer_pods(name)


def test_unschedulable_pod_is_explained(site: Site) -> None:
    # Plans for GPUs of a given memory do not look at the nodes.
    gpus = {"count": 8, "memory": "80Gi"}
    site.kubectl.apply(make_job("too-many-gpus", resources={"gpu": gpus}))
    site.wait("too-many-gpus", told("Unschedulable", "nvidia.com/gpu"), 300)
    site.kubectl.delete("finetunejob", "too-many-gpus")


def test_image_that_cannot_be_pulled_is_explained(site: Site) -> None:
    image = "10.99.0.1:5000/no-such-image:1"
    site.kubectl.apply(make_job("no-such-image", resources={"image": image}))
    site.wait("no-such-image", told("Image", image), 300)
    site.kubectl.delete("finetunejob", "no-such-image")


def told(reason: str, words: str) -> Callable[[dict[str, Any]], bool]:
    """Wait for this problem: a busy machine has others before, which pass."""

    def found(status: dict[str, Any]) -> bool:
        problem = condition(status, "PodProblem")
        return (
            problem.get("status") == "True"
            and reason in problem["reason"]
            and words in problem["message"]
        )

    return found


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    found = [one for one in status.get("conditions", []) if one["type"] == kind]
    return found[0] if found else {}
