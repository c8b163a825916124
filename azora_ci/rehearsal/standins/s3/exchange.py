"""A request as the operations see it, and the answer they give."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from azora_ci.core.clock import parse_rfc3339, rfc3339
from azora_ci.rehearsal.standins.s3.body import Body
from azora_ci.rehearsal.standins.s3.errors import S3Error, not_implemented
from azora_ci.rehearsal.standins.s3.store import Lock, Store, Traits

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
KEPT = ("content-type", "content-disposition", "content-language", "cache-control", "expires", "content-encoding")


@dataclass
class Request:
    """One request: where it points to and what it brings."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: Message
    body: Body
    store: Store

    def header(self, name: str) -> str | None:
        """Return a header's value, None when it is absent."""
        value = self.headers.get(name)
        return None if value is None else str(value)

    @property
    def version_id(self) -> str | None:
        """The version that the query names."""
        return self.query.get("versionId")


@dataclass
class Answer:
    """Status, headers, and a body: bytes, or pieces of files as (path, offset, length)."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: list[tuple[Path, int, int]] = field(default_factory=list)
    length: int | None = None  # of the body, where it is told but not sent (HEAD)
    touched: tuple[Path, ...] = ()  # files that this request wrote


def xml(root: str, content: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Return an XML answer; a list repeats its element, None leaves it out."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{NAMESPACE}">{_elements(content)}</{root}>'
    return Answer(status, {"content-type": "application/xml", **(headers or {})}, text.encode())


def _elements(content: dict[str, Any]) -> str:
    return "".join(_element(name, value) for name, value in content.items() if value is not None)


def _element(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "".join(_element(name, item) for item in value)
    if isinstance(value, dict):
        return f"<{name}>{_elements(value)}</{name}>"
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, datetime):
        value = rfc3339(value)
    return f"<{name}>{escape(str(value))}</{name}>"


def parse_xml(data: bytes) -> ElementTree.Element:
    """Return a document's root with namespaces removed. Raises S3Error when it is none."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise S3Error(400, "MalformedXML", "The XML you provided declares entities")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - without entity declarations nothing expands
    except ElementTree.ParseError:
        raise S3Error(400, "MalformedXML", "The XML you provided was not well-formed") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def http_date(moment: datetime) -> str:
    """Return a moment as HTTP headers carry it."""
    return format_datetime(moment.astimezone(UTC).replace(microsecond=0), usegmt=True)


def encoder(request: Request) -> Any:
    """Return the function that writes keys into a listing, as the client asked for it."""
    chosen = request.query.get("encoding-type")
    if chosen not in {None, "url"}:
        raise S3Error(400, "InvalidArgument", "Invalid Encoding Method specified in Request")
    return (lambda text: quote(text, safe="/-_.~")) if chosen else (lambda text: text)


def traits_of(request: Request, now: datetime) -> Traits:
    """Return what a new object is given by the request's headers and the bucket's configuration. Raises S3Error."""
    bucket = request.store.bucket(request.bucket)
    headers = {name: value for name in KEPT if (value := request.header(name)) is not None}
    if "content-encoding" in headers:
        rest = ",".join(part for part in headers.pop("content-encoding").split(",") if part.strip() not in {"aws-chunked", ""})
        headers |= {"content-encoding": rest} if rest else {}
    headers |= {name.lower(): str(value) for name, value in request.headers.items() if name.lower().startswith("x-amz-meta-")}
    for refused in ("x-amz-copy-source", "x-amz-tagging", "x-amz-website-redirect-location", "x-amz-acl", "x-amz-object-lock-legal-hold"):
        if request.header(refused) is not None:
            raise not_implemented(refused)
    headers |= _encryption(request, bucket.configuration.get("encryption", ""))
    return Traits(headers, _lock(request, locking=bucket.locking, now=now))


def _encryption(request: Request, configuration: str) -> dict[str, str]:
    name, key_name = "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"
    default = re.search(r"<SSEAlgorithm>([^<]+)<", configuration)
    default_key = re.search(r"<KMSMasterKeyID>([^<]+)<", configuration)
    chosen = request.header(name) or (default and default[1])
    if chosen is None:
        return {}
    if chosen not in {"AES256", "aws:kms"}:
        raise S3Error(400, "InvalidArgument", "The encryption method specified is not supported")
    key = request.header(key_name) or (default_key and default_key[1])
    if request.header(key_name) is not None and chosen != "aws:kms":
        raise S3Error(400, "InvalidArgument", "A KMS key needs x-amz-server-side-encryption: aws:kms")
    return {name: chosen, **({key_name: key} if key and chosen == "aws:kms" else {})}


def _lock(request: Request, *, locking: bool, now: datetime) -> Lock | None:
    mode, until = request.header("x-amz-object-lock-mode"), request.header("x-amz-object-lock-retain-until-date")
    if mode is None and until is None:
        return None
    if not locking:
        raise S3Error(400, "InvalidRequest", "Bucket is missing Object Lock Configuration")
    if mode not in {"GOVERNANCE", "COMPLIANCE"} or until is None:
        raise S3Error(400, "InvalidArgument", "x-amz-object-lock-mode and x-amz-object-lock-retain-until-date belong together")
    try:
        moment = parse_rfc3339(until)
    except ValueError:
        raise S3Error(400, "InvalidArgument", "The retain until date must be provided in ISO 8601 format") from None
    if moment <= now:
        raise S3Error(400, "InvalidArgument", "The retain until date must be in the future!")
    return Lock(mode, moment)


def require_checksum_for_lock(request: Request, lock: Lock | None) -> None:
    """Raise S3Error when a locked object comes without a checksum, as S3 does."""
    names: Iterator[str] = (name.lower() for name in request.headers)
    checksums = {"content-md5", "x-amz-trailer", "x-amz-checksum-crc32", "x-amz-checksum-sha1", "x-amz-checksum-sha256"}
    if lock is not None and not checksums & set(names):
        raise S3Error(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required with Object Lock parameters")


def require_free(request: Request) -> None:
    """Raise S3Error when ``If-None-Match: *`` was sent and the key is taken. Call with the store's lock held."""
    condition = request.header("if-none-match")
    if condition is None and request.header("if-match") is None:
        return
    if condition != "*" or request.header("if-match") is not None:
        raise not_implemented("a conditional write other than If-None-Match: *")
    current = request.store.bucket(request.bucket).current(request.key)
    if current is not None and not current.delete_marker:
        raise S3Error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
