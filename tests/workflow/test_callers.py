"""A caller of a published workflow hands over everything that the workflow takes, and grants what its jobs ask for."""

from __future__ import annotations

import re

import pytest
import yaml

from azora_ci.cli.adopt import plan
from tests.workflow.test_contract import ROOT

ACTION = plan.SetupAction("azora/deployer", "1" * 40)
every_workflow = pytest.mark.parametrize("name", plan.WORKFLOWS)


def published(name):
    return yaml.load((ROOT / ".github/workflows" / name).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


@every_workflow
def test_a_called_workflow_declares_the_inputs_of_a_person_and_every_secret_it_reads(name):
    text = (ROOT / ".github/workflows" / name).read_text(encoding="utf-8")
    triggers = published(name)["on"]
    of_callers = {"environment"} if name == "deploy-production.yml" else set()  # a person cannot send a run of production elsewhere
    inputs = dict(triggers["workflow_call"]["inputs"])
    assert {key: inputs.pop(key)["default"] for key in of_callers} == dict.fromkeys(of_callers, "production")
    assert inputs == triggers["workflow_dispatch"]["inputs"]
    read = set(re.findall(r"\bsecrets\.([A-Z_]+)", text))
    assert triggers["workflow_call"]["secrets"] == {secret: {"required": "false"} for secret in sorted(read)}
    assert "toJSON(secrets)" not in text


@every_workflow
def test_a_caller_is_short_pinned_and_passes_everything_on(name):
    text = plan.called(name, ACTION)
    assert len(text.splitlines()) <= 47
    called, caller = published(name), yaml.load(text, Loader=yaml.BaseLoader)
    assert caller["on"] == {
        trigger: yaml.load(str(settings).replace("'required': 'false', ", ""), Loader=yaml.BaseLoader)
        for trigger, settings in called["on"].items()
        if trigger != "workflow_call"
    }
    assert caller["permissions"] == {}
    (job,) = caller["jobs"].values()
    assert job["uses"] == f"azora/deployer/.github/workflows/{name}@{'1' * 40}"
    assert job["with"] == {key: f"${{{{ inputs.{key} }}}}" for key in called["on"]["workflow_dispatch"]["inputs"]}
    assert job["secrets"] == {key: f"${{{{ secrets.{key} }}}}" for key in called["on"]["workflow_call"]["secrets"]}
    asked = {scope: access for nested in called["jobs"].values() for scope, access in nested["permissions"].items() if access == "write"}
    assert {scope: access for scope, access in job["permissions"].items() if access == "write"} == asked
    assert set(job["permissions"]) == {scope for nested in called["jobs"].values() for scope in nested["permissions"]}


def test_the_caller_for_staging_in_the_documentation_grants_and_gives_what_the_workflow_takes():
    text = (ROOT / ".github/docs/adopting.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(# \.github/workflows/deploy-staging\.yml\n.*?)```", text, re.DOTALL)
    staging = yaml.load(block, Loader=yaml.BaseLoader)
    (job,) = staging["jobs"].values()
    (granted,) = (
        caller["permissions"] for caller in yaml.load(plan.called("deploy-production.yml", ACTION), yaml.BaseLoader)["jobs"].values()
    )
    assert (staging["permissions"], job["permissions"]) == ({}, granted)
    assert (ROOT / job["uses"]).is_file()
    assert set(job["with"]) <= set(published("deploy-production.yml")["on"]["workflow_call"]["inputs"])
    assert job["with"]["environment"] == "staging"
    assert staging["on"] == {"push": published("deploy-production.yml")["on"]["push"]}  # the tag that starts production, too


def test_upgrading_a_caller_changes_one_line_and_its_stamp():
    for name in plan.WORKFLOWS:
        old, new = (plan.called(name, plan.SetupAction("azora/deployer", digit * 40)).splitlines() for digit in "12")
        assert [number for number, (line, other) in enumerate(zip(old, new, strict=True)) if line != other][1:] == [
            number for number, line in enumerate(old) if line.startswith("    uses: ")
        ]


def test_a_repository_stays_what_it_is_until_somebody_says_otherwise(tmp_path):
    (tmp_path / ".git").mkdir()
    deploy = tmp_path / plan.WORKFLOW_FOLDER / "deploy-production.yml"
    plan.adopt(tmp_path, action_ref="1" * 40, reusable=True)
    assert plan.is_reusable(tmp_path)
    plan.adopt(tmp_path, action_ref="2" * 40)
    assert f"/deploy-production.yml@{'2' * 40}" in deploy.read_text(encoding="utf-8")
    assert plan.pinned_action(tmp_path).commit == "2" * 40
    plan.adopt(tmp_path, action_ref="2" * 40, reusable=False)
    assert not plan.is_reusable(tmp_path)
    assert "validate_release.py" in deploy.read_text(encoding="utf-8")
