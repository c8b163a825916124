"""These tests run the rollout step as a process on a real Envoy and real services under load, and check end states from outside."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core.process import send_signal
from tests.support import load
from tests.support.edge_world import NEW, OLD, Load, World, get
from tests.support.waiting import until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    try:
        world.deploy_old()
        world.built()
        yield world
    finally:
        world.close()


def back_on_old(world: World) -> None:
    """Check that users get the old version only and that no instance of the new version runs."""
    assert world.versions_now() == {"1.0.0"}
    assert set(world.running()) == {"v1.0.0"}


def test_up_to_100_percent_without_a_failed_request(world):
    with Load(world.port) as load:
        code, output = world.finish(world.start("gradual_rollout"))
        assert code == 0, output
        assert world.versions_now() == {"1.1.0"}
    assert load.failed == []
    assert load.versions["1.0.0"] > 10
    assert load.versions["1.1.0"] > 10
    assert world.running() == {"v1.0.0": 4, "v1.1.0": 4}  # the old version is kept as the rollback target
    evidence = world.fragment().evidence
    assert evidence["rollout_status"] == "completed"
    assert evidence["previous"] == {"version": "v1.0.0", "deployment_id": OLD}
    assert evidence["rollback_available"] is True
    assert evidence["override_reason"] == "a test"
    shares = [(stage["stage"], stage["traffic_percentage"], len(stage["instances"]), stage["status"]) for stage in evidence["stages"]]
    assert shares == [("canary", 5, 2, "healthy"), ("progressive", 50, 2, "healthy"), ("full", 100, 4, "healthy")]
    assert evidence["stages"][0]["weights"]["/api"] == {f"api_gateway-{OLD}": 95, f"api_gateway-{NEW}": 5}
    for stage in evidence["stages"]:
        traffic = stage["traffic"]["v1.1.0"]
        assert traffic["requests"] + traffic["ours"] >= 20  # 10 for each of two services; synthetic ones fill the gap that users leave
        assert stage["probes"]["failed"] == 0
        assert [decision["decision"] for decision in stage["decisions"]][-1] == "advance"
        assert len(stage["decisions"]) == stage["ticks"]
    assert "rollout-status<<" in (world.folder / "output-1.txt").read_text()
    assert "| v1.1.0 |" in (world.folder / "summary-1.md").read_text()
    artifacts = output + "".join(path.read_text() for path in (world.folder / "job-1").rglob("*") if path.is_file())
    assert "not-to-be-seen" not in artifacts
    assert json.loads(get(world.port, "/api/work")[2])["secret_length"] == len("not-to-be-seen")
    assert json.loads(get(world.port, "/auth/work")[2])["secret_length"] == 0  # auth_service names no secret
    rerun_recognises_it(world)


def rerun_recognises_it(world: World) -> None:
    before = (world.folder / "edge" / "current" / "edge.json").read_text()
    code, output = world.finish(world.start("gradual_rollout", attempt=2))
    assert code == 0, output
    assert "already promoted" in output
    evidence = world.fragment(attempt=2).evidence
    assert evidence["rollout_status"] == "completed"
    assert evidence["stages"] == world.fragment().evidence["stages"]
    assert evidence["previous"] == {"version": "v1.0.0", "deployment_id": OLD}
    assert (world.folder / "edge" / "current" / "edge.json").read_text() == before
    assert world.running() == {"v1.0.0": 4, "v1.1.0": 4}


@pytest.mark.parametrize(("stage", "percent"), [("canary", 5), ("progressive", 50), ("full", 100)])
def test_errors_of_the_new_version_take_all_traffic_back(world, stage, percent):
    long = {f"{stage.upper()}_MINUTES": "1"}
    with Load(world.port) as load:
        process = world.start("gradual_rollout", **long)
        world.wait_for_weight(percent, process)
        world.flag("1.1.0.api_gateway.error")
        world.flag("1.1.0.api_gateway.sick")
        code, output = world.finish(process)
        assert code == 1, output
        back_on_old(world)
    evidence = world.fragment().evidence
    assert evidence["rollout_status"] == "rolled_back"
    assert evidence["abort"]["stage"] == stage
    assert evidence["abort"]["proved"] is True
    assert evidence["abort"]["seconds_to_safe"] < 5
    assert "api_gateway" in evidence["abort"]["reason"]
    assert evidence["stages"][-1]["status"] == "aborted"
    last = evidence["stages"][-1]["decisions"][-1]
    assert (last["decision"], last["reason"] in evidence["abort"]["reason"]) == ("abort", True)
    assert last["probes"]["failed"] > 0 or last["failed"]["v1.1.0"] > 0
    assert evidence["rollback_available"] is False
    cause = evidence["abort"]["cause"]
    assert cause["service"] == "api_gateway"
    assert cause["kind"] in {"health", "errors"}
    assert cause["paths"][0]["path"] in {"GET /api/work", "GET /api/health"}
    assert {status for status, _ in load.failed} <= {500}  # the new version answered 500; the way back lost no request
    folders = [path.name for path in (world.folder / "job-1" / "instances").iterdir()]
    assert any(name.startswith(f"{NEW}-api_gateway-") for name in folders)


def test_work_that_fails_while_health_is_green_is_seen_in_the_edge_counters(world):
    with Load(world.port, pause=0.005):
        process = world.start("gradual_rollout", PROGRESSIVE_MINUTES="1")
        world.wait_for_weight(50, process)
        world.flag("1.1.0.error")
        code, output = world.finish(process)
    assert code == 1, output
    reason = world.fragment().evidence["abort"]["reason"]
    assert "new version failed" in reason
    assert "99% confidence" in reason
    back_on_old(world)


def test_work_that_hangs_until_users_leave_while_health_is_green_is_seen(world):
    world.flag("1.1.0.stuck")
    with Load(world.port, pause=0.005, threads=4, patience=0.5):
        code, output = world.finish(world.start("gradual_rollout", CANARY_MINUTES="0.3", PROGRESSIVE_MINUTES="0.3"))
    assert code == 1, output
    evidence = world.fragment().evidence
    assert "new version failed" in evidence["abort"]["reason"]
    assert evidence["stages"][-1]["traffic"]["v1.1.0"]["given_up"] > 0
    assert evidence["abort"]["cause"]["kind"] == "errors"
    assert "no answer, given up after 0.5 s" in evidence["abort"]["cause"]["examples"][0]
    back_on_old(world)


def test_a_version_that_is_much_slower_is_taken_back(tmp_path):
    world = World(tmp_path, instances=1, rollout={"latency_factor": 3.0, "minimum_requests": 10})
    try:
        world.deploy_old()
        world.built()
        world.flag("1.1.0.slow")
        with Load(world.port, threads=8):
            code, output = world.finish(world.start("gradual_rollout", PROGRESSIVE_MINUTES="2"))
        assert code == 1, output
        abort = world.fragment().evidence["abort"]
        assert "new version's p95 is" in abort["reason"]
        assert abort["cause"]["kind"] == "latency"
        assert abort["cause"]["versions"]["v1.1.0"]["p95_ms"] > 3 * abort["cause"]["versions"]["v1.0.0"]["p95_ms"]
        assert "slow requests" in abort["cause"]["test"]
        back_on_old(world)
    finally:
        world.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_takes_traffic_back_within_five_seconds(world, number):
    process = world.start("gradual_rollout", PROGRESSIVE_MINUTES="2")
    world.wait_for_weight(50, process)
    process.send_signal(number)
    until(lambda: world.edge.state().percent == 0 and world.edge.state().canary is None, "old weights", 5)
    process.send_signal(signal.SIGTERM)  # the runner's second signal must not interrupt the way back
    code, output = world.finish(process)
    assert code == 1, output
    back_on_old(world)
    fragment = world.fragment()
    assert fragment.status == "cancelled"
    assert fragment.evidence["rollout_status"] == "cancelled"
    assert fragment.evidence["abort"]["proved"] is True
    assert fragment.evidence["stages"][-1]["status"] == "cancelled"


def test_an_instance_that_dies_costs_no_request_and_aborts(world):
    with Load(world.port) as load:
        process = world.start("gradual_rollout", PROGRESSIVE_MINUTES="1")
        world.wait_for_weight(50, process)
        victim = next(iter(world.target().current().releases[NEW].instances.values()))
        shutil.rmtree(world.folder / "edge/log")
        (world.folder / "edge/log").touch()
        send_signal(victim["pid"], signal.SIGKILL)
        code, output = world.finish(process)
        back_on_old(world)
    assert code == 1, output
    assert load.failed == []
    assert "process ended" in output
    abort = world.fragment().evidence["abort"]
    assert abort["proved"] is True
    assert (abort["cause"]["kind"], abort["cause"]["endpoint"] in abort["reason"]) == ("health", True)
    assert "the edge's log could not be read" in abort["cause"]["log_problem"]
    assert "the edge's log could not be read" in output


def test_a_path_that_fails_on_one_instance_is_named_with_it_and_hostile_paths_stay_text(world):
    paths = (
        "/api/work", "/api/orders?token=geheim", "/api/%1b%5b31m%0a::error::/orders", f"/api/::error::/{'z' * 20_000}/orders",
    )  # fmt: skip
    with load.Load([("127.0.0.1", world.port)], paths, pause=0.005, threads=2):
        process = world.start("gradual_rollout", FULL_MINUTES="1")
        world.wait_for_weight(100, process)
        instances = world.target().current().releases[NEW].instances
        world.flag(f"1.1.0.orders.{instances['api_gateway', 2]['port']}")
        code, output = world.finish(process)
        assert code == 1, output
        back_on_old(world)
    fragment = world.fragment()
    cause = fragment.evidence["abort"]["cause"]
    assert (cause["kind"], cause["service"], cause["endpoint"]) == ("errors", "api_gateway", None)
    assert cause["instance"].startswith("api_gateway#2 v1.1.0 (")
    assert "GET /api/orders" in {row["path"] for row in cause["paths"]}
    assert all(row["path"].endswith("/orders") or len(row["path"]) == len("GET ") + 200 for row in cause["paths"])
    assert cause["versions"]["v1.1.0"]["failed"] > 0
    assert cause["versions"]["v1.0.0"]["failed"] == 0
    assert "to 1 was needed" in cause["test"]
    assert fragment.evidence["stages"][-1]["started_at"] <= cause["since"] <= fragment.ended_at
    assert "geheim" not in json.dumps(fragment.evidence)
    assert fragment.error is not None
    for text in (fragment.error["what"], output, (world.folder / "summary-1.md").read_text()):
        assert f"nearly all of it on one instance: {cause['instance']}" in text.replace("%25", "%")
        assert "\x1b" not in text
        assert not any(line.lstrip().startswith("::error::/") for line in text.splitlines())
        assert max(map(len, text.splitlines())) < 10_000


def test_a_run_that_was_killed_is_taken_back_and_started_again(world):
    process = world.start("gradual_rollout", PROGRESSIVE_MINUTES="2")
    world.wait_for_weight(50, process)
    process.kill()
    process.communicate()
    with Load(world.port) as load:
        code, output = world.finish(world.start("gradual_rollout", attempt=2))
    assert code == 0, output
    assert load.failed == []
    assert "took over the lock" in output
    assert any("was left at 50 % by a run that died" in note for note in world.fragment(attempt=2).evidence["notes"])
    assert world.versions_now() == {"1.1.0"}
    assert world.running() == {"v1.0.0": 4, "v1.1.0": 4}


def test_a_rerun_after_an_abort_starts_again_at_0_percent(world):
    world.flag("1.1.0.sick")
    code, _ = world.finish(world.start("gradual_rollout", HEALTH_CHECK_TIMEOUT="2"))
    assert code == 1
    assert world.fragment().evidence["abort"]["stage"] == "canary"
    assert world.fragment().evidence["stages"] == []  # the new version never got weight
    back_on_old(world)
    world.unflag("1.1.0.sick")
    code, output = world.finish(world.start("gradual_rollout", attempt=2))
    assert code == 0, output
    assert "starting again at 0 %" in output
    assert world.versions_now() == {"1.1.0"}


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [("html", "not JSON"), ("liar", "answers version 9.9.9, expected 1.1.0"), ("hang", "no answer within"), ("down", "told not to start")],
)
def test_what_is_not_healthy_as_the_new_version_gets_no_traffic(world, behaviour, message):
    world.flag(f"1.1.0.{behaviour}")
    code, output = world.finish(world.start("gradual_rollout", HEALTH_CHECK_TIMEOUT="2"))
    assert code == 1, output
    assert message in world.fragment().error["what"]
    assert world.fragment().evidence["stages"] == []
    back_on_old(world)


def test_the_old_version_failing_alone_is_not_held_against_the_new_one(world):
    process = world.start("gradual_rollout", PROGRESSIVE_MINUTES="0.03")
    world.wait_for_weight(50, process)
    world.flag("1.0.0.auth_service.sick")
    code, output = world.finish(process)
    assert code == 0, output
    assert "the old version fails alone, not the new one's fault" in output
    assert world.versions_now() == {"1.1.0"}


def test_too_few_requests_are_held_and_then_mean_what_is_configured(tmp_path):
    world = World(tmp_path, instances=1, rollout={"minimum_requests": 1_000_000})
    try:
        world.deploy_old()
        world.built()
        code, output = world.finish(world.start("gradual_rollout", CANARY_MINUTES="0.01", HEALTH_CHECK_INTERVAL="1"))
        assert code == 1, output
        assert "HOLD" in output
        reason = world.fragment().evidence["abort"]["reason"]
        assert "inconclusive, too few requests" in reason
        assert reason.endswith("configured to abort")
        back_on_old(world)
    finally:
        world.close()


def test_a_first_deployment_has_nothing_to_go_back_to(tmp_path):
    world = World(tmp_path, instances=1)
    try:
        world.built()
        code, output = world.finish(world.start("gradual_rollout"))
        assert code == 0, output
        evidence = world.fragment().evidence
        assert evidence["previous"] is None
        assert evidence["rollback_available"] is False
        assert [stage["stage"] for stage in evidence["stages"]] == ["full"]
        assert world.versions_now() == {"1.1.0"}
    finally:
        world.close()


def test_a_second_deployment_is_refused_while_one_runs(world):
    process = world.start("gradual_rollout", CANARY_MINUTES="2")
    world.wait_for_weight(5, process)
    before = world.edge.state()
    code, output = world.finish(world.start("gradual_rollout", attempt=2))
    assert code == 1
    assert "Another deployment is running" in output
    assert world.edge.state() == before
    process.terminate()
    world.finish(process)
    back_on_old(world)


def test_an_older_deployment_does_not_replace_a_newer_one(world):
    world.built("0.9.0", "1763999999-cccccc")
    code, output = world.finish(world.start("gradual_rollout", DEPLOYMENT_ID="1763999999-cccccc", VERSION="v0.9.0"))
    assert code == 1
    assert "A newer deployment is in production" in output
    back_on_old(world)


def test_a_dry_run_prints_the_plan_and_changes_nothing(world):
    journal = (world.folder / "state" / "journal.jsonl").read_bytes()
    code, output = world.finish(world.start("gradual_rollout", ROLLOUT_DRY_RUN="true"))
    assert code == 0, output
    assert "canary: 5 % of traffic" in output
    assert world.fragment().evidence["rollout_status"] == "planned"
    assert (world.folder / "state" / "journal.jsonl").read_bytes() == journal
    back_on_old(world)


def test_short_stages_in_production_need_a_reason(world):
    code, output = world.finish(world.start("gradual_rollout", SHORT_STAGES_REASON=""))
    assert code == 2
    assert "SHORT_STAGES_REASON" in output
    back_on_old(world)


def test_bytes_that_are_not_those_of_the_digest_are_not_started(world):
    digest = world.release("1.1.0", NEW).digests["auth_service"].removeprefix("sha256:")
    with (world.archives / f"sha256-{digest}.tar.gz").open("ab") as archive:
        archive.write(b"tampered")
    code, output = world.finish(world.start("gradual_rollout"))
    assert code == 1, output
    assert "Archive is not what was built" in output
    back_on_old(world)


def test_an_envoy_that_is_killed_comes_back_with_the_same_weights(world):
    process = world.start("gradual_rollout", PROGRESSIVE_MINUTES="5", HEALTH_CHECK_RETRIES="500")
    world.wait_for_weight(50, process)
    world.kill_envoy()
    world.start_envoy()
    versions = {json.loads(get(world.port, "/api/work")[2])["version"] for _ in range(40)}
    assert versions == {"1.0.0", "1.1.0"}
    process.terminate()
    assert world.finish(process)[0] == 1
    back_on_old(world)


def test_a_secret_that_a_service_names_must_be_there(world):
    code, output = world.finish(world.start("gradual_rollout", SERVICE_SECRET=""))
    assert code == 2
    assert "SERVICE_SECRET" in output
    back_on_old(world)
