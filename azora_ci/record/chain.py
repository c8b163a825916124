"""The chain of records: each names the SHA-256 of the bytes of the one before, so that a change is found. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from azora_ci.core import schemas
from azora_ci.core.documents import MEBIBYTE, Limits, UnreadableError, read_json

Document = dict[str, Any]
LIMITS = Limits(size=2 * MEBIBYTE)  # of a record; those of the sample have 20 KB
_DEPLOYMENT_ID = re.compile(r"[1-9][0-9]{0,11}-[0-9a-f]{6}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    """Return the record with these keys as an archived record has them, or has not, if that makes their bytes equal, else None."""
    document = parse_record(archived)
    kept = {name: value for name, value in record.items() if name not in names}
    merged = {**kept, **{name: document[name] for name in names if name in document}}
    return merged if archived_bytes(merged) == archived else None


def flaw(data: bytes, deployment_id: str) -> str | None:
    """Return why these bytes are no record of a deployment, None when they are one, of whatever version of this project.

    What is no record is set aside: nothing in it is believed, no link of it counts, and no later record names it as the one before,
    so that the chain of the others stays whole whether it is removed or not.
    """
    try:
        document = read_json(data, LIMITS)
    except UnreadableError as error:
        return str(error)
    if not isinstance(document, dict):
        return "no JSON object"
    texts = {name: document.get(name) for name in ("deployment_id", "status", "version", "previous_record_sha256")}
    if texts["deployment_id"] != deployment_id or not _DEPLOYMENT_ID.fullmatch(deployment_id):
        return f"no record of {deployment_id}, whose place it takes"
    link, version = texts["previous_record_sha256"], texts["version"]
    if link is not None and not (isinstance(link, str) and _SHA256.fullmatch(link)):
        return "the SHA-256 of the record before it is none"
    if not isinstance(texts["status"], str) or not isinstance(version, str | None):
        return "status and version are no texts"
    return None


def doubts(archived: Sequence[bytes], place: int, set_aside: Collection[int] = ()) -> list[str]:
    """Return the reasons to distrust the record at this index of a chain (oldest first): its form, its link, and the links after it.

    A link must name an earlier record, not always the last one: two runs may end at the same time. Objects at the indexes of
    ``set_aside`` are no records and show nothing about this one. A link may name the record that one of them replaced: such a link
    does not count, since else a single bad object would stop every rollback. Who can replace a record can also write fitting links.
    """
    problems: list[str] = []
    if not _is_canonical(archived[place]):
        problems.append("its bytes are not canonical JSON")
    hashes = [sha256(data) for data in archived]
    for number in range(place, len(archived)):
        document = {} if number in set_aside else parse_record(archived[number])
        link = document.get("previous_record_sha256")
        # An object that replaced a record is listed by the time at which it did so, mostly as the newest.
        replaced = any(number == place or index > place for index in set_aside)
        if link is not None and number and link not in hashes[:number] and not replaced:
            name = "it" if number == place else f"the record {number - place} behind it ({document.get('deployment_id')})"
            problems.append(f"{name} names {link} as a record before it, and there is none with that SHA-256")
    return problems


def parse_record(data: bytes) -> Document:
    """Return an archived record; {} when the bytes are not a JSON object. Such bytes still count as a link of the chain."""
    try:
        document = read_json(data, LIMITS)
    except UnreadableError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_canonical(data: bytes) -> bool:
    document = parse_record(data)
    return bool(document) and archived_bytes(document) == data
