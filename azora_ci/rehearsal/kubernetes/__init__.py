"""A real Kubernetes control plane with Argo Rollouts on this machine, for rehearsals and tests: built once, started in seconds."""
