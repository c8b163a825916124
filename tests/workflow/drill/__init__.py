"""A malicious dependency (``hunt.py``) and the machine on which it hunts (``machine.py``): see ``tests/workflow/test_drill.py``."""
