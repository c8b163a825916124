"""Envoy as the edge of any target: its state, its configuration files, its admin interface. Who may change routes is the guard's."""
