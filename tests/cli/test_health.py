"""``python -m azora_ci health`` against a real server: everything that an answer lacks is said, with the exit codes of the others."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from azora_ci.cli import health
from azora_ci.cli.main import main
from tests.support import deploy_config


class Pages(ThreadingHTTPServer):
    """Answers ``page``: status, headers, body."""

    page: tuple[int, dict[str, str], bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/health"

    def says(self, document: Any, status: int = 200, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.page = (status, {"content-type": "application/json"} | headers, body)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = self.server.page  # type: ignore[attr-defined] # Pages
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pages() -> Iterator[Pages]:
    with Pages(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def ask(url: str, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["health", url, *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("asked", ["1.2.2", "v1.2.2"])
@pytest.mark.parametrize("answered", ["1.2.2", "v1.2.2"])
def test_the_contract_with_or_without_v(pages, asked, answered):
    pages.says({"status": "healthy", "version": answered})
    code, output = ask(pages.url, "--version", asked)
    assert (code, output.splitlines()[-1]) == (0, "✓ healthy, version 1.2.2 (from: answer)")


def test_everything_that_is_lacking_is_said_at_once(pages, monkeypatch):
    monkeypatch.setattr(health, "SLOW_MILLISECONDS", 0.0)
    pages.says({"status": "ok"})
    code, output = ask(pages.url)
    assert code == 1
    for lack in ("✗ says status 'ok', expected 'healthy'", "✗ names no version: JSON version is missing", "✗ took "):
        assert lack in output
    assert "have it answer HTTP 200 and JSON with status 'healthy', and JSON version the release" in output


@pytest.mark.parametrize(
    ("document", "status", "headers", "lack"),
    [
        ({"status": "healthy", "version": "1.0.0"}, 200, {}, "✗ answers version 1.0.0, expected 1.2.2"),
        (b"", 301, {"location": "https://elsewhere.example/"}, "✗ HTTP 301 to https://elsewhere.example/: no redirect is followed"),
        ({}, 503, {}, "✗ HTTP 503"),
        (b"<html>", 200, {"content-type": "text/html"}, "✗ HTTP 200 with text/html, not JSON"),
        (b"ok", 200, {}, "✗ HTTP 200 with a body that is not read"),
    ],
)
def test_what_is_lacking(pages, document, status, headers, lack):
    pages.says(document, status, **headers)
    code, output = ask(pages.url, "--version", "v1.2.2")
    assert code == 1
    assert lack in output


def test_the_settings_of_a_service(pages, tmp_path):
    settings = {"healthy": ["ok"], "version_from": "image"}
    service = deploy_config.service("api gateway", pages.url) | {"health": settings}
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api_gateway": service})
    pages.says({"status": "ok"})
    options = ("--config", str(path), "--service")
    assert ask(pages.url, *options, "api_gateway")[0] == 0
    assert "proved in deployments only" in ask(pages.url, *options, "api_gateway")[1]
    code, output = ask(pages.url, *options, "another")
    assert code == 2
    assert "another is not one of api_gateway" in output


def test_nobody_there_and_no_address():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}/health")[0] == 3
    for url in ("localhost:3000/health", "http://127.0.0.1:99999/", "http://[::1", "ftp://x/", "http:///x", "http://x/a b"):
        assert ask(url)[0] == 2, url
