"""The doctor's findings about the target ``local_processes``: loopback, folders, and the edge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from azora_ci.targets.base import TargetContext
from azora_ci.targets.envoy.edge import Edge
from azora_ci.targets.findings import Finding, check
from azora_ci.targets.local_processes.target import LocalProcesses


def findings(context: TargetContext) -> Iterator[Finding]:
    """Yield the findings about folders, edge and addresses."""
    config = context.config
    settings, config_dir = config.target.local_processes, config.edge.config_dir
    assert settings is not None  # noqa: S101 - the configuration's own check
    assert config_dir is not None  # noqa: S101 - likewise
    yield check("loopback", lambda: f"{type(LocalProcesses(context)).__name__} keeps to this machine")
    yield _writable("state dir", "target.local_processes.state_dir", settings.state_dir)
    yield _writable("archive dir", "target.local_processes.archive_dir", settings.archive_dir)
    edge = Edge(config_dir, context.clock)
    install = "python -m azora_ci edge install"
    yield check("config dir", lambda: f"{config_dir} holds the edge's files, {len(edge.state().releases)} releases", install)
    yield check("admin socket", lambda: f"it answers, {len(edge.weights())} routes", f"start the edge ({install} prints the command)")


def _writable(name: str, key: str, folder: Path) -> Finding:
    """Return the finding on whether a folder can be written to, or created in its nearest existing parent."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    passed = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    state = "can be written" if existing == folder.absolute() else f"is made by the first deployment, in {existing}"
    return Finding(
        name, passed, f"{folder} {state if passed else f'cannot be written: {existing}'}", f"give this user the right, or correct {key}"
    )
