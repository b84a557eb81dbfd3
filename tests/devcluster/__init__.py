"""A real Kubernetes on one machine, for tests and the demo. See `python -m devcluster --help`."""

from devcluster.cluster import NODE_CLUSTER, Cluster
from devcluster.layout import ClusterError

__all__ = ["NODE_CLUSTER", "Cluster", "ClusterError"]
