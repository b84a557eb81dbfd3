"""The contract of the FineTuneJob API: spec, status, and what operator and trainer tell each other.

Imports neither torch nor Kubernetes, so that both sides, and tools without a cluster, can use it.
"""
