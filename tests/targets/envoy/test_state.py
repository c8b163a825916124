"""The edge: rendering, and what a real Envoy makes of it."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci.core.clock import Clock
from azora_ci.core.config import load
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.process import send_signal
from azora_ci.targets.base import Owner
from azora_ci.targets.envoy import admin, config, counting
from azora_ci.targets.envoy.edge import Edge
from azora_ci.targets.envoy.options import edge_services
from azora_ci.targets.envoy.state import EdgeOptions, EdgeRelease, EdgeService, EdgeState, EdgeTls
from tests.support import deploy_config
from tests.support.edge_world import NEW, OLD, World, free_ports, get

SERVICES = (EdgeService("api", "/api", 15), EdgeService("edu", "/api/education", 0), EdgeService("web", "/", 30))
BOTH = EdgeState(
    SERVICES,
    "127.0.0.1:8000",
    (EdgeRelease(OLD, "v1.0.0", {"api": ("127.0.0.1:1",), "edu": ("127.0.0.1:2",)}), EdgeRelease(NEW, "v1.1.0", {"api": ("127.0.0.1:3",)})),
    stable=OLD,
    canary=NEW,
    percent=5,
)


def routes(state: EdgeState) -> list[dict]:
    files = config.render(state, Path("/edge"), "7")
    return files["routes.json"]["resources"][0]["virtual_hosts"][0]["routes"][2:]  # the first refuse TRACE and CONNECT


def prefixes(state: EdgeState) -> list[str]:
    return [route["match"].get("path_separated_prefix") or route["match"]["prefix"] for route in routes(state)]


def test_the_state_survives_its_document():
    assert EdgeState.from_document(json.loads(json.dumps(BOTH.document()))) == BOTH


def test_bounds_survive_it_too_and_an_older_edge_has_the_defaults():
    bounded = replace(BOTH, services=(replace(SERVICES[0], max_connections=0, max_pending_requests=7), *SERVICES[1:]))
    assert EdgeState.from_document(json.loads(json.dumps(bounded.document()))) == bounded
    assert "max_connections" not in json.dumps(BOTH.document())
    assert [service.bounds(2) for service in BOTH.services] == [(40, 40), (0, 0), (40, 40)]  # the second is one of streams


@pytest.mark.parametrize(
    ("service", "bounds"),
    [
        ({}, (40, 60)),
        ({"expected_latency_ms": 1000}, (200, 300)),
        ({"expected_latency_ms": 20}, (10, 30)),
        ({"expected_latency_ms": 1000, "max_connections": 7}, (7, 300)),
        ({"expected_latency_ms": 1000, "max_pending_requests": 0}, (200, 0)),
        ({"expected_latency_ms": 1000, "timeout_seconds": 0}, (0, 0)),
    ],
)
def test_bounds_follow_the_latency_and_the_number_of_instances(service, bounds):
    assert replace(SERVICES[0], **service).bounds(3) == bounds


def test_options_survive_it_too_and_an_older_edge_has_none():
    tls = EdgeTls("0.0.0.0:8443", "/tls/certificate.pem", "/tls/key.pem", 8443, redirect=False)
    chosen = replace(BOTH, attempt=4, options=EdgeOptions(tls, 1, "azora-release", secure_cookie=True))
    assert EdgeState.from_document(json.loads(json.dumps(chosen.document()))) == chosen
    old = {name: value for name, value in BOTH.document().items() if name not in {"options", "attempt"}}
    assert EdgeState.from_document(json.loads(json.dumps(old))) == BOTH


def test_the_longest_prefix_is_matched_first():
    assert list(dict.fromkeys(prefixes(replace(BOTH, stable=None, canary=None)))) == ["/api/education", "/api", "/"]
    assert list(dict.fromkeys(prefixes(BOTH))) == ["/api/education", "/api"]  # no version in force has the third


def test_all_weights_are_in_one_file():
    assert BOTH.weights("api") == {OLD: 95, NEW: 5}
    assert BOTH.weights("edu") == {OLD: 100}  # the new release has no instance of it
    assert BOTH.weights("web") == {}
    assert admin.expected_weights(BOTH)["/api"] == {f"api-{OLD}": 95, f"api-{NEW}": 5}


def test_a_service_that_only_the_new_release_has_gets_traffic_with_its_first_weight():
    grown = BOTH.with_release(EdgeRelease(NEW, "v1.1.0", {"web": ("127.0.0.1:4",)}))
    assert replace(grown, percent=0).weights("web") == {}
    assert grown.weights("web") == {NEW: 100}


def test_what_may_have_been_sent_is_tried_again_for_safe_methods_only():
    for route in routes(BOTH):
        if "route" in route:
            safe = any(header["name"] == ":method" for header in route["match"].get("headers", []))
            conditions = set(route["route"]["retry_policy"]["retry_on"].split(","))
            assert ("reset" in conditions) is safe
            assert safe or conditions == {"connect-failure", "reset-before-request"}


def test_a_service_of_streams_has_no_timeout():
    (stream, *_), (normal, *_) = (
        [route for route, prefix in zip(routes(BOTH), prefixes(BOTH), strict=True) if prefix == path] for path in ("/api/education", "/api")
    )
    assert (stream["route"]["timeout"], stream["route"]["idle_timeout"]) == ("0s", "0s")
    assert normal["route"]["timeout"] == "15s"
    assert "idle_timeout" not in normal["route"]


def test_failover_is_the_other_side_and_never_a_third():
    assert BOTH.failover(OLD) == NEW
    assert BOTH.failover(NEW) == OLD
    assert replace(BOTH, canary=None).failover(OLD) is None
    assert replace(BOTH, stable=NEW, canary=None, previous=OLD).failover(NEW) == OLD


def test_a_release_that_is_taken_out_leaves_no_role_behind():
    left = BOTH.without(NEW)
    assert (left.canary, left.stable) == (None, OLD)
    assert not any(NEW in name for name in config.render(left, Path("/edge"), "8"))


def test_counters_of_an_edge_without_traffic_are_zero():
    counters = counting.counters({"stats": []}, BOTH)
    assert set(counters) == {("api", OLD), ("edu", OLD), ("api", NEW)}
    assert all(counted.requests == 0 for counted in counters.values())


def test_an_edge_that_is_not_installed_is_said_so(tmp_path):
    with pytest.raises(BadInputError, match="No edge is installed"):
        Edge(tmp_path, "http://127.0.0.1:1", Clock()).state()


# --- a real Envoy ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two releases behind one Envoy; 1.1.0 is warm and has no weight."""
    production = World(tmp_path_factory.mktemp("edge"), instances=1)
    try:
        production.deploy_old()
        target = production.target()
        with target.locked(Owner(NEW, "https://runs.example/2", "tests")):
            target.deploy(production.release("1.1.0", NEW), 100)
        yield production
    finally:
        production.close()


def answered(world: World, number: int, method: str = "GET", headers: dict[str, str] | None = None) -> Counter[str]:
    versions: Counter[str] = Counter()
    for _ in range(number):
        status, _, body = get(world.port, "/api/work", method, headers)
        versions[json.loads(body)["version"] if status == 200 else f"HTTP {status}"] += 1
    return versions


def shift(world: World, **changes: object) -> None:
    world.edge.apply(replace(world.edge.state(), **changes))


def test_weights_are_shares_of_counted_requests(world):
    shift(world, percent=50)
    answers = answered(world, 400)
    assert set(answers) == {"1.0.0", "1.1.0"}
    assert 130 < answers["1.1.0"] < 270  # 7 standard deviations around 200
    shift(world, percent=100)
    assert answered(world, 40) == {"1.1.0": 40}
    shift(world, percent=0)
    assert answered(world, 40) == {"1.0.0": 40}


def test_a_header_reaches_either_side_whatever_the_weights(world):
    shift(world, percent=0)
    assert answered(world, 5, headers=world.release_header("canary")) == {"1.1.0": 5}
    shift(world, percent=100)
    assert answered(world, 5, headers=world.release_header("stable")) == {"1.0.0": 5}
    status, headers, _ = get(world.port, "/api/work")
    assert (status, headers["x-azora-deployment"]) == (200, NEW)


def test_a_path_that_only_looks_alike_is_not_routed(world):
    assert get(world.port, "/apis/work")[0] == 404


def test_counters_are_those_of_the_release_that_was_chosen(world):
    shift(world, percent=100)
    before = world.edge.counters(world.edge.state())
    answered(world, 25)
    after = world.edge.counters(world.edge.state())
    gone = {name: after[name].since(before[name]).requests for name in after}
    assert gone["api_gateway", NEW] == 25
    assert gone["api_gateway", OLD] == 0


def test_a_dead_instance_is_hidden_from_safe_methods_and_counted_against_it(world):
    shift(world, percent=100)
    facts = next(instance for instance in world.target().current().releases[NEW].instances.values() if instance["service"] == "api_gateway")
    send_signal(facts["pid"], signal.SIGKILL)
    before = world.edge.counters(world.edge.state())["api_gateway", NEW]
    assert answered(world, 50) == {"1.0.0": 50}
    assert answered(world, 10, "POST") == {"1.0.0": 10}  # the edge sent none of these to the dead instance
    counters = world.edge.counters(world.edge.state())["api_gateway", NEW].since(before)
    assert counters.requests == 60
    assert counters.failovers >= 60
    assert counters.errors == 0
    assert counters.failed_share == 1.0


def test_upgraded_connections_pass_through(tmp_path):
    world = World(tmp_path, instances=1)
    server = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=switch_protocols, args=(server,), daemon=True)
    thread.start()
    try:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        state = world.edge.state().with_release(EdgeRelease(OLD, "v1.0.0", {"api_gateway": (address,)}))
        world.edge.apply(state)
        world.edge.apply(replace(state, stable=OLD))
        with socket.create_connection(("127.0.0.1", world.port), timeout=20) as client:
            client.sendall(b"GET /api/chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 101")
            client.sendall(b"hello")
            assert client.recv(4096) == b"echo hello"
    finally:
        server.close()
        world.close()


def switch_protocols(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            if connection.recv(4096).lower().find(b"upgrade: websocket") < 0:
                continue
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            connection.sendall(b"echo " + connection.recv(4096))
            connection.recv(1)


def test_a_change_that_nobody_takes_does_not_count(tmp_path):
    world = World(tmp_path, instances=1)
    world.kill_envoy()
    try:
        with pytest.raises(UnreachableError, match="did not take the change"):
            world.edge.confirm(world.edge.state(), world.edge.switch(world.edge.state()), 0.3)
    finally:
        world.close()


def test_only_so_many_generations_are_kept(tmp_path):
    from azora_ci.targets.envoy import edge as edges

    state = EdgeState(SERVICES, f"127.0.0.1:{free_ports(1)[0]}")
    edges.install(tmp_path, listen=state.listen, services=SERVICES)
    for _ in range(30):
        edges.switch(tmp_path, state)
    kept = sorted(int(path.name) for path in (tmp_path / "generations").iterdir())
    assert kept[-1] == 31
    assert len(kept) == edges.GENERATIONS_KEPT + 1
    assert edges.install(tmp_path, listen=state.listen, services=SERVICES) == tmp_path / "bootstrap.json"
    assert (tmp_path / "current").resolve().name == "31"  # installing again keeps what is in force


def test_the_edge_learns_what_is_configured_of_a_service(tmp_path):
    bounds = {"max_connections": 7, "max_pending_requests": 0, "liveness_path": "/live", "expected_latency_ms": 70}
    service = deploy_config.service("API", timeout_seconds=3, **bounds)
    (known,) = edge_services(load(deploy_config.write(tmp_path / "deploy.toml", services={"api": service})))
    assert known == EdgeService("api", service["route_prefix"], 3, **bounds)
    assert EdgeState.from_document(EdgeState((known,), "127.0.0.1:1").document()).services == (known,)
