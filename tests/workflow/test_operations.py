"""The workflows beside the deployment, the restore drill and the button that rolls back, agree with their steps."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.support import ROOT
from tests.workflow.test_contract import DOCUMENT, OF_DEPLOYMENTS, SAYS_WHAT_SERVES, SET_BY_GITHUB, declared, environment_of, references

ROLLBACK: dict[str, Any] = yaml.load((ROOT / ".github/workflows/rollback-production.yml").read_text("utf-8"), Loader=yaml.BaseLoader)


def test_the_restore_drill_hands_over_what_it_declares():
    drill = yaml.load((ROOT / ".github/workflows/restore-drill.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    (job,) = drill["jobs"].values()
    assert environment_of(job) == "operations"
    (step,) = [step for step in job["steps"] if "run" in step]
    assert step["run"] == 'exec "$AZORA_PYTHON" "$AZORA_CI/scripts/restore_drill.py"'
    environ, variables = {**drill["env"], **step["env"]}, declared("restore-drill")
    assert set(environ) == set(variables) - SET_BY_GITHUB - OF_DEPLOYMENTS
    secret = {name for name, value in environ.items() if references(value, "secrets")}
    assert secret == {name for name, variable in variables.items() if variable.secret}
    assert environ["BACKUP_PROOF"] == f"${{{{ vars.BACKUP_PROOF || '{variables['BACKUP_PROOF'].default}' }}}}"
    assert list(drill["on"]) == ["schedule", "workflow_dispatch", "workflow_call"]


def test_the_button_asks_for_a_reason_and_never_waits_for_a_deployment():
    assert list(ROLLBACK["on"]) == ["workflow_dispatch", "workflow_call"]
    inputs = ROLLBACK["on"]["workflow_dispatch"]["inputs"]
    assert {name: (field["type"], field["required"]) for name, field in inputs.items()} == {
        "reason": ("string", "true"),
        "deployment-id": ("string", "false"),
        "after-deadline": ("boolean", "false"),
        "schema-reason": ("string", "false"),
    }
    assert inputs["after-deadline"]["default"] == "false"
    assert ROLLBACK["concurrency"] == {"group": "rollback-production", "cancel-in-progress": "false"}
    assert ROLLBACK["concurrency"]["group"] != DOCUMENT["concurrency"]["group"]


def test_the_button_hands_over_what_the_rollback_declares():
    (job,) = ROLLBACK["jobs"].values()
    assert environment_of(job) == "production"
    assert [f"{scope}: {level}" for scope, level in job["permissions"].items()] == SAYS_WHAT_SERVES
    (step,) = [step for step in job["steps"] if "run" in step]
    assert step["run"] == 'exec "$AZORA_PYTHON" "$AZORA_CI/scripts/rollback.py"'
    environ, variables = {**ROLLBACK["env"], **step["env"]}, declared("rollback")
    assert set(environ) == set(variables) - SET_BY_GITHUB - OF_DEPLOYMENTS
    secret = {name for name, value in environ.items() if references(value, "secrets")}
    assert secret | {"GITHUB_TOKEN"} == {name for name, variable in variables.items() if variable.secret}
    assert environ["GITHUB_TOKEN"] == "${{ github.token }}"
    assert not references([ROLLBACK["env"], {**job, "steps": [other for other in job["steps"] if other is not step]}], "secrets")
    inputs = {name: value for name, value in environ.items() if "inputs." in value}
    assert inputs == {
        "DEPLOYMENT_ID": "${{ inputs.deployment-id }}",
        "ROLLBACK_REASON": "${{ inputs.reason }}",
        "ROLLBACK_AFTER_DEADLINE": "${{ inputs.after-deadline }}",
        "ROLLBACK_SCHEMA_REASON": "${{ inputs.schema-reason }}",
    }
    for name, value in environ.items():
        default = re.fullmatch(r"\$\{\{ vars\.\w+ \|\| '([^']*)' \}\}", value)
        assert default is None or variables[name].default == default[1], name


def test_the_button_keeps_its_evidence_for_a_year():
    (job,) = ROLLBACK["jobs"].values()
    upload = job["steps"][-1]
    assert (upload["if"], upload["with"]["retention-days"]) == ("always()", "365")
    assert upload["with"]["path"] == "${{ runner.temp }}/${{ env.DEPLOYMENT_LOG_DIR }}"
    assert upload["with"]["name"].startswith("rollback-logs-${{ steps.run.outputs.deployment-id || ")
