"""The Docker SDK as this project uses it: its exceptions become our errors, and every pull carries its own credentials.

Protocol: Docker Engine API, https://docs.docker.com/reference/api/engine/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from azora_ci.clients import http
from azora_ci.core.documents import MEBIBYTE, Limits, UnreadableError, read_json
from azora_ci.core.errors import AzoraError

LINE = Limits(size=MEBIBYTE)  # of one answer in a stream: a line of a build, the state of a layer
PIECE = 64 * 1024  # bytes of a stream held at a time
DOCKER_HUB_LOGIN = "https://index.docker.io/v1/"  # where the SDK logs in
DOCKER_HUB_API = "registry-1.docker.io"  # where Docker Hub speaks the registry's protocol


def registry_host(repository: str, docker_hub: str) -> str:
    """Return ``host[:port]`` of ``host[:port]/namespace``; ``docker_hub``, one of Docker Hub's own addresses, for ``docker.io``."""
    host = repository.partition("/")[0]
    return docker_hub if host in {"docker.io", "index.docker.io"} else host


def open_api(base_url: str, **options: Any) -> Any:
    """Return the SDK's client of a daemon, which reads answers within limits. ``options`` are those of ``docker.APIClient``.

    Its methods raise UnreadableError beyond them. Logs that are not JSON are bounded as a whole body is.
    """
    import docker

    class BoundedClient(docker.APIClient):  # type: ignore[misc]  # the SDK has no types
        """A client that does not leave reading to ``requests`` and the SDK. The methods are the SDK's own, which has no public ones."""

        def send(self, request: Any, **kwargs: Any) -> Any:
            request.register_hook("response", http.take_unless_streamed)
            return super().send(request, **kwargs)

        def _result(self, response: Any, json: bool = False, binary: bool = False) -> Any:
            if not json:
                return super()._result(response, binary=binary)
            self._raise_for_status(response)
            return read_json(response.content)

        def _raise_for_status(self, response: Any) -> None:
            if response.status_code >= 400:
                _shorten_refusal(response)
            super()._raise_for_status(response)

        def _stream_helper(self, response: Any, decode: bool = False) -> Iterator[Any]:
            if decode:
                self._raise_for_status(response)
                yield from (read_json(line, LINE) for line in _lines(response.raw))
            else:
                yield from super()._stream_helper(response)

    return BoundedClient(base_url=base_url, **options)


def _shorten_refusal(response: Any) -> None:
    """Give a refusal the body that the SDK expects: it takes ``message`` without a look."""
    if not response._content_consumed:
        http.take_body(response, LINE)
    try:
        message = read_json(response.content, LINE)["message"]
    except (UnreadableError, LookupError, TypeError):
        message = response.text
    response._content = json.dumps({"message": str(message)[:4000].strip()}).encode()


def _lines(stream: Any) -> Iterator[bytes]:
    """Yield the lines of a stream, each of which is a JSON document. Raises UnreadableError for one that does not end."""
    buffered = b""
    for piece in stream.stream(PIECE, decode_content=False):
        *lines, buffered = (buffered + piece).split(b"\n")
        yield from (line for line in lines if line.strip())
        if len(buffered) > LINE.size:
            raise UnreadableError(f"a line of more than {LINE.size} bytes")
    if buffered.strip():
        yield buffered


@contextmanager
def translated_errors(explained: Callable[[str, Exception], AzoraError]) -> Iterator[None]:
    """Turn an exception of the SDK or of its connection into the error that ``explained`` makes.

    ``explained`` takes what the daemon or the registry answered ("" without an answer) and the exception.
    """
    from docker.errors import DockerException
    from requests import RequestException
    from urllib3.exceptions import HTTPError  # the SDK passes it on when an answer breaks off, as when the daemon dies

    try:
        yield
    except (DockerException, RequestException, HTTPError, OSError, UnreadableError) as error:
        raise explained(str(getattr(error, "explanation", None) or ""), error) from error


def pull(api: Any, repository: str, digest: str, auth: dict[str, str] | None) -> Iterator[dict[str, Any]]:
    """Pull an image by its digest and yield the daemon's answers; a refusal is an answer with ``error``, too."""
    from docker.errors import APIError

    try:
        yield from api.pull(repository, tag=digest, stream=True, decode=True, auth_config=auth)
    except APIError as error:
        yield {"error": error.explanation or str(error)}
