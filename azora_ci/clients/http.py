"""Answers that ``requests`` receives: no more of a body is read, and no more inflated, than a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from azora_ci.core.documents import LIMITS, Limits, inflated

if TYPE_CHECKING:
    import requests


def take_body(response: requests.Response, limits: Limits = LIMITS) -> None:
    """Read the body of an answer, of which ``content`` and ``text`` then hold the inflated bytes.

    Raises UnreadableError beyond the limit, ``requests.ConnectionError`` when the connection breaks.
    """
    import requests
    from urllib3.exceptions import HTTPError

    try:
        body = response.raw.read(limits.size + 1, decode_content=False)
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
