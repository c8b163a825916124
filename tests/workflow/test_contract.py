"""The workflow and the steps agree on ids, needs, conditions, environment, outputs, artifacts and permissions."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from azora_ci.cli.adopt.plan import REACH_CLUSTERS
from azora_ci.core import pipeline
from azora_ci.core.pipeline import JOBS
from azora_ci.core.variables import declared_variables
from azora_ci.record import fragments
from azora_ci.steps.deployment_record import SUBJECTS_NAME
from azora_ci.steps.runner import step_module
from tests.support import ROOT

WORKFLOW = ROOT / ".github/workflows/deploy-production.yml"
TEXT = WORKFLOW.read_text(encoding="utf-8")
DOCUMENT: dict[str, Any] = yaml.load(TEXT, Loader=yaml.BaseLoader)
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))

# Beside the jobs that must have succeeded: those whose outputs, which only a direct need hands over, or whose results a job reads.
READS = {
    "pre-deployment-validation": ("audit", "build"),
    "database-backup": ("build", "pre-deployment-validation"),  # the tree; recorded host keys, as in the next ones
    "database-migrations": ("build", "pre-deployment-validation", "database-backup"),
    "build-and-push": ("images",),
    "gradual-rollout": ("pre-deployment-validation", "database-backup", "database-migrations", "build-and-push"),
    "smoke-tests": ("pre-deployment-validation", "database-backup", "database-migrations", "gradual-rollout"),
    "deployment-record": pipeline.EVIDENCE_JOBS,
    "manual-rollback": (*pipeline.EVIDENCE_JOBS, "deployment-record"),
    "deployment-failure-handler": pipeline.PIPELINE,
}
CONDITIONS = {
    "manual-rollback": "always() && needs.gradual-rollout.result == 'success'",
    "deployment-failure-handler": "always() && (contains(needs.*.result, 'failure') || contains(needs.*.result, 'cancelled'))",
}
ARTIFACTS = {
    "validate-release": "release-logs",
    "audit": "audit-logs",
    "build": "application-build-logs",
    "pre-deployment-validation": "validation-logs",
    "database-backup": "backup-logs",
    "database-migrations": "migration-logs",
    "images": "application-image-logs",
    "build-and-push": "build-logs",
    "gradual-rollout": "rollout-logs",
    "smoke-tests": "smoke-test-logs",
    "deployment-record": "deployment-record",
    "manual-rollback": "rollback-instructions",
    "deployment-failure-handler": "deployment-failure-report",
}
# GitHub itself sets these variables for every step; docs.github.com, "Default environment variables".
SET_BY_GITHUB = set(
    re.findall(
        r"\w+",
        """
        GITHUB_ACTIONS GITHUB_ACTOR GITHUB_API_URL GITHUB_EVENT_NAME GITHUB_EVENT_PATH GITHUB_OUTPUT GITHUB_REF GITHUB_REF_NAME
        GITHUB_REPOSITORY GITHUB_RUN_ATTEMPT GITHUB_RUN_ID GITHUB_SERVER_URL GITHUB_SHA GITHUB_STEP_SUMMARY GITHUB_WORKSPACE
        RUNNER_TEMP
        """,
    )
)
# Only the jobs of a deployment read these: drills and rollbacks stand alone, and a rollback's deadline stands in the record.
OF_DEPLOYMENTS = {"NEEDS", "RECEIVED_ARTIFACTS_DIR", "ROLLBACK_WINDOW_MINUTES"}
# A self-hosted runner's own environment may set these variables.
SET_BY_THE_MACHINE = {"DOCKER_HOST"}
# Only a person at a keyboard sets these: a variable left behind in the repository must not turn deployments into rehearsals.
AT_A_KEYBOARD = {"ROLLOUT_DRY_RUN"}
# A job gets these secrets only where a variable says that the job needs them.
VIA_SSH = "${{{{ vars.DATABASE_VIA_SSH == 'true' && secrets.{} || '' }}}}"
GOING_BACK = "${{{{ vars.ROLLBACK_ON_SMOKE_FAILURE == 'true' && secrets.{} || '' }}}}"
VIA_KUBERNETES = VIA_SSH.replace("VIA_SSH", "VIA_KUBERNETES")
EITHER = "${{{{ (vars.ROLLBACK_ON_SMOKE_FAILURE == 'true' || vars.DATABASE_VIA_SSH == 'true') && secrets.{} || '' }}}}"
# Hosts pull with the login that pushes only where there is none that may only pull.
UNLESS_PULL = "!secrets.PULL_USERNAME && "
GOING_BACK_UNLESS_PULL = GOING_BACK.replace("secrets.{}", f"{UNLESS_PULL}secrets.{{}}")
OLD_VERSION = "${{{{ vars.MIGRATIONS_OLD_VERSION == 'true' && secrets.{} || '' }}}}"
OLD_VERSION_UNLESS_PULL = OLD_VERSION.replace("secrets.{}", f"{UNLESS_PULL}secrets.{{}}")
EITHER_KUBERNETES = EITHER.replace("VIA_SSH", "VIA_KUBERNETES")
GIVEN_WHERE_NEEDED = (
    VIA_SSH,
    VIA_KUBERNETES,
    GOING_BACK,
    EITHER,
    EITHER_KUBERNETES,
    GOING_BACK_UNLESS_PULL,
    OLD_VERSION,
    OLD_VERSION_UNLESS_PULL,
)
MAY_SHOW_WHO_IT_IS = ["contents: read", "id-token: write"]
SAYS_WHAT_SERVES = ["contents: read", "deployments: write", "id-token: write"]
PERMISSIONS = {
    "pre-deployment-validation": [
        "actions: read",
        "checks: read",
        "contents: read",
        "id-token: write",
        "pull-requests: read",
        "statuses: read",
    ],
    "database-backup": MAY_SHOW_WHO_IT_IS,
    "deployment-record": ["attestations: write", *SAYS_WHAT_SERVES],
    "deployment-failure-handler": SAYS_WHAT_SERVES,
    "database-migrations": ["actions: read", "contents: read"],
    **dict.fromkeys(REACH_CLUSTERS, MAY_SHOW_WHO_IT_IS),
}

# Environment, configuration and concurrency group: those of production, unless a caller names another environment.
ENVIRONMENT = "${{ inputs.environment || 'production' }}"

every_job = pytest.mark.parametrize("job", list(JOBS))
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def steps(job: str) -> list[dict[str, Any]]:
    return DOCUMENT["jobs"][job]["steps"]


def run_step(job: str) -> dict[str, Any]:
    """Return the only step of a job that runs a script of this repository."""
    (step,) = [step for step in steps(job) if "run" in step]
    return step


def using(job: str, action: str) -> list[dict[str, Any]]:
    return [step for step in steps(job) if step.get("uses", "").startswith(f"{action}@")]


def declared(job: str) -> dict[str, Any]:
    """Return the declarations of a job's settings by environment variable."""
    return {variable.name: variable for _, variable in declared_variables(step_module(job).Settings)}


def references(value: object, kind: str) -> list[str]:
    return re.findall(rf"\b{kind}\.([A-Za-z0-9_-]+)", str(value))


def environment_of(definition: dict[str, Any]) -> str | None:
    """Return the environment of a job, of which GitHub makes no deployment, unless it is the one that asks for approval."""
    environment = definition.get("environment")
    if isinstance(environment, dict):
        assert environment == {"name": environment["name"], "deployment": "false"}
        return str(environment["name"])
    assert environment in {None, f"{ENVIRONMENT}-approval"}
    return environment


def evidence_uploads(job: str) -> list[dict[str, Any]]:
    """Return the steps that keep a job's evidence, without those that hand something over for a day."""
    return [step for step in using(job, "actions/upload-artifact") if step.get("id") == "keep"]


def test_the_jobs_stand_in_their_order():
    assert list(DOCUMENT["jobs"]) == list(JOBS)


def test_triggers_are_a_release_tag_and_a_person():
    triggers = DOCUMENT["on"]
    assert set(triggers) == {"push", "workflow_dispatch", "workflow_call"}
    assert triggers["push"] == {"tags": ["v*"]}
    inputs = triggers["workflow_dispatch"]["inputs"]
    assert set(inputs) == {"version", "emergency_reason"}
    assert {(field["required"], field["type"]) for field in inputs.values()} == {("false", "string")}


def test_an_emergency_and_its_reason_reach_the_gates_alone_and_whoever_approves_sees_it():
    assert [job for job in JOBS if "inputs.emergency_reason" in str(DOCUMENT["jobs"][job])] == ["pre-deployment-validation"]
    assert run_step("pre-deployment-validation")["env"]["EMERGENCY_REASON"] == "${{ inputs.emergency_reason }}"
    assert "inputs.emergency_reason && ' as an emergency'" in DOCUMENT["run-name"]


def test_only_a_caller_chooses_another_environment_and_with_it_everything_that_differs():
    assert "environment" not in DOCUMENT["on"]["workflow_dispatch"]["inputs"]
    assert DOCUMENT["on"]["workflow_call"]["inputs"]["environment"]["default"] == "production"
    assert DOCUMENT["env"]["DEPLOY_ENVIRONMENT"] == ENVIRONMENT
    assert DOCUMENT["env"]["DEPLOY_CONFIG"] == f".github/deploy-{ENVIRONMENT}.toml"


def test_a_running_deployment_is_never_cancelled_by_the_next():
    assert DOCUMENT["concurrency"] == {"group": f"deploy-{ENVIRONMENT}", "cancel-in-progress": "false"}


@every_job
def test_needs_and_condition(job):
    definition = DOCUMENT["jobs"][job]
    identity = [] if job == "validate-release" else ["validate-release"]
    assert set(definition.get("needs", [])) == {*identity, *pipeline.NEEDS.get(job, ()), *READS.get(job, ())}
    assert definition.get("if") == CONDITIONS.get(job)


def test_only_known_conditions_stand_in_the_workflow():
    conditions = {condition for job in JOBS for condition in (DOCUMENT["jobs"][job].get("if"), *(step.get("if") for step in steps(job)))}
    assert {condition for condition in conditions if "AWS" not in str(condition)} == {
        None,
        *CONDITIONS.values(),
        "always()",
        "vars.ATTEST == 'true'",
    }  # those of the roles: test_aws_roles.py


@every_job
def test_no_matrix_and_one_kind_of_runner(job):
    definition = DOCUMENT["jobs"][job]
    assert "strategy" not in definition
    assert definition["runs-on"] == "ubuntu-24.04"


@every_job
def test_the_step_runs_its_script_by_exec(job):
    script = f"scripts/{job.replace('-', '_')}.py"
    assert (ROOT / script).is_file()
    assert run_step(job)["run"] == f'exec "$AZORA_PYTHON" "$AZORA_CI/{script}"'
    assert DOCUMENT["defaults"]["run"] == {"shell": "bash"}
    assert "shell" not in run_step(job)


@every_job
def test_the_environment_of_a_step_is_what_its_settings_declare(job):
    environ = {**DOCUMENT["env"], **run_step(job)["env"]}
    variables = declared(job)
    unknown = set(environ) - set(variables)
    assert not unknown, f"the workflow sets what {job} does not read: {sorted(unknown)}"
    out_of_reach = set(variables) - set(environ) - SET_BY_GITHUB - SET_BY_THE_MACHINE - AT_A_KEYBOARD
    assert not out_of_reach, f"{job} reads what the workflow does not hand over: {sorted(out_of_reach)}"


@every_job
def test_defaults_in_the_workflow_are_the_settings_defaults(job):
    variables = declared(job)
    for name, value in {**DOCUMENT["env"], **run_step(job)["env"]}.items():
        default = re.fullmatch(r"\$\{\{ vars\.\w+ \|\| '([^']*)' \}\}", value)
        if default:
            assert variables[name].default == default[1], name
        elif value in {template.format(name) for template in GIVEN_WHERE_NEEDED}:
            assert variables[name].secret, name
            assert not variables[name].required, name
        elif "vars." in value:
            assert not variables[name].required, name
            assert value == f"${{{{ vars.{name} }}}}"
        elif "${{" not in value:
            assert variables[name].default == value, name


def test_hosts_get_the_login_that_pushes_only_where_there_is_no_other():
    rollback = yaml.load((ROOT / ".github/workflows/rollback-production.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    going_back = [step["env"] for job in rollback["jobs"].values() for step in job["steps"] if "DOCKER_PASSWORD" in step.get("env", {})]
    environments = [*(run_step(job)["env"] for job in ("database-backup", "gradual-rollout", "smoke-tests")), *going_back]
    assert len(environments) == 4
    for environ in environments:
        assert "secrets.PULL_PASSWORD" in environ["PULL_PASSWORD"]
        for name in ("DOCKER_USERNAME", "DOCKER_PASSWORD"):
            assert UNLESS_PULL in environ[name], environ[name]
    assert "PULL_PASSWORD" not in run_step("build-and-push")["env"]


@every_job
def test_secrets_reach_only_the_step_that_declares_them(job):
    variables = declared(job)
    secret = {name for name, value in run_step(job)["env"].items() if references(value, "secrets")}
    assert secret <= {name for name, variable in variables.items() if variable.secret}
    for name in secret:
        assert references(run_step(job)["env"][name].replace(UNLESS_PULL, ""), "secrets") == [name]
    elsewhere = [step for step in steps(job) if step is not run_step(job)]
    rest = {name: value for name, value in DOCUMENT["jobs"][job].items() if name != "steps"}
    assert not references([elsewhere, rest, DOCUMENT["env"]], "secrets")


@every_job
def test_jobs_with_secrets_are_in_the_environment_that_holds_them(job):
    environment = environment_of(DOCUMENT["jobs"][job])
    reads = references(steps(job), "secrets") or "aws-actions/" in str(steps(job))
    expected = f"{ENVIRONMENT}-approval" if job == "validate-release" else ENVIRONMENT if reads else None
    assert environment == expected
    assert not (reads and job == "validate-release")


@every_job
def test_outputs_declared_are_outputs_written(job):
    module = step_module(job)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    written = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "output"
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    outputs = dict(DOCUMENT["jobs"][job]["outputs"])
    assert outputs.pop("artifact-id") == "${{ steps.keep.outputs.artifact-id }}"
    assert outputs.pop("tree-artifact-id", None) == ("${{ steps.tree.outputs.artifact-id }}" if job == "build" else None)
    assert set(outputs) == written | {fragments.OUTPUT}  # the runner writes that one, for every job
    assert run_step(job)["id"] == "run"
    for name, value in outputs.items():
        assert value == f"${{{{ steps.run.outputs.{name} }}}}"


def test_every_output_that_is_read_is_declared_by_a_direct_need():
    for job in JOBS:
        for other, output in re.findall(r"needs\.([\w-]+)\.outputs\.([\w-]+)", str(DOCUMENT["jobs"][job])):
            assert other in DOCUMENT["jobs"][job]["needs"]
            assert output in DOCUMENT["jobs"][other]["outputs"]


@every_job
def test_the_evidence_is_kept_for_a_year_whatever_happens(job):
    (upload,) = evidence_uploads(job)
    assert upload is steps(job)[-1]
    assert upload["if"] == "always()"
    assert upload["with"]["retention-days"] == "365"
    assert upload["with"]["path"] == "${{ runner.temp }}/${{ env.DEPLOYMENT_LOG_DIR }}"
    name = upload["with"]["name"]
    assert name.startswith(f"{ARTIFACTS[job]}-${{{{ ")
    assert name.endswith("${{ github.run_attempt > 1 && format('-attempt-{0}', github.run_attempt) || '' }}")


def test_artifact_names_are_unique_and_not_hidden():
    assert ARTIFACTS == pipeline.ARTIFACTS
    names = [upload["with"]["name"] for job in JOBS for upload in using(job, "actions/upload-artifact")]
    assert len(set(names)) == len(names)
    assert not [name for name in pipeline.ARTIFACTS.values() if name.startswith("image-")]  # build-and-push fetches all of these
    assert not DOCUMENT["env"]["DEPLOYMENT_LOG_DIR"].startswith(".")


@every_job
def test_earlier_evidence_is_fetched_by_the_ids_of_the_jobs_that_are_read(job):
    downloads = [step for step in using(job, "actions/download-artifact") if step["name"] == "Fetch earlier evidence"]
    assert len(downloads) == (job in READS)
    for step in downloads:
        assert step["with"]["path"] == "${{ runner.temp }}/${{ env.RECEIVED_ARTIFACTS_DIR }}"
        assert step["with"]["merge-multiple"] == "false"
        if job == "deployment-failure-handler":  # it shows what is not verified, too
            assert step["with"]["pattern"] == "*-${{ needs.validate-release.outputs.deployment-id || format('run-{0}', github.run_id) }}*"
        else:
            # The comma behind each keeps the input from being empty, with which the action takes every artifact of the run.
            outputs = [(read, "artifact-id") for read in READS[job]]
            outputs[1:1] = [("build", "tree-artifact-id")] if job in {"database-backup", "database-migrations"} else []
            ids = " ".join(f"${{{{ needs.{read}.outputs.{output} }}}}," for read, output in outputs)
            assert {**step["with"], "artifact-ids": ids} == step["with"]
            assert not {"name", "pattern"} & set(step["with"])


@every_job
def test_every_job_is_told_what_the_jobs_before_it_gave(job):
    assert run_step(job)["env"]["NEEDS"] == "${{ toJSON(needs) }}"


@every_job
def test_every_job_works_on_the_validated_commit(job):
    (checkout,) = using(job, "actions/checkout")
    assert checkout is steps(job)[0]
    assert checkout["with"]["persist-credentials"] == "false"
    assert checkout["with"].get("ref") == (None if job == "validate-release" else "${{ needs.validate-release.outputs.git-sha }}")


def test_the_failure_report_needs_nothing_before_it_but_our_own_set_up():
    before = steps("deployment-failure-handler")[:-2]
    demanded = [step["name"] for step in before if step.get("continue-on-error") != "true"]
    assert demanded == ["Set up azora-ci"]


@every_job
def test_the_least_permissions(job):
    assert DOCUMENT["permissions"] == {}
    permissions = [f"{scope}: {level}" for scope, level in DOCUMENT["jobs"][job]["permissions"].items()]
    assert sorted(permissions) == PERMISSIONS.get(job, ["contents: read"])
    uses_aws = "id-token: write" in permissions and job not in REACH_CLUSTERS
    assert bool(using(job, "aws-actions/configure-aws-credentials")) == uses_aws
    assert ("AWS_ACCESS_KEY_ID" in run_step(job)["env"]) == uses_aws
    assert job not in REACH_CLUSTERS or "KUBECONFIG_DATA" in run_step(job)["env"]


def test_the_rollout_has_room_for_thirty_minutes_of_monitoring():
    minutes = {name: int(DOCUMENT["jobs"][name]["timeout-minutes"]) for name in JOBS}
    env = run_step("gradual-rollout")["env"]
    monitored = sum(int(re.findall(r"'(\d+)'", env[f"{stage}_MINUTES"])[0]) for stage in ("CANARY", "PROGRESSIVE", "FULL"))
    assert monitored == 30
    assert minutes["gradual-rollout"] >= 3 * monitored
    assert all(10 <= value <= 300 for value in minutes.values())


def test_the_backup_has_room_for_the_longest_snapshot_and_its_proof():
    longest = int(declared("database-backup")["BACKUP_SNAPSHOT_MAX_MINUTES"].default)
    assert int(DOCUMENT["jobs"]["database-backup"]["timeout-minutes"]) >= longest + 60


def test_only_the_record_job_attests_and_only_where_a_variable_says_so():
    (attest,) = using("deployment-record", "actions/attest")
    assert attest["if"] == "vars.ATTEST == 'true'"
    assert attest["with"] == {"subject-checksums": f"${{{{ runner.temp }}}}/${{{{ env.DEPLOYMENT_LOG_DIR }}}}/{SUBJECTS_NAME}"}, (
        "a commit may hold another file of this name"
    )
    places = [step.get("id") or step["name"] for step in steps("deployment-record")]
    assert places.index(attest["name"]) == places.index("run") + 1, "what is attested was just written"
    assert [job for job in JOBS if "attestations" in DOCUMENT["jobs"][job]["permissions"]] == ["deployment-record"]
    assert [job for job in JOBS if using(job, "actions/attest")] == ["deployment-record"]


@every_workflow
def test_every_action_is_pinned_by_a_full_commit(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"[ -]*uses:", line):
            assert re.fullmatch(r" +uses: ([\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\$/\.github/actions/\w+)", line), line


@every_workflow
def test_no_expression_stands_in_a_run_block(path):
    document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    runs = [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    assert runs
    for run in runs:
        assert "${{" not in run
        assert run.startswith("exec ")


@every_workflow
def test_nothing_is_permitted_by_default(path):
    document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert document["permissions"] == {}
    assert all("timeout-minutes" in job for job in document["jobs"].values())
