"""What a rehearsal replaces in a configuration, and that it says so."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest

from azora_ci.rehearsal.applications import toml
from azora_ci.rehearsal.applications.overlay import Overlay, Values, overlay

TABLES = {"target": {"kind": "local_processes"}, "edge": {"config_dir": "/run/edge"}}
VALUES = Values("http://127.0.0.1:4711", TABLES, "s3://here/prod", "/run/x", "/node/bin:/bin")


def production() -> dict[str, Any]:
    return {
        "public_url": "https://shop.example",
        "backup": {"location": "s3://shop/prod", "lock_days": 30},
        "target": {"kind": "docker_hosts", "docker_hosts": {"edge_image": "envoy@sha256:0"}},
        "services": {"web": {"title": "Web", "public_health_url": "https://api.shop.example/health?full=1"}},
    }


def overlaid(document: dict[str, Any], commands: dict[str, list[str]] | None = None) -> Overlay:
    return overlay(document, VALUES, "http://127.0.0.1:1", commands or {})


def test_every_address_leads_to_this_machine_and_keeps_its_path() -> None:
    document = {**production(), "smoke": {"endpoints": [{"name": "cart", "url": "https://shop.example/cart?empty=1", "status": 200}]}}
    result = overlaid(document)
    assert result.document["services"]["web"]["public_health_url"] == "http://127.0.0.1:4711/health?full=1"
    assert result.document["smoke"]["endpoints"][0]["url"] == "http://127.0.0.1:4711/cart?empty=1"
    assert document["smoke"]["endpoints"][0]["url"] == "https://shop.example/cart?empty=1", "the original is not changed"


def test_what_is_replaced_is_said_and_what_is_equal_is_not() -> None:
    result = overlaid(production())
    assert "target.kind: docker_hosts -> local_processes" in result.replaced
    assert "docker_hosts" not in result.document["target"]
    assert "backup.location: s3://shop/prod -> s3://here/prod" in result.replaced
    assert "edge.config_dir: (nothing) -> /run/edge" in result.replaced
    assert result.document["backup"]["lock_days"] == 30 and not [line for line in result.replaced if "lock_days" in line]
    assert not [line for line in overlaid(result.document).replaced if not line.startswith("checks")]


@pytest.mark.parametrize(
    ("table", "key", "value", "left"),
    [
        ("edge", "tls_certificate", "/etc/tls/full.pem", None),
        ("evidence", "signing", "kms:alias/x", "none"),
        ("validation", "branches", ["release/1.x"], None),
        ("approval", "distinct_person", True, False),
        ("database", "via_ssh", True, False),
    ],
)
def test_what_only_production_has_is_removed(table: str, key: str, value: object, left: object) -> None:
    result = overlaid({**production(), table: {key: value}})
    assert result.document[table].get(key) == left
    assert any(line.startswith(f"{table}.{key}: ") for line in result.replaced)


def test_a_service_gets_no_path_of_this_machine_and_no_network_of_production() -> None:
    document = production()
    document["services"]["web"] |= {
        "volumes": ["/srv/files:/files:ro", "uploads:/up"],
        "allow_host_paths": ["/srv/files"],
        "networks": ["redis"],
    }
    web = overlaid(document, {"web": ["node", "x.js"]}).document["services"]["web"]
    assert web["volumes"] == ["/run/x/srv/files:/files:ro", "uploads:/up"] and web["allow_host_paths"] == ["/run/x/srv/files"]
    assert "networks" not in web and web["command"] == ["node", "x.js"]
    assert web["env"] == {"PATH": "/node/bin:/bin"}


def test_processes_have_no_registry_and_images_have_the_rehearsals() -> None:
    document = {**production(), "registry": {"repository": "docker.io/shop"}}
    assert "registry" not in overlaid(document).document
    values = replace(VALUES, tables={"registry": {"repository": "127.0.0.1:5000/azora", "insecure": True}})
    assert overlay(document, values, "x", {}).document["registry"] == {"repository": "127.0.0.1:5000/azora", "insecure": True}


def test_toml_means_what_it_was_made_of() -> None:
    document = {
        "a": 1,
        "text": 'quotes " and \\ and\nlines',
        "t": {"x": True, "nested": {"list": [{"a b": 1.5}, {"c": []}]}, "empty": {}},
        "odd key": {"ü": "é"},
    }
    assert tomllib.loads(toml.render(document)) == document
    assert tomllib.loads(toml.render(tomllib.loads("day = 2027-01-31"))) == tomllib.loads("day = 2027-01-31")
