"""The kinds of target: what is known of each before a target is opened, without the libraries that a target needs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from azora_ci.core import config
from azora_ci.core.errors import BadInputError
from azora_ci.targets.base import ARCHIVES, IMAGES
from azora_ci.targets.registry import TARGETS, kind_of
from tests.support import deploy_config

HEAVY = ["azora_ci.targets.node", "azora_ci.clients", "docker", "asyncssh", "http.client", "urllib3"]


def loaded(folder, name: str) -> config.DeployConfig:
    local = config.load(deploy_config.write(folder / "deploy.toml"))
    return replace(local, target=replace(local.target, kind=name))


def test_a_kind_is_known_by_its_name(tmp_path):
    kinds = {name: kind_of(loaded(tmp_path, name)) for name in TARGETS}
    facts = {name: (kind.artifact, kind.needs_host_keys, kind.needs_login) for name, kind in kinds.items()}
    assert facts == {
        "local_processes": (ARCHIVES, False, False),
        "docker_hosts": (IMAGES, True, True),
        "kubernetes": (IMAGES, False, True),
    }


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="'nomad' is not among local_processes, docker_hosts, kubernetes"):
        kind_of(loaded(tmp_path, "nomad"))


def test_hosts_without_a_configured_edge_are_refused_before_they_are_opened(tmp_path):
    with pytest.raises(BadInputError, match=r"target\.docker_hosts is missing"):
        TARGETS["docker_hosts"].check(loaded(tmp_path, "docker_hosts"))
    with pytest.raises(BadInputError, match=r"target\.kubernetes is missing"):
        TARGETS["kubernetes"].check(loaded(tmp_path, "kubernetes"))
    TARGETS["local_processes"].check(loaded(tmp_path, "local_processes"))


def test_no_target_is_imported_before_it_is_opened():
    code = (
        "import json, sys; from azora_ci.targets.registry import TARGETS;"
        "print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))"
    )
    completed = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(completed.stdout) == []
