"""The edge proves which release answers to whoever knows the secret of the deployment, and to nobody else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from azora_ci.core.clock import Clock
from azora_ci.core.config import HealthSettings
from azora_ci.health.answers import PROOF_HEADER, PUBLIC, EdgeProof, Endpoint, classify, pass_word, seal
from azora_ci.health.probes import fetch, request_of
from azora_ci.targets.envoy.state import EdgeState
from tests.support.edge_lab import Backend, Lab, refusing, send
from tests.support.edge_world import NEW, OLD, get

SECRET = "6f1c" * 16
FORGED = "of the application"


class Forger(Backend):
    """Answers with a header as if the edge had proved something."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = json.dumps({"status": "ok", "version": self.version, "headers": headers}).encode()
        request.send_response(200)
        for name, value in {"content-length": str(len(body)), PROOF_HEADER: FORGED}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path_factory.mktemp("edge"))
    yield edge_lab
    edge_lab.close()


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    by_release = {OLD: Forger("1.0.0"), NEW: Forger("1.1.0")}
    yield by_release
    for backend in by_release.values():
        backend.die()


def ask(lab: Lab, secret: str | None, method: str = "GET", **headers: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the headers of the answer and those that the application saw; names in lower case."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()} | ({PROOF_HEADER: secret} if secret else {})
    _, answered, body = get(lab.port, "/health", method, sent)
    return {name.lower(): value for name, value in answered.items()}, json.loads(body)["headers"]


@pytest.mark.parametrize(("word", "release"), [("canary", NEW), ("stable", OLD)])
def test_an_answer_is_sealed_for_the_secret_alone(lab, backends, word, release):
    lab.put([backends[OLD].address], [backends[NEW].address], 5, secret=SECRET)
    answered, seen = ask(lab, SECRET, x_azora_release=pass_word(SECRET, word))
    assert (answered[PROOF_HEADER], answered["x-azora-deployment"]) == (seal(SECRET, "api", release), release)
    assert PROOF_HEADER not in seen, "the application sees no secret"
    for wrong in (None, "x", SECRET[:-1], SECRET + "0", SECRET.upper()):
        answered, seen = ask(lab, wrong, x_azora_release=pass_word(SECRET, word))
        assert answered.get(PROOF_HEADER) == FORGED, "what the application says is left to it, and proves nothing"
        assert PROOF_HEADER not in seen
        assert SECRET not in str(answered)
    answered, _ = ask(lab, SECRET, "POST", x_azora_release=pass_word(SECRET, word))
    assert answered[PROOF_HEADER] == FORGED, "only what is safe is asked with a secret"


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_the_shares_are_those_of_users(lab, backends, percent):
    lab.put([backends[OLD].address], [backends[NEW].address], percent, secret=SECRET)
    answers = send(lab.port, 200, headers={PROOF_HEADER: SECRET})
    assert set(answers) == {"1.0.0", "1.1.0"} if percent == 50 else set(answers) == {"1.1.0" if percent else "1.0.0"}
    lab.edge.confirm(lab.edge.state(), (lab.edge._folder / "current").resolve().name)  # the weights that are read back stay those of users


def test_a_proved_answer_is_that_of_the_release_that_was_chosen(lab, backends):
    lab.put([backends[OLD].address], [refusing()], 100, secret=SECRET)
    assert send(lab.port, 20) == {"1.0.0": 20}, "users are helped by the old version"
    proof = EdgeProof(SECRET, {OLD: "v1.0.0", NEW: "v1.1.0"})
    health = HealthSettings(("ok",), version_from="image")
    endpoint = Endpoint("public", "api", PUBLIC, f"http://127.0.0.1:{lab.port}/", frozenset({"1.1.0"}), health=health, edge=proof)
    assert classify(endpoint, fetch(request_of(endpoint), 20, Clock())).outcome == "status"
    lab.put([backends[OLD].address], [backends[NEW].address], 100)
    proved = classify(endpoint, fetch(request_of(endpoint), 20, Clock()))
    assert (proved.passed, proved.version, proved.version_proof) == (True, "1.1.0", "edge")
    lab.weigh(0)
    outcomes = Counter(classify(endpoint, fetch(request_of(endpoint), 20, Clock())).detail for _ in range(5))
    assert outcomes == {"answers version 1.0.0, expected 1.1.0": 5}


def test_without_a_secret_nothing_is_proved_and_the_files_are_as_before(lab, backends):
    lab.put([backends[OLD].address], [backends[NEW].address], 50, secret=None)
    answered, seen = ask(lab, SECRET)
    assert answered[PROOF_HEADER] == FORGED
    assert seen[PROOF_HEADER] == SECRET  # of no deployment any more
    assert "secret" not in lab.edge.state().document()


def test_the_secret_is_in_no_text_of_the_state():
    state = EdgeState((), "127.0.0.1:1", secret=SECRET)
    assert SECRET not in repr(state)
    assert EdgeState.from_document(state.document()) == state
