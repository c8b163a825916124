"""Write one file of environment variables per job, so that a person can replay the job's step against a kept world."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from azora_ci.cli.adopt.plan import CONFIG
from azora_ci.core import pipeline, variables
from azora_ci.rehearsal import button
from azora_ci.rehearsal.act.runner import JobRun, write_private
from azora_ci.rehearsal.runs import CHECKOUT
from azora_ci.rehearsal.world import World
from azora_ci.steps import runner

ALWAYS = ("PATH", "npm_config_cache", "npm_config_prefer_offline", "CHECKPOINT_DISABLE")


def write(world: World, jobs: Mapping[str, JobRun], release: Mapping[str, str], attempt: int) -> dict[str, Path]:
    """Write ``replay/<job>.env`` (mode 0600) for every job and for the rollback, and return the files.

    ``release``: outputs of validate-release.
    """
    world.scratch.git("remote", "set-url", "origin", str(world.scratch.folder))  # act checks out from this folder, too
    common_values = _values(world, jobs, release, attempt)
    files = {}
    for job in (*pipeline.JOBS, button.JOB):
        job_values = {
            "DEPLOYMENT_LOG_DIR": str(world.run.path(f"replay/{job}/x").parent),
            "RECEIVED_ARTIFACTS_DIR": str(world.run.artifacts),
            "AZORA_CI": str(CHECKOUT),
            "GITHUB_WORKSPACE": str(world.scratch.folder),
            "RUNNER_TEMP": str(world.run.path(f"replay/temp/{job}/x").parent),
        }
        if job == "build-and-push":  # the only job that takes over what another one built
            world.run.path(f"replay/temp/{job}/images").symlink_to(world.run.artifacts)
        values = {**common_values, **job_values}
        declared = [variable.name for _, variable in variables.declared_variables(runner.step_module(job).Settings)]
        names = [name for name in (*ALWAYS, "AZORA_CI", "GITHUB_WORKSPACE", *declared) if name in values]
        lines = [
            f"# {job} of deployment {release.get('deployment-id', '(none)')}. Holds secrets. Replay it from the application's folder:",
            f"#   set -a; . {shlex.quote(str(world.run.folder / 'replay' / f'{job}.env'))}; set +a",
            f'#   cd "$GITHUB_WORKSPACE"; python "$AZORA_CI/scripts/{job.replace("-", "_")}.py"',
            *(f"{name}={shlex.quote(values[name])}" for name in dict.fromkeys(names)),
        ]
        files[job] = write_private(world.run.path(f"replay/{job}.env"), "\n".join(lines) + "\n")
    return files


def _values(world: World, jobs: Mapping[str, JobRun], release: Mapping[str, str], attempt: int) -> dict[str, str]:
    version = release.get("version", world.application.new)
    environment = world.environment(attempt)
    return {
        **environment,
        "PATH": f"{Path(environment['REHEARSAL_PYTHON']).parent}:{environment['PATH']}",
        **world.variables(),
        **world.secrets(),
        "AWS_ACCESS_KEY_ID": "AKIAREHEARSAL",
        "AWS_SECRET_ACCESS_KEY": world.keys["s3"],
        "DEPLOY_CONFIG": str(world.scratch.folder / CONFIG),
        "DEPLOY_ENVIRONMENT": "production",
        "ROLLBACK_REASON": button.REASON,
        "DEPLOYMENT_ID": release.get("deployment-id", ""),
        "VERSION": version,
        "GIT_SHA": release.get("git-sha", ""),
        "GITHUB_REPOSITORY": world.application.name,
        "DEFAULT_BRANCH": "main",
        "GITHUB_ACTOR": "release-engineer",
        "GITHUB_EVENT_NAME": "push",
        "GITHUB_REF": f"refs/tags/{version}",
        "GITHUB_REF_NAME": version,
        "GITHUB_REF_TYPE": "tag",
        "GITHUB_SHA": release.get("git-sha", ""),
        "NEEDS": json.dumps({name: {"result": run.result, "outputs": run.outputs} for name, run in jobs.items()}),
    }
