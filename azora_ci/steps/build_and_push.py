"""build-and-push: take over what the job images built, store it where production fetches it, and name its digests.

The job holds the registry's password, so it runs no code of the application, unless ``build.isolation`` is "none".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.clients.docker import build_context, buildkit, image_archive
from azora_ci.clients.docker.images import Docker, Image, ImageLabels
from azora_ci.core.config import RegistrySettings, Service
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.hosts import is_loopback
from azora_ci.core.markdown import code, table
from azora_ci.core.settings import Deployment, DockerDaemon
from azora_ci.core.variables import Secret, variable
from azora_ci.steps.application import images
from azora_ci.steps.job import Job
from azora_ci.targets.base import ARCHIVES, IMAGES
from azora_ci.targets.registry import kind_of


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, DockerDaemon):
    """Access to the daemon and the registry."""

    docker_username: Secret | None = variable(
        "DOCKER_USERNAME", "user of the registry; unset: no login", example="azora", required=False, secret=True
    )
    docker_password: Secret | None = variable(
        "DOCKER_PASSWORD", "password or token of the registry", example="dckr_pat_…", required=False, secret=True
    )


def run(job: Job[Settings]) -> None:
    """Store the image or archive of every service. Raises BadInputError, NotTrueError, UnreachableError."""
    artifact, build = kind_of(job.config).artifact, job.config.build
    job.evidence |= {"kind": artifact, "isolation": build.isolation, "builder": None, "commands": [], "services": {}}
    if build.isolation == "none":
        job.evidence["override_reason"] = f"images are built beside secrets: {build.isolation_reason}"
        job.actions.warning("The application's build runs beside secrets", f"build.isolation is none: {build.isolation_reason}")
    if artifact == ARCHIVES:
        store_archives(job)
    else:
        store_images(job)
    _publish(job)


# --- what the job images handed over -----------------------------------------------------------------------------------


def reported_services(job: Job[Settings]) -> Mapping[str, Mapping[str, Any]]:
    """Return what the job images reports of each service: sha256, bytes, image_id, tag. Raises NotTrueError without such evidence."""
    services: dict[str, dict[str, Any]] = job.fragments.require("images").evidence["services"]
    missing = [service.id for service in job.config.services if service.id not in services]
    if missing:
        raise NotTrueError(
            "Images were not built",
            what=f"the job images reports nothing of {', '.join(missing)}",
            where="fragment of images",
            next_step="re-run all jobs",
        )
    return services


def handed_over(job: Job[Settings], service: Service, artifact: str, sha256: str) -> Path:
    """Return the file of a service that has this SHA-256, from whatever attempt. Raises NotTrueError when there is none."""
    name = images.archive_name(service, artifact)
    candidates = sorted(images.hand_over_folder(job.settings).glob(f"**/{name}"))
    for path in candidates:
        if path.is_file() and not path.is_symlink() and build_context.digest_of(path) == sha256:
            return path
    raise NotTrueError(
        "Image artifact is missing",
        what=f"none of {len(candidates)} files {name} has the SHA-256 {sha256} that the job images reported",
        where=str(images.hand_over_folder(job.settings)),
        next_step="re-run all jobs; an artifact of an image is kept for one day",
    )


# --- archives ---------------------------------------------------------------------------------------------------------


def store_archives(job: Job[Settings]) -> None:
    """Put the archive of every service under its digest into the archive folder; a build in place makes it there."""
    in_place = job.config.build.isolation == "none"
    if in_place:
        images.production_build(job)
    reported = {} if in_place else reported_services(job)
    for service in job.config.services:
        store_archive(job, service, reported.get(service.id))


def store_archive(job: Job[Settings], service: Service, reported: Mapping[str, Any] | None) -> None:
    """Store one archive: what was ``reported`` and handed over, or without that the service's build context."""
    local, started = job.config.target.local_processes, job.clock.monotonic()
    assert local is not None  # noqa: S101 - the configuration demands it for this kind of target
    if reported is None:
        folder, names = images.read_context(job, service)
        archive, path, reused = build_context.store(folder, names, local.archive_dir)
        digest = archive.digest
    else:
        digest = str(reported["sha256"])
        path, reused = build_context.put(handed_over(job, service, ARCHIVES, digest), digest, local.archive_dir)
    size = path.stat().st_size
    _record(job, service, started, digest=digest, reference=str(path), size_bytes=size, reused=reused)
    job.tick(f"archive of {service.id} {'was there already' if reused else 'is stored'}: {digest}, {size} bytes")


# --- images -----------------------------------------------------------------------------------------------------------


def store_images(job: Job[Settings]) -> None:
    """Push one image per service. Images that were pushed from this commit are reused; other images under this version are refused."""
    registry = _registry(job)
    with images.daemon_log(job) as log:
        docker = Docker(job.settings.docker_host, credentials=_credentials(job.settings), log=log, clock=job.clock)
        job.tick(f"Docker {docker.version()} answers")
        if docker.check_login(registry.repository):
            job.tick(f"the registry of {registry.repository} accepts the login")
        missing = [service for service in job.config.services if not recognise_image(job, docker, service)]
        if not missing:
            return
        if job.config.build.isolation == "none":
            build_in_place(job, docker, missing)
            return
        reported = reported_services(job)
        for service in missing:
            load_and_push(job, docker, service, reported[service.id])


def build_in_place(job: Job[Settings], docker: Docker, missing: list[Service]) -> None:
    """Run the application's build here, beside the registry's password, and push its images."""
    images.production_build(job)
    with buildkit.login_folder(_registry(job).repository, _credentials(job.settings)) as login:
        builder = images.find_buildkit(job, login)

        def build_and_push(service: Service) -> None:
            started, reference = job.clock.monotonic(), _reference(job, service)
            builder.build(images.image_build(job, service))
            _record_image(job, service, started, docker.push(reference, docker.image_id(reference)), reused=False)

        images.for_every_service(job, missing, build_and_push)


def load_and_push(job: Job[Settings], docker: Docker, service: Service, reported: Mapping[str, Any]) -> None:
    """Load what was handed over of a service, which runs nothing, and push it. Raises NotTrueError for any other image than reported."""
    started, reference = job.clock.monotonic(), _reference(job, service)
    path = handed_over(job, service, IMAGES, reported["sha256"])
    with image_archive.opened(path, reference) as image:
        release = images.image_labels(job, service)
        if image.image_id != reported["image_id"] or release.standing(image.labels) != "same":
            raise _not_the_reported(release, image, reported)
        docker.load(image.chunks(reference), reference)
        pushed = docker.push(reference, image.image_id)
    _record_image(job, service, started, pushed, reused=False)


def _not_the_reported(release: ImageLabels, image: image_archive.ArchivedImage, reported: Mapping[str, Any]) -> NotTrueError:
    return NotTrueError(
        "Image archive is refused",
        what=f"it holds {image.image_id}, reported was {reported['image_id']}\n" + "\n".join(_differences(release, image.labels)),
        where=f"the archive of {release.service}",
        next_step="find out what the application's build does to its images; re-run all jobs",
    )


def recognise_image(job: Job[Settings], docker: Docker, service: Service) -> bool:
    """Return whether the registry has a service's image of this release, and record the image. Raises NotTrueError for another image."""
    release, reference, started = images.image_labels(job, service), _reference(job, service), job.clock.monotonic()
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
    return NotTrueError(
        "Another image has this version",
        what=f"{image.digest} was not made from this release\n" + "\n".join(_differences(release, image.labels)),
        where=image.reference,
        next_step="release under a new version, or remove the tag from the registry if it was never deployed",
    )


def _differences(release: ImageLabels, labels: Mapping[str, str]) -> list[str]:
    """Return a line for each label that is not the release's."""
    actual = {name: labels.get(name, "(none)") for name in release.labels}
    return [f"{name}: {actual[name]}, expected {expected}" for name, expected in release.labels.items() if actual[name] != expected]


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


def _reference(job: Job[Settings], service: Service) -> str:
    return images.image_reference(job.config, job.settings.version, service)


def _record_image(job: Job[Settings], service: Service, started: float, image: Image, *, reused: bool) -> None:
    facts = {"digest": image.digest, "reference": image.reference, "image_id": image.image_id, "size_bytes": image.size_bytes}
    _record(job, service, started, **facts, reused=reused)
    if not reused:
        job.tick(f"{image.reference} is in the registry: {image.digest}, {image.size_bytes} bytes")


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
