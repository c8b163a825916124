"""Objects of an API server as documents. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]


def member(document: Mapping[str, Any] | None, *names: str) -> Any:
    """Return a member inside a document, None where a part of the way is missing."""
    value: Any = document
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def pointer(key: str) -> str:
    """Return a key as a part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def annotation(key: str) -> str:
    """Return the JSON pointer of an object's annotation."""
    return f"/metadata/annotations/{pointer(key)}"
