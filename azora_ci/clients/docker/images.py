"""A client of the Docker daemon and, through it, of the registry. Every call carries credentials; nothing is written to disk.

Protocol: Docker Engine API (``/images/{name}/push``, ``/images/load``, ``/distribution/{name}/json``). The daemon speaks to the registry.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.clients.docker import engine, image_archive
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.core.variables import Secret

VERSION_LABEL = "org.opencontainers.image.version"
REVISION_LABEL = "org.opencontainers.image.revision"
DEPLOYMENT_LABEL = "azora-ci.deployment-id"
SERVICE_LABEL = "azora-ci.service"
TIMEOUT_SECONDS = 3600  # between two lines of the daemon: a build step may be silent for long; the job has a separate limit
PUSH_ATTEMPTS = 3  # layers that the registry has are not sent again
REFUSALS = ("denied", "unauthorized", "authentication required", "no basic auth", "incorrect username", "forbidden")


@dataclass(frozen=True)
class ImageLabels:
    """The release that an image is built for, as recorded in its labels."""

    service: str
    version: str
    git_sha: str
    deployment_id: str

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of the image."""
        return {
            VERSION_LABEL: self.version,
            REVISION_LABEL: self.git_sha,
            DEPLOYMENT_LABEL: self.deployment_id,
            SERVICE_LABEL: self.service,
        }

    def standing(self, labels: Mapping[str, str]) -> str:
        """Classify an image by its labels: ``same`` (this service, version, commit), ``ours`` (this deployment) or ``foreign``."""
        matching = {name for name, value in self.labels.items() if labels.get(name) == value}
        if matching >= {SERVICE_LABEL, VERSION_LABEL, REVISION_LABEL}:
            return "same"
        return "ours" if DEPLOYMENT_LABEL in matching else "foreign"


@dataclass(frozen=True)
class Image:
    """An image in the registry: ``<repository>:<tag>``, digests of its manifest and configuration, size when unpacked, labels."""

    reference: str
    digest: str
    image_id: str
    size_bytes: int
    labels: Mapping[str, str]


class Docker:
    """A Docker daemon at ``base_url``. ``credentials`` are (user, password) of the registry; ``log`` gets every line of the daemon."""

    def __init__(self, base_url: str, *, credentials: tuple[Secret, Secret] | None, log: Callable[[str], None], clock: Clock) -> None:
        self._base_url = base_url
        self._auth = {"username": credentials[0].reveal(), "password": credentials[1].reveal()} if credentials else {}
        self._log = log
        self._clock = clock
        self._api = self._connect()

    def _connect(self) -> Any:
        def explained(_answer: str, error: Exception) -> UnreachableError:
            next_step = "start the Docker daemon, or correct DOCKER_HOST"
            return UnreachableError("Docker does not answer", what=str(error)[:500], where=self._base_url, next_step=next_step)

        with engine.translated_errors(explained):
            return engine.open_api(self._base_url, version="auto", timeout=TIMEOUT_SECONDS)

    def version(self) -> str:
        """Return the daemon's version."""
        with _translated_errors(self._base_url):
            return str(self._api.version()["Version"])

    def check_login(self, repository: str) -> bool:
        """Log in at the registry, in memory only; return False without credentials. Raises BadInputError, UnreachableError."""
        if not self._auth:
            return False
        registry = engine.registry_host(repository, engine.DOCKER_HUB_LOGIN)
        with _translated_errors(registry):
            self._api.login(self._auth["username"], password=self._auth["password"], registry=registry, reauth=True)
        return True

    def find(self, reference: str) -> str | None:
        """Return the digest of a reference in the registry, or None. Raises BadInputError, UnreachableError.

        Docker Hub answers "denied" for a repository that does not exist yet, even to its owner: with credentials that answer
        returns None, and the later push fails if access is missing.
        """
        from docker.errors import APIError, NotFound

        with _translated_errors(reference):
            try:
                return str(self._api.inspect_distribution(reference, auth_config=self._auth)["Descriptor"]["digest"])
            except NotFound:
                return None
            except APIError as error:
                if not self._auth or "denied" not in str(error.explanation).lower():
                    raise
                self._log(f"{reference} is not there, or may not be read: {error.explanation}")
                return None

    def pull(self, reference: str, digest: str) -> Image:
        """Pull an image by its digest and return it. Raises BadInputError, UnreachableError."""
        repository = reference.rpartition(":")[0]
        with _translated_errors(reference):
            self._log_until_end(engine.pull(self._api, repository, digest, self._auth), reference)
        return self._image(f"{repository}@{digest}", reference, digest)

    def _image(self, local: str, reference: str, digest: str) -> Image:
        with _translated_errors(reference):
            description = self._api.inspect_image(local)
        return Image(reference, digest, self.image_id(local), int(description["Size"]), description["Config"].get("Labels") or {})

    def save(self, reference: str) -> Iterator[bytes]:
        """Yield what ``docker save`` writes of an image. Raises UnreachableError."""
        with _translated_errors(reference):
            yield from self._api.get_image(reference)

    def load(self, chunks: Iterable[bytes], reference: str) -> None:
        """Load an archive, of which nothing is run. Raises NotTrueError when the daemon refuses it, UnreachableError."""
        with _translated_errors(reference):
            problem = _log_lines(self._api.load_image(chunks), self._log)
        if problem:
            next_step = "find out what the build wrote; re-run all jobs"
            raise NotTrueError("Docker refuses the image archive", what=problem[:1000], where=reference, next_step=next_step)

    def image_id(self, reference: str) -> str:
        """Return the digest (``sha256:<hex>``) of the configuration of an image in the daemon. Raises UnreachableError.

        A daemon that keeps images in containerd's store calls the manifest's digest the id; there the saved image is read.
        """
        with _translated_errors(reference):
            description = self._api.inspect_image(reference)
        image_id = str(description["Id"])
        return image_id if not description.get("Descriptor") else self._saved_id(reference)

    def _saved_id(self, reference: str) -> str:
        with tempfile.TemporaryDirectory(prefix="image-") as folder:
            archive = Path(folder, "image.tar.zst")
            image_archive.write(self.save(reference), archive)
            with image_archive.opened(archive, None) as image:
                return image.image_id

    def push(self, reference: str, image_id: str) -> Image:
        """Push an image and return it as the registry has it, which must be ``image_id``.

        Raises BadInputError, UnreachableError, NotTrueError.
        """
        for attempt in self._clock.attempts(PUSH_ATTEMPTS):
            try:
                pushed_digest = self._push(reference)
                break
            except UnreachableError as error:
                if attempt.last:
                    raise
                self._log(f"push of {reference}, {attempt}: {error.what}")
        digest = self.find(reference)
        if digest is None or digest != pushed_digest:
            raise _another_image(
                f"the push ended with digest {pushed_digest}, the registry answers {digest or 'that there is none'}", reference
            )
        pushed = self.pull(reference, digest)
        if pushed.image_id != image_id:
            raise _another_image(f"{image_id} was pushed, the registry's {digest} has the configuration {pushed.image_id}", reference)
        return pushed

    def _push(self, reference: str) -> str:
        repository, _, tag = reference.rpartition(":")
        digest = ""

        def watch_digest(answers: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            nonlocal digest
            for answer in answers:
                digest = (answer.get("aux") or {}).get("Digest", digest)
                yield answer

        with _translated_errors(reference):
            answers = self._api.push(repository, tag=tag, stream=True, decode=True, auth_config=self._auth)
            self._log_until_end(watch_digest(answers), reference)
        return digest

    def _log_until_end(self, answers: Iterable[dict[str, Any]], reference: str) -> None:
        problem = _log_lines(answers, self._log)
        if problem:
            raise _registry_error(problem, reference)


def _translated_errors(where: str) -> AbstractContextManager[None]:
    """Turn the SDK's exceptions into BadInputError or UnreachableError."""
    return engine.translated_errors(lambda answer, error: _registry_error(answer or str(error), where))


def _log_lines(answers: Iterable[dict[str, Any]], log: Callable[[str], None]) -> str:
    """Log the lines of a stream of answers, without progress bars; return its error, empty if there was none."""
    partial = problem = ""
    for answer in answers:
        problem = str(answer["error"]).strip() if "error" in answer else problem
        partial += answer.get("stream", "")
        if "status" in answer and "progress" not in answer:
            partial += f"{answer['id']}: {answer['status']}\n" if answer.get("id") else f"{answer['status']}\n"
        *lines, partial = partial.split("\n")
        for line in lines:
            if line.strip():
                log(line.rstrip())
    if partial.strip():
        log(partial.rstrip())
    return problem


def _another_image(difference: str, reference: str) -> NotTrueError:
    next_step = "find out what else pushes this tag, then re-run the job"
    return NotTrueError("Registry has another image", what=difference, where=reference, next_step=next_step)


def _registry_error(problem: str, where: str) -> AzoraError:
    if any(word in problem.lower() for word in REFUSALS):
        return BadInputError(
            "Registry refuses access",
            what=problem[:1000],
            where=where,
            next_step="check DOCKER_USERNAME and DOCKER_PASSWORD, and that this user may push there",
        )
    return UnreachableError(
        "Docker or its registry does not do what was asked",
        what=problem[:1000],
        where=where,
        next_step="check the daemon and the registry, then re-run the job: what has been pushed is recognised",
    )
