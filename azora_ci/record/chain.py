"""The chain of records: each names the SHA-256 of the bytes of the one before, so that a change is found. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from azora_ci.core import schemas

Document = dict[str, Any]


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def archived_bytes(record: Document) -> bytes:
    """Return the bytes in which a record is written, hashed and archived: canonical JSON."""
    return schemas.canonical(record)


def pick(document: Mapping[str, Any], *names: str) -> Document:
    """Return these keys of a document with their values; the value of a missing key is None."""
    return {name: document.get(name) for name in names}


def with_keys_of(record: Document, archived: bytes, *names: str) -> Document | None:
    """Return the record with these keys copied from an archived record if that makes their bytes equal, else None."""
    merged = {**record, **pick(parse_record(archived), *names)}
    return merged if archived_bytes(merged) == archived else None


def doubts(archived: Sequence[bytes], place: int) -> list[str]:
    """Return the reasons to distrust the record at this index of a chain (oldest first): its form, its link, and the links after it.

    A link must name an earlier record, not always the last one: two runs may end at the same time. Bytes after this record that are
    not a record are skipped, because they show nothing about this record.
    """
    problems: list[str] = []
    if not _is_canonical(archived[place]):
        problems.append("its bytes are not canonical JSON")
    hashes = [sha256(data) for data in archived]
    for number in range(place, len(archived)):
        document = parse_record(archived[number])
        link = document.get("previous_record_sha256")
        if link is not None and number and link not in hashes[:number]:
            name = "it" if number == place else f"the record {number - place} behind it ({document.get('deployment_id')})"
            problems.append(f"{name} names {link} as a record before it, and there is none with that SHA-256")
    return problems


def parse_record(data: bytes) -> Document:
    """Return an archived record; {} when the bytes are not a JSON object. Such bytes still count as a link of the chain."""
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_canonical(data: bytes) -> bool:
    document = parse_record(data)
    return bool(document) and archived_bytes(document) == data
