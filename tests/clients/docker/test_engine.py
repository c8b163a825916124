"""The wrapper of the Docker SDK, against a daemon that refuses or dies in the middle of an answer."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator

import docker
import pytest

from azora_ci.clients.docker import engine
from azora_ci.core.errors import UnreachableError

STATUS = b'{"status":"Pulling"}\r\n'


@contextlib.contextmanager
def daemon(status: int, body: bytes) -> Iterator[docker.APIClient]:
    """Start a daemon that answers every request with one status and body, in chunks that never end; give a client of it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) + (b"" if status == 200 else b"0\r\n\r\n"))

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield docker.APIClient(base_url=f"tcp://127.0.0.1:{server.server_port}", version="1.43")
        finally:
            server.shutdown()


def unreachable(answer: str, error: Exception) -> UnreachableError:
    return UnreachableError("Docker", what=f"answer {answer!r}, {type(error).__name__}", where="here", next_step="none")


def test_daemon_that_dies_in_the_middle_of_an_answer_is_unreachable():
    died = pytest.raises(UnreachableError, match="answer '', ProtocolError")
    with daemon(200, STATUS) as api, died, engine.translated_errors(unreachable):
        list(engine.pull(api, "registry/azora", "sha256:1", {}))


def test_refusal_is_an_answer_of_the_pull():
    with daemon(404, b'{"message":"manifest unknown"}') as api:
        assert list(engine.pull(api, "registry/azora", "sha256:1", {})) == [{"error": "manifest unknown"}]


def test_what_the_daemon_answered_is_handed_on():
    full = pytest.raises(UnreachableError, match="answer 'no space left', APIError")
    with daemon(500, b'{"message":"no space left"}') as api, full, engine.translated_errors(unreachable):
        api.push("registry/azora", auth_config={})


@pytest.mark.parametrize(
    ("repository", "host"),
    [("docker.io/azora", "hub"), ("index.docker.io/azora", "hub"), ("ghcr.io/azora", "ghcr.io"), ("127.0.0.1:5000/a/b", "127.0.0.1:5000")],
)
def test_registry_of_a_repository(repository: str, host: str):
    assert engine.registry_host(repository, "hub") == host
