"""build: run the application's build and prepare commands, and pack the tree that its migrations need.

The job runs the application's code and holds no secret. It ends well when a command fails: the exit code is evidence, which
pre-deployment-validation judges.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.clients.docker import build_context
from azora_ci.clients.docker.buildkit import BuildKit, ImageBuild
from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import BadInputError
from azora_ci.core.markdown import code, table
from azora_ci.core.process import CommandFailedError, tree
from azora_ci.core.settings import Common, Deployment, DockerDaemon
from azora_ci.database.migrations import tree as handed_over
from azora_ci.gates import commands
from azora_ci.steps.job import Job
from azora_ci.targets.base import IMAGES
from azora_ci.targets.registry import kind_of


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, DockerDaemon):
    """Access to the daemon, which parses Dockerfiles."""


def run(job: Job[Settings]) -> None:
    """Run every command until one fails; when all succeed, pack the tree where it is needed. Raises BadInputError, OSError."""
    job.evidence |= {"commands": [], "dockerfiles": [], "tree": None}
    shutil.rmtree(tree_folder(job.settings), ignore_errors=True)
    try:
        for purpose, argvs in demanded_commands(job.config).items():
            for entry in commands.run(job.actions, job.processes, job.clock, purpose, argvs):
                job.evidence["commands"].append(entry)
    except CommandFailedError as failure:
        job.log.annotate(failure.title, f"{failure.message()}\npre-deployment-validation closes the gate")
    else:
        if kind_of(job.config).artifact == IMAGES:
            check_dockerfiles(job)
        pack_tree(job)
    _write_summary(job)


def demanded_commands(config: DeployConfig) -> dict[str, tuple[Any, ...]]:
    """Return purpose -> commands that must have ended with exit code 0 before anything is changed."""
    return {"build": config.checks.build, "prepare": config.database.prepare}


def check_dockerfiles(job: Job[Settings]) -> None:
    """Have BuildKit parse every Dockerfile that is there, so that one it cannot build stops the release before anything is changed.

    Raises BadInputError without BuildKit. A Dockerfile that the production build makes is parsed by the job images only.
    """
    services = [service for service in job.config.services if (service.context / service.dockerfile).is_file()]
    buildkit = BuildKit.find(job.processes, job.settings.docker_host) if services else None
    for service in services:
        assert buildkit is not None  # noqa: S101 - there are services
        context = build_context.context_folder(service.context, Path())
        problem = None
        try:
            buildkit.check(ImageBuild(context, service.dockerfile, service.id, {}))
            job.tick(f"BuildKit parses {service.context / service.dockerfile}")
        except BadInputError as error:
            problem = {"title": error.title, "what": error.what, "where": error.where, "next": error.next_step}
            job.log.annotate(error.title, error.message())
        job.evidence["dockerfiles"].append({"service": service.id, "problem": problem})


def needs_tree(config: DeployConfig) -> bool:
    """Say whether migrations need the tree: a command of another tool's, commands that prepare, or a folder of Prisma's migrations."""
    database = config.database
    return database.tool == "command" or (database.tool == "prisma" and (bool(database.prepare) or database.migrations_dir.is_dir()))


def tree_folder(settings: Common) -> Path:
    """Return the folder whose file travels as the artifact application-tree, outside of the workspace."""
    return (settings.runner_temp or Path(tempfile.gettempdir())) / handed_over.ARTIFACT


def pack_tree(job: Job[Settings]) -> None:
    """Pack the workspace but .git for the job that migrates, where there is something to migrate with. Raises OSError."""
    folder = tree_folder(job.settings)
    if not needs_tree(job.config):
        job.say("- no tree is handed over: there are no migrations")
        return
    folder.mkdir(parents=True)
    own = build_context.names_below(Path.cwd(), (*job.own_folders, folder))
    packed = tree.pack(Path.cwd(), folder / handed_over.FILE, own, job.say)
    job.evidence["tree"] = packed.evidence()
    job.tick(f"the tree holds {packed.entries} entries, {packed.bytes} bytes: {packed.sha256}")
    for name in packed.left_out:
        job.say(f"- left out, because it leads out of the workspace: {name}")


def _write_summary(job: Job[Settings]) -> None:
    rows = [
        (code(" ".join(entry["argv"])), entry["purpose"], f"exit code {entry['exit_code']}, {entry['seconds']} s")
        for entry in job.evidence["commands"]
    ]
    heading = f"### Build of {job.settings.version}, as it reports itself"
    job.actions.summary(f"{heading}\n\n{table(('Command', 'Purpose', 'Result'), rows)}" if rows else f"{heading}: no commands")
