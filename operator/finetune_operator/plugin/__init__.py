"""The command kubectl-finetune, which kubectl also runs as `kubectl finetune`.

Nothing here needs a Kubernetes client: what it asks a cluster, it asks through kubectl.
"""

from finetune_operator.plugin.main import main

__all__ = ["main"]
