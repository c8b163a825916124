"""Code of the application and the power over production never share a job, in the workflow as it is adopted."""

from __future__ import annotations

import re

import pytest
import yaml

from azora_ci.cli.adopt import plan
from azora_ci.core import pipeline
from azora_ci.core.pipeline import JOBS
from tests.support import ROOT
from tests.workflow.test_contract import DOCUMENT, WORKFLOW, every_job, evidence_uploads, references, steps, using

ACTION = plan.SetupAction("Azora-OS/azora-ci", "a" * 40)
# Steps that may run a command of the application beside a secret.
WITH_CODE_BESIDE_SECRETS = {
    "database_backup": "the migrate command and the version in production, on the copy: isolated, without a network",
    "database_migrations": "the migrate command, isolated",
    "build_and_push": 'only with build.isolation = "none", for a reason that is recorded',
}


@pytest.mark.parametrize("job", [job for job in JOBS if job in pipeline.APPLICATION_JOBS])
def test_jobs_that_run_code_of_the_application_have_no_power(job):
    definition = DOCUMENT["jobs"][job]
    assert "environment" not in definition
    assert definition["permissions"] == {"contents": "read"}
    assert not references(definition, "secrets")
    assert "github.token" not in str(definition)
    assert not using(job, "aws-actions/configure-aws-credentials")


def test_only_jobs_without_power_run_code_of_the_application():
    """Look for what runs commands of the configuration in every step that is not of an application's job."""
    words = ("commands.run(", "checks.build", "config.database.prepare", "build.commands", "production_build(", "database.migrate")
    running = {
        path.stem for path in (ROOT / "azora_ci/steps").glob("*.py") if any(word in path.read_text(encoding="utf-8") for word in words)
    }
    assert running == set(WITH_CODE_BESIDE_SECRETS)
    migrations = (ROOT / "azora_ci/steps/database_migrations.py").read_text(encoding="utf-8")
    assert not any(word in migrations for word in words[:-1]), "it prepares nothing, it only migrates"


@every_job
def test_beside_secrets_stand_only_actions_of_github_of_aws_and_of_this_project(job):
    owners = {re.split("[/@]", step["uses"])[0] for step in steps(job) if "uses" in step}
    assert owners <= {"actions", "aws-actions", "$"}  # $: of the repository that holds the workflow


def test_what_is_handed_over_is_kept_for_a_day_under_a_name_that_nothing_archives():
    adopted = yaml.load(plan.workflow(WORKFLOW.name, ACTION, plan.Named()), Loader=yaml.BaseLoader)
    suffix = "${{ github.run_attempt > 1 && format('-attempt-{0}', github.run_attempt) || '' }}"
    handed_over = {}
    for job, definition in adopted["jobs"].items():
        for step in definition["steps"]:
            if step.get("uses", "").startswith("actions/upload-artifact@") and step.get("id") != "keep":
                assert step["uses"] == evidence_uploads("build")[0]["uses"]
                assert (step["with"]["retention-days"], step["with"]["if-no-files-found"]) == ("1", "ignore")
                assert "if" not in step  # after a failure nothing is handed over
                handed_over[step["with"]["name"]] = (job, step["with"]["path"])
    assert handed_over == {
        f"application-tree{suffix}": ("build", "${{ runner.temp }}/application-tree/tree.tar.zst"),
        f"image-archives{suffix}": ("images", "${{ runner.temp }}/images/*.tar.*"),
    }
    (fetch,) = [step for step in steps("build-and-push") if step["name"] == "Fetch the images"]
    assert fetch["with"] == {"pattern": "image-archives*", "path": "${{ runner.temp }}/images", "merge-multiple": "false"}


@pytest.mark.parametrize("cluster", [True, False])
def test_only_where_production_is_a_cluster_a_rollout_may_show_who_it_is(cluster):
    """A token of the environment is good for every role that trusts it: an adopted workflow asks for none that it does not need."""
    adopted = yaml.load(plan.workflow(WORKFLOW.name, ACTION, plan.Named(cluster=cluster)), Loader=yaml.BaseLoader)
    for job in plan.REACH_CLUSTERS:
        assert adopted["jobs"][job]["permissions"] == {"contents": "read", **({"id-token": "write"} if cluster else {})}
    assert adopted["jobs"]["database-backup"]["permissions"]["id-token"] == "write"
    assert plan.names_in('[target]\nkind = "kubernetes"').cluster
    assert not plan.names_in('[target]\nkind = "docker_hosts"').cluster
