"""Users who keep the edge's cookie stay on the version that was drawn for them, and the shares of users match the configured percentage."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from http.cookies import SimpleCookie
from pathlib import Path

import pytest

from azora_ci.core import config
from azora_ci.health.answers import CANARY, STABLE, pass_word
from azora_ci.targets.base import Owner
from azora_ci.targets.envoy import admin, routes
from azora_ci.targets.envoy.options import edge_options
from azora_ci.targets.envoy.state import EdgeOptions, EdgeRelease, EdgeService, EdgeState
from tests.support import deploy_config
from tests.support.edge_lab import Backend, Lab
from tests.support.edge_world import NEW, OLD, World, get

NAME = "azora-release"
USERS = 800
SECRET = "5ec4e7" * 10
OPTIONS = EdgeOptions(sticky_cookie=NAME)


class User:
    """Keeps the cookie of the edge, as a browser would."""

    def __init__(self) -> None:
        self.cookie: str | None = None
        self.set = 0  # how often a cookie was set
        self.version = ""

    def ask(self, connection: http.client.HTTPConnection, path: str = "/") -> str:
        headers = {"cookie": f"theme=dark; {NAME}={self.cookie}; lang=en"} if self.cookie else {}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        for text in response.headers.get_all("set-cookie") or []:
            cookie = SimpleCookie(text)[NAME]
            self.cookie = cookie.value if cookie["max-age"] != "0" else None
            self.set += 1
        self.version = json.loads(body)["version"] if response.status == 200 else f"HTTP {response.status}"
        return self.version


def ask_all(port: int, users: list[User], path: str = "/") -> list[str]:
    """Have every user ask once and return the versions, in the users' order."""

    def ask_in_turn(own_users: list[User]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for user in own_users:
            user.ask(connection, path)
        connection.close()

    workers = [threading.Thread(target=ask_in_turn, args=(users[start::4],)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [user.version for user in users]


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    pair = [Backend("1.0.0"), Backend("1.1.0")]
    yield pair
    for backend in pair:
        backend.die()


@pytest.fixture
def lab(tmp_path: Path, backends: list[Backend]) -> Iterator[Lab]:
    edge_lab = Lab(tmp_path)
    try:
        edge_lab.put([backends[0].address], [backends[1].address], options=OPTIONS, secret=SECRET)
        yield edge_lab
    finally:
        edge_lab.close()


def cookie(lab: Lab, version: str) -> str:
    """Return the cookie of a user for whom that version is drawn now."""
    user, connection = User(), http.client.HTTPConnection("127.0.0.1", lab.port, timeout=20)
    while user.ask(connection) != version:
        user.cookie = None
    assert user.cookie is not None
    return user.cookie


def share(versions: list[str]) -> float:
    assert set(versions) <= {"1.0.0", "1.1.0"}
    return versions.count("1.1.0") / len(versions)


def test_users_stay_where_they_were_drawn_and_shares_of_users_are_exact(lab):
    users = [User() for _ in range(USERS)]
    lab.weigh(5)
    first = ask_all(lab.port, users)
    assert abs(share(first) - 0.05) < 0.039  # 5 standard deviations, here and below
    drawn = [user.set for user in users]
    assert set(drawn) == {1}
    assert ask_all(lab.port, users) == first  # nobody flips while the weight stays
    assert [user.set for user in users] == drawn  # and nobody is drawn again
    lab.weigh(50)
    second = ask_all(lab.port, users)
    assert abs(share(second) - 0.5) < 0.089
    assert [after for before, after in zip(first, second, strict=True) if before == "1.1.0" != after] == []  # nobody comes back
    assert ask_all(lab.port, users) == second
    lab.abort()
    assert set(ask_all(lab.port, users)) == {"1.0.0"}
    assert {user.cookie for user in users} == {None}


@pytest.mark.parametrize(("drawn", "percent"), [(5, 50), (5, 100), (50, 100)])
def test_who_is_drawn_again_makes_up_the_difference_exactly(drawn, percent):
    releases = (EdgeRelease(OLD, "v1.0.0", {"api": ("127.0.0.1:1",)}), EdgeRelease(NEW, "v1.1.0", {"api": ("127.0.0.1:2",)}))
    services = (EdgeService("api", "/", 15),)
    state = EdgeState(services, "127.0.0.1:8000", releases, stable=OLD, canary=NEW, percent=percent, options=OPTIONS, secret=SECRET)
    cookie = f"{NAME}={routes._ticket(state, OLD, drawn)}"
    shares = next(
        {cluster["name"]: cluster["weight"] for cluster in route["route"]["weighted_clusters"]["clusters"]}
        for route in routes.route_configuration(state, "7")["virtual_hosts"][0]["routes"]
        for header in route["match"].get("headers", [])
        if header["name"] == "cookie" and re.fullmatch(header["string_match"]["safe_regex"]["regex"], cookie)
    )
    again = Fraction(shares[f"api-{NEW}"], sum(shares.values()))
    assert drawn + (100 - drawn) * again == percent


def test_everybody_has_the_new_version_at_100_percent(lab):
    users = [User() for _ in range(200)]
    for percent in (5, 50, 100):
        lab.weigh(percent)
        versions = ask_all(lab.port, users)
    assert set(versions) == {"1.1.0"}
    lab.edge.apply(replace(lab.edge.state(), stable=NEW, canary=None, previous=OLD, percent=0))  # promoted
    assert set(ask_all(lab.port, users)) == {"1.1.0"}
    assert {user.cookie for user in users} == {None}


def test_a_cookie_is_only_believed_about_this_deployment(lab):
    user = User()
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=20)
    lab.weigh(5)
    drawn = cookie(lab, "1.1.0")
    lab.edge.apply(replace(lab.edge.state(), secret=SECRET[::-1]))  # the next deployment
    for forged in (drawn, f"{NEW}.0.canary", cookie(lab, "1.1.0") + "x", "nonsense"):
        versions = set()
        for _ in range(30):
            user.cookie, user.set = forged, 0
            versions.add(user.ask(connection))
            assert user.set == 1  # drawn anew
        assert "1.0.0" in versions


def test_the_release_header_wins_and_changes_no_cookie(lab):
    lab.weigh(50)
    for side, version in ((CANARY, "1.1.0"), (STABLE, "1.0.0")):
        for drawn in (cookie(lab, "1.1.0"), cookie(lab, "1.0.0")):
            release_header = {"x-azora-release": pass_word(SECRET, side)}
            status, headers, body = get(lab.port, "/", headers={**release_header, "cookie": f"{NAME}={drawn}"})
            assert (status, json.loads(body)["version"]) == (200, version)
            assert "set-cookie" not in headers


def test_the_cookie_is_for_all_paths_and_no_script(lab):
    lab.weigh(5)
    _, headers, _ = get(lab.port, "/deep/path")
    assert headers["set-cookie"].split("; ", 1)[1] == "Path=/; HttpOnly; SameSite=Lax"
    lab.edge.apply(replace(lab.edge.state(), options=replace(OPTIONS, secure_cookie=True)))
    assert get(lab.port, "/deep/path")[1]["set-cookie"].endswith("; SameSite=Lax; Secure")


def test_one_cookie_holds_for_all_services_and_read_back_knows_the_weights(lab, backends):
    services = (EdgeService("api", "/", 15), EdgeService("auth", "/auth", 15), EdgeService("only_old", "/old", 15))
    old, new = backends[0].address, backends[1].address
    state = replace(lab.edge.state(), services=services)
    state = state.with_release(EdgeRelease(OLD, "v1.0.0", {"api": (old,), "auth": (old,), "only_old": (old,)}))
    state = state.with_release(EdgeRelease(NEW, "v1.1.0", {"api": (new,), "auth": (new,)}))
    lab.edge.apply(state)
    lab.edge.apply(replace(state, percent=50))
    assert lab.edge.weights() == admin.expected_weights(lab.edge.state())
    assert lab.edge.weights()["/auth"] == {f"auth-{OLD}": 50, f"auth-{NEW}": 50}
    users = [User() for _ in range(80)]
    first = ask_all(lab.port, users)
    assert set(ask_all(lab.port, users, "/old")) == {"1.0.0"}  # a route without the new version draws nobody
    assert ask_all(lab.port, users, "/auth") == first
    assert {user.set for user in users} == {1}


def test_without_the_setting_there_is_no_cookie(lab):
    lab.edge.apply(replace(lab.edge.state(), options=EdgeOptions(), percent=50))
    assert "set-cookie" not in get(lab.port, "/")[1]


def test_a_deployment_that_is_aborted_evicts_its_users(tmp_path):
    world = World(tmp_path, instances=1)
    try:
        world.deploy_old()
        world.configure_edge(sticky_cookie=NAME)
        target, release = world.target(), world.release("1.1.0", NEW)
        users = [User() for _ in range(40)]
        with target.locked(Owner(NEW, "https://runs.example/2", "tests")):
            target.deploy(release, 100)
            assert set(ask_all(world.port, users, "/api/work")) == {"1.0.0"}
            assert {user.cookie for user in users} == {None}  # at 0 % nobody is drawn
            target.set_weight(release, 50)
            first = ask_all(world.port, users, "/api/work")
            assert set(first) == {"1.0.0", "1.1.0"}
            assert ask_all(world.port, users, "/auth/work") == first
            returned = target.abort(release, "a test")
            assert returned.proved
            away, here = users[:20], users[20:]
            assert set(ask_all(world.port, here, "/api/work")) == {"1.0.0"}
            assert {user.cookie for user in here} == {None}
            target.deploy(release, 100)  # the same release once more: who was away since is drawn anew
            target.set_weight(release, 5)
            drawn = [user.set for user in away]
            ask_all(world.port, away, "/api/work")
            assert [user.set for user in away] == [count + 1 for count in drawn]
    finally:
        world.close()


def test_the_cookie_is_secure_where_users_come_by_https(tmp_path):
    def options(public_url: str, **edge: object) -> EdgeOptions:
        path = deploy_config.write(tmp_path / "deploy.toml", public_url=public_url, edge={"config_dir": "/edge"} | edge)
        return edge_options(config.load(path), None, None)

    assert options("https://azora.example", sticky_cookie=NAME) == EdgeOptions(sticky_cookie=NAME, secure_cookie=True)
    assert options("http://127.0.0.1:8080", sticky_cookie=NAME) == EdgeOptions(sticky_cookie=NAME)
    assert options("https://azora.example") == EdgeOptions()
