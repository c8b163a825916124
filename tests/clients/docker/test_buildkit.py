"""Images by BuildKit: which docker brings it, what is built with it, and what its refusals mean."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from azora_ci.clients.docker.buildkit import BuildKit, ImageBuild, command, failure
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, NotTrueError, UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Completed, Processes
from azora_ci.core.variables import Secret
from tests.support.docker_engine import BUSYBOX, engine, saved

REFERENCE = "registry.example/azora/api_gateway:v1.2.3"
WITH_BUILDKIT = "/usr/bin/docker"  # Debian's 20.10
WITHOUT_BUILDKIT = "/usr/local/bin/docker"  # a 28.x without the plug-in; its classic builder would answer, too


def build_of(context: Path, **changes: object) -> ImageBuild:
    return ImageBuild(context, Path("Dockerfile"), REFERENCE, {"a": "b c"}, **changes)  # type: ignore[arg-type] # of the test's choice


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    log = JobLog(Actions(stream=io.StringIO()), Clock(), tmp_path / "log")
    yield (made := Processes(log))
    made.end_all()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "file").write_text("content")
    return folder


def path_of(folder: Path, *programs: str) -> str:
    """Return a PATH on which the only docker programs are these, in this order."""
    for number, program in enumerate(programs):
        (folder / f"bin{number}").mkdir()
        (folder / f"bin{number}" / "docker").symlink_to(program)
    return ":".join(str(folder / f"bin{number}") for number in range(len(programs)))


# --- which docker ---------------------------------------------------------------------------------------------------------


def test_the_first_docker_that_brings_buildkit_is_taken(
    docker_engine: str, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = docker.DockerClient(base_url=docker_engine)
    before = {image.id for image in client.images.list(all=True)}  # of tests before this one
    monkeypatch.setenv("PATH", path_of(tmp_path, WITHOUT_BUILDKIT, WITH_BUILDKIT))
    assert BuildKit.find(processes, docker_engine).frontend == (str(tmp_path / "bin1" / "docker"), "build")
    assert {image.id for image in client.images.list(all=True)} == before  # trying leaves no image
    client.close()


def test_a_docker_without_buildkit_is_refused_although_its_classic_builder_answers(
    docker_engine: str, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path_of(tmp_path, WITHOUT_BUILDKIT))
    with pytest.raises(BadInputError, match="No docker brings BuildKit") as caught:
        BuildKit.find(processes, docker_engine)
    assert f"{tmp_path}/bin0/docker build: " in caught.value.what
    assert "buildx component is missing or broken" in caught.value.what


def test_the_plug_in_is_preferred_and_loads_one_manifest_into_the_daemon(
    docker_engine: str, processes: Processes, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in = tmp_path / "plug-in"
    plug_in.write_text(f'#!/bin/sh\n[ "$1" = buildx ] || exit 9\nshift\necho "$@" >> {tmp_path}/calls\nexec {WITH_BUILDKIT} "$@"\n')
    plug_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path_of(tmp_path, WITHOUT_BUILDKIT, str(plug_in))}:/usr/bin:/bin")
    found = BuildKit.find(processes, docker_engine)
    assert found.frontend == (str(tmp_path / "bin1" / "docker"), "buildx", "build")
    options = command(found.frontend, build_of(context), Path("/copy"))
    assert options[3:] == (
        *("--progress", "plain", "--file", "/copy", "--tag", REFERENCE, "--load", "--provenance=false", "--sbom=false"),
        *("--label", "a=b c", str(context)),
    )


def test_no_secret_is_on_the_command_line(context: Path) -> None:
    build = build_of(context, target="app", args={"A": "1"}, platform="linux/arm64", secrets={"NPM_TOKEN": Secret("a-secret")})
    options = command(("docker", "build"), build, Path("/copy"))
    assert options[2:] == (
        *("--progress", "plain", "--file", "/copy", "--tag", REFERENCE, "--label", "a=b c", "--build-arg", "A=1"),
        *("--secret", "id=NPM_TOKEN,env=NPM_TOKEN", "--target", "app", "--platform", "linux/arm64", str(context)),
    )


# --- what is built ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def buildkit(docker_engine: str, processes: Processes) -> BuildKit:
    return BuildKit.find(processes, docker_engine)


def labels(url: str) -> dict[str, str]:
    client = docker.DockerClient(base_url=url)
    found: dict[str, str] = client.images.get(REFERENCE).labels
    client.close()
    return found


def test_stage_arguments_and_platforms_reach_the_dockerfile(buildkit: BuildKit, docker_engine: str, context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM --platform=$BUILDPLATFORM scratch AS app\nARG TARGETARCH\nARG COLOUR=red\nCOPY --chmod=600 file /\n"
        "LABEL arch=$TARGETARCH colour=$COLOUR\nFROM app AS other\nLABEL colour=other\n"
    )
    buildkit.build(build_of(context, target="app", args={"COLOUR": "dark blue"}))
    native = labels(docker_engine)
    assert native == {"a": "b c", "arch": native["arch"], "colour": "dark blue"}
    assert native["arch"] in {"amd64", "arm64"}
    buildkit.build(build_of(context, platform="linux/s390x"))
    assert labels(docker_engine) == {"a": "b c", "arch": "s390x", "colour": "other"}


def test_what_dockerignore_names_the_repository_and_own_folders_stay_out(
    buildkit: BuildKit, docker_engine: str, context: Path, processes: Processes
) -> None:
    for name in (".git/config", "logs/x", "node_modules/y", "kept/z"):
        (context / name).parent.mkdir()
        (context / name).write_text("x")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /all\n")
    (context / ".dockerignore").write_text("node_modules\nfile\n")
    buildkit.build(build_of(context, left_out=(context / "logs", Path("/elsewhere"))))
    assert layer_names(docker_engine) >= {"all/Dockerfile", "all/kept/z"}
    assert not [name for name in layer_names(docker_engine) if any(part in name for part in (".git/", "logs", "node_modules", "all/file"))]
    (context / "Dockerfile.dockerignore").write_text("kept\n")  # BuildKit's own way to have an ignore file for each Dockerfile
    buildkit.build(build_of(context))
    assert {"all/node_modules/y", "all/file"} <= layer_names(docker_engine)
    assert not [name for name in layer_names(docker_engine) if ".git/" in name or "kept" in name]


def layer_names(url: str) -> set[str]:
    """Return the paths in the layers of the built image."""
    names: set[str] = set()
    with tarfile.open(fileobj=io.BytesIO(saved(url, REFERENCE))) as archive:
        for member in archive.getmembers():
            if member.name.endswith("/layer.tar"):
                with tarfile.open(fileobj=archive.extractfile(member)) as layer:
                    names |= {name.rstrip("/") for name in layer.getnames()}
    return names


def test_a_mounted_secret_is_read_and_stays_out_of_the_image(processes: Processes, context: Path) -> None:
    (context / "busybox").write_bytes(BUSYBOX.read_bytes())
    (context / "busybox").chmod(0o755)
    (context / "Dockerfile").write_text(
        "FROM scratch\nCOPY busybox /bin/busybox\n"
        'RUN --mount=type=cache,target=/c --mount=type=secret,id=NPM_TOKEN ["/bin/busybox", "sh", "-c", '
        '"/bin/busybox sha256sum /run/secrets/NPM_TOKEN > /proof"]\n'
    )
    with engine(bridge=True) as url:
        buildkit = BuildKit.find(processes, url)
        with pytest.raises(NotTrueError, match="Image does not build") as caught:
            buildkit.build(build_of(context))
        assert "sha256sum" in caught.value.what
        buildkit.build(build_of(context, secrets={"NPM_TOKEN": Secret("a-mounted-secret")}))
        assert "proof" in layer_names(url)
        assert b"a-mounted-secret" not in saved(url, REFERENCE)


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dockerfile", "title", "line", "what"),
    [
        ("FROM scratch\n\nCOPY --link file /\n", "This BuildKit cannot build the Dockerfile", 3, "COPY --link: this BuildKit's frontend"),
        ("FROM scratch\nADD --checksum=sha256:0 file /\n", "This BuildKit cannot build the Dockerfile", 2, "ADD --checksum"),
        ("FROM scratch\nCOPY <<EOF /x\nhello\nEOF\n", "This BuildKit cannot build the Dockerfile", 2, "here-document"),
        ('FROM scratch\n# <<no\nRUN <<-"END" cat\n\tset -e\n\tEND\n', "This BuildKit cannot build the Dockerfile", 3, "here-document"),
        ("FROM scratch\nCOPY <<EOF /x\nEOF\nFOO bar\n", "This BuildKit cannot build the Dockerfile", 2, "here-document"),
        ("FROM scratch\nFOO bar\n", "Dockerfile cannot be parsed", 2, "unknown instruction: FOO"),
        ("FROM scratch\nCOPY file\n", "Dockerfile cannot be parsed", 2, "COPY requires at least two arguments"),
    ],
)
def test_a_dockerfile_that_cannot_be_parsed_is_refused_by_file_and_line(
    buildkit: BuildKit, context: Path, dockerfile: str, title: str, line: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(context.parent)
    (context / "Dockerfile").write_text(dockerfile)
    with pytest.raises(BadInputError) as caught:
        buildkit.build(build_of(context))
    with pytest.raises(BadInputError) as checked:
        buildkit.check(build_of(context))
    assert checked.value.message() == caught.value.message()
    assert (caught.value.title, caught.value.where) == (title, f"context/Dockerfile:{line}")
    assert what in caught.value.what


def test_a_check_builds_nothing_and_asks_no_registry(buildkit: BuildKit, docker_engine: str, context: Path) -> None:
    client = docker.DockerClient(base_url=docker_engine)
    before = {image.id for image in client.images.list(all=True)}
    (context / "Dockerfile").write_text(
        "FROM 127.0.0.1:1/base:v1 AS app\nRUN --mount=type=cache,target=/c make\nCOPY --from=app absent /\n"
    )
    buildkit.check(build_of(context))
    assert {image.id for image in client.images.list(all=True)} == before
    client.close()


@pytest.mark.parametrize(
    ("dockerfile", "kind", "what"),
    [
        ("FROM scratch\nCOPY absent /\n", NotTrueError, '"/absent" not found'),
        ("FROM scratch AS a\nCOPY file /\n", NotTrueError, "target stage zzz could not be found"),
        ("FROM 127.0.0.1:1/base:v1\n", UnreachableError, "connection refused"),
    ],
)
def test_other_failures_of_a_build(buildkit: BuildKit, context: Path, dockerfile: str, kind: type[Exception], what: str) -> None:
    (context / "Dockerfile").write_text(dockerfile)
    with pytest.raises(kind, match=what):
        buildkit.build(build_of(context, target="zzz" if "zzz" in what else None))


def test_no_dockerfile(buildkit: BuildKit, context: Path) -> None:
    with pytest.raises(BadInputError, match="Dockerfile is not in the build context"):
        buildkit.build(build_of(context))


BUILDX = """#5 [2/2] RUN curl --connect-timeout 3 https://x || echo 401 unauthorized
#5 ERROR: process "/bin/sh -c curl --connect-timeout 3 https://x: dial tcp" did not complete successfully: exit code: 7
------
Dockerfile:4
--------------------
   4 | >>> RUN curl https://x
--------------------
ERROR: failed to build: failed to solve: process "/bin/sh -c curl --connect-timeout 3 https://x: dial tcp" did not complete: exit code: 7

View build details: docker-desktop://dashboard/build/default/default/abc
"""
NEWER_PARSE_ERROR = "ERROR: failed to solve: dockerfile parse error on line 3: unknown instruction: FOO (did you mean FROM?)\n"
PRIVATE = "ERROR: failed to solve: azora/base: failed to resolve source metadata: pull access denied, repository does not exist\n"


def test_what_newer_versions_say(tmp_path: Path) -> None:
    def failed(stderr: str) -> Exception:
        return failure(build_of(tmp_path), "FROM scratch\n\nFOO\n", Completed(("docker",), 1, "", stderr))

    assert isinstance(failed(BUILDX.replace("did not complete:", "did not complete successfully:")), NotTrueError)
    parse_error = failed(NEWER_PARSE_ERROR)
    assert isinstance(parse_error, BadInputError)
    assert parse_error.where.endswith("Dockerfile:3")
    assert "isolation" in failed(PRIVATE).next_step  # type: ignore[attr-defined] # every error of this project has it
    assert isinstance(failed(""), NotTrueError)
