"""A door is where a document from outside comes in. Whatever comes, a door ends in a value or in a judged failure: never in a bug.

A "bug" here is any exception that is not an AzoraError: the runner would end in exit 4.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from azora_ci.cli.adopt.discover import discover
from azora_ci.clients.deployments import Deployments
from azora_ci.clients.docker import engine
from azora_ci.clients.github import GitHub
from azora_ci.clients.signing import envelope
from azora_ci.clients.signing.kms import KmsSigner
from azora_ci.clients.slack import blocks, webhook
from azora_ci.clients.slack.messages import Message
from azora_ci.core import config, schemas
from azora_ci.core.clock import Clock
from azora_ci.core.config import HealthSettings
from azora_ci.core.errors import AzoraError, UnreachableError
from azora_ci.core.variables import Secret
from azora_ci.database.backup import manifest
from azora_ci.gates import reachability
from azora_ci.gates.audit import lock_files
from azora_ci.health.answers import CONTRACT, PUBLIC, Answer, Endpoint, classify
from azora_ci.health.probes import Dial
from azora_ci.record import chain, fragments
from azora_ci.record.archive import Archive
from azora_ci.record.needs import parse_needs
from azora_ci.targets.base import Owner
from azora_ci.targets.envoy.edge import Edge
from azora_ci.targets.envoy.state import EdgeRelease, EdgeService, EdgeState
from azora_ci.targets.guard.client import GuardClient, GuardedEdge, GuardedJournal, Lease
from azora_ci.targets.journal import Journal
from azora_ci.targets.lock import Lock
from tests.support.hostile import BOMB, NESTED, Answering, answering, hostile
from tests.support.signing import KeyFileSigner

ID = "1764000000-abc123"
SERVICE = EdgeService("api", "/", 15.0)
STATE = EdgeState((SERVICE,), "127.0.0.1:1", (EdgeRelease(ID, "v1", {"api": ("127.0.0.1:2",)}),), stable=ID)


@pytest.fixture(scope="module")
def answers() -> Iterator[Answering]:
    with answering() as server:
        yield server


def dial_of(answers: Answering) -> Dial:
    """Return what connects to the server of answers, whatever address is asked for."""
    return lambda _host, _port, seconds: socket.create_connection(("127.0.0.1", answers.port), seconds)


def judged(*calls: Callable[[], Any]) -> None:
    """Make each call; an AzoraError is a judged failure."""
    for call in calls:
        with contextlib.suppress(AzoraError):
            call()


# --- doors without a network ------------------------------------------------------------------------------------------------


HEALTH = (CONTRACT, HealthSettings(("UP",), "json:a.b", "json:build.version"), HealthSettings(("1",), "json:0.0", "answer"))


@hostile
@pytest.mark.parametrize("health", HEALTH)
def test_health(document, health):
    endpoint = Endpoint("api", "api", PUBLIC, "http://x/health", frozenset({"1.0.0"}), health=health)
    finding = classify(endpoint, Answer(1.0, 200, "application/json", document))
    assert not finding.passed
    finding.detail.encode()


@hostile
def test_records_and_their_chain(document):
    assert chain.flaw(document, ID)
    assert chain.doubts([document], 0)
    chain.doubts([document, chain.archived_bytes({"deployment_id": ID}), document], 1, [0, 2])


@hostile
def test_manifests_records_and_fragments_by_their_schema(tmp_path, document):
    path = tmp_path / "record" / "database-backup.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(document)
    for refused in (
        lambda: schemas.read(document, "backup-manifest", where="x", limits=manifest.LIMITS),
        lambda: schemas.read(document, "backup-pending", where="x"),
        lambda: fragments.read(path),
    ):
        with pytest.raises(AzoraError):
            refused()


@pytest.fixture(scope="module")
def public_key(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return KeyFileSigner(tmp_path_factory.mktemp("signer") / "key.pem").public_key


@hostile
def test_signatures(public_key, document):
    signed = {"payload": "e30=", "signatures": [{"keyid": envelope.fingerprint(public_key), "sig": document.decode("latin-1")}]}
    for text in (document, b'{"payload": "", "signatures": ' + document + b"}", json.dumps(signed).encode()):
        assert envelope.doubt(text, "s3://bucket/key", b"{}", public_key)


@hostile
def test_journal_and_lock_of_this_machine(tmp_path, document):
    (tmp_path / "journal.jsonl").write_bytes(document)
    (tmp_path / "lock").write_bytes(document)
    lock = Lock(tmp_path / "lock", Clock())
    judged(Journal(tmp_path / "journal.jsonl").history, lock.holder, lambda: lock.acquire(Owner(ID, "https://runs.example/1", "x")))


@hostile
def test_state_of_an_edge_on_this_machine(tmp_path, document):
    (tmp_path / "current").mkdir(exist_ok=True)
    (tmp_path / "current" / "edge.json").write_bytes(document)
    with pytest.raises(AzoraError):
        Edge(tmp_path, Clock()).state()


@hostile
def test_results_of_the_jobs(document):
    judged(lambda: parse_needs(document.decode("latin-1")))


@hostile
def test_package_json(tmp_path, document):
    (tmp_path / "package.json").write_bytes(document)
    judged(lambda: discover(tmp_path))


@hostile
def test_configuration(tmp_path, document):
    path = tmp_path / "deploy.toml"
    for text in (document, b"checks = " + document, b"[services.api]\nport = " + document):
        path.write_bytes(text)
        for read in (lambda: config.load(path), lambda: config.gates.parse(path.read_text(errors="replace"), "x")):
            with pytest.raises(AzoraError):
                read()


@hostile
def test_lock_files(tmp_path, document):
    for name in lock_files.FILES:
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(document)
        judged(lambda folder=folder: lock_files.find(folder))


# --- doors of HTTP ----------------------------------------------------------------------------------------------------------


def github(port: int) -> GitHub:
    return GitHub(f"http://127.0.0.1:{port}", "azora/azora", Secret("token"), clock=Clock(), pause=0.0)


@hostile
def test_github(answers, document):
    answers.reset(document)
    client = github(answers.port)
    judged(
        client.default_branch,
        lambda: client.branch("main"),
        lambda: client.branch_rules("main"),
        lambda: client.check_runs("0" * 40),
        lambda: client.job_attempts(7),
        lambda: client.check_suite_of_run("7"),
        lambda: Deployments(client, "production").find(ID),
        lambda: client.create_deployment_status(7, {}),
    )
    answers.reset(document, status=201)
    judged(lambda: client.create_deployment({}))
    answers.reset(document, status=404)
    with pytest.raises(AzoraError):
        client.default_branch()


class ImpatientClock(Clock):
    """Real time without waits between attempts."""

    def sleep(self, seconds: float) -> None:
        """Go on at once."""


def slack_door(port: int) -> webhook.Notification:
    message = Message("hello", (blocks.header("hello"),))
    return webhook.notify(Secret(f"http://127.0.0.1:{port}/services/T0/B0/hunter2"), message, ImpatientClock())


@hostile
def test_slack(answers, document):
    for status in (200, 400, 429):
        answers.reset(
            document, status=status, headers={"Retry-After": document[:20].decode("latin-1").replace("\n", " ").replace("\r", " ")}
        )
        result = slack_door(answers.port)
        assert not result.sent and len(result.detail) < 1000 and "hunter2" not in result.detail
        result.detail.encode()


@pytest.mark.parametrize("retry_after", ["nan", "inf", "-1", "1e999", "9" * 5000, "Wed, 21 Oct 2026 07:28:00 GMT", ""])
def test_slack_asks_to_wait_for_ever(answers, retry_after):
    answers.reset(b"rate_limited", status=429, headers={"Retry-After": retry_after})
    result = slack_door(answers.port)
    assert not result.sent and len(answers.requests) <= webhook.ATTEMPTS


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_slack_redirects_and_nobody_follows(answers, status):
    with answering() as elsewhere:
        answers.reset(b"", status=status, headers={"Location": f"http://127.0.0.1:{elsewhere.port}/steal"})
        result = slack_door(answers.port)
        assert (result.sent, elsewhere.requests) == (False, [])
    assert f"Slack answered {status}" in result.detail


def test_slack_answers_without_an_end(answers, monkeypatch):
    answers.reset(b"ok" + b" " * (16 * 1024 * 1024))
    assert "more than 65536 bytes" in slack_door(answers.port).detail
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.2)
    answers.reset(b"ok" + b" " * 400, drip=0.1)
    result = slack_door(answers.port)
    assert "did not answer (ConnectionError)" in result.detail and len(answers.requests) == webhook.ATTEMPTS


@pytest.fixture
def kms_signer(answers, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{answers.port}")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    settings = SimpleNamespace(
        aws_access_key_id=Secret("k"), aws_secret_access_key=Secret("s"), aws_session_token=None, aws_region="us-east-1"
    )
    return KmsSigner("alias/records", settings)


KMS_SHAPES = [
    {"SigningAlgorithms": 5, "PublicKey": "AA=="},
    {"SigningAlgorithms": ["ECDSA_SHA_256"], "PublicKey": "AA=="},
    {"SigningAlgorithms": ["ECDSA_SHA_256"], "PublicKey": 7, "Signature": 7},
    {"SigningAlgorithms": ["ECDSA_SHA_256"], "PublicKey": "no base64!"},
    {"SigningAlgorithms": ["ECDSA_SHA_256"]},
    {"__type": 5},
    {"__type": {"#": []}, "message": ["x"]},
]


def kms_fails(signer: KmsSigner, answers: Answering, body: bytes, status: int) -> None:
    answers.reset(body, status=status)
    for call in (lambda: signer.public_key, lambda: signer.sign(b"message")):
        with pytest.raises(AzoraError) as caught:
            call()
        assert len(caught.value.what) <= 1000
    assert len(answers.requests) <= 8  # two calls of four attempts


@hostile
def test_kms(kms_signer, answers, document):
    kms_fails(kms_signer, answers, document, 200)
    kms_fails(kms_signer, answers, document, 400)


@pytest.mark.parametrize("shape", KMS_SHAPES, ids=str)
def test_kms_with_other_types(kms_signer, answers, shape):
    for status in (200, 400, 500):
        kms_fails(kms_signer, answers, json.dumps(shape).encode(), status)


def test_kms_redirects_and_answers_without_an_end(kms_signer, answers):
    with answering() as elsewhere:
        answers.reset(b"{}", status=307, headers={"Location": f"http://127.0.0.1:{elsewhere.port}/"})
        with pytest.raises(AzoraError):
            kms_signer.sign(b"message")
        assert elsewhere.requests == []
    answers.reset(b'{"Signature": "' + b"A" * (16 * 1024 * 1024) + b'"}')
    with pytest.raises(UnreachableError, match="at most 65536 are read"):
        kms_signer.sign(b"message")


@hostile
def test_a_public_endpoint(answers, document):
    answers.reset(document)
    service: Any = SimpleNamespace(public_health_url=f"http://127.0.0.1:{answers.port}/health", title="API", id="api", health=CONTRACT)
    assert not reachability.endpoint(service, frozenset()).passed


def docker_doors(port: int) -> tuple[Callable[[], Any], ...]:
    api = engine.open_api(f"tcp://127.0.0.1:{port}", version="1.43")

    def translated(call: Callable[[], Any]) -> Callable[[], Any]:
        def door() -> Any:
            with engine.translated_errors(lambda said, error: UnreachableError("x", what=f"{said}{error}", where="x", next_step="x")):
                return call()

        return door

    calls = (lambda: api.inspect_image("x"), api.version, lambda: list(engine.pull(api, "x", "sha256:0", None)), api.containers)
    return tuple(map(translated, calls))


@hostile
def test_docker(answers, document):
    for status in (200, 404, 500):
        answers.reset(document, status=status)
        judged(*docker_doors(answers.port))


@hostile
def test_admin_port_of_envoy(answers, document):
    answers.reset(document)
    edge = Edge(Path("/nowhere"), Clock(), dial_of(answers))
    judged(
        edge.weights,
        edge.certificate_days,
        lambda: edge.counters(STATE),
        lambda: edge.requests_to({"127.0.0.1:2"}),
        lambda: edge.confirm(STATE, "1", seconds=0.0),
    )


@hostile
def test_guard(answers, document):
    guard = GuardClient("host", dial_of(answers), Clock(), lambda: None)
    for status in (200, 409, 500, 507):
        answers.reset(document, status=status)
        judged(
            guard.holder,
            guard.check_clock,
            GuardedJournal(guard).history,
            GuardedEdge(guard, Clock(), dial_of(answers)).state,
            lambda: Lease(guard, Clock()).break_open("reason", "x"),
        )


# --- a real store -----------------------------------------------------------------------------------------------------------


@hostile
def test_a_poisoned_record_in_the_archive(s3_session, document):
    archive = Archive(s3_session.open(s3_session.make_bucket()), "production")
    archive.bucket.put_once(archive.record_key(ID, 1), document, content_type="application/json")
    assert archive.previous("1764000001-abc123", 1).record_sha256 is None
    assert archive.newest() is None
    assert len(archive.set_aside) == 1
    with pytest.raises(AzoraError):
        archive.record_to_take_back(None)


# --- size -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 404])
def test_a_bomb_of_gzip_is_not_inflated_at_any_door(answers, status):
    answers.reset(BOMB, status=status, encoding="gzip")
    service: Any = SimpleNamespace(public_health_url=f"http://127.0.0.1:{answers.port}/health", title="API", id="api", health=CONTRACT)
    tracemalloc.start()
    try:
        assert not reachability.endpoint(service, frozenset()).passed
        for door in (github(answers.port).default_branch, *docker_doors(answers.port)):
            with contextlib.suppress(AzoraError):
                door()
                raise AssertionError(f"{door} takes it")
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_line_of_the_daemon_that_does_not_end_is_cut(answers):
    answers.reset(b'"' + b"x" * (2 * engine.LINE.size))
    *_, pull, _containers = docker_doors(answers.port)
    with pytest.raises(UnreachableError, match="a line of more than 1048576 bytes"):
        pull()


def test_the_row_of_the_review_at_the_doors_of_http(answers):
    answers.reset(NESTED)
    for door in (github(answers.port).default_branch, *docker_doors(answers.port)):
        with pytest.raises(UnreachableError, match="a bracket is not closed"):
            door()
