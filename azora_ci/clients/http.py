"""Answers that ``requests`` receives: no more of a body is read, and no more inflated, than a limit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from azora_ci.core.clock import Clock
from azora_ci.core.documents import LIMITS, Limits, inflated

if TYPE_CHECKING:
    import requests


def take_body(response: requests.Response, limits: Limits = LIMITS, *, clock: Clock | None = None, seconds: float = math.inf) -> None:
    """Read the body of an answer, of which ``content`` and ``text`` then hold the inflated bytes.

    Raises UnreadableError beyond the limit, ``requests.ConnectionError`` when the connection breaks, or after ``seconds``: a server that
    sends a byte now and then keeps every single wait short.
    """
    import requests
    from urllib3.exceptions import HTTPError

    try:
        body = read_within(response.raw, limits.size + 1, clock=clock or Clock(), seconds=seconds)
    except (HTTPError, OSError) as error:
        response.close()
        raise requests.ConnectionError(error) from error
    if len(body) > limits.size:
        response.close()  # the rest is not read
    # Without these attributes ``requests`` would read the body itself, whatever its size.
    response._content, response._content_consumed = b"", True  # type: ignore[attr-defined]  # no public name
    response._content = inflated(body, response.headers.get("content-encoding"), limits)


def take_unless_streamed(response: requests.Response, *_: Any, **options: Any) -> None:
    """Take the body of an answer, as a hook of ``requests``: it runs before a redirect is followed, and before the body is read."""
    if not options.get("stream"):
        take_body(response)


def read_within(raw: Any, most: int, *, clock: Clock, seconds: float) -> bytes:
    """Return the bytes of urllib3's answer, at most so many, as they were sent. Raises its errors, TimeoutError after ``seconds``."""
    body, deadline = bytearray(), clock.monotonic() + seconds
    while len(body) < most and (part := raw.read1(most - len(body), decode_content=False)):
        body += part
        if clock.monotonic() > deadline:
            raise TimeoutError(f"the answer did not end within {seconds:g} s")
    return bytes(body)
