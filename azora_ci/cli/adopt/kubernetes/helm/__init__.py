"""Helm charts, rendered as far as their files say it, by a reader of Go templates with bounds. No program is started."""
