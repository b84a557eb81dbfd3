"""`python -m demo up|down`: one FineTuneJob from `kubectl apply` to a model, shown as it goes."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from demo import prepare_demo
from demo.target import Target, current, has_gpus, own
from devcluster import Cluster, ClusterError
from harness import install
from harness.kubectl import Kubectl, KubectlError, Manifest

JOB_FILE = Path(__file__).with_name("job.yaml")
JOB_SECONDS = 1800
"""Longest time from apply to the end; a first run pulls 3 GB of images."""


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--cluster", choices=("own", "current"), default="own")
    parser.add_argument("--registry", help="registry that the cluster pulls from (current only)")
    options = parser.parse_args()
    try:
        if options.action == "down":
            down(options.cluster)
        else:
            up(own() if options.cluster == "own" else current(options.registry))
    except (ClusterError, KubectlError, TimeoutError) as error:
        sys.exit(f"error: {error}")


def down(cluster: str) -> None:
    """Stop what `up` started; on the user's cluster, delete what it made."""
    if cluster == "own":
        Cluster.node().down()
        return
    Kubectl().delete("namespace", "demo")
    subprocess.run(
        ["helm", "uninstall", install.RELEASE, "--namespace", install.NAMESPACE], check=True
    )


def up(target: Target) -> None:
    """Run the demo on a cluster."""
    kubectl = target.kubectl
    title("Install the operator with its Helm chart")
    install.install_operator(kubectl, target.helm, target.images, *target.values)
    print(kubectl.run("get", "pods", "--namespace", install.NAMESPACE), end="")

    title("Put a small chat model and its data into a claim")
    fill_sources(target)

    job = read_job(kubectl)
    title(f"kubectl apply -f {JOB_FILE.relative_to(Path.cwd())}")
    print(JOB_FILE.read_text())
    kubectl.delete("finetunejob", job["metadata"]["name"], "--wait")
    install.read_claim(
        kubectl, "models", target.images["trainer"], f"rm -rf /claim/{job['metadata']['name']}"
    )
    started = time.monotonic()
    kubectl.apply(job)
    finished = watch(kubectl, job["metadata"]["name"], started)

    title("Before and after")
    show_result(target, finished)
    title("Look around")
    print(target.about)
    print("kubectl -n demo get finetunejobs -o wide")
    print("kubectl -n demo describe finetunejob docstrings")
    print("kubectl -n demo logs -l finetune.dev/job=docstrings,finetune.dev/role=trainer --tail=-1")
    if finished["status"]["phase"] != "Succeeded":
        sys.exit(f"the job ended as {finished['status']['phase']}: {finished['status']['message']}")


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def fill_sources(target: Target) -> None:
    """Create namespace and claims; convert and copy model and data, once."""
    kubectl = target.kubectl
    install.create_namespace(kubectl)
    kubectl.apply(install.claim("sources", "5Gi"), install.claim("models", "10Gi"))
    sources = prepare_demo.prepare()
    install.fill_claim(
        kubectl,
        "sources",
        target.images["trainer"],
        {"smollm2-135m-instruct": sources.model, "docstrings.jsonl": sources.data},
    )


def read_job(kubectl: Kubectl) -> Manifest:
    """Read the job; where no node has a GPU it says so, as its user would."""
    job: Manifest = yaml.safe_load(JOB_FILE.read_text())
    if not has_gpus(kubectl):
        job["spec"]["resources"] = {"gpu": {"count": 0}}
    return job


def watch(kubectl: Kubectl, name: str, started: float) -> Manifest:
    """Print phase, progress and loss as they change; return the finished job."""
    shown, metrics_shown = "", False
    for job in kubectl.follow("finetunejob", name, JOB_SECONDS):
        status: dict[str, Any] = job.get("status", {})
        line = status_line(status)
        if line != shown:
            print(f"{time.monotonic() - started:6.1f} s  {line}", flush=True)
            shown = line
        if not metrics_shown and status.get("progress", {}).get("step", 0) > 0:
            metrics_shown = show_metrics(kubectl, name)
        if status.get("phase") in {"Succeeded", "Failed"}:
            return job
    raise AssertionError("unreachable: follow ends with TimeoutError")


def status_line(status: dict[str, Any]) -> str:
    """Return one line about the job."""
    progress = status.get("progress", {})
    parts = [status.get("phase", "Pending").ljust(10), progress.get("steps", "").rjust(6)]
    for name, value in (("loss", "loss"), ("evalLoss", "held-out loss")):
        if name in progress:
            parts.append(f"{value} {progress[name]:.3f}")
    if "tokensPerSecond" in progress:
        parts.append(f"{progress['tokensPerSecond']:.0f} tokens/s")
    return "  ".join([*parts, status.get("message", "")]).rstrip()


def show_metrics(kubectl: Kubectl, name: str) -> bool:
    """Print the trainer's own metrics, through the API server; False while there are none."""
    pods = kubectl.list("pods", f"finetune.dev/job={name},finetune.dev/role=trainer")
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pods[-1]['metadata']['name']}:9400/proxy"
    try:
        text = kubectl.run("get", "--raw", f"{path}/metrics")
    except KubectlError:
        return False  # The trainer has just ended; the next pod, if any, has metrics too.
    lines = [line for line in text.splitlines() if line.startswith("finetune_")]
    print("          its Prometheus metrics, at :9400/metrics:")
    print("\n".join(f"            {line}" for line in lines[:12]), flush=True)
    return True


def show_result(target: Target, job: Manifest) -> None:
    """Print losses and answers before and after training."""
    progress = job["status"].get("progress", {})
    if "evalLossBefore" in progress:
        before, after = progress["evalLossBefore"], progress["evalLoss"]
        print(f"held-out loss: {before:.3f} before, {after:.3f} after")
    if "artifact" not in job["status"]:
        return
    folder = f"/claim/{job['metadata']['name']}"
    script = f"cd {folder} && find . -type f | sort >&2 && cat samples.json"
    for sample in json.loads(
        install.read_claim(target.kubectl, "models", target.images["trainer"], script)
    ):
        print(
            f"\n  {sample['prompt']}\n    before: {sample['before']}\n    after:  {sample['after']}"
        )
    print(f"\nthe model: {job['status']['artifact']['uri']}")


if __name__ == "__main__":
    main()
