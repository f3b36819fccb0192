"""Ray: started or joined, its machines, and Ray Train around `fit`."""

from statten.cluster.session import free_port, ray_cluster

__all__ = ["free_port", "ray_cluster"]
