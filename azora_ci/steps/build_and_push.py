"""build-and-push: run the production build, then make one image (or archive) per service, identified by its digest."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from azora_ci.clients.docker import build_context, images
from azora_ci.clients.docker.images import Docker, Image, ImageLabels
from azora_ci.core.config import RegistrySettings, Service
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.hosts import is_loopback
from azora_ci.core.markdown import code, table
from azora_ci.core.settings import Deployment
from azora_ci.core.variables import Secret, variable
from azora_ci.gates import commands
from azora_ci.steps.job import Job
from azora_ci.targets.base import ARCHIVES
from azora_ci.targets.registry import kind_of


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment):
    """Access to the daemon and the registry."""

    docker_host: str = variable(
        "DOCKER_HOST", "address of the Docker daemon", example="unix:///var/run/docker.sock", default="unix:///var/run/docker.sock"
    )
    docker_username: Secret | None = variable(
        "DOCKER_USERNAME", "user of the registry; unset: no login", example="azora", required=False, secret=True
    )
    docker_password: Secret | None = variable(
        "DOCKER_PASSWORD", "password or token of the registry", example="dckr_pat_…", required=False, secret=True
    )


def run(job: Job[Settings]) -> None:
    """Build and store the image or archive of every service. Raises BadInputError, NotTrueError, UnreachableError."""
    artifact = kind_of(job.config).artifact
    job.evidence |= {"kind": artifact, "commands": [], "services": {}}
    if artifact == ARCHIVES:
        archive_services(job)
    else:
        build_images(job)
    _publish(job)


def production_build(job: Job[Settings]) -> None:
    """Run the application's production build."""
    for entry in commands.run(job.actions, job.processes, job.clock, "production", job.config.build.commands):
        job.evidence["commands"].append(entry)


# --- archives ---------------------------------------------------------------------------------------------------------


def archive_services(job: Job[Settings]) -> None:
    """Build the application and write one content-addressed archive per service."""
    local = job.config.target.local_processes
    assert local is not None  # noqa: S101 - the configuration demands it for this kind of target
    production_build(job)
    for service in job.config.services:
        started = job.clock.monotonic()
        folder, names = _read_context(job, service)
        archive, path, reused = build_context.store(folder, names, local.archive_dir)
        _record(job, service, started, digest=archive.digest, reference=str(path), size_bytes=archive.size_bytes, reused=reused)
        outcome = "was there already" if reused else f"holds {archive.entries} entries of {service.context}"
        job.tick(f"archive of {service.id} {outcome}: {archive.digest}, {archive.size_bytes} bytes")


# --- images -----------------------------------------------------------------------------------------------------------


def build_images(job: Job[Settings]) -> None:
    """Push one image per service. Images that were pushed from this commit are reused; other images under this version are refused."""
    target = _registry(job)
    with _daemon_log(job) as log:
        docker = Docker(job.settings.docker_host, credentials=_credentials(job.settings), log=log, clock=job.clock)
        job.tick(f"Docker {docker.version()} answers")
        if docker.check_login(target.repository):
            job.tick(f"the registry of {target.repository} accepts the login")
        missing = [service for service in job.config.services if not recognise_image(job, docker, target, service)]
        if missing:
            production_build(job)
        for service in missing:
            build_image(job, docker, target, service)


def recognise_image(job: Job[Settings], docker: Docker, target: RegistrySettings, service: Service) -> bool:
    """Return whether the registry has a service's image of this release, and record the image. Raises NotTrueError for another image."""
    release, reference, started = _release(job, service), _reference(job, target, service), job.clock.monotonic()
    digest = docker.find(reference)
    if digest is None:
        return False
    image = docker.pull(reference, digest)
    standing = release.standing(image.labels)
    if standing == "foreign":
        raise foreign_image_error(release, image)
    if standing == "same":
        _record_image(job, service, started, image, reused=True)
        job.tick(f"{reference} was pushed before from the same commit: {digest}")
    return standing == "same"


def foreign_image_error(release: ImageLabels, image: Image) -> NotTrueError:
    """Return the error for another image under the version's tag: a published version is never replaced."""
    labels = {name: image.labels.get(name, "(none)") for name in release.labels}
    differences = [f"{name}: {labels[name]}, expected {expected}" for name, expected in release.labels.items() if labels[name] != expected]
    return NotTrueError(
        "Another image has this version",
        what=f"{image.digest} was not made from this release\n" + "\n".join(differences),
        where=image.reference,
        next_step="release under a new version, or remove the tag from the registry if it was never deployed",
    )


def build_image(job: Job[Settings], docker: Docker, target: RegistrySettings, service: Service) -> None:
    """Build and push one image."""
    started, reference = job.clock.monotonic(), _reference(job, target, service)
    folder, names = _read_context(job, service)
    if service.dockerfile.as_posix() not in names:
        raise BadInputError(
            "No Dockerfile",
            what=f"{service.dockerfile} is not in the build context",
            where=str(folder),
            next_step=f"correct services.{service.id}.dockerfile, which is relative to the context",
        )
    with job.actions.group(f"image of {service.id}"), tempfile.TemporaryFile() as context:
        build_context.write(folder, names, context, self_contained=False)
        context.seek(0)
        _build(job, docker, service, context)
        image = docker.push(reference)
    _record_image(job, service, started, image, reused=False)
    job.tick(f"{reference} is in the registry: {image.digest}, {image.size_bytes} bytes")


def _build(job: Job[Settings], docker: Docker, service: Service, context: IO[bytes]) -> None:
    target = _registry(job)
    docker.build(
        context,
        dockerfile=service.dockerfile.as_posix(),
        reference=_reference(job, target, service),
        labels=_release(job, service).labels,
    )


def _registry(job: Job[Settings]) -> RegistrySettings:
    target = job.config.registry
    assert target is not None  # noqa: S101 - the configuration demands it for every target that runs images
    if target.insecure and not is_loopback(f"http://{target.repository}"):
        raise BadInputError(
            "RegistrySettings without encryption",
            what=f"registry.insecure is true, and {target.repository} is not on loopback",
            where=str(job.settings.config_path),
            next_step="give the registry a certificate and remove registry.insecure",
        )
    return target


def _credentials(settings: Settings) -> tuple[Secret, Secret] | None:
    if settings.docker_username and settings.docker_password:
        return settings.docker_username, settings.docker_password
    if settings.docker_username or settings.docker_password:
        raise BadInputError(
            "Half a login",
            what="one of DOCKER_USERNAME and DOCKER_PASSWORD is set, the other is not",
            where="environment variables of this step",
            next_step="set both, or neither for a registry without a login",
        )
    return None


def _reference(job: Job[Settings], target: RegistrySettings, service: Service) -> str:
    return f"{target.repository}/{service.id}:{job.settings.version}"


def _release(job: Job[Settings], service: Service) -> ImageLabels:
    settings = job.settings
    return images.ImageLabels(service.id, settings.version, settings.git_sha, settings.deployment_id)


@contextmanager
def _daemon_log(job: Job[Settings]) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line from the daemon, masked and wrapped, and adds it with the time to the job's log."""

    def log(line: str) -> None:
        job.actions.print(f"  {job.log.masked(line)}")
        job.log.write(line)

    with job.actions.foreign_output():
        yield log


# --- images and archives ----------------------------------------------------------------------------------------------


def _read_context(job: Job[Settings], service: Service) -> tuple[Path, list[str]]:
    folder = build_context.context_folder(service.context, Path())
    logs = job.settings.log_dir
    left_out = (logs, *logs.parent.glob(f"{logs.name}.refused-*"), job.settings.received_dir)
    names = build_context.members(folder, dockerfile=service.dockerfile.as_posix(), left_out=left_out)
    if not names:
        raise BadInputError(
            "Build context is empty",
            what=f"nothing in {folder} is left by .dockerignore",
            where=f"services.{service.id}.context",
            next_step="correct the context, or run the production build that fills it in build.commands",
        )
    return folder, names


def _record_image(job: Job[Settings], service: Service, started: float, image: Image, *, reused: bool) -> None:
    _record(job, service, started, digest=image.digest, reference=image.reference, size_bytes=image.size_bytes, reused=reused)


def _record(job: Job[Settings], service: Service, started: float, **facts: Any) -> None:
    job.evidence["services"][service.id] = facts | {"seconds": round(job.clock.monotonic() - started, 1)}


def _publish(job: Job[Settings]) -> None:
    services = job.evidence["services"]
    job.evidence["seconds"] = round(sum(facts["seconds"] for facts in [*services.values(), *job.evidence["commands"]]), 1)
    digests = {name: facts["digest"] for name, facts in services.items()}
    job.actions.output("digests", json.dumps(digests, sort_keys=True))
    rows = [
        (name, code(facts["digest"]), f"{facts['size_bytes'] / 1e6:.1f} MB", "recognised" if facts["reused"] else "new")
        for name, facts in services.items()
    ]
    services_table = table(("Service", "Digest", "Size", ""), rows)
    job.actions.summary(f"### {job.evidence['kind'].capitalize()} of {job.settings.version}\n\n{services_table}")
