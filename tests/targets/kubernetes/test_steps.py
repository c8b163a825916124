"""The rollout's step as a process, and what commands of a person show, on a real cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from azora_ci.record import fragments
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from tests.support import ROOT
from tests.support import fragments_builder as build
from tests.support.kubernetes_target import World, deploy
from tests.support.waiting import until

pytestmark = pytest.mark.kubernetes
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def world(cluster: Cluster, tmp_path) -> World:
    made = World(cluster, tmp_path, lease_seconds=10)
    made.install()
    deploy(made, made.release(1))
    return made


def environ(world: World, number: int = 2, attempt: int = 1, **more: str) -> dict[str, str]:
    """Return the environment of a step, after leaving the fragment that build-and-push leaves."""
    release, folder = world.release(number, more.pop("IMAGE", "good")), world.folder
    services = {
        name: {"digest": digest, "reference": digest, "size_bytes": 1, "seconds": 0.1, "reused": False}
        for name, digest in release.digests.items()
    }
    moment = "2026-11-24T11:00:00.000Z"
    evidence = {"kind": "images", "isolation": "job", "builder": None, "services": services, "commands": [], "seconds": 0.2}
    fragment = fragments.Fragment("build-and-push", release.id, release.version, SHA, "1", 1, "ok", moment, moment, evidence)
    path = folder / "received" / f"build-logs-{release.id}" / "record" / "build-and-push.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fragment.document()))
    world.config()
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "KUBECONFIG_DATA": world.restricted().read_text(),
        "DEPLOYMENT_ID": release.id,
        "VERSION": release.version,
        "GIT_SHA": SHA,
        "DEPLOY_CONFIG": str(folder / f"{world.namespace}.toml"),
        "DEPLOYMENT_LOG_DIR": str(folder / f"job-{attempt}"),
        "RECEIVED_ARTIFACTS_DIR": str(folder / "received"),
        "NEEDS": build.needs_of(folder / "received", release.id),
        "GITHUB_RUN_ID": "1",
        "GITHUB_RUN_ATTEMPT": str(attempt),
        "HEALTH_CHECK_TIMEOUT": "30",
        "HEALTH_CHECK_INTERVAL": "0.5",
        "HEALTH_CHECK_RETRIES": "3",
        "CANARY_MINUTES": "0.05",
        "PROGRESSIVE_MINUTES": "0.05",
        "FULL_MINUTES": "0.05",
        "SHORT_STAGES_REASON": "a test",
        **more,
    }


def start(world: World, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "gradual_rollout.py")]
    variables = environ(world, **more)
    return subprocess.Popen(command, env=variables, cwd=world.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(step: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = step.communicate(timeout=150)
    return step.returncode, output


def evidence(world: World, attempt: int = 1) -> dict[str, Any]:
    return fragments.read(world.folder / f"job-{attempt}" / "record" / "gradual-rollout.json").evidence


def test_the_step_rolls_out_recognises_it_and_shows_it(world):
    first, second = world.release(1), world.release(2)
    with world.users("api_gateway") as answers:
        code, output = finish(start(world))
    assert code == 0, output
    assert set(answers) <= {"1.0.1", "1.0.2"}, answers
    told = evidence(world)
    assert (told["rollout_status"], told["previous"]) == ("completed", {"version": "v1.0.1", "deployment_id": first.id})
    assert [stage["traffic_percentage"] for stage in told["stages"]] == [5, 50, 100]
    assert told["stages"][0]["weights"]["/api-gateway"] == {f"api_gateway-{second.id}": 5, f"api_gateway-{first.id}": 95}
    for stage in told["stages"]:
        assert stage["probes"]["failed"] == 0
        assert "inconclusive" in stage["reason"]  # nothing counts requests here: said, and never taken for a verdict
    assert "runs for 30 s after the promotion" in output
    assert f"v1.0.1 keeps running at 0 % until {told['warm_until']}; going back later starts it again first" in output
    token = json.loads(world.restricted().read_text())["users"][0]["user"]["token"]
    artifacts = "".join(path.read_text() for path in (world.folder / "job-1").rglob("*") if path.is_file())
    assert token not in output + artifacts
    code, output = finish(start(world, attempt=2))
    assert (code, "already promoted" in output) == (0, True), output
    for words, shown in ((("edge", "status"), f"{second.version}"), (("doctor",), "rollout api-gateway")):
        argv = [sys.executable, "-m", "azora_ci", *words, "--config", str(world.folder / f"{world.namespace}.toml")]
        seen = subprocess.run(argv, env=environ(world), cwd=world.folder, capture_output=True, text=True, timeout=60, check=False)
        assert shown in seen.stdout, seen.stdout + seen.stderr


def test_a_cancelled_step_takes_traffic_back_in_time(world):
    step = start(world, FULL_MINUTES="5", PROGRESSIVE_MINUTES="5")
    until(lambda: step.poll() is not None or world.weights() == dict.fromkeys(world.services, 50), "50 %", 60)
    step.send_signal(signal.SIGINT)
    code, output = finish(step)
    assert code == 1, output
    assert evidence(world)["rollout_status"] == "cancelled", output
    assert world.weights() == dict.fromkeys(world.services, 0)
    assert evidence(world)["abort"]["proved"], output
    assert set(world.ask("auth_service", 10)) == {"1.0.1"}


def test_a_version_that_is_sick_after_its_start_is_taken_back(world):
    code, output = finish(start(world, IMAGE="later-sick"))
    assert code == 1, output
    told = evidence(world)
    assert (told["rollout_status"], told["abort"]["stage"]) == ("rolled_back", "canary"), output
    assert told["abort"]["proved"]
    assert set(world.ask("api_gateway", 10)) == {"1.0.1"}


def test_without_routing_the_record_has_the_share_that_pods_really_have(cluster, tmp_path):
    made = World(cluster, tmp_path, services=("api_gateway",), routed=False, lease_seconds=10)
    made.install()
    deploy(made, made.release(1))
    code, output = finish(start(made))
    assert code == 0, output
    told = re.search(r"5 % were asked for; v1\.0\.2 has (\d+) % of pods of api-gateway", output)
    assert told, output
    share = int(told[1])
    assert share in {33, 50}  # one of two pods, or of the three that there are for a moment: there is no smaller share
    canary, *_ = evidence(made)["stages"]
    new, old = made.release(2).id, made.release(1).id
    assert canary["weights"] == {"pods of api-gateway": {f"api_gateway-{new}": share, f"api_gateway-{old}": 100 - share}}
    assert canary["traffic"]["v1.0.2"]["weight"] == share
