"""Adopting what runs on Kubernetes."""
