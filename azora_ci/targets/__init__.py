"""Rollout targets: small Protocols in one dict."""
