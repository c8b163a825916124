"""Compose files as Compose reads them: which are read, how they merge, and what each of their services is. Runs nothing of them."""
