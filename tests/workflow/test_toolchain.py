"""The action toolchain installs exactly what the configuration names, with real registries, and runs no install script."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml

from azora_ci.cli.adopt import plan
from azora_ci.cli.main import main
from tests.support import ROOT, deploy_config, package_managers

ACTION = ROOT / ".github/actions/toolchain"


@pytest.mark.parametrize("spec", package_managers.MANAGERS)
def test_each_package_manager_is_installed_and_starts(spec, tmp_path):
    manager, _, version = spec.partition("@")
    program = package_managers.program(spec)
    answered = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (program.name, answered.stdout.strip()) == (manager, version)


RELEASE_THAT_HUNTS = """#!/bin/sh
cd "$PWD/.." && mkdir -p bin lib/node_modules/yarn && echo '{"version": "1.22.22"}' > lib/node_modules/yarn/package.json
printf '#!/bin/sh\\ntouch ran; echo 1.22.22\\n' > bin/yarn && chmod +x bin/yarn
"""


def test_nothing_of_the_package_manager_runs_while_it_is_set_up(tmp_path, monkeypatch):
    """The step stands in database-migrations, too; a release of a package manager may be as malicious as any other package."""
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(RELEASE_THAT_HUNTS)
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")
    completed = package_managers.install(package_managers.YARN_1, tmp_path / "runner")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "yarn 1.22.22 from" in completed.stdout
    assert not list(tmp_path.rglob("ran"))


def test_a_configuration_of_the_application_cannot_choose_the_registry(tmp_path):
    (tmp_path / ".npmrc").write_text("registry=http://127.0.0.1:1/\nignore-scripts=false\n")
    completed = package_managers.install(package_managers.YARN_1, tmp_path / "runner", cwd=tmp_path)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_a_version_that_does_not_exist_is_named(tmp_path):
    completed = package_managers.install("yarn@1.22.999", tmp_path)
    assert completed.returncode == 2
    assert "npm could not install yarn@1.22.999" in completed.stdout
    assert not (tmp_path / "path").exists()


def test_another_version_than_the_named_one_is_refused(tmp_path):
    completed = package_managers.install("yarn@1.22.22", tmp_path, package="yarn@1.22.21")
    assert completed.returncode == 2
    assert "says that it is 1.22.21, not 1.22.22" in completed.stdout
    assert not (tmp_path / "path").exists()


@pytest.mark.parametrize(
    ("table", "outputs"),
    [
        ({"node": "22", "package_manager": "yarn@4.5.0"}, ["node=22", "manager=yarn", "version=4.5.0", "package=@yarnpkg/cli-dist@4.5.0"]),
        ({}, ["node=", "manager=", "version=", "package="]),
    ],
)
def test_the_command_gives_the_action_its_outputs(tmp_path, capsys, table, outputs):
    path = deploy_config.write(tmp_path / "deploy.toml", toolchain=table)
    with pytest.raises(SystemExit) as ended:
        main(["toolchain", "--config", str(path)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[:4] == outputs


def test_the_action_uses_only_what_is_pinned_and_no_secret():
    text = (ACTION / "action.yml").read_text()
    steps = yaml.safe_load(text)["runs"]["steps"]
    assert [step["uses"].partition("@")[0] for step in steps if "uses" in step] == ["actions/setup-node"]
    assert all(len(step["uses"].partition("@")[2]) == 40 for step in steps if "uses" in step)
    assert "secrets." not in text
    assert "--ignore-scripts" in (ACTION / "install.sh").read_text()
    rehearsed = yaml.safe_load((ROOT / "azora_ci/rehearsal/actions/toolchain/action.yml").read_text())
    assert set(rehearsed["inputs"]) == set(yaml.safe_load(text)["inputs"])


def test_a_folder_of_the_application_is_not_imported_by_the_action(tmp_path):
    """``python -m azora_ci`` in a checkout would import the application's own folder of that name; ``-I`` does not."""
    for action in (ACTION, ROOT / "azora_ci/rehearsal/actions/toolchain"):
        commands = [
            step["run"]
            for step in yaml.safe_load((action / "action.yml").read_text())["runs"]["steps"]
            if "-m azora_ci" in step.get("run", "")
        ]
        assert commands
        assert all(" -I -m azora_ci toolchain" in command for command in commands)


def test_adopting_pins_both_actions_to_one_commit():
    ours = plan.SetupAction("azora/deployer", "1" * 40)
    text = "".join(f"uses: $/.github/actions/{name}\n" for name in ("setup", "toolchain"))
    assert plan.pinned(text, ours) == "".join(
        f"uses: azora/deployer/.github/actions/{name}@{'1' * 40}\n" for name in ("setup", "toolchain")
    )
