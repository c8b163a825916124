"""The error answers of S3."""

from __future__ import annotations

from collections.abc import Mapping


class S3Error(Exception):
    """An answer that is an error: HTTP status, S3's code, a text for people."""

    def __init__(self, status: int, code: str, text: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {code}: {text}")
        self.status = status
        self.code = code
        self.text = text
        self.headers = dict(headers or {})


def not_implemented(what: str) -> S3Error:
    """Return the answer to something this stand-in does not do."""
    return S3Error(501, "NotImplemented", f"A header or parameter you provided implies functionality that is not implemented: {what}")
