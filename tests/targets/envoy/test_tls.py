"""TLS in the edge: with certificate files, renewed without a restart, and never a closed door on the way to it."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci.core import config
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.targets.base import Owner
from azora_ci.targets.docker_hosts import edge_containers
from azora_ci.targets.envoy.state import EdgeOptions, EdgeTls
from azora_ci.targets.local_processes import target as local_processes
from tests.support import certificates, deploy_config
from tests.support.edge_lab import Backend, Lab
from tests.support.edge_talk import Chat
from tests.support.edge_world import NEW, World, free_ports, get
from tests.support.waiting import until


@pytest.fixture
def backend() -> Iterator[Backend]:
    instance = Backend("1.0.0")
    yield instance
    instance.die()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path / "edge")
    yield edge_lab
    edge_lab.close()


def tls_in(folder: Path) -> EdgeTls:
    port = free_ports(1)[0]
    return EdgeTls(f"127.0.0.1:{port}", str(folder / "certificate.pem"), str(folder / "key.pem"), port)


def get_tls(port: int, folder: Path, path: str = "/") -> tuple[int, bytes]:
    trust = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
    connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=trust)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


def test_users_are_served_by_tls_and_plain_http_leads_there(lab, backend, tmp_path):
    certificates.renew(tmp_path / "tls")
    tls = tls_in(tmp_path / "tls")
    lab.put([backend.address], None, options=EdgeOptions(tls))
    status, body = get_tls(tls.port, tmp_path / "tls", "/path?query=1")
    assert status == 200
    assert json.loads(body)["headers"]["x-forwarded-proto"] == "https"
    status, headers, _ = get(lab.port, "/path?query=1", "POST")
    assert (status, headers["location"]) == (308, f"https://127.0.0.1:{tls.port}/path?query=1")
    assert backend.requests == [("GET", "/path?query=1")]


def test_a_renewed_certificate_is_taken_up_without_a_restart_or_a_cut(lab, backend, tmp_path):
    first = certificates.renew(tmp_path / "tls")
    tls = tls_in(tmp_path / "tls")
    lab.put([backend.address], None, options=EdgeOptions(tls))
    assert certificates.served_serial(tls.port) == first
    trust = ssl.create_default_context(cafile=str(tmp_path / "tls/certificate.pem"))
    kept = http.client.HTTPSConnection("localhost", tls.port, timeout=20, context=trust)
    kept.request("GET", "/before")
    kept.getresponse().read()
    second = certificates.renew(tmp_path / "tls")
    until(lambda: certificates.served_serial(tls.port) == second, "the new certificate is shown")
    kept.request("GET", "/after")  # over the connection that was open
    assert kept.getresponse().status == 200


def test_a_certificate_that_is_not_there_leaves_plain_http_open(lab, backend, tmp_path):
    lab.put([backend.address], None)
    (tmp_path / "tls").mkdir()
    tls = tls_in(tmp_path / "tls")
    with pytest.raises(UnreachableError, match=r"no certificate: .*/tls/certificate.pem"):
        lab.edge.apply(replace(lab.edge.state(), options=EdgeOptions(tls)), 1)
    assert get(lab.port, "/")[0] == 200


def test_both_are_served_where_no_redirect_is_wanted(lab, backend, tmp_path):
    certificates.renew(tmp_path / "tls")
    tls = replace(tls_in(tmp_path / "tls"), redirect=False)
    lab.put([backend.address], None, options=EdgeOptions(tls))
    assert get_tls(tls.port, tmp_path / "tls")[0] == get(lab.port, "/")[0] == 200


def test_a_trusted_balancers_word_is_handed_on_and_nobody_elses(lab, backend):
    headers = {"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}
    lab.put([backend.address], None)
    assert json.loads(get(lab.port, "/", headers=headers)[2])["headers"]["x-forwarded-proto"] == "http"
    lab.put([backend.address], None, options=EdgeOptions(trusted_proxies=1))
    until(lambda: json.loads(get(lab.port, "/", headers=headers)[2])["headers"]["x-forwarded-proto"] == "https", "the balancer is believed")


def test_a_deployment_brings_tls_and_going_back_keeps_it(tmp_path):
    certificates.renew(tmp_path / "tls")
    port = free_ports(1)[0]
    world = World(tmp_path / "world", instances=1)
    try:
        world.deploy_old()
        chat = Chat(world.port, "/api/chat")
        world.configure_edge(
            tls_certificate=str(tmp_path / "tls/certificate.pem"),
            tls_key=str(tmp_path / "tls/key.pem"),
            https_port=port,
            redirect_http=False,
        )
        target, release = world.target(), world.release("1.1.0", NEW)
        with target.locked(Owner(NEW, "https://runs.example/2", "tests")):
            target.deploy(release, 100)
            assert "valid for 2 more days" in world.output.getvalue()
            target.set_weight(release, 50)
            assert get_tls(port, tmp_path / "tls", "/api/work")[0] == 200
            target.abort(release, "a test")
        assert json.loads(get_tls(port, tmp_path / "tls", "/api/work")[1])["version"] == "1.0.0"
        assert chat.say("hello") == "1.0.0 heard hello"  # what was open when the listener changed goes on
    finally:
        world.close()


def settings(tmp_path: Path, edge: dict, **target: object) -> config.DeployConfig:
    path = deploy_config.write(tmp_path / "deploy.toml", edge={"config_dir": "/edge"} | edge, **target)
    return config.load(path)


def test_what_is_configured_is_what_the_edge_is_told(tmp_path):
    files = {"tls_certificate": "/etc/azora/tls/fullchain.pem", "tls_key": "/etc/azora/tls/privkey.pem"}
    image = f"sha256:{'0' * 64}"
    hosts = {"kind": "docker_hosts", "docker_hosts": {"edge_image": image, "guard_image": image}}
    registry = {"repository": "registry.example/azora"}
    options = edge_containers.options_of(settings(tmp_path, files | {"trusted_proxies": 1}, target=hosts, registry=registry))
    assert options == EdgeOptions(EdgeTls("0.0.0.0:8443", "/tls/fullchain.pem", "/tls/privkey.pem", 443), 1, log="/dev/stdout")
    local = local_processes.options_of(settings(tmp_path, files | {"https_port": 8443, "redirect_http": False})).tls
    assert local == EdgeTls("127.0.0.1:8443", files["tls_certificate"], files["tls_key"], 8443, redirect=False)
    assert local_processes.options_of(settings(tmp_path, {})) == EdgeOptions(log="/edge/log/edge.jsonl")


@pytest.mark.parametrize(
    ("edge", "complaint"),
    [
        ({"tls_certificate": "/tls/a.pem"}, "one does nothing without the other"),
        ({"tls_certificate": "/tls/a.pem", "tls_key": "/keys/b.pem"}, "must be in one folder"),
        ({"tls_certificate": "/tls/a.pem", "tls_key": "/tls/b.pem", "probed": "http"}, "public_health_url: plain HTTP leads to HTTPS"),
        ({"tls_certificate": "tls/a.pem", "tls_key": "tls/b.pem"}, "edge.tls_certificate"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, edge, complaint):
    edge = dict(edge)
    scheme = edge.pop("probed", "https")
    services = {"api": deploy_config.service("API", f"{scheme}://azora.example/health")}
    with pytest.raises(BadInputError, match=complaint):
        settings(tmp_path, edge, services=services)
