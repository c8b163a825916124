"""A release whose credentials end in the middle of a stage: a program of the kubeconfig gives new ones, or none any more."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests
import yaml

from azora_ci.core.errors import AzoraError
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from tests.support.kubernetes_target import World, deploy, owner
from tests.support.waiting import until

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def world(cluster: Cluster, tmp_path: Path) -> World:
    made = World(cluster, tmp_path, services=("api_gateway",), lease_seconds=8)
    made.install()
    return made


class Session:
    """A kubeconfig whose program prints a token of our account, as that of a cloud does; ``end`` makes it worthless.

    A token is bound to a Secret and ends with it, within the ten seconds for which the API server remembers it.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder, self.number = world, folder, 0
        self.kubeconfig = folder / "session"
        document = yaml.safe_load(world.restricted().read_text())
        self.account = document["users"][0]["name"]
        program = folder / "program"
        program.write_text(f'#!/bin/sh\ncd "{folder}"\necho >>calls\ncat credential\n')
        program.chmod(0o755)
        table = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program), "interactiveMode": "Never"}
        document["users"][0]["user"] = {"exec": table}
        self.kubeconfig.write_text(yaml.safe_dump(document))
        self.begin()

    @property
    def calls(self) -> int:
        return len((self.folder / "calls").read_text())

    def begin(self) -> None:
        """Have the program print a token that is valid."""
        self.number += 1
        api, core = self.world.cluster.api, f"/api/v1/namespaces/{self.world.namespace}"
        made = api.create(f"{core}/secrets", {"metadata": {"name": f"session-{self.number}"}})
        bound = {"apiVersion": "v1", "kind": "Secret", "name": f"session-{self.number}", "uid": made["metadata"]["uid"]}
        request = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"boundObjectRef": bound}}
        self.token = api.create(f"{core}/serviceaccounts/deployer-0/token", request)["status"]["token"]
        (self.folder / "part").write_text(json.dumps({"status": {"token": self.token}}))
        (self.folder / "part").replace(self.folder / "credential")

    def end(self) -> None:
        """Have no token be valid that was printed so far, and none be printed."""
        (self.folder / "credential").unlink()
        self.world.cluster.api.delete(f"/api/v1/namespaces/{self.world.namespace}/secrets/session-{self.number}")

    def wait_refused(self, token: str) -> None:
        cluster = self.world.cluster
        asking = {"headers": {"Authorization": f"Bearer {token}"}, "verify": str(cluster._certificate), "timeout": 10}
        until(lambda: requests.get(f"{cluster.api.server}/version/", **asking).status_code == 401, "the token ended", 40)


def test_a_token_that_ends_in_the_middle_of_a_stage_is_replaced_and_the_release_goes_on(world, tmp_path):
    deploy(world, world.release(1))
    session, second = Session(world, tmp_path), world.release(2)
    target = world.target(session.kubeconfig)
    with target.locked(owner(second.id)):
        target.deploy(second, 5)
        target.set_weight(second, 5)
        assert session.calls == 1
        first = session.token
        session.end()
        session.begin()
        session.wait_refused(first)
        time.sleep(world.lease_seconds)  # the lease is renewed all the while
        target.observe()
        for percent in (50, 100):
            target.deploy(second, percent)
            target.set_weight(second, percent)
        target.promote(second)
    assert set(world.ask("api_gateway", 10)) == {"1.0.2"}
    assert session.calls >= 2


def test_who_gets_no_token_any_more_is_a_dead_runner(world, tmp_path):
    deploy(world, world.release(1))
    session, second = Session(world, tmp_path), world.release(2)
    target = world.target(session.kubeconfig)
    holding = target.locked(owner(second.id))
    holding.__enter__()
    target.deploy(second, 5)
    target.set_weight(second, 5)
    session.end()
    session.wait_refused(session.token)
    until(lambda: world.weights() == {"api_gateway": 0}, "Argo takes the release back", world.lease_seconds + 5)
    with suppress(AzoraError):
        holding.__exit__(None, None, None)
