"""What the edge makes of Ingresses, Services and pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from azora_ci.rehearsal.kubernetes.routes import Backend, Seen, addresses, files, routes

STABLE, CANARY = Backend("shop", "web-stable", "80"), Backend("shop", "web-canary", "80")


def ingress(service: str, *, name: str = "web", path: str = "/", host: str | None = "shop.example", **annotations: str) -> dict[str, Any]:
    backend = {"service": {"name": service, "port": {"number": 80}}}
    rule: dict[str, Any] = {"http": {"paths": [{"path": path, "backend": backend}]}} | ({"host": host} if host else {})
    notes = {f"nginx.ingress.kubernetes.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {"metadata": {"namespace": "shop", "name": name, "annotations": notes}, "spec": {"rules": [rule]}}


def service(name: str, selector: dict[str, str] | None, target: int | str = 8080) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": target}]
    return {"metadata": {"namespace": "shop", "name": name}, "spec": {"ports": ports, "selector": selector}}


def pod(address: str, *, ready: bool = True, namespace: str = "shop", leaving: bool = False, **labels: str) -> dict[str, Any]:
    meta: dict[str, Any] = {"namespace": namespace, "labels": labels} | ({"deletionTimestamp": "2026-11-24T11:00:00Z"} if leaving else {})
    ports = [{"name": "http", "containerPort": 8080}]
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {"metadata": meta, "spec": {"containers": [{"ports": ports}]}, "status": {"podIP": address, "conditions": conditions}}


def test_a_canary_takes_its_share_from_the_ingress_beside_it():
    pair = {"1": ingress("web-stable"), "2": ingress("web-canary", name="canary", canary="true", canary_weight="5")}
    (route,) = routes(pair).values()
    assert route.shares == {STABLE: 95, CANARY: 5}


@pytest.mark.parametrize(
    ("objects", "shares"),
    [
        ({"1": ingress("web-stable")}, [{STABLE: 100}]),
        ({"2": ingress("web-canary", canary="true", canary_weight="50")}, []),
        ({"1": ingress("web-stable"), "2": ingress("web-canary", canary="true")}, [{STABLE: 100, CANARY: 0}]),
        ({"1": ingress("web-stable"), "2": ingress("web-canary", canary="true", canary_weight="250")}, [{STABLE: 0, CANARY: 100}]),
        ({"1": ingress("web-stable"), "2": ingress("web-stable", canary="true", canary_weight="50")}, [{STABLE: 100}]),
        ({"1": ingress("web-stable"), "2": ingress("web-canary", host=None, canary="true", canary_weight="50")}, [{STABLE: 100}]),
    ],
)
def test_other_ingresses(objects: dict[str, dict[str, Any]], shares: list[dict[Backend, int]]):
    assert [route.shares for route in routes(objects).values()] == shares


def test_a_backend_is_the_ready_pods_that_its_service_selects():
    pods = [
        pod("198.18.0.3", app="web", side="stable"),
        pod("198.18.0.2", app="web", side="stable"),
        pod("198.18.0.4", app="web", side="canary"),
        pod("198.18.0.5", app="web", side="stable", ready=False),
        pod("198.18.0.6", app="web", side="stable", leaving=True),
        pod("198.18.0.7", app="web", side="stable", namespace="elsewhere"),
    ]
    seen = Seen(
        services={"1": service("web-stable", {"app": "web", "side": "stable"}, "http"), "2": service("web-canary", None)},
        pods={str(number): each for number, each in enumerate(pods)},
    )
    assert addresses(STABLE, seen) == [("198.18.0.2", 8080), ("198.18.0.3", 8080)]
    assert addresses(Backend("shop", "web-stable", "http"), seen) == addresses(STABLE, seen)
    assert addresses(Backend("shop", "web-stable", "81"), seen) == []
    assert addresses(CANARY, seen) == []  # without a selector a Service selects nobody, not everybody


def test_the_longest_path_comes_first_and_each_side_helps_the_other():
    seen = Seen(
        ingresses={
            "1": ingress("web-stable"),
            "2": ingress("web-canary", canary="true", canary_weight="5"),
            "3": ingress("api", name="api", path="/api"),
        },
        services={name: service(name, {"side": name}) for name in ("web-stable", "web-canary", "api")},
        pods={name: pod(f"198.18.0.{number}", side=name) for number, name in enumerate(("web-stable", "web-canary"), 2)},
    )
    documents = files(seen, Path("/edge"), "1")
    (table,) = documents["routes.json"]["resources"]
    prefixes = [route["match"].get("prefix") or route["match"]["path_separated_prefix"] for route in table["virtual_hosts"][0]["routes"]]
    assert prefixes == ["/api", "/api", "/", "/"]
    assert {cluster["name"] for cluster in documents["clusters.json"]["resources"]} == {"shop.api.80", STABLE.cluster, CANARY.cluster}
    (canary,) = documents[f"endpoints-{CANARY.cluster}.json"]["resources"]
    sides = [[each["endpoint"]["address"]["socket_address"]["address"] for each in side["lb_endpoints"]] for side in canary["endpoints"]]
    assert sides == [["198.18.0.3"], ["198.18.0.2"]]
