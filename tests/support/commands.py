"""Programs that tests run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

IDENTITY = {"NAME": "Test", "EMAIL": "test@example.com"}


def git(folder: Path, *arguments: str) -> str:
    """Run git without the machine's configuration and return its output."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in IDENTITY.items()}
    environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    completed = subprocess.run(["git", *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert completed.returncode == 0, f"git {arguments}: {completed.stderr}"
    return completed.stdout.strip()
