"""Claims may be shared in every way."""

import pytest

from e2e.site import SOURCES, Site, make_job

pytestmark = pytest.mark.e2e


def test_one_claim_for_sources_workspace_and_output(site: Site) -> None:
    """The kubelet starts no pod that has one claim as two volumes."""
    job = make_job(
        "one-claim",
        training={"maxSteps": 2, "batchSize": 4},
        resources={"workspace": {"claim": SOURCES}},
        output={"claim": SOURCES, "path": "models/one-claim"},
    )
    site.kubectl.apply(job)
    status = site.finish("one-claim")["status"]
    assert status["phase"] == "Succeeded", status
    assert status["artifact"]["uri"] == f"pvc://{SOURCES}/models/one-claim"
