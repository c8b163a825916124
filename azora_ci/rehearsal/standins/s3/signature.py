"""Verify AWS Signature Version 4 in the Authorization header.

Source: "Authenticating Requests: Using the Authorization Header" in the S3 API reference.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from urllib.parse import quote, unquote

from azora_ci.rehearsal.standins.s3.errors import S3Error

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/, ]+)/(?P<date>\d{8})/(?P<region>[^/, ]+)/(?P<service>[^/, ]+)/aws4_request,\s*"
    r"SignedHeaders=(?P<headers>[a-z0-9;-]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)
SKEW = timedelta(minutes=15)


@dataclass(frozen=True)
class Credential:
    """A key pair that the server accepts, with a session token and an end where it is a temporary one."""

    key_id: str
    secret: str
    token: str | None = None
    expires: datetime | None = None


@dataclass(frozen=True)
class Signed:
    """What a request's head says and what is needed to verify it."""

    method: str
    target: str  # path and query as sent
    headers: Message


def verify(request: Signed, credentials: Mapping[str, Credential], *, region: str, now: datetime) -> None:
    """Raise the S3Error that S3 would answer with, if the request is not signed by a known, unexpired key."""
    match = AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if match is None:
        if not request.headers.get("authorization"):
            raise S3Error(403, "AccessDenied", "Access Denied: the request is not signed")
        raise S3Error(400, "AuthorizationHeaderMalformed", "The authorization header is malformed")
    _check_scope(match, region)
    _check_moment(request.headers.get("x-amz-date", ""), match["date"], now)
    credential = credentials.get(match["key"])
    if credential is None:
        raise S3Error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    _check_token(request.headers.get("x-amz-security-token"), credential, now)
    names = match["headers"].split(";")
    unsigned = sorted({name.lower() for name in request.headers if name.lower().startswith("x-amz-")} - set(names))
    if unsigned or "host" not in names:
        raise S3Error(403, "AccessDenied", f"There were headers present in the request which were not signed: {unsigned}")
    expected = _signature(_string_to_sign(request, names, match), credential.secret, match)
    if not hmac.compare_digest(expected, match["signature"]):
        raise S3Error(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
        )


def _check_scope(match: re.Match[str], region: str) -> None:
    if match["service"] != "s3" or match["region"] != region:
        raise S3Error(
            400,
            "AuthorizationHeaderMalformed",
            f"The authorization header is malformed; the region '{match['region']}' is wrong; expecting '{region}'",
        )


def _check_moment(stamp: str, scope_date: str, now: datetime) -> None:
    try:
        moment = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise S3Error(403, "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header") from None
    if abs(now - moment) > SKEW or stamp[:8] != scope_date:
        raise S3Error(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")


def _check_token(token: str | None, credential: Credential, now: datetime) -> None:
    if (token or None) != credential.token:
        raise S3Error(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
    if credential.expires is not None and now >= credential.expires:
        raise S3Error(400, "ExpiredToken", "The provided token has expired.")


def _string_to_sign(request: Signed, names: Iterable[str], match: re.Match[str]) -> str:
    path, _, query = request.target.partition("?")
    pairs = sorted(
        (quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~"))
        for name, _, value in (part.partition("=") for part in query.split("&") if part)
    )
    headers = "".join(f"{name}:{_header(request.headers, name)}\n" for name in names)
    canonical = "\n".join(
        (
            request.method,
            quote(unquote(path), safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in pairs),
            headers,
            match["headers"],
            request.headers.get("x-amz-content-sha256", ""),
        )
    )
    scope = f"{match['date']}/{match['region']}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return "\n".join(("AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, digest))


def _header(headers: Message, name: str) -> str:
    return ",".join(" ".join(value.split()) for value in headers.get_all(name, []))


def _signature(text: str, secret: str, match: re.Match[str]) -> str:
    key = f"AWS4{secret}".encode()
    for part in (match["date"], match["region"], "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
