"""Kubernetes manifests as they lie in a repository: which are production's, and what each workload is. Asks no cluster, runs nothing."""
