"""Parse JSON from outside within limits of size and depth."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 64


def parse_object(data: bytes, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in these bytes. Raises ValueError when they are more, nested deeper than ``MAX_DEPTH``, or no object."""
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the bytes are at fault, not a type in our code
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            child for value in level if isinstance(value, dict | list) for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return document
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
