"""Build images with BuildKit, through the first ``docker`` on the PATH that brings it: the plug-in buildx, or the CLI itself.

The classic builder is never used: it leaves ``TARGETARCH`` empty and knows neither mounts nor platforms. Which CLI brings BuildKit
is tried out by a build without content, because versions do not tell: Debian's 20.10 does, a 28.x without the plug-in does not.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from azora_ci.clients.docker import build_context, engine
from azora_ci.core.environment import process_environment
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.core.process import Completed, Processes
from azora_ci.core.variables import Secret

PROBE = "FROM --platform=$BUILDPLATFORM scratch\n"  # the classic builder leaves BUILDPLATFORM empty and refuses it
NO_STAGE = "azora-ci-only-parses"
PROBE_SECONDS = 120.0  # the builder of a docker-container driver is fetched first
LAST_LINES = 40  # the most lines of a failed build in the error; the log has all of them
_PARSE_ERROR = re.compile(r"dockerfile parse error (?:on )?line (?P<line>\d+): (?P<problem>.*)", re.IGNORECASE)
_UNKNOWN_FLAG = re.compile(r"unknown flag: -*(?P<flag>[\w-]+)", re.IGNORECASE)
_HERE_DOCUMENT = re.compile(r"<<-?([\"']?)(?P<word>\w+)\1")
_UNANSWERED = ("dial tcp", "no such host", "i/o timeout", "toomanyrequests", "failed to do request", "cannot connect to the docker", "eof")
_REFUSED = ("access denied", "401 unauthorized", "insufficient_scope", "403 forbidden")
_COMMAND_FAILED = ("executor failed running", "did not complete successfully")  # of a RUN, whose text is in the line


@dataclass(frozen=True)
class ImageBuild:
    """An image to build: folder, Dockerfile relative to it, ``<repository>:<tag>``, labels; names below ``context`` to leave out."""

    context: Path
    dockerfile: Path
    reference: str
    labels: Mapping[str, str]
    target: str | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    left_out: Sequence[Path] = ()

    @property
    def file(self) -> str:
        """Return the path of the Dockerfile for people: relative to this process's folder where it is below."""
        path, root = self.context / self.dockerfile, Path.cwd()
        return str(path.relative_to(root) if path.is_relative_to(root) else path)


def command(frontend: Sequence[str], build: ImageBuild, dockerfile: Path) -> tuple[str, ...]:
    """Return the command that builds an image from ``dockerfile``, which is a copy of the build's own. No secret is in it."""
    options = ["--progress", "plain", "--file", str(dockerfile), "--tag", build.reference]
    if "buildx" in frontend:
        options += ["--load", "--provenance=false", "--sbom=false"]  # one manifest, in the daemon, whatever the builder's driver
    for name, value in build.labels.items():
        options += ["--label", f"{name}={value}"]
    for name, value in build.args.items():
        options += ["--build-arg", f"{name}={value}"]
    for name in build.secrets:
        options += ["--secret", f"id={name},env={name}"]
    if build.target is not None:
        options += ["--target", build.target]
    if build.platform is not None:
        options += ["--platform", build.platform]
    return (*frontend, *options, str(build.context))


class BuildKit:
    """BuildKit in the daemon at ``docker_host``. Make it with ``find``. ``frontend`` is the command that reaches it."""

    def __init__(self, processes: Processes, frontend: Sequence[str], env: Mapping[str, str]) -> None:
        self.frontend = tuple(frontend)
        self._processes = processes
        self._env = env

    @classmethod
    def find(cls, processes: Processes, docker_host: str, *, login: Path | None = None) -> BuildKit:
        """Return the first BuildKit that builds an empty image. ``login``: folder of ``login_folder``. Raises BadInputError."""
        env = {"DOCKER_HOST": docker_host, "DOCKER_BUILDKIT": "1"} | ({"DOCKER_CONFIG": str(login)} if login else {})
        answers = []
        with tempfile.TemporaryDirectory(prefix="buildkit-probe-") as folder:
            Path(folder, "Dockerfile").write_text(PROBE, encoding="utf-8")
            for frontend in _frontends(process_environment().get("PATH", os.defpath)):
                argv = (*frontend, "--output", f"type=local,dest={folder}/out", folder)
                completed = processes.run(argv, env=env, check=False, echo=False, timeout=PROBE_SECONDS)
                if completed.returncode == 0:
                    return cls(processes, frontend, env)
                answers.append(f"{' '.join(frontend)}: {_final_line(completed.stderr)}")
        raise BadInputError(
            "No docker brings BuildKit",
            what="\n".join(answers) or "there is no docker on the PATH",
            where=f"PATH, and the daemon at {docker_host}",
            next_step="install the plug-in buildx (package docker-buildx-plugin), or a docker CLI that brings BuildKit",
        )

    def build(self, build: ImageBuild, *, echo: bool = True) -> None:
        """Build an image and name it ``build.reference``; ``echo`` shows the lines of the build. Raises what ``failure`` returns."""
        with _dockerfile(build) as dockerfile:
            env = {**self._env, **{name: secret.reveal() for name, secret in build.secrets.items()}}
            completed = self._processes.run(command(self.frontend, build, dockerfile), env=env, check=False, echo=echo)
        if completed.returncode != 0:
            raise failure(build, _text(build), completed)

    def check(self, build: ImageBuild) -> None:
        """Raise BadInputError for a Dockerfile that cannot be parsed. Nothing is built, as the stage that is asked for does not exist."""
        with _dockerfile(build) as dockerfile, tempfile.TemporaryDirectory(prefix="buildkit-empty-") as empty:
            argv = (*self.frontend, "--progress", "plain", "--file", str(dockerfile), "--target", NO_STAGE, empty)
            completed = self._processes.run(argv, env=self._env, check=False, echo=False)
        parse_error = _PARSE_ERROR.search(_final_line(completed.stderr))
        if parse_error:
            raise _parse_failure(build, _text(build), int(parse_error["line"]), parse_error["problem"])


def _text(build: ImageBuild) -> str:
    return (build.context / build.dockerfile).read_text(encoding="utf-8", errors="replace")


def _frontends(path: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands that may reach BuildKit: of each docker on the PATH the plug-in, then the CLI itself."""
    programs: dict[Path, Path] = {}
    for candidate in (Path(folder, "docker") for folder in path.split(os.pathsep) if folder):
        if os.access(candidate, os.X_OK):
            programs.setdefault(candidate.resolve(), candidate)
    for program in programs.values():
        yield (str(program), "buildx", "build")
        yield (str(program), "build")


@contextmanager
def _dockerfile(build: ImageBuild) -> Iterator[Path]:
    """Yield a copy of the Dockerfile with an ignore file beside it, which BuildKit prefers: the application's own and what we leave out."""
    original = build.context / build.dockerfile
    if not original.is_file():
        raise BadInputError(
            "No Dockerfile",
            what=f"{build.dockerfile} is not in the build context",
            where=str(build.context),
            next_step="correct the service's dockerfile, which is relative to its context",
        )
    ignore_files = (original.with_name(f"{original.name}.dockerignore"), build.context / ".dockerignore")
    ignored = next((file.read_text(encoding="utf-8") for file in ignore_files if file.is_file()), "")
    with tempfile.TemporaryDirectory(prefix="buildkit-") as folder:
        copy = Path(folder, original.name)
        copy.write_bytes(original.read_bytes())
        left_out = (*build_context.ALWAYS_LEFT_OUT, *build_context.names_below(build.context, build.left_out))
        copy.with_name(f"{copy.name}.dockerignore").write_text("\n".join([ignored, *left_out, ""]), encoding="utf-8")
        yield copy


@contextmanager
def login_folder(repository: str, credentials: tuple[Secret, Secret] | None) -> Iterator[Path | None]:
    """Yield a private folder that holds the login for a registry, in which docker's CLI looks it up, or None without credentials."""
    if credentials is None:
        yield None
        return
    login = base64.b64encode(f"{credentials[0].reveal()}:{credentials[1].reveal()}".encode()).decode()
    registry = engine.registry_host(repository, engine.DOCKER_HUB_LOGIN)
    with tempfile.TemporaryDirectory(prefix="docker-login-") as folder:  # mode 0700
        Path(folder, "config.json").write_text(json.dumps({"auths": {registry: {"auth": login}}}), encoding="utf-8")
        yield Path(folder)


# --- what a failed build says --------------------------------------------------------------------------------------------


def failure(build: ImageBuild, dockerfile: str, completed: Completed) -> AzoraError:
    """Return the error of a failed build. ``dockerfile`` is the text of its Dockerfile.

    A Dockerfile that cannot be parsed is BadInputError with file and line, a base image that may not be read BadInputError, a registry
    that does not answer UnreachableError, anything else NotTrueError with the last lines.
    """
    problem = _final_line(completed.stderr)
    parse_error = _PARSE_ERROR.search(problem)
    if parse_error:
        return _parse_failure(build, dockerfile, int(parse_error["line"]), parse_error["problem"])
    place = f"{build.file} of {build.reference}"
    outside = not _contains(problem, _COMMAND_FAILED)
    if outside and _contains(problem, _REFUSED):
        return BadInputError(
            "Base image may not be read",
            what=problem,
            where=place,
            next_step='the job that builds images has no login; use a public base image, or build.isolation = "none" with its reason',
        )
    if outside and _contains(problem, _UNANSWERED):
        next_step = "check the daemon and the named registry, then re-run the job"
        return UnreachableError("Docker or a registry does not answer", what=problem, where=place, next_step=next_step)
    last_lines = "\n".join(completed.stderr.splitlines()[-LAST_LINES:])
    return NotTrueError(
        "Image does not build",
        what=f"{problem}\nlast lines of the build:\n{last_lines or '(none)'}",
        where=place,
        next_step="repair the Dockerfile or what it runs, and release a new version",
    )


def _parse_failure(build: ImageBuild, dockerfile: str, line: int, problem: str) -> BadInputError:
    lines = dockerfile.splitlines()
    flag = _UNKNOWN_FLAG.search(problem)
    here_document = next((start for start, end in _here_documents(lines) if start <= line <= end), None)
    newer = "use a newer Docker, or begin the Dockerfile with '# syntax=docker/dockerfile:1', which fetches a newer frontend"
    if flag:
        instruction = (lines[line - 1].split() or ["?"])[0].upper() if line <= len(lines) else "?"
        what = f"{instruction} --{flag['flag']}: this BuildKit's frontend does not know the flag"
        return BadInputError("This BuildKit cannot build the Dockerfile", what=what, where=f"{build.file}:{line}", next_step=newer)
    if here_document is not None:
        what = f"here-document: this BuildKit's frontend reads its lines as instructions ({problem})"
        return BadInputError("This BuildKit cannot build the Dockerfile", what=what, where=f"{build.file}:{here_document}", next_step=newer)
    next_step = "correct the named line, and release a new version"
    return BadInputError("Dockerfile cannot be parsed", what=problem, where=f"{build.file}:{line}", next_step=next_step)


def _here_documents(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the first and last line number, from 1, of each here-document; one without an end goes on to the last line."""
    number = 0
    while number < len(lines):
        begin = _HERE_DOCUMENT.search(lines[number])
        number += 1
        if begin and not lines[number - 1].lstrip().startswith("#"):
            end = next((after for after in range(number, len(lines)) if lines[after].strip() == begin["word"]), len(lines) - 1)
            yield number, end + 1
            number = end + 1


def _final_line(output: str) -> str:
    """Return the line that says why a build failed: the last one that names a failure, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("ERROR:") or "failed to" in line or "error" in line.lower()]
    return (named[-1:] or lines[-1:] or ["(no output)"])[0][:1000]


def _contains(text: str, words: Iterable[str]) -> bool:
    return any(word in text.lower() for word in words)
