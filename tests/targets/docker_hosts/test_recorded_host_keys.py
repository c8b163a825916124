"""Host keys from one deployment to the next, on a real host: accepted once, recorded, expected, and refused when the host is another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci.clients.ssh.host_keys import HostKey
from azora_ci.record import fragments, host_keys
from azora_ci.record.archive import Archive
from azora_ci.record.deployment import assemble
from tests.record.test_deployment import FACTS
from tests.support import fragments_builder as build
from tests.support.docker_world import NEW, World, lan
from tests.support.sshd import keygen
from tests.support.stores import Stores

pytestmark = pytest.mark.faults


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[World]:
    with lan(tmp_path_factory.mktemp("lan")) as network:
        docker_world = World(network, tmp_path, services=("api_gateway",))
        docker_world.built()
        yield docker_world
        docker_world.close()


def archived(world: World, archive: Archive) -> None:
    """Keep a record with what the rollout saw, and hand what the archive holds to the next one as pre-deployment-validation does."""
    fragments_of_jobs = {**build.complete(), "gradual-rollout": world.fragment()}
    archive.keep_record(assemble(fragments_of_jobs, replace(FACTS, deployment_id="1763000000-0f0f0f"), status="success"))
    recorded = host_keys.newest(archive)
    assert recorded is not None
    validation = replace(build.complete()["pre-deployment-validation"], deployment_id=NEW, run_id="1")
    validation.evidence["recorded_host_keys"] = recorded.document()
    fragments.write(validation, world.folder / "received" / f"validation-logs-{NEW}")


def test_the_first_deployment_accepts_the_next_expects_and_another_host_is_refused(world: World, s3_server: Stores) -> None:
    machine = world.machines[0]
    old = HostKey(*machine.sshd.known_hosts.split()[1:3])
    code, output = world.finish(world.start(PROD_KNOWN_HOSTS=""))
    assert code == 2, output
    assert "No host key is pinned" in output

    code, output = world.finish(world.start(PROD_KNOWN_HOSTS="", PROD_ACCEPT_NEW_HOST_KEY="true", GITHUB_ACTIONS="true"))
    assert code == 0, output
    assert "::warning title=New host keys were accepted::" in output
    (accepted,) = world.fragment().evidence["host_keys"]
    assert (accepted["source"], accepted["fingerprint"]) == ("accepted", old.fingerprint)
    assert machine.address not in json.dumps(accepted)

    bucket = s3_server.make_bucket()
    archived(world, Archive(s3_server.open(bucket), "production"))
    code, output = world.finish(world.start(attempt=2, PROD_KNOWN_HOSTS=""))
    assert code == 0, output
    (expected,) = world.fragment(2).evidence["host_keys"]
    assert (expected["source"], expected["fingerprint"]) == ("recorded", old.fingerprint)

    world.backup = {"location": f"s3://{bucket}/prod"}
    world.configure()
    argv = [sys.executable, "-m", "azora_ci", "lock", "status", "--config", str(world.config_path)]
    environ = world.environ(3, **s3_server.environ, PROD_KNOWN_HOSTS="")  # a person who may read the archive
    completed = subprocess.run(argv, env=environ, cwd=world.folder, capture_output=True, text=True, timeout=120, check=False)
    assert (completed.returncode, "free" in completed.stdout) == (0, True), completed.stdout + completed.stderr

    machine.sshd.stop()
    machine.sshd.host_key.unlink()
    new = HostKey(*keygen(machine.sshd.host_key).with_suffix(".pub").read_text().split()[:2])
    machine.sshd.start()
    code, output = world.finish(world.start(attempt=3, PROD_KNOWN_HOSTS="", PROD_ACCEPT_NEW_HOST_KEY="true"))
    assert code == 1, output
    assert f"known: {old.fingerprint} (ssh-ed25519); the host shows: {new.fingerprint}" in output
    assert world.versions_now() == {"1.1.0"}
