"""A kubeconfig's program gets a new OIDC token of GitHub's at each call. GitHub is a stand-in that speaks its protocol on loopback."""

from __future__ import annotations

import io
import json
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from azora_ci.clients.kubernetes import credentials
from azora_ci.clients.kubernetes.credentials import Credentials
from azora_ci.clients.kubernetes.kubeconfig import ClusterAccess, ExecPlugin
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from tests.support.waiting import until

BEARER = "the-bearer-of-this-job"
GOOGLE = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/github/providers/github"
# It leaves what it saw, and prints as its token how long what it was given is.
PROGRAM = """#!/bin/sh
cd "$(dirname "$0")"
env > "env-$(ls | grep -c env-)"
cp "$AWS_WEB_IDENTITY_TOKEN_FILE" token
[ -z "$GOOGLE_APPLICATION_CREDENTIALS" ] || cp "$GOOGLE_APPLICATION_CREDENTIALS" google
stat -c %a "$(dirname "$AWS_WEB_IDENTITY_TOKEN_FILE")" > mode
echo "I was given $(cat token)" >&2
echo "{\\"status\\": {\\"token\\": \\"for-$(cat token)\\", \\"expirationTimestamp\\": \\"$(date -u -d '+2 seconds' +%FT%TZ)\\"}}"
"""


class GitHub(ThreadingHTTPServer):
    """GitHub's token service. ``answers``: status and body of the next requests; then tokens, numbered."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.answers: list[tuple[int, str]] = []

    def answer(self, query: dict[str, list[str]], bearer: str | None) -> tuple[int, str]:
        self.asked += query.get("audience", [])
        if bearer != f"bearer {BEARER}" or query.get("api-version") != ["2.0"]:
            return 401, "{}"
        return self.answers.pop(0) if self.answers else (200, json.dumps({"count": 1, "value": f"jwt-{len(self.asked)}"}))


class Handler(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        status, body = self.server.answer(parse_qs(urlsplit(self.path).query), self.headers["authorization"])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    server = GitHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"http://127.0.0.1:{server.server_port}/idtoken/1/2?api-version=2.0")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", BEARER)
    yield server
    server.shutdown()
    server.server_close()


class Job:
    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.output = folder, io.StringIO()
        program = folder / "cloud"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        self.processes = Processes(JobLog(Actions(stream=self.output), Clock()))
        plugin = ExecPlugin((str(program),), env, "client.authentication.k8s.io/v1")
        self.credentials = Credentials(ClusterAccess("https://127.0.0.1:9", plugin=plugin), self.processes, Clock())

    @property
    def environments(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("env-*"))]


def test_each_call_of_a_program_gets_a_new_token(tmp_path, github, monkeypatch):
    monkeypatch.setattr(credentials, "SHORTEST_SECONDS", 0.1)
    for name in ("AWS_PROFILE", "AWS_CONFIG_FILE", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, "of the machine")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    job = Job(tmp_path, GITHUB_OIDC_AUDIENCE="sts.amazonaws.com", AWS_ROLE_ARN="arn:aws:iam::1:role/deployer")
    assert job.credentials.token() == "for-jwt-1"
    until(lambda: job.credentials.token() == "for-jwt-2", "it is renewed with a new token", 10)
    assert github.asked == ["sts.amazonaws.com"] * 2
    seen = dict(line.split("=", 1) for line in job.environments[0].splitlines())
    assert seen["AWS_ROLE_ARN"] == "arn:aws:iam::1:role/deployer"
    assert seen["AWS_WEB_IDENTITY_TOKEN_FILE"] == seen["AZURE_FEDERATED_TOKEN_FILE"]
    assert not Path(seen["AWS_WEB_IDENTITY_TOKEN_FILE"]).exists()
    assert (tmp_path / "mode").read_text() == "700\n"
    assert (seen["HOME"], seen["AWS_REGION"]) == (str(Path(seen["AWS_WEB_IDENTITY_TOKEN_FILE"]).parent), "eu-central-1")
    assert "of the machine" not in seen.values()
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in seen
    assert BEARER not in str(seen)
    shown = [line for line in job.output.getvalue().splitlines() if not line.startswith("::add-mask::")]
    assert not [line for line in shown if "jwt-" in line]


def test_google_is_told_where_the_token_is(tmp_path, github):
    job = Job(tmp_path, GITHUB_OIDC_AUDIENCE=GOOGLE)
    assert job.credentials.token() == "for-jwt-1"
    seen = dict(line.split("=", 1) for line in job.environments[0].splitlines())
    assert seen["CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE"] == seen["GOOGLE_APPLICATION_CREDENTIALS"]
    document = json.loads((tmp_path / "google").read_text())
    assert document.pop("credential_source") == {"file": seen["AWS_WEB_IDENTITY_TOKEN_FILE"]}
    assert document == {
        "type": "external_account",
        "audience": GOOGLE,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
    }


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, ""),
        (403, '{"value": "jwt-of-nobody"}'),
        (200, "{}"),
        (200, '{"value": 7}'),
        (200, "<html>"),
        (302, ""),
        (200, '{"value": "jwt-ä"}'),
    ],
)
def test_where_github_gives_none_the_program_is_not_called(tmp_path, github, status, body):
    github.answers = [(status, body)]
    job = Job(tmp_path, GITHUB_OIDC_AUDIENCE="a b&c")
    with pytest.raises(UnreachableError, match="GitHub gives no OIDC token") as caught:
        job.credentials.token()
    assert "asked for a b&c" in caught.value.what
    assert github.asked == ["a b&c"]
    assert (job.environments, BEARER in caught.value.message()) == ([], False)
    assert job.credentials.token() == "for-jwt-2"  # who asks again is answered


def test_github_that_is_down_or_does_not_know_this_job(tmp_path, github, monkeypatch):
    job = Job(tmp_path, GITHUB_OIDC_AUDIENCE="x")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "http://127.0.0.1:9/?x")
    with pytest.raises(UnreachableError, match="ConnectionError") as caught:
        job.credentials.token()
    assert BEARER not in caught.value.message()
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL")
    with pytest.raises(BadInputError, match="id-token: write"):
        job.credentials.token()
    assert job.environments == []


def test_a_login_of_netrc_is_not_shown_to_github(tmp_path, github, monkeypatch):
    (tmp_path / "netrc").write_text("default login someone password of-the-machine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert Job(tmp_path, GITHUB_OIDC_AUDIENCE="x").credentials.token() == "for-jwt-1"


def test_a_disk_that_is_full_is_tried_again(tmp_path, github, monkeypatch):
    job = Job(tmp_path, GITHUB_OIDC_AUDIENCE="x")
    with monkeypatch.context() as full:
        full.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        with pytest.raises(UnreachableError, match="FileNotFoundError"):
            job.credentials.token()
    assert job.credentials.token() == "for-jwt-2"
