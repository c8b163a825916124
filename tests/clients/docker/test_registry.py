"""A push is tried, and none is made: real registries without a login, with a password, and with a token service that grants rights."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

from azora_ci.clients.docker.registry import Registry
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.variables import Secret
from tests.support.docker_engine import PASSWORD, USER
from tests.support.docker_engine import registry as started_registry

NAMES = "DOCKER_USERNAME and DOCKER_PASSWORD"
RIGHTS = {
    "release-bot": ["pull", "push", "delete"],
    "builder": ["pull", "push"],
    "reader": ["pull"],
}  # of the token service's users, who all have one password


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenService:
    """The token service of a registry: it signs what a user may do, as Docker Hub's does. ``asked``: the scopes that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.certificate, key = folder / "token.crt", folder / "token.key"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"]
        subprocess.run([*command, "-keyout", key, "-out", self.certificate], check=True, capture_output=True, timeout=60)
        self._key: Any = serialization.load_pem_private_key(key.read_bytes(), None)
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                user, _, password = base64.b64decode(self.headers.get("Authorization", "Basic Og==")[6:]).decode().partition(":")
                scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
                service.asked += scopes
                known = user in RIGHTS and password == PASSWORD
                body = json.dumps({"token": service.token(RIGHTS[user], scopes)} if known else {"details": "incorrect password"}).encode()
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/token"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def token(self, rights: list[str], scopes: list[str]) -> str:
        granted = []
        for scope in scopes:
            _, name, actions = scope.split(":")
            granted.append({"type": "repository", "name": name, "actions": [action for action in actions.split(",") if action in rights]})
        now, body = int(time.time()), self.certificate.read_text().split("-----")[2].replace("\n", "")
        claims = {"iss": "tokens", "aud": "registry", "exp": now + 300, "nbf": now - 60, "iat": now, "jti": "1", "access": granted}
        parts = [encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "RS256", "x5c": [body]}, claims)]
        signature = self._key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
        return ".".join([*parts, encoded(signature)])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenService]:
    service = TokenService(tmp_path_factory.mktemp("tokens"))
    yield service
    service.server.shutdown()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tokens: TokenService) -> Iterator[Path]:
    """Give the address of a registry that sends its users to the token service, and its folder."""
    folder = tmp_path_factory.mktemp("hub")
    auth = f"{{token: {{realm: '{tokens.url}', service: registry, issuer: tokens, rootcertbundle: {tokens.certificate}}}}}"
    with started_registry(folder, auth=auth) as host:
        (folder / "host").write_text(host)
        yield folder


def login(user: str, password: str = PASSWORD) -> tuple[Secret, Secret]:
    return Secret(user), Secret(password)


def test_a_registry_without_a_login(docker_registry: str) -> None:
    registry = Registry(f"http://{docker_registry}", None, NAMES)
    assert registry.try_push("azora/api") == "everybody may push: an upload was begun and cancelled"
    assert registry.try_login() == "the registry asks for no login"


def test_a_password(private_registry: str) -> None:
    registry = Registry(f"http://{private_registry}", login(USER), NAMES)
    assert registry.try_push("azora/api") == f"{NAMES} may push: an upload was begun and cancelled"
    assert registry.try_login() == f"the registry accepts {NAMES}"
    for refused in (login(USER, "another"), login("somebody"), None):
        with pytest.raises(BadInputError, match="HTTP 401") as caught:
            Registry(f"http://{private_registry}", refused, NAMES).try_push("azora/api")
        assert PASSWORD not in str(caught.value)


def test_a_token_that_may_push(hub: Path, tokens: TokenService) -> None:
    registry = Registry(f"http://{(hub / 'host').read_text()}", login("release-bot"), NAMES)
    assert registry.try_push("azora/api") == f"{NAMES} may push: an upload was begun and cancelled"
    assert tokens.asked == ["repository:azora/api:pull,push", "repository:azora/api:delete"]
    assert [path for path in (hub / "data").rglob("*") if path.name in {"startedat", "data", "link"}] == []  # no upload, blob or image


def test_who_may_push_need_not_be_able_to_delete(hub: Path) -> None:
    registry = Registry(f"http://{(hub / 'host').read_text()}", login("builder"), NAMES)
    assert (
        registry.try_push("azora/web")
        == f"{NAMES} may push: an upload was begun and left to expire: the registry answers HTTP 401 to cancelling it"
    )


def test_a_user_who_may_only_read_is_refused(hub: Path) -> None:
    registry = Registry(f"http://{(hub / 'host').read_text()}", login("reader"), NAMES)
    assert registry.try_login() == f"the registry accepts {NAMES}"  # which is why a login alone shows nothing
    with pytest.raises(BadInputError, match="HTTP 401, UNAUTHORIZED") as caught:
        registry.try_push("azora/api")
    assert caught.value.next_step == f"check {NAMES}, and that this user may push there"


def test_a_password_that_the_token_service_refuses(hub: Path) -> None:
    with pytest.raises(BadInputError, match=r"GET http://127.0.0.1:\d+/token: HTTP 401"):
        Registry(f"http://{(hub / 'host').read_text()}", login("reader", "another"), NAMES).try_login()


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes = b"{}") -> Iterator[tuple[str, list[str]]]:
    """Start a server with one answer to everything; give its address, and the requests with their logins."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(f"{self.command} {self.path} {self.headers.get('Authorization', '-')}")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_DELETE = do_POST  # noqa: N815 - the names are those of http.server

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "kind", "said"),
    [
        (401, {"WWW-Authenticate": 'Bearer realm="http://collector.azora.test/token"'}, UnreachableError, "which is not https"),
        (401, {"WWW-Authenticate": "Negotiate"}, BadInputError, "HTTP 401"),
        (404, {}, BadInputError, "HTTP 404"),
        (405, {}, BadInputError, "HTTP 405"),
        (503, {}, UnreachableError, "HTTP 503"),
        (307, {"Location": "http://elsewhere.azora.test/"}, UnreachableError, "HTTP 307"),
    ],
)
def test_a_registry_that_does_something_else(status: int, headers: dict[str, str], kind: type[Exception], said: str) -> None:
    with answering(status, headers) as (url, _), pytest.raises(kind, match=said):
        Registry(url, login(USER), NAMES).try_push("azora/api")


def test_the_login_goes_to_no_other_server() -> None:
    with answering(202, {}) as (elsewhere, stolen), answering(202, {"Location": f"{elsewhere}/upload"}) as (url, requests):
        assert "left to expire, for it is on another server" in Registry(url, login(USER), NAMES).try_push("azora/api")
    assert (len(requests), stolen) == (1, [])


def test_a_registry_that_is_not_there() -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        Registry("http://127.0.0.1:1", None, NAMES).try_push("azora/api")


@pytest.mark.parametrize("body", [b"[" * 100_000, b"<html>", b"{" + b" " * 9_000_000])
def test_a_hostile_answer_is_an_error_like_others(body: bytes) -> None:
    with answering(403, {}, body) as (url, _), pytest.raises((BadInputError, UnreachableError)):
        Registry(url, None, NAMES).try_push("azora/api")
