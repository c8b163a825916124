"""The Docker SDK as this project uses it: its exceptions become our errors, and every pull carries its own credentials.

Protocol: Docker Engine API, https://docs.docker.com/reference/api/engine/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from azora_ci.core.errors import AzoraError

DOCKER_HUB_LOGIN = "https://index.docker.io/v1/"  # where the SDK logs in
DOCKER_HUB_API = "registry-1.docker.io"  # where Docker Hub speaks the registry's protocol


def registry_host(repository: str, docker_hub: str) -> str:
    """Return ``host[:port]`` of ``host[:port]/namespace``; ``docker_hub``, one of Docker Hub's own addresses, for ``docker.io``."""
    host = repository.partition("/")[0]
    return docker_hub if host in {"docker.io", "index.docker.io"} else host


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
    except (DockerException, RequestException, HTTPError, OSError) as error:
        raise explained(str(getattr(error, "explanation", None) or ""), error) from error


def pull(api: Any, repository: str, digest: str, auth: dict[str, str] | None) -> Iterator[dict[str, Any]]:
    """Pull an image by its digest and yield the daemon's answers; a refusal is an answer with ``error``, too."""
    from docker.errors import APIError

    try:
        yield from api.pull(repository, tag=digest, stream=True, decode=True, auth_config=auth)
    except APIError as error:
        yield {"error": error.explanation or str(error)}
