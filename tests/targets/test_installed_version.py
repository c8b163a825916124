"""What an earlier version installed is understood by the present one: its journal, its guard's volume, its edge, its containers.

The files are those of commit ``febae5f``, see ``recorded/README.md``. v1.2.2 and v1.2.3 were promoted, v1.2.4 had 5 % of the traffic when
its runner died.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.targets.base import Owner
from azora_ci.targets.docker_hosts.doors import socket_of
from azora_ci.targets.docker_hosts.names import Names
from azora_ci.targets.envoy import config as envoy_config
from azora_ci.targets.envoy.admin import expected_weights
from azora_ci.targets.envoy.state import EdgeState
from azora_ci.targets.journal import History, replay
from azora_ci.targets.release import Release
from tests.support.docker_world import Lan, Load, World, get
from tests.support.waiting import until
from tests.targets.guard.test_server import OTHER, Served
from tests.targets.recorded import STATES, Recorded

FIRST, SECOND, THIRD, FOURTH = "1764000000-aaaaaa", "1764000050-cccccc", "1764000100-bbbbbb", "1764000200-dddddd"
EDGE_FOLDER = Path("/edge")  # the volume, as the edge and the guard see it
VOLATILE = "(changes)"
RECORDED = Recorded("febae5f")
LEFT_BY_ALICE = {"deployment_id": THIRD, "owner": "alice", "run_url": "https://github.com/azora/shop/actions/runs/104"}  # her rerun

Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start the present guard on the recorded volume; ``change`` spoils that first."""
    guards: list[Served] = []

    def start(state: str, *, lease: float = 60.0, change: Callable[[Path], object] = lambda _folder: None) -> Served:
        folder = tmp_path / "edge"
        RECORDED.lay(folder, state)
        change(folder)
        guards.append(Served(folder, lease))
        return guards[-1]

    yield start
    for guard in guards:
        guard.stop()


def history_of(state: str) -> History:
    return replay(json.dumps(event) for event in RECORDED.events(state))


def answers_as_recorded(guard: Served, state: str) -> None:
    """Compare every answer of the guard; a later version may add keys to its answers."""
    status, recorded = guard.ask("/status")[1], dict(RECORDED.states[state]["status"])
    assert status.keys() >= recorded.keys() | {"journal"}
    if recorded["lock"]:  # what was a token then is the number of the lock
        recorded["lock"] = {"number" if key == "token" else key: value for key, value in recorded["lock"].items()}
    assert {key: status[key] for key, value in recorded.items() if value != VOLATILE} == {
        key: value for key, value in recorded.items() if value != VOLATILE
    }
    assert status["journal"] == RECORDED.entries(state)[-20:]
    assert guard.ask("/journal") == (200, RECORDED.events(state))
    assert guard.ask("/files") == (200, RECORDED.files(RECORDED.generation(state)))


# --- the journal -----------------------------------------------------------------------------------------------------------


def test_the_journal_tells_what_was_promoted_and_where_traffic_goes_back_to():
    history = history_of("promoted")
    assert {name: release.version for name, release in history.releases.items()} == {FIRST: "v1.2.2", SECOND: "v1.2.3"}
    assert (history.serving, history.unfinished) == (SECOND, None)
    assert (history.before(SECOND).id, history.before(FIRST)) == (FIRST, None)
    stages = [(stage["stage"], stage["traffic_percentage"], stage["status"]) for stage in history.releases[SECOND].stages]
    assert stages == [("canary", 5, "healthy"), ("progressive", 50, "healthy"), ("full", 100, "healthy")]


@pytest.mark.parametrize("state", ["at-5-percent", "returned"])  # only the guard knows that a lease ran out
def test_the_journal_tells_what_a_dead_runner_left_unfinished(state):
    history = history_of(state)
    assert (history.serving, history.before(SECOND).id) == (SECOND, FIRST)
    assert (history.unfinished.id, history.unfinished.version, history.unfinished.percent) == (THIRD, "v1.2.4", 5)
    assert history.before(THIRD).id == SECOND


def test_the_journal_names_the_images_and_addresses_of_the_containers():
    history = history_of("at-5-percent")
    instances = {name: facts for name, facts in RECORDED.containers.items() if "world.azora.deployment-id" in facts["Labels"]}
    assert len(instances) == 5
    for name, facts in instances.items():
        labels = {key.removeprefix("world.azora."): value for key, value in facts["Labels"].items()}
        release = history.releases[labels["deployment-id"]]
        assert release.digests[labels["service"]] == facts["Image"].partition("@")[2]
        noted = release.instances[labels["service"], int(labels["number"])]
        assert (noted["container"], noted["address"]) == (name, f"{facts['Networks']['azora']}:8080")
    assert sum(len(release.instances) for release in history.releases.values()) == len(instances)


def test_events_and_keys_of_a_later_version_are_passed_over():
    events = [{**event, "colour": "blue"} for event in RECORDED.events("at-5-percent")]
    events.insert(-1, {"at": "2027-01-01T00:00:00.000Z", "event": "blessed", "deployment_id": THIRD})
    history, recorded = replay(json.dumps(event) for event in events), history_of("at-5-percent")
    assert (history.serving, history.unfinished.id, history.unfinished.percent) == (SECOND, THIRD, 5)
    assert {name: release.outcome for name, release in history.releases.items()} == {
        name: release.outcome for name, release in recorded.releases.items()
    }


def test_an_event_that_was_cut_is_lost_alone():
    lines = [json.dumps(event) for event in RECORDED.events("at-5-percent")]
    assert json.loads(lines[-1])["event"] == "weight"
    for cut in range(1, len(lines[-1]), 10):
        history = replay([*lines[:-1], lines[-1][:cut]])
        assert (history.serving, history.unfinished.id, history.unfinished.percent) == (SECOND, THIRD, 0)
        assert replay([*lines, lines[-1][:cut]]) == history_of("at-5-percent")


# --- the guard's volume ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_a_guard_that_is_replaced_answers_as_before_and_keeps_the_routes(serve, state):
    guard = serve(state)
    answers_as_recorded(guard, state)
    link = guard.folder / "current"
    assert link.readlink() == Path("generations") / RECORDED.generation(state)
    assert (guard.folder / "journal.jsonl").read_bytes() == b"".join(RECORDED.lines(state))


@pytest.mark.parametrize("state", ["promoted", "returned"])
def test_whoever_locks_next_has_a_number_above_all_earlier_ones_and_a_token_that_nobody_guesses(serve, state):
    guard = serve(state)
    before = max(entry["token"] for entry in RECORDED.entries(state) if entry["entry"] == "lock")
    status, answer = guard.ask("/lock", {**OTHER, "a key of a later version": True})
    assert (status, answer["number"]) == (200, before + 1)
    token = answer["token"]
    event = {"at": "2027-01-01T00:00:00.000Z", "event": "begin", "deployment_id": FOURTH}
    for guess in (before, before + 1, before + 2, str(before + 1)):
        assert guard.ask("/note", {"token": guess, "event": event})[0] == 409
    assert guard.ask("/note", {"token": token, "event": event})[0] == 200
    assert guard.ask("/journal") == (200, [*RECORDED.events(state), event])
    files = RECORDED.files(RECORDED.generation("at-5-percent"))
    assert guard.ask("/apply", {"token": token, "generation": "9-1", "files": files})[0] == 200
    assert guard.ask("/files") == (200, files)
    guard.stop()
    guard.start()  # and reads what it wrote behind the recorded entries
    assert guard.ask("/journal") == (200, [*RECORDED.events(state), event])
    assert guard.ask("/renew", {"token": token})[0] == 200


def test_a_lease_that_nobody_renews_any_more_goes_back(serve):
    guard = serve("at-5-percent", lease=1.0)
    until(lambda: guard.ask("/status")[1]["generation"] == RECORDED.generation("returned"), "the guard has gone back")
    status, recorded = guard.ask("/status")[1], RECORDED.states["returned"]["status"]
    assert {key: status[key] for key in ("lock", "held", "safe_generation")} == {
        key: recorded[key] for key in ("lock", "held", "safe_generation")
    }
    assert without_times(status["journal"][-2:]) == without_times(RECORDED.entries("returned")[-2:])
    assert guard.ask("/files") == (200, RECORDED.files(RECORDED.generation("returned")))
    assert guard.ask("/renew", {"token": 3})[0] == 409


def without_times(entries: list[Any]) -> list[Any]:
    return [{key: value for key, value in entry.items() if key not in {"at", "reason", "token"}} for entry in entries]


def test_the_numbered_token_of_an_earlier_version_is_refused_and_its_lease_ends(serve):
    """A guard is not replaced while its lock is held; if it was by hand, the old routes come back, and nobody goes on with a number."""
    guard = serve("at-5-percent", lease=1.0)
    assert guard.ask("/status")[1]["lock"]["number"] == 3
    for guess in (3, "3", 4):
        for action in ("renew", "promote", "unlock"):
            assert guard.ask(f"/{action}", {"token": guess})[0] == 409
    until(lambda: guard.ask("/status")[1]["generation"] == RECORDED.generation("returned"), "the guard has gone back")


def test_a_lock_for_longer_than_the_universe_is_cut_when_the_guard_is_replaced(serve):
    def fence(folder: Path) -> None:
        entry = {**RECORDED.entries("returned")[-1], "entry": "lock", **OTHER, "token": 9, "seconds": 1e300}
        with (folder / "journal.jsonl").open("a") as file:
            file.write(json.dumps({**entry, "sequence": entry["sequence"] + 1}) + "\n")

    guard = serve("returned", lease=0.5, change=fence)
    assert guard.ask("/status")[1]["lock"]["seconds"] == 1.0
    until(lambda: guard.ask("/lock", LEFT_BY_ALICE)[0] == 200, "the lock has expired")


def test_a_rerun_takes_the_lock_over_on_safe_ground_and_nobody_else_does(serve):
    guard = serve("at-5-percent")
    status, answer = guard.ask("/lock", OTHER)
    assert (status, "alice" in answer["error"]) == (409, True)
    status, answer = guard.ask("/lock", LEFT_BY_ALICE)
    assert (status, answer["number"], answer["lease_seconds"]) == (200, 4, 60.0)
    assert guard.ask("/status")[1]["generation"] == RECORDED.generation("returned")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_an_entry_that_was_cut_is_dropped_and_nothing_was_done_for_it(serve, share):
    entry = RECORDED.lines("returned")[len(RECORDED.lines("at-5-percent"))]

    def cut(folder: Path) -> None:
        with (folder / "journal.jsonl").open("ab") as file:
            file.write(entry[: max(1, int(share * len(entry)))])

    guard = serve("at-5-percent", change=cut)
    answers_as_recorded(guard, "at-5-percent")
    assert (guard.folder / "journal.jsonl").read_bytes() == b"".join(RECORDED.lines("at-5-percent"))


def test_when_the_end_of_the_lock_was_cut_it_is_held_until_it_expires_and_routes_stay(serve):
    def cut(folder: Path) -> None:
        data = (folder / "journal.jsonl").read_bytes()
        (folder / "journal.jsonl").write_bytes(data[:-5])

    assert RECORDED.entries("promoted")[-1]["entry"] == "unlock"
    guard = serve("promoted", change=cut)
    status = guard.ask("/status")[1]
    assert (status["lock"]["deployment_id"], status["lock"]["number"], status["held"]) == (SECOND, 2, False)
    assert status["generation"] == RECORDED.generation("promoted")


def test_entries_and_keys_of_a_later_guard_are_passed_over(serve):
    number = RECORDED.entries("at-5-percent")[-1]["sequence"]

    def add(folder: Path) -> None:
        entries = [{**entry, "colour": "blue"} for entry in RECORDED.entries("at-5-percent")]
        entries.append({"sequence": number + 1, "at": "2027-01-01T00:00:00.000+00:00", "entry": "blessing", "by": "a later version"})
        (folder / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))

    guard = serve("at-5-percent", change=add)
    status, recorded = guard.ask("/status")[1], RECORDED.states["at-5-percent"]["status"]
    for key in ("held", "safe_generation", "generation"):
        assert status[key] == recorded[key]
    assert status["lock"]["number"] == recorded["lock"]["token"]
    guard.ask("/lock", LEFT_BY_ALICE)  # the old routes come back, and the lock is taken
    assert [entry["sequence"] for entry in guard.ask("/status")[1]["journal"]][-3:] == [number + 1, number + 2, number + 3]


# --- the edge's files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_the_edge_has_the_weights_that_envoy_had(state):
    edge = edge_state(RECORDED.generation(state))
    assert expected_weights(edge) == RECORDED.states[state]["weights"]
    assert (edge.stable, edge.previous) == (SECOND, FIRST)
    assert edge.canary == (None if state == "promoted" else THIRD)


def edge_state(generation: str) -> EdgeState:
    return EdgeState.from_document(json.loads(RECORDED.files(generation)["edge.json"]))


@pytest.mark.parametrize("generation", sorted({RECORDED.generation(state) for state in STATES}))
def test_the_same_state_leads_users_to_the_same_instances(generation):
    """So an upgrade by itself moves nobody: shares, cluster names and addresses stay what they were."""
    files = envoy_config.render(edge_state(generation), EDGE_FOLDER, generation)
    recorded = RECORDED.files(generation)
    assert json.dumps(files["edge.json"]) == recorded["edge.json"]
    assert ways(files) == ways({name: json.loads(text) for name, text in recorded.items()})


def ways(files: dict[str, Any]) -> dict[str, Any]:
    """Return which requests go to which addresses in which shares.

    Without headers and cookies that an earlier version believed from anybody: there is no secret yet that would make them.
    """
    routes = files["routes.json"]["resources"][0]["virtual_hosts"][0]["routes"]
    endpoints = {
        name: [[host["endpoint"]["address"] for host in group["lb_endpoints"]] for group in document["resources"][0]["endpoints"]]
        for name, document in files.items()
        if name.startswith("endpoints-")
    }
    shares = [
        (route["match"], [(cluster["name"], cluster["weight"]) for cluster in route["route"]["weighted_clusters"]["clusters"]])
        for route in routes
        if "route" in route and not {header["name"] for header in route["match"].get("headers", [])} & {"x-azora-release", "cookie"}
    ]
    return {"shares": shares, "clusters": [cluster["name"] for cluster in files["clusters.json"]["resources"]], "endpoints": endpoints}


def test_the_bootstrap_is_the_same_but_for_limits_statistics_and_the_way_to_the_admin_interface():
    written = envoy_config.bootstrap(EDGE_FOLDER, socket_of(Names().edge), 0o660, 20_000)
    recorded = json.loads((RECORDED.folder / "volume/bootstrap.json").read_text())
    pipe = {"path": "/run/azora/azora-edge/http.sock", "mode": 0o660}
    admin = {"address": {"pipe": pipe}, "ignore_global_conn_limit": True}
    changed = {name: written[name] for name in ("overload_manager", "stats_config")}
    assert recorded | {"admin": admin} | changed == written


def test_a_state_with_keys_of_a_later_version_is_refused_not_guessed():
    document = json.loads(RECORDED.files(RECORDED.generation("at-5-percent"))["edge.json"])
    for spoiled in ({**document, "colour": "blue"}, {**document, "options": {**document["options"], "colour": "blue"}}):
        with pytest.raises(TypeError, match="colour"):
            EdgeState.from_document(spoiled)


# --- a whole host ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(network: Lan, tmp_path: Path) -> Iterator[World]:
    installed = World(network, tmp_path, services=("api_gateway",), lease=45.0)
    installed.host_settings = {"edge_image": RECORDED.containers["azora-edge"]["Image"]}  # as configured then
    installed.edge_settings = {"sticky_cookie": "azora-release", "trusted_proxies": 1}
    installed.config = config.load(installed.configure())
    service = f"{network.registry}/api_gateway@{network.digests['1.0.0']['api_gateway']}"
    images = {"edge": network.edge_image, "guard": network.guard_image, "api_gateway": service}
    machine = installed.machines[0]
    RECORDED.install(machine.client, machine.folder / "d/volumes/azora-edge/_data", images, installed.flags)
    until(lambda: answers(installed), "users are served")
    yield installed
    installed.close()


def answers(world: World) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return get(world.machines[0].address, "/api/work")[0] == 200
    return False


def test_a_host_that_an_earlier_version_installed_is_read_taken_back_and_deployed_to(world):
    containers = world.machines[0].client.containers
    edge, guard = containers.get("azora-edge").id, containers.get("azora-guard").id
    target = world.target()
    with target.connected():
        the_host_is_understood(world, target)
    with target.locked(Owner(THIRD, LEFT_BY_ALICE["run_url"], "alice")):  # by its own guard, which has something to guard
        returned = target.abort(Release(THIRD, "v1.2.4", target.current().releases[THIRD].digests), "its runner died")
        assert (returned.to, returned.proved) == ("v1.2.3", True)
    assert world.versions_now() == {"1.2.3"}
    assert (containers.get("azora-guard").id, containers.get("azora-edge").id) == (guard, edge)  # replaced when nothing is under way
    world.host_settings = {}  # the recorded image's registry is nowhere
    world.config = config.load(world.configure())
    target, fourth = world.target(), Release(FOURTH, "v1.2.5", world.digests("1.1.0"))
    with PatientLoad(world) as load, target.locked(Owner(FOURTH, "https://runs.example/5", "bob")):
        nothing_of_an_earlier_version_is_left(world, {guard, edge})
        assert world.versions_now() == {"1.2.3"}
        target.deploy(fourth, 100)
        target.set_weight(fourth, 100)
        target.promote(fourth)
        assert set(world.machines[0].client.networks.get("azora").attrs["Containers"]) > {containers.get("azora-edge").id}
    assert load.failed == []
    assert load.versions["1.2.3"] > 10
    new, old = (
        {facts["address"].rpartition(".")[0] for facts in target.current().releases[name].instances.values()} for name in (FOURTH, SECOND)
    )
    assert (new, old) == ({"10.214.1"}, {"10.212.0"})  # the old version stays in its network, as the rollback target
    assert any("nothing answered for at most" in note for note in target.notes)
    assert world.versions_now() == {"1.2.5"}
    history = target.current()
    assert (history.serving, history.before(FOURTH).id, history.unfinished) == (FOURTH, SECOND, None)


class PatientLoad(Load):
    """A load of users who try again for 5 s when they get no whole answer: a container that is replaced ends its connections."""

    def _get(self, target: tuple[tuple[str, int], str]) -> tuple[int, dict[str, str], bytes]:
        for _ in range(250):
            with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
                return super()._get(target)
            time.sleep(0.02)
        return super()._get(target)


def nothing_of_an_earlier_version_is_left(world: World, earlier: set[str]) -> None:
    """Guard and edge are the present ones, with the same volume; the ports that they listened on and their network are gone."""
    client = world.machines[0].client
    assert not earlier & {container.id for container in client.containers.list(all=True)}
    assert client.networks.list(names=["azora-admin"]) == []
    assert {"azora", "az-edge", "azora-to-api_gateway"} <= {network.name for network in client.networks.list()}


def the_host_is_understood(world: World, target: Any) -> None:
    history = target.current()
    assert (history.serving, history.unfinished.id, history.unfinished.percent) == (SECOND, THIRD, 5)
    assert target.holder().owner.deployment_id == THIRD
    image = RECORDED.containers["azora-edge"]["Image"]
    replaced = "which is not what is configured: the next deployment, or edge install, replaces it"
    assert target.edges() == [f"host-1: the edge runs {image}, {replaced}"]
    lines = target.plan(Release(FOURTH, "v1.2.5", world.digests("1.1.0")))
    assert "containers may take 1,792 MiB" in lines[0]  # five instances that run and two new ones, of 256 MiB each
    assert {instance.address for name in (FIRST, SECOND, THIRD) for instance in target.instances(name)} == {
        f"10.212.0.{number}:8080" for number in range(16, 21)
    }
    observed = target.observe()
    assert (observed.weights, observed.dead) == (RECORDED.states["at-5-percent"]["weights"], ())
    assert "1.2.3" in world.versions_now() <= {"1.2.3", "1.2.4"}
