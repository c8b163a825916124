"""A check of a whole chain of records that no two runs ended at the same time."""

from __future__ import annotations

import json
from collections.abc import Sequence

from azora_ci.record.chain import archived_bytes, sha256


def broken_links(archived: Sequence[bytes]) -> list[str]:
    """Return a sentence for each fault of a chain of records (oldest first): bytes that are not canonical, links that do not fit."""
    problems: list[str] = []
    previous_sha256: str | None = None
    for number, data in enumerate(archived):
        document = json.loads(data)
        name = f"record {number} ({document.get('deployment_id')})"
        if archived_bytes(document) != data:
            problems.append(f"{name} is not canonical JSON")
        link = document.get("previous_record_sha256")
        if number and link != previous_sha256:
            problems.append(f"{name} names {link} as the record before it, which is {previous_sha256}")
        previous_sha256 = sha256(data)
    return problems
