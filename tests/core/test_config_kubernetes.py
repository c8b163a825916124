"""``[target.kubernetes]``: what is accepted, and which contradictions are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.core.errors import BadInputError
from tests.support import deploy_config

ENTRY = {"rollout": "api-gateway", "container": "app"}
TABLE: dict[str, Any] = {"namespace": "production", "services": {"api_gateway": ENTRY}}


def load(folder: Path, table: dict[str, Any] | None = None, **services: Any) -> config.DeployConfig:
    target = {"kind": "kubernetes", **({"kubernetes": table} if table else {})}
    keys = {"services": {"api_gateway": deploy_config.service("API"), **services}, "registry": {"repository": "registry.example/shop"}}
    return config.load(deploy_config.write(folder / "deploy.toml", target=target, **keys))


def test_a_namespace_and_its_rollouts_suffice(tmp_path):
    settings = load(tmp_path, TABLE).target.kubernetes
    assert settings.rollouts == {"api_gateway": config.RolloutNames("api-gateway", "app")}
    assert (settings.probes, settings.lease_seconds, settings.in_cluster, settings.counters) == ("proxy", 60, False, None)


def test_counters_name_the_version_that_they_count(tmp_path):
    queries = {"requests": 'sum(r{h="$hash"})', "errors": 'sum(e{h="$hash"})'}
    counters = {"prometheus": "http://prometheus.example", **queries}
    assert load(tmp_path, TABLE | {"counters": counters}).target.kubernetes.counters == config.CounterSettings(**counters)
    with pytest.raises(BadInputError, match=r"target\.kubernetes\.counters\.errors"):
        load(tmp_path, TABLE | {"counters": counters | {"errors": "sum(e)"}})


@pytest.mark.parametrize(
    ("table", "services", "words"),
    [
        (None, {}, r"target\.kubernetes: is required"),
        (TABLE, {"auth": deploy_config.service("A", route_prefix="/a")}, r"target\.kubernetes\.services\.auth: is missing"),
        (
            TABLE | {"services": {"api_gateway": ENTRY, "other": {**ENTRY, "rollout": "o"}}},
            {},
            r"services\.other: is not among the services",
        ),
        (TABLE | {"services": {"api_gateway": ENTRY, "other": ENTRY}}, {}, "api-gateway is that of api_gateway, too"),
        (TABLE | {"services": {"api_gateway": ENTRY | {"stable_service": "s"}}}, {}, "between both, or not at all"),
        (TABLE | {"in_cluster": True, "context": "c"}, {}, "has no contexts"),
        (TABLE | {"api_server": "http://plain"}, {}, r"target\.kubernetes\.api_server"),
        (TABLE | {"lease_seconds": 2}, {}, r"target\.kubernetes\.lease_seconds"),
        (TABLE, {"once": {"title": "O", "kind": "job"}}, r"services\.once\.kind: a job does not run on this target"),
        (TABLE, {"one": {"title": "O", "kind": "worker", "singleton": True}}, r"services\.one\.singleton"),
    ],
)
def test_contradictions_are_named(tmp_path, table, services, words):
    with pytest.raises(BadInputError, match=words):
        load(tmp_path, table, **services)
