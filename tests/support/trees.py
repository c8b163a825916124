"""The application's tree as the job build hands it over: the artifact, and the fragment of the job."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from azora_ci.core.clock import rfc3339
from azora_ci.core.process import tree
from azora_ci.database.migrations.tree import ARTIFACT, FILE
from azora_ci.record import fragments


def hand_over(folder: Path, received: Path, deployment_id: str, *, left_out: tuple[str, ...] = (), **changes: Any) -> Path:
    """Pack a folder into an artifact in ``received`` beside build's fragment; ``changes`` of its evidence. Return the packed file."""
    file = received / ARTIFACT / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    evidence = {"commands": [], "dockerfiles": [], "tree": tree.pack(folder, file, left_out).evidence(), **changes}
    moment = rfc3339(datetime.now(UTC))
    job = fragments.Fragment("build", deployment_id, "v1.1.0", "abc123" + "0" * 34, "1", 1, "ok", moment, moment, evidence)
    fragments.write(job, received / f"application-build-logs-{deployment_id}")
    return file
