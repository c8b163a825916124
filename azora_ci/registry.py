"""Edge to the Docker daemon and, through it, to the registry. Credentials go with each call; nothing is written to disk.

Protocol: Docker Engine API (``/build``, ``/images/{name}/push``, ``/distribution/{name}/json``). The daemon speaks to the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from azora_ci.clock import Clock
from azora_ci.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.settings import Secret

VERSION_LABEL = "org.opencontainers.image.version"
REVISION_LABEL = "org.opencontainers.image.revision"
DEPLOYMENT_LABEL = "azora-ci.deployment-id"
SERVICE_LABEL = "azora-ci.service"
TIMEOUT_SECONDS = 3600  # between two lines of the daemon: a build step may be silent for long; the job has its own limit
PUSH_ATTEMPTS = 3  # layers that arrived are not sent again
REFUSALS = ("denied", "unauthorized", "authentication required", "no basic auth", "incorrect username", "forbidden")
LAST_LINES = 40  # of a failed build that the error shows; all of them are in the log
DOCKER_HUB = "https://index.docker.io/v1/"


@dataclass(frozen=True)
class Release:
    """What an image is made for; its labels say so."""

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
        """Say what an image under this version's tag is: ``same`` (this service and commit), ``ours`` (this deployment), ``foreign``."""
        agrees = {name for name, value in self.labels.items() if labels.get(name) == value}
        if agrees >= {SERVICE_LABEL, VERSION_LABEL, REVISION_LABEL}:
            return "same"
        return "ours" if DEPLOYMENT_LABEL in agrees else "foreign"


@dataclass(frozen=True)
class Image:
    """An image in the registry: ``<repository>:<tag>``, digest of its manifest, size in bytes when unpacked, labels."""

    reference: str
    digest: str
    size_bytes: int
    labels: Mapping[str, str]


def host_of(repository: str) -> str:
    """Return the registry's host of ``host[:port]/namespace``; Docker Hub's own address for ``docker.io``."""
    host = repository.partition("/")[0]
    return DOCKER_HUB if host in {"docker.io", "index.docker.io"} else host


class Docker:
    """A Docker daemon at ``base_url``. ``credentials`` are (user, password) of the registry; ``log`` gets every line of the daemon."""

    def __init__(self, base_url: str, *, credentials: tuple[Secret, Secret] | None, log: Callable[[str], None], clock: Clock) -> None:
        self._base_url = base_url
        self._auth = {"username": credentials[0].reveal(), "password": credentials[1].reveal()} if credentials else {}
        self._log = log
        self._clock = clock
        self._api = self._connected()

    def _connected(self) -> Any:
        import docker
        from docker.errors import DockerException

        try:
            return docker.APIClient(base_url=self._base_url, version="auto", timeout=TIMEOUT_SECONDS)
        except DockerException as error:
            raise UnreachableError(
                "Docker does not answer",
                what=str(error)[:500],
                where=self._base_url,
                next_step="start the Docker daemon, or correct DOCKER_HOST",
            ) from error

    def version(self) -> str:
        """Return the daemon's version."""
        with self._asking(self._base_url):
            return str(self._api.version()["Version"])

    def check_login(self, repository: str) -> bool:
        """Try the credentials at the registry; False when there are none. They stay in memory. Raises BadInputError, UnreachableError."""
        if not self._auth:
            return False
        with self._asking(host_of(repository)):
            self._api.login(self._auth["username"], password=self._auth["password"], registry=host_of(repository), reauth=True)
        return True

    def find(self, reference: str) -> str | None:
        """Return the digest that the registry has under a reference, or None. Raises BadInputError, UnreachableError.

        Docker Hub answers "denied" for a repository that does not exist yet, also to its owner: with a login that is taken as "not
        there", and the push says whether access is missing.
        """
        from docker.errors import APIError, NotFound

        with self._asking(reference):
            try:
                return str(self._api.inspect_distribution(reference, auth_config=self._auth)["Descriptor"]["digest"])
            except NotFound:
                return None
            except APIError as error:
                if not self._auth or "denied" not in str(error.explanation).lower():
                    raise
                self._log(f"{reference} is not there, or may not be read: {error.explanation}")
                return None

    def pulled(self, reference: str, digest: str) -> Image:
        """Pull an image by its digest and say what it is. Raises BadInputError, UnreachableError."""
        repository = reference.rpartition(":")[0]
        with self._asking(reference):
            self._follow(self._api.pull(repository, tag=digest, stream=True, decode=True, auth_config=self._auth), reference)
        return self._image(f"{repository}@{digest}", reference, digest)

    def _image(self, local: str, reference: str, digest: str) -> Image:
        with self._asking(reference):
            found = self._api.inspect_image(local)
        return Image(reference, digest, int(found["Size"]), found["Config"].get("Labels") or {})

    def build(self, context: IO[bytes], *, dockerfile: str, reference: str, labels: Mapping[str, str]) -> None:
        """Build an image from a tar.gz and name it. Raises NotTrueError with the last lines of a build that failed."""
        lines: list[str] = []

        def keep(line: str) -> None:
            lines.append(line)
            self._log(line)

        with self._asking(reference):
            answers = self._api.build(
                fileobj=context, custom_context=True, encoding="gzip", dockerfile=dockerfile, tag=reference,
                labels=dict(labels), rm=True, forcerm=True, decode=True,
            )  # fmt: skip
            problem = _problem(answers, keep)
        if problem:
            shown = "\n".join(lines[-LAST_LINES:])
            raise NotTrueError(
                "Image does not build",
                what=f"{problem}\nlast lines of the build:\n{shown or '(none)'}",
                where=f"{dockerfile} of {reference}",
                next_step="repair the Dockerfile or what it runs, and release a new version",
            )

    def push(self, reference: str) -> Image:
        """Push an image, and ask the registry which digest it has now. Raises BadInputError, UnreachableError, NotTrueError."""
        for attempt in range(1, PUSH_ATTEMPTS + 1):
            try:
                said = self._push(reference)
                break
            except UnreachableError as error:
                if attempt == PUSH_ATTEMPTS:
                    raise
                self._log(f"push of {reference}, attempt {attempt} of {PUSH_ATTEMPTS}: {error.what}")
                self._clock.sleep(attempt)
        digest = self.find(reference)
        if digest is None or digest != said:
            raise NotTrueError(
                "Registry has another image",
                what=f"the push ended with digest {said}, the registry answers {digest or 'that there is none'}",
                where=reference,
                next_step="find out what else pushes this tag, then re-run the job",
            )
        return self._image(reference, reference, digest)

    def _push(self, reference: str) -> str:
        repository, _, tag = reference.rpartition(":")
        digest = ""

        def watch(answers: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            nonlocal digest
            for answer in answers:
                digest = (answer.get("aux") or {}).get("Digest", digest)
                yield answer

        with self._asking(reference):
            answers = self._api.push(repository, tag=tag, stream=True, decode=True, auth_config=self._auth)
            self._follow(watch(answers), reference)
        return digest

    def _follow(self, answers: Iterable[dict[str, Any]], reference: str) -> None:
        problem = _problem(answers, self._log)
        if problem:
            raise _registry_error(problem, reference)

    @contextmanager
    def _asking(self, where: str) -> Iterator[None]:
        """Turn the SDK's exceptions into ours."""
        import requests
        from docker.errors import DockerException

        try:
            yield
        except (DockerException, requests.RequestException) as error:
            raise _registry_error(str(getattr(error, "explanation", None) or error), where) from error


def _problem(answers: Iterable[dict[str, Any]], log: Callable[[str], None]) -> str:
    """Log the lines of a stream of answers, without progress bars; return its error, empty when there was none."""
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
