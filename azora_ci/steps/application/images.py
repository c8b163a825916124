"""images: run the production build and make one image (or archive) per service, for build-and-push to take over by digest.

The job runs the application's code and holds no secret, so it cannot push. One artifact holds a file for each service; a file
counts by the SHA-256 that this job reports.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.clients.docker import build_context, image_archive
from azora_ci.clients.docker.buildkit import BuildKit, ImageBuild
from azora_ci.clients.docker.images import Docker, ImageLabels
from azora_ci.core.config import DeployConfig, Service
from azora_ci.core.environment import named_secrets
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError
from azora_ci.core.markdown import code, table
from azora_ci.core.settings import Common, Deployment, DockerDaemon
from azora_ci.gates import commands
from azora_ci.steps.job import Job
from azora_ci.targets import parallel
from azora_ci.targets.base import ARCHIVES, IMAGES
from azora_ci.targets.registry import kind_of

BUILDS_AT_ONCE = 3  # a runner of GitHub has four cores; BuildKit itself runs the stages of one image at once


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, DockerDaemon):
    """Access to the daemon."""


def run(job: Job[Settings]) -> None:
    """Build the image or archive of every service and leave it in the hand-over folder. Raises BadInputError, NotTrueError."""
    artifact, isolation = kind_of(job.config).artifact, job.config.build.isolation
    job.evidence |= {"kind": artifact, "isolation": isolation, "builder": None, "commands": [], "services": {}}
    shutil.rmtree(hand_over_folder(job.settings), ignore_errors=True)
    if isolation == "none":
        job.say(f"- nothing is built here: build-and-push builds in place, because {job.config.build.isolation_reason}")
    elif artifact == ARCHIVES:
        production_build(job)
        for_every_service(job, job.config.services, lambda service: _hand_over_archive(job, service))
    else:
        production_build(job)
        _hand_over_images(job)
    _write_summary(job)


def hand_over_folder(settings: Common) -> Path:
    """Return the folder whose files travel as artifacts from images to build-and-push, outside of the workspace."""
    return (settings.runner_temp or Path(tempfile.gettempdir())) / "images"


def archive_name(service: Service, artifact: str) -> str:
    """Return the name of the file that holds a service's archive or image."""
    return f"{service.id}.tar.gz" if artifact == ARCHIVES else f"{service.id}.tar.zst"


def _hand_over_archive(job: Job[Settings], service: Service) -> None:
    started = job.clock.monotonic()
    folder, names = read_context(job, service)
    archive, path, _reused = build_context.store(folder, names, hand_over_folder(job.settings) / service.id)
    final = path.replace(hand_over_folder(job.settings) / archive_name(service, ARCHIVES))
    _record(job, service, started, final, archive.digest, image_id=None, tag=None)
    job.tick(f"archive of {service.id} holds {archive.entries} entries of {service.context}: {archive.digest}, {archive.size_bytes} bytes")


def _hand_over_images(job: Job[Settings]) -> None:
    with daemon_log(job) as log:
        docker = Docker(job.settings.docker_host, credentials=None, log=log, clock=job.clock)
        job.tick(f"Docker {docker.version()} answers")
        buildkit = find_buildkit(job)

        def hand_over(service: Service) -> None:
            started, reference = job.clock.monotonic(), image_reference(job.config, job.settings.version, service)
            buildkit.build(image_build(job, service))
            archive = hand_over_folder(job.settings) / archive_name(service, IMAGES)
            stored = image_archive.write(docker.save(reference), archive)
            image_id = docker.image_id(reference)
            _record(job, service, started, archive, stored.sha256, image_id=image_id, tag=reference)
            job.tick(f"image of {service.id} is {image_id}, {stored.size_bytes} bytes in {archive.name}")

        for_every_service(job, job.config.services, hand_over)


def _record(job: Job[Settings], service: Service, started: float, path: Path, sha256: str, **facts: Any) -> None:
    seconds = round(job.clock.monotonic() - started, 1)
    job.evidence["services"][service.id] = {"sha256": sha256, "bytes": path.stat().st_size, **facts, "seconds": seconds}


def _write_summary(job: Job[Settings]) -> None:
    rows = [(name, code(facts["sha256"]), f"{facts['bytes'] / 1e6:.1f} MB") for name, facts in sorted(job.evidence["services"].items())]
    heading = f"### {job.evidence['kind'].capitalize()} of {job.settings.version}, as the build reports them"
    job.actions.summary(f"{heading}\n\n{table(('Service', 'SHA-256 of the artifact', 'Size'), rows)}" if rows else f"{heading}: none")


# --- building, also in place by build-and-push -------------------------------------------------------------------------


def production_build(job: Job[Any]) -> None:
    """Run the application's production build."""
    for entry in commands.run(job.actions, job.processes, job.clock, "production", job.config.build.commands):
        job.evidence["commands"].append(entry)


def for_every_service(job: Job[Any], services: Iterable[Service], build: Callable[[Service], None]) -> None:
    """Build services, BUILDS_AT_ONCE at a time; one that fails stops no other. Raises an error that names every failure."""
    outcomes = parallel.outcomes(services, build, job.clock, reads=True, at_once=BUILDS_AT_ONCE)
    errors = {outcome.item.id: outcome.error for outcome in outcomes if outcome.error is not None}
    for error in errors.values():
        if len(errors) == 1 or not isinstance(error, AzoraError):
            raise error
    if errors:
        explained = [(name, error) for name, error in errors.items() if isinstance(error, AzoraError)]
        kinds = {type(error) for _, error in explained}
        raise (kinds.pop() if len(kinds) == 1 else NotTrueError)(
            f"{len(errors)} of {len(outcomes)} services do not build",
            what="\n".join(f"{name}: {error.title}: {error.what}" for name, error in explained),
            where="\n".join(f"{name}: {error.where}" for name, error in explained),
            next_step="\n".join(dict.fromkeys(error.next_step for _, error in explained)),
        )


def find_buildkit(job: Job[Any], login: Path | None = None) -> BuildKit:
    """Return BuildKit and record how it is reached. ``login``: folder of a registry's login. Raises BadInputError."""
    buildkit = BuildKit.find(job.processes, job.settings.docker_host, login=login)
    job.evidence["builder"] = " ".join(buildkit.frontend)
    job.tick(f"BuildKit answers through {job.evidence['builder']}")
    return buildkit


def image_reference(config: DeployConfig, version: str, service: Service) -> str:
    """Return the name of a service's image: ``<repository>/<service>:<version>``."""
    assert config.registry is not None  # noqa: S101 - the configuration demands it for every target that runs images
    return f"{config.registry.repository}/{service.id}:{version}"


def image_labels(job: Job[Any], service: Service) -> ImageLabels:
    """Return what the labels of a service's image must say."""
    settings = job.settings
    return ImageLabels(service.id, settings.version, settings.git_sha, settings.deployment_id)


def image_build(job: Job[Any], service: Service) -> ImageBuild:
    """Return how a service's image is built. Raises BadInputError."""
    secrets = named_secrets(service.build.secrets)
    for secret in secrets.values():
        job.log.add_secret(secret.reveal())
    return ImageBuild(
        context=build_context.context_folder(service.context, Path()),
        dockerfile=service.dockerfile,
        reference=image_reference(job.config, job.settings.version, service),
        labels=image_labels(job, service).labels,
        target=service.build.target,
        args=service.build.args,
        platform=service.build.platform,
        secrets=secrets,
        left_out=job.own_folders,
    )


def read_context(job: Job[Any], service: Service) -> tuple[Path, list[str]]:
    """Return the folder of a service's build context and the names in it. Raises BadInputError when there are none."""
    folder = build_context.context_folder(service.context, Path())
    names = build_context.members(folder, dockerfile=service.dockerfile.as_posix(), left_out=job.own_folders)
    if not names:
        raise BadInputError(
            "Build context is empty",
            what=f"nothing in {folder} is left by .dockerignore",
            where=f"services.{service.id}.context",
            next_step="correct the context, or run the production build that fills it in build.commands",
        )
    return folder, names


@contextmanager
def daemon_log(job: Job[Any]) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line from the daemon, masked and wrapped, and adds it with the time to the job's log."""

    def log(line: str) -> None:
        job.actions.print(f"  {job.log.masked(line)}")
        job.log.write(line)

    with job.actions.foreign_output():
        yield log
