"""deploy-production.toml: every mistake is named with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.core import config, hosts
from azora_ci.core.errors import BadInputError
from tests.support import deploy_config

MINIMAL = """
schema_version = 1
application = "azora"
public_url = "https://azora.world/"
on_call = "#on-call"
[checks]
required = ["test"]
audit = [["true"]]
build = [["true"]]
[build]
commands = []
[registry]
repository = "docker.io/azora"
[database]
[backup]
location = "s3://azora-backups/prod"
[target]
kind = "docker_hosts"
[services.api_gateway]
title = "API Gateway"
route_prefix = "/api"
health_path = "/api/health"
public_health_url = "https://azora.world/api/health"
depends_on = ["auth_service"]
[services.auth_service]
title = "Auth Service"
route_prefix = "/auth"
health_path = "/auth/health"
public_health_url = "https://azora.world/auth/health"
"""


def load(tmp_path: Path, text: str) -> config.DeployConfig:
    path = tmp_path / "deploy-production.toml"
    path.write_text(text)
    return config.load(path)


def test_defaults_and_order(tmp_path):
    loaded = load(tmp_path, MINIMAL)
    assert [service.id for service in loaded.services] == ["auth_service", "api_gateway"]
    assert loaded.public_url == "https://azora.world"
    assert loaded.backup.key("backup-1.sql.gz") == "prod/backup-1.sql.gz"
    assert loaded.backup.bucket == "azora-backups"
    assert loaded.database.migrate == ("npx", "prisma", "migrate", "deploy")
    assert loaded.service("auth_service").instances == 1
    with pytest.raises(KeyError):
        loaded.service("nothing")


def test_an_order_is_a_chain_of_waiting_beside_what_depends_on_says(tmp_path):
    text = MINIMAL.replace('depends_on = ["auth_service"]\n', "")
    assert [service.id for service in load(tmp_path, text).services] == ["api_gateway", "auth_service"]
    ordered = load(tmp_path, text.replace("[target]", '[rollout]\norder = ["auth_service", "api_gateway"]\n[target]'))
    assert [(service.id, service.depends_on) for service in ordered.services] == [("auth_service", ()), ("api_gateway", ("auth_service",))]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('kind = "docker_hosts"', 'kind = "ftp"', "target.kind"),
        ("[build]", "[bild]", "bild"),
        ('depends_on = ["auth_service"]', 'depends_on = ["auth"]', "services.api_gateway.depends_on"),
        ('route_prefix = "/auth"', 'route_prefix = "/auth"\ndepends_on = ["api_gateway"]', "cycle"),
        ("[services.api_gateway]", '[rollout]\norder = ["api"]\n[services.api_gateway]', "rollout.order: no service 'api'"),
        ("[services.api_gateway]", '[rollout]\norder = ["api_gateway", "auth_service"]\n[services.api_gateway]', "rollout.order"),
        ("s3://azora-backups/prod", "https://azora-backups/prod", "backup.location"),
        ('[registry]\nrepository = "docker.io/azora"', "", "registry"),
        ('kind = "docker_hosts"', 'kind = "local_processes"', "target.local_processes"),
        ('audit = [["true"]]', "audit = []", "checks.audit"),
        ("schema_version = 1", "schema_version = 2", "schema_version"),
        ("https://azora.world/auth/health", "https://user:password@azora.world/auth/health", "public_health_url"),
        ("[services.auth_service]", "[services.Auth]", "Auth"),
        # One newline at the end: Python's $ lets it pass, and these become object keys, image tags and lines of instructions.
        ("s3://azora-backups/prod", "s3://azora-backups/prod\\n", "backup.location"),
        ('"docker.io/azora"', '"docker.io/azora\\n"', "registry.repository"),
        ("[services.auth_service]", '[services."auth_service\\n"]', "auth_service"),
        ('title = "Auth Service"', 'title = "Auth\\nrm -rf /"', "services.auth_service.title"),
    ],
)
def test_every_mistake_names_its_key(tmp_path, old, new, named):
    assert old in MINIMAL
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, MINIMAL.replace(old, new))
    assert named in caught.value.what
    assert "deploy-production.toml" in caught.value.where


def test_no_file_and_no_toml(tmp_path):
    with pytest.raises(BadInputError, match="does not exist"):
        config.load(tmp_path / "missing.toml")
    with pytest.raises(BadInputError, match="line 1"):
        load(tmp_path, "= 1")


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:80/x", True),
        ("http://127.9.9.9", True),
        ("http://localhost:1", True),
        ("http://[::1]:5", True),
        ("http://127.0.0.1.example.org", False),
        ("http://10.0.0.1", False),
        ("https://azora.world", False),
    ],
)
def test_loopback(url, loopback):
    assert hosts.is_loopback(url) is loopback


@pytest.mark.parametrize(
    ("volume", "allowed", "problem"),
    [
        ("/:/host", [], "is a path of the host"),
        ("/var/run/docker.sock:/var/run/docker.sock", [], "is a path of the host"),
        ("/srv/../:/x", ["/srv/../"], "is a path of the host"),
        ("/srv/uploads/more:/x", ["/srv/uploads"], "is a path of the host"),
        ("./x:/x", ["/x"], "is a path of the host"),
        ("azora-edge:/x", [], "holds the edge's routes"),
        ("uploads:/data:ro", [], None),
        ("/srv/uploads:/data", ["/srv/uploads"], None),
    ],
)
def test_a_part_of_the_host_is_no_volume_unless_it_is_allowed_by_name(tmp_path, volume, allowed, problem):
    service = deploy_config.service("API", volumes=[volume], allow_host_paths=allowed)
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api": service})
    if problem is None:
        assert config.load(path).services[0].volumes == (volume,)
        return
    with pytest.raises(BadInputError, match=problem) as refused:
        config.load(path)
    assert "services.api.volumes" in refused.value.what


@pytest.mark.parametrize("network", ["host", "none", "bridge", "az-edge", "azora", "azora-to-auth_service", "container:azora-guard", ""])
def test_a_network_that_is_not_the_applications_is_refused(tmp_path, network):
    service = deploy_config.service("API", networks=[network])
    with pytest.raises(BadInputError, match="networks"):
        config.load(deploy_config.write(tmp_path / "deploy.toml", services={"api": service}))
