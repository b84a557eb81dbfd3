"""Many jobs at once on a control plane whose nodes and pods KWOK plays: `make bench`, in small."""

from pathlib import Path

import pytest

from bench.measure import running_bench

pytestmark = pytest.mark.integration


def test_jobs_at_once_all_succeed_within_the_requirements(tmp_path: Path) -> None:
    with running_bench("scale", tmp_path, nodes=4, pod_seconds=0.5) as bench:
        measured = bench.measure(20, seconds=60)
    assert measured.broken() == []
