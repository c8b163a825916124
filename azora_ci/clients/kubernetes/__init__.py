"""A Kubernetes API server: who we are there, and requests with bounded answers."""
