"""Pods of a release on a real cluster: how they are probed, what keeps them from being ready, nodes that go, and what stays of the old."""

from __future__ import annotations

import re
import time
from datetime import timedelta

import pytest

from azora_ci.core.clock import Clock, parse_rfc3339
from azora_ci.core.errors import NotTrueError
from azora_ci.health.answers import NEW
from azora_ci.health.probes import Prober
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from azora_ci.targets import workers
from azora_ci.targets.kubernetes import doctor
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.manifests import rights
from azora_ci.targets.release import Release
from tests.support.kubernetes_target import World, deploy, owner
from tests.support.waiting import until

pytestmark = pytest.mark.kubernetes
NOWHERE = "sha256:" + 64 * "0"


def made(cluster: Cluster, folder, **more) -> World:
    world = World(cluster, folder, services=("api_gateway",), **more)
    world.install()
    deploy(world, world.release(1))
    return world


def test_pods_are_probed_at_their_addresses_with_fewer_rights(cluster, tmp_path):
    world = made(cluster, tmp_path)
    names = Names(world.config().target.kubernetes)
    proxy = {str(right) for right in rights(names, proxy=True)} - {str(right) for right in rights(names, proxy=False)}
    assert proxy == {"get pods/proxy"}
    account = world.restricted(without=tuple(proxy))
    lacking = {finding.name: finding for finding in doctor.findings(world.context(account))}
    assert lacking["rights"].detail == "missing: get pods/proxy"
    assert all(finding.passed for finding in doctor.findings(world.context(account, probes="addresses")))
    second = world.release(2)
    target = world.target(account, probes="addresses")
    with target.locked(owner(second.id)):
        instances = target.deploy(second, 50)
        ips = {pod["status"]["podIP"] for pods in target._pods.of([target._fleet.states()["api_gateway"].current]).values() for pod in pods}
        assert {target.endpoint(instance, NEW).url for instance in instances} == {f"http://{ip}:8080/health" for ip in ips}
        findings = workers.probe(target, Prober(Clock()), instances, NEW, 5)
        assert len(findings) == 1 and all(finding.passed for finding in findings), findings
        returned = target.abort(second, "a test")
    assert returned.proved, returned


@pytest.mark.parametrize(
    ("image", "spec", "words"),
    [
        (NOWHERE, {}, r"not within 8 s\. pod .*: (ErrImagePull|ImagePullBackOff): .*0000"),
        ("sick", {"progressDeadlineSeconds": 4}, r"A Rollout is degraded.*ProgressDeadlineExceeded"),
        ("sick", {"progressDeadlineSeconds": 4, "progressDeadlineAbort": True}, r"(taken back in the cluster|is degraded).*"),
    ],
)
def test_a_release_whose_pods_do_not_start_goes_back_and_says_why(cluster, tmp_path, image, spec, words):
    world = made(cluster, tmp_path, timeout=60 if spec else 8, spec=spec)
    second = world.release(2, image) if image != NOWHERE else Release(world.release(2).id, "v1.0.2", {"api_gateway": NOWHERE})
    target = world.target()
    with target.locked(owner(second.id)):
        with pytest.raises(NotTrueError) as raised:
            target.deploy(second, 5)
        assert re.search(words, f"{raised.value.title}: {raised.value.what}"), raised.value
        assert target.abort(second, raised.value.what).proved
    assert set(world.ask("api_gateway", 10)) == {"1.0.1"}


def test_nothing_begins_beside_a_rollout_that_is_degraded_already(cluster, tmp_path):
    world = made(cluster, tmp_path, spec={"progressDeadlineSeconds": 2})
    image = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": f"registry.example/api_gateway@{NOWHERE}"}]
    world.cluster.api.patch(world.path("api_gateway"), image, "application/json-patch+json")
    until(lambda: world.phase("api_gateway") == "Degraded", "it is degraded", 90)
    with pytest.raises(NotTrueError, match=r"api-gateway: Degraded .*ProgressDeadlineExceeded.*it is not at rest"):
        world.target().plan(world.release(2))
    assert world.version("api_gateway") == "1.0.1"


def test_a_node_that_goes_in_the_middle_takes_no_release_with_it(cluster, tmp_path):
    world = made(cluster, tmp_path, timeout=120)
    second, target = world.release(2), world.target()
    with target.locked(owner(second.id)):
        target.deploy(second, 50)
        target.set_weight(second, 50)
        pods = target._pods.of([target._fleet.states()["api_gateway"].current])
        (node, *_) = {pod["spec"]["nodeName"] for found in pods.values() for pod in found}
        world.cluster.kill(node)
        try:
            deadline = time.monotonic() + 120
            while True:  # a run goes on looking all the while, and the lost pods are found sick, or replaced
                target.renew()
                target.observe()
                found = workers.probe(target, Prober(Clock()), target.instances(second.id), NEW, 2)
                nodes = {pod["spec"]["nodeName"] for found in target._pods.of(pods).values() for pod in found}
                if node not in nodes and found and all(finding.passed for finding in found):
                    break
                assert time.monotonic() < deadline, found
                time.sleep(1)
            target.deploy(second, 100)
            target.set_weight(second, 100)
            target.promote(second)
            assert set(world.ask("api_gateway", 10)) == {"1.0.2"}
        finally:
            world.cluster.restart(node)


def test_what_the_cluster_keeps_is_in_the_journal_and_goes_by_its_limits(cluster, tmp_path):
    world = made(cluster, tmp_path, spec={"revisionHistoryLimit": 1}, canary={"scaleDownDelaySeconds": 40})
    first, second, third = (world.release(number) for number in (1, 2, 3))
    target = deploy(world, second)
    before = target.current().before(second.id)
    left = parse_rfc3339(before.warm_until) - Clock().now()
    assert (before.id, before.gone) == (first.id, False)
    assert timedelta(seconds=10) < left < timedelta(seconds=42)
    assert any("write revisionHistoryLimit: 2" in line for line in target.plan(third))
    with target.locked(owner(third.id)):
        target.deploy(third, 5)
        target.abort(third, "a test")
    hash_ = target._releases.hashes(first.id)["api_gateway"]
    until(lambda: not target._fleet.replica_sets([hash_]), "the oldest ReplicaSet is removed", 90)
    with target.locked(owner(second.id, fence="a test")):
        with pytest.raises(NotTrueError, match="The version before is not kept any more"):
            target.abort(second, "too late")
        assert target._releases.kept(first.id, target._fleet.states(), Clock().now())["gone"]
    assert set(world.ask("api_gateway", 10)) == {"1.0.2"}  # nothing was changed
