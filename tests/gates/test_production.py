"""What production is expected to answer before a rollout, from the history of its target."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import HealthSettings, Service
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import Aws, DatabaseTransport, ProductionHosts
from azora_ci.core.variables import load
from azora_ci.gates.production import Means, as_serving, consult, expected_versions, serving_release
from azora_ci.targets.base import TargetContext
from azora_ci.targets.journal import History, replay
from tests.support import deploy_config

SERVING = "1764000000-aaaaaa"
PLAIN = HealthSettings(("ok",), "json:status", "image")


def services(folder: Path, **health: Any) -> tuple[Service, ...]:
    named = {name: deploy_config.service(name, **health) | {"route_prefix": f"/{name}"} for name in ("api", "web")}
    return config.load(deploy_config.write(folder / "deploy.toml", services=named)).web


def history(**health: HealthSettings) -> History:
    """Return the history of a release with these services, which serves."""
    entries: list[dict[str, Any]] = [
        {"event": "begin", "version": "v1.0.0", "digests": dict.fromkeys(health, "sha256:0"), "previous": None}
    ]
    for number, (name, settings) in enumerate(health.items(), 1):
        facts = {} if settings == HealthSettings() else {"health": asdict(settings)}
        entries.append({"event": "instance", "service": name, "number": number, **facts})
    entries.append({"event": "promote"})
    return replay(json.dumps({"deployment_id": SERVING, "at": "2026-11-24T11:00:00.000Z", **entry}) for entry in entries)


def test_the_running_release_is_judged_by_what_it_was_deployed_with(tmp_path):
    found = as_serving(services(tmp_path), history(api=PLAIN))
    assert [(service.id, service.health) for service in found] == [("api", PLAIN), ("web", HealthSettings())]
    found = as_serving(services(tmp_path, health={"healthy": ["up"]}), history(api=HealthSettings()))
    kept = History(dict(history(api=HealthSettings()).releases), SERVING)
    kept.releases[SERVING].digests["web"] = "sha256:1"  # it has no instance any more
    assert as_serving(services(tmp_path, health={"healthy": ["up"]}), kept)[1].health == HealthSettings()
    assert [service.health.healthy for service in found] == [("healthy",), ("up",)], "web is new: its configuration says what is expected"


def test_the_running_release_is_evidence_from_which_it_can_be_tried():
    assert serving_release(history(api=PLAIN, web=HealthSettings())) == {
        "deployment_id": SERVING,
        "version": "v1.0.0",
        "digests": {"api": "sha256:0", "web": "sha256:0"},
        "health": {"api": asdict(PLAIN)},
    }
    assert serving_release(None) is serving_release(History()) is None


def test_without_a_history_the_configuration_counts(tmp_path):
    configured = services(tmp_path, health={"healthy": ["up"]})
    for nothing in (None, History()):
        assert as_serving(configured, nothing) == list(configured)
        assert expected_versions(nothing) == frozenset()
    assert expected_versions(history(api=PLAIN)) == {"1.0.0"}


def test_no_credentials_of_a_cluster_are_used_while_they_are_withheld(tmp_path):
    used = tmp_path / "used"
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "touch", "args": [str(used)]}
    kubeconfig = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "it", "user": {"exec": plugin}}],
    }
    rollouts = {"namespace": "shop", "services": {"api": {"rollout": "api", "container": "app"}}}
    path = deploy_config.write(
        tmp_path / "deploy.toml",
        target={"kind": "kubernetes", "kubernetes": rollouts},
        registry={"repository": "127.0.0.1:9/shop"},
        services={"api": deploy_config.service("api", "http://127.0.0.1:9/health")},
    )
    clock = Clock()
    processes = Processes(JobLog(Actions(stream=io.StringIO()), clock))
    access = load(ProductionHosts, {"KUBECONFIG_DATA": json.dumps(kubeconfig)})
    context = TargetContext(config.load(path), processes, clock, tmp_path, 1.0, access=access)
    means = Means(load(Aws, {}), load(DatabaseTransport, {}), None, (None, None), "the release is not approved")
    consulted = consult(context, means)
    assert consulted.not_asked["production cluster"] == consulted.not_asked["public health addresses"] == "the release is not approved"
    assert not used.exists()
    consult(context, replace(means, withheld=""))
    assert used.exists()
