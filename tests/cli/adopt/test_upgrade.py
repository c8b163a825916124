"""An adopted repository is moved to a newer version, and azora-ci is taken out of one again: nothing that a person wrote is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from azora_ci.cli.adopt import plan, upgrade
from azora_ci.core import schemas
from azora_ci.core.errors import BadInputError, NotTrueError
from tests.support import deploy_config
from tests.support.commands import git
from tests.workflow.test_contract import ROOT

OLD, NEW = "1" * 40, "2" * 40
DEPLOY = plan.WORKFLOW_FOLDER / "deploy-production.yml"


@pytest.fixture(params=[False, True], ids=["copy", "reusable"])
def adopted(request, tmp_path):
    """A repository that adopted an older version, with a configuration that a person filled in."""
    folder = tmp_path / "application"
    (folder / ".git").mkdir(parents=True)
    plan.adopt(folder, action_ref=OLD, reusable=request.param)
    deploy_config.write(folder / plan.CONFIG)
    plan.adopt(folder, action_ref=OLD)
    return folder


def adopt(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "azora_ci", "adopt", str(folder), "--repository", "azora/deployer", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_an_upgrade_shows_every_difference_and_keeps_the_configuration(adopted):
    toml = (adopted / plan.CONFIG).read_bytes()
    completed = adopt(adopted, "--upgrade", "--ref", NEW)
    assert completed.returncode == 0, completed.stderr
    assert f"Pinned until now: Azora-OS/azora-ci@{OLD}" in completed.stdout
    for name in plan.WORKFLOWS:
        assert f"{plan.WORKFLOW_FOLDER / name}: outdated" in completed.stdout
    assert re.search(rf"^\+ +uses: azora/deployer/\S+@{NEW}$", completed.stdout, re.MULTILINE)
    assert "Which keys are new is not known" in completed.stdout  # that commit is in no checkout
    assert (adopted / plan.CONFIG).read_bytes() == toml
    assert plan.pinned_action(adopted) == plan.SetupAction("azora/deployer", NEW)
    again = adopt(adopted, "--upgrade", "--ref", NEW)
    assert (again.returncode, "The workflows are this version's already." in again.stdout) == (0, True)


def test_new_keys_are_named_with_what_they_mean():
    new = schemas.load("deploy-config")
    old = json.loads(json.dumps(new))
    del old["properties"]["rollout"]
    services = old["properties"]["services"]
    (tables,) = [*services.get("patternProperties", {}).values()] or [services["additionalProperties"]]
    del tables["properties"]["singleton"]
    names = {name for name, _ in upgrade.keys(new)} - {name for name, _ in upgrade.keys(old)}
    assert {"rollout", "rollout.minimum_requests", "services.*.singleton"} <= names
    assert all(text for _, text in upgrade.keys(new))


def test_a_configuration_that_this_version_does_not_read_stops_the_upgrade_before_anything_is_written(adopted):
    (adopted / plan.CONFIG).write_text("schema_version = 1\nunknown = 2\n")
    before = (adopted / DEPLOY).read_bytes()
    completed = adopt(adopted, "--upgrade", "--ref", NEW)
    assert completed.returncode == 2
    assert "unknown" in completed.stderr
    assert (adopted / DEPLOY).read_bytes() == before


def test_a_changed_workflow_is_neither_upgraded_nor_removed(adopted):
    (adopted / DEPLOY).write_text((adopted / DEPLOY).read_text() + "# mine\n")
    before = (adopted / DEPLOY).read_bytes()
    assert adopt(adopted, "--upgrade", "--ref", NEW).returncode == 1
    with pytest.raises(NotTrueError, match="A file was changed"):
        upgrade.remove(adopted)
    assert (adopted / DEPLOY).read_bytes() == before
    assert (adopted / plan.WORKFLOW_FOLDER / "restore-drill.yml").is_file()
    assert len(upgrade.remove(adopted, force=True)) == len(plan.WORKFLOWS)


def test_nothing_but_the_adopted_workflows_is_removed(adopted):
    other = adopted / plan.WORKFLOW_FOLDER / "ci.yml"
    other.write_text("name: CI\n")
    completed = adopt(adopted, "--remove")
    assert completed.returncode == 0
    assert str(plan.CONFIG) in completed.stdout
    assert sorted(path.name for path in other.parent.iterdir()) == ["ci.yml"]
    assert (adopted / plan.CONFIG).is_file()
    assert "nothing: no adopted workflow was there" in adopt(adopted, "--remove").stdout


@pytest.mark.parametrize("name", [None, "shop"])
def test_what_ends_production_names_this_application_alone(adopted, name):
    prefix = name or "azora"
    hosts = {"edge_image": "x/edge@sha256:" + "1" * 64, "guard_image": "x/guard@sha256:" + "2" * 64, **({"name": name} if name else {})}
    target = {"kind": "docker_hosts", "docker_hosts": hosts}
    deploy_config.write(adopted / plan.CONFIG, target=target, edge=None, registry={"repository": "ghcr.io/azora/shop"})
    said = upgrade.removed([], adopted)
    assert f"--filter label=world.azora.image --filter name='^/{prefix}-'" in said
    assert f"docker volume rm {prefix}-edge" in said
    assert "prune" not in said and "PREFIX" not in said
    assert ("azora-edge" in said) == (name is None)


def test_an_unreadable_configuration_leaves_the_prefix_to_the_reader(adopted):
    (adopted / plan.CONFIG).write_text("[", encoding="utf-8")
    said = upgrade.removed([], adopted)
    assert "docker volume rm PREFIX-edge" in said and "PREFIX is target.docker_hosts.name" in said


def test_two_things_at_once_are_refused(adopted):
    completed = adopt(adopted, "--remove", "--check")
    assert (completed.returncode, "do not go together" in completed.stderr) == (2, True)


def test_without_an_adoption_there_is_nothing_to_upgrade(tmp_path):
    git(tmp_path, "init", "--quiet")
    completed = adopt(tmp_path, "--upgrade", "--ref", NEW)
    assert completed.returncode == BadInputError.exit_code
    assert "adopt it first" in completed.stderr
