"""The edge of a real host: TLS with files of the host, and connections that stay open."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core import config
from azora_ci.health.answers import CANARY, RELEASE_HEADER, STABLE, pass_word
from azora_ci.targets.base import Owner
from tests.support import certificates
from tests.support.docker_world import Lan, World, get
from tests.support.edge_talk import Chat, Events
from tests.support.edge_world import NEW
from tests.support.waiting import until

HTTPS_PORT = 8443


@pytest.fixture
def world(network: Lan, tmp_path: Path) -> Iterator[World]:
    docker_world = World(network, tmp_path, services=("api_gateway",))
    docker_world.edge_settings = {
        "tls_certificate": str(tmp_path / "tls/certificate.pem"),
        "tls_key": str(tmp_path / "tls/key.pem"),
        "https_port": HTTPS_PORT,
        "redirect_http": False,
        "sticky_cookie": "azora-release",
    }
    yield docker_world
    docker_world.close()


def get_tls(address: str, path: str) -> tuple[int, bytes]:
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE  # which certificate it is, is looked at by its number
    connection = http.client.HTTPSConnection(address, HTTPS_PORT, timeout=20, context=trust)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.faults
def test_tls_comes_to_a_host_that_had_none_and_certificates_are_renewed(world, tmp_path):
    address = world.machines[0].address
    world.deploy_old()  # still without TLS
    assert get(address, "/api/work")[0] == 200
    assert certificates.served_serial(HTTPS_PORT, address) is None
    first_serial = certificates.renew(tmp_path / "tls")
    world.config = config.load(world.configure())
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(Owner(NEW, "https://runs.example/2", "tests")):
        target.deploy(release, 100)
        assert certificates.served_serial(HTTPS_PORT, address) == first_serial
        assert get(address, "/api/work")[0] == 200
        target.set_weight(release, 50)
        assert get_tls(address, "/api/work")[0] == 200
        second_serial = certificates.renew(tmp_path / "tls")
        until(lambda: certificates.served_serial(HTTPS_PORT, address) == second_serial, "the renewed certificate is shown")
        returned = target.abort(release, "a test")
    assert returned.proved
    assert json.loads(get_tls(address, "/api/work")[1])["version"] == "1.0.0"


@pytest.mark.faults
def test_open_connections_are_drained_and_closed_by_an_abort(world):
    world.edge_settings = {}
    world.config = config.load(world.configure())
    world.deploy_old()
    address = world.machines[0].address
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(Owner(NEW, "https://runs.example/2", "tests")):
        target.deploy(release, 100)
        target.set_weight(release, 50)
        secret = target.edge_secret()
        assert secret is not None
        canary, stable = ({RELEASE_HEADER: pass_word(secret, side)} for side in (CANARY, STABLE))
        stable_chat = Chat(address, "/api/chat", stable)
        chat, events = Chat(address, "/api/chat", canary), Events(address, "/api/events", canary)
        until(lambda: events.count > 3, "events arrive")
        assert target.abort(release, "a test").proved
        assert chat.say("hello") == ""
        until(lambda: events.ended is not None, "the stream is closed", 10)
        assert stable_chat.say("hello") == "1.0.0 heard hello"
