"""What GitHub says of the jobs that a job needs: the text of ``toJSON(needs)`` in the variable NEEDS, parsed strictly and once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from azora_ci.core.documents import read_json
from azora_ci.core.errors import BadInputError

RESULTS = ("success", "failure", "cancelled", "skipped")


@dataclass(frozen=True)
class Need:
    """A job that ours needs: its result (one of ``RESULTS``) and its outputs by name."""

    result: str
    outputs: Mapping[str, str] = field(default_factory=dict)


def parse_needs(text: str | None) -> dict[str, Need]:
    """Return each needed job by its name; {} for an unset variable. Raises BadInputError for anything but ``toJSON(needs)``."""
    if not text:
        return {}
    try:
        needs = read_json(text)
        if not isinstance(needs, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004 - the text is at fault, not a type in our code
        return {job: _need(entry) for job, entry in needs.items()}
    except ValueError as error:
        raise BadInputError(
            "NEEDS is not the result of jobs",
            what=str(error),
            where="NEEDS, which is toJSON(needs)",
            next_step="hand it over as the workflow does: NEEDS: ${{ toJSON(needs) }}",
        ) from None


def _need(entry: Any) -> Need:
    if not isinstance(entry, dict) or entry.get("result") not in RESULTS:
        raise ValueError(f"a job's result is none of {', '.join(RESULTS)}")
    outputs = entry.get("outputs") or {}  # a rehearsal gives null for a job that was skipped
    if not isinstance(outputs, dict) or not all(isinstance(value, str) for value in outputs.values()):
        raise ValueError("a job's outputs are not texts by name")
    return Need(entry["result"], outputs)
