"""These tests run images and build-and-push with a real Docker daemon and real registries; images hold nothing but a static busybox."""

from __future__ import annotations

import base64
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest
import requests

from azora_ci.clients.docker import build_context, image_archive
from azora_ci.clients.docker.images import Docker, ImageLabels
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError
from azora_ci.core.variables import Secret
from azora_ci.steps.runner import execute
from tests.support import deploy_config
from tests.support.docker_engine import BUSYBOX, PASSWORD, USER, saved
from tests.support.fragments_builder import needs_of

SHA = "0123456789abcdef0123456789abcdef01234567"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKERFILE = 'FROM scratch\nCOPY busybox /bin/busybox\nCOPY dist /srv\nCMD ["/bin/busybox", "httpd", "-f", "-h", "/srv"]\n'
SERVICES = ("api_gateway", "auth_service")
DEPLOYMENT = "1764000000-012345"
IN_PLACE = {"isolation": "none", "isolation_reason": "the images do not fit into artifacts"}


class World:
    """A repository has two services, and their images need the files that the production build makes."""

    def __init__(self, folder: Path, engine: str, host: str, name: str) -> None:
        self.folder, self.engine, self.host, self.name = folder, engine, host, name
        self.root = folder / "repository"
        self.contexts = "services/{}"
        self.build: list[list[str]] = [["sh", "-c", "for s in services/*; do mkdir -p $s/dist && echo built > $s/dist/index.html; done"]]
        self.images: dict[str, dict[str, Any]] = {}
        self.deployment, self.ran = DEPLOYMENT, "images"
        self.isolation: dict[str, str] = {}
        self.sections: dict[str, Any] = {"target": {"kind": "docker_hosts"}, "registry": {"repository": f"{host}/{name}", "insecure": True}}
        for service in SERVICES:
            context = self.root / "services" / service
            context.mkdir(parents=True)
            (context / "Dockerfile").write_text(DOCKERFILE)
            shutil.copy(BUSYBOX, context / "busybox")

    def run(self, **environ: str) -> int:
        """Build as the job images does, then push as build-and-push does; return the exit code of the first that fails."""
        return self.step("images", **environ) or self.step("build-and-push", **environ)

    def step(self, job: str, **environ: str) -> int:
        services = {
            name: deploy_config.service(
                name, route_prefix=f"/{name}", context=self.contexts.format(name), command=["run"], **self.images.get(name, {})
            )
            for name in SERVICES
        }
        build = {"commands": self.build, **self.isolation}
        config = deploy_config.write(self.folder / "deploy.toml", build=build, **{"services": services, **self.sections})
        (self.folder / "output").write_text("")
        self.deployment = environ.get("DEPLOYMENT_ID", DEPLOYMENT)
        shutil.rmtree(self.logs(job), ignore_errors=True)
        self.ran = job
        defaults = {
            "DEPLOY_CONFIG": str(config),
            "DEPLOYMENT_LOG_DIR": str(self.logs(job)),
            "RECEIVED_ARTIFACTS_DIR": str(self.folder / "received"),
            "NEEDS": needs_of(self.folder / "received", self.deployment) if job == "build-and-push" else "{}",
            "RUNNER_TEMP": str(self.folder / "temp"),
            "DEPLOYMENT_ID": DEPLOYMENT,
            "VERSION": "v1.2.3",
            "GIT_SHA": SHA,
            "DOCKER_HOST": self.engine,
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
        }
        return execute(job, defaults | environ)

    def report(self, service: str, **facts: str) -> None:
        """Change what the job images reported of a service, as a build that runs in it could."""
        path = self.logs("images") / "record" / "images.json"
        document: dict[str, Any] = json.loads(path.read_text())
        document["evidence"]["services"][service] |= facts
        path.write_text(json.dumps(document))

    def logs(self, job: str) -> Path:
        return self.folder / (f"received/application-image-logs-{self.deployment}" if job == "images" else "logs")

    def archive(self, service: str) -> Path:
        """Return the file that the job images hands over."""
        return self.folder / "temp/images" / f"{service}.tar.zst"

    @property
    def fragment(self) -> dict[str, Any]:
        """Return the fragment of the job that ran last."""
        document: dict[str, Any] = json.loads((self.logs(self.ran) / "record" / f"{self.ran}.json").read_text())
        return document

    @property
    def built(self) -> dict[str, Any]:
        """Return the evidence of the job images."""
        return dict(json.loads((self.logs("images") / "record" / "images.json").read_text())["evidence"])

    @property
    def services(self) -> dict[str, Any]:
        return dict(self.fragment["evidence"]["services"])

    @property
    def error(self) -> str:
        return f"{self.fragment['error']['title']}: {self.fragment['error']['what']}"

    @property
    def log(self) -> str:
        """Return the logs of both jobs."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*/**/*.log")))

    @property
    def output(self) -> dict[str, str]:
        match = re.search(r"(?m)^digests<<.*\n(.*)\n", (self.folder / "output").read_text())
        return dict(json.loads(match[1])) if match else {}

    def in_registry(self, service: str, tag: str = "v1.2.3") -> tuple[str | None, dict[str, str]]:
        """Ask the registry for a tag and return the image's digest and labels; without such an image return None and no labels."""
        base = f"http://{self.host}/v2/{self.name}/{service}"
        answer = requests.get(f"{base}/manifests/{tag}", headers={"Accept": MANIFEST}, timeout=30)
        if answer.status_code == 404:
            return None, {}
        config = requests.get(f"{base}/blobs/{answer.json()['config']['digest']}", timeout=30).json()
        return answer.headers["Docker-Content-Digest"], config["config"]["Labels"]


@pytest.fixture
def make(tmp_path: Path, docker_engine: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], World]:
    def make(host: str) -> World:
        world = World(tmp_path, docker_engine, host, re.sub(r"[^a-z0-9]", "", tmp_path.name))
        monkeypatch.chdir(world.root)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        return world

    return make


@pytest.fixture
def world(make: Callable[[str], World], docker_registry: str) -> World:
    return make(docker_registry)


def test_one_labelled_image_per_service_is_in_the_registry(world: World) -> None:
    assert world.run() == 0
    images = {service: world.in_registry(service) for service in SERVICES}
    assert world.output == {service: digest for service, (digest, _) in images.items()}
    for service, (digest, labels) in images.items():
        assert labels == {
            "org.opencontainers.image.version": "v1.2.3",
            "org.opencontainers.image.revision": SHA,
            "azora-ci.deployment-id": "1764000000-012345",
            "azora-ci.service": service,
        }
        evidence = world.services[service]
        assert (evidence["digest"], evidence["reused"]) == (digest, False)
        assert evidence["reference"] == f"{world.host}/{world.name}/{service}:v1.2.3"
        assert evidence["size_bytes"] > BUSYBOX.stat().st_size
        assert evidence["image_id"] == world.built["services"][service]["image_id"]
    assert [(command["purpose"], command["exit_code"]) for command in world.built["commands"]] == [("production", 0)]
    assert world.fragment["evidence"]["commands"] == []  # build-and-push runs nothing of the application
    assert "override_reason" not in world.fragment["evidence"]
    assert re.search(r"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z #\d+ \[1/2\] COPY busybox /bin/busybox$", world.log)
    assert str(images["api_gateway"][0]) in (world.folder / "summary").read_text()


def test_what_is_there_from_the_same_commit_is_recognised_and_not_built_again(world: World) -> None:
    assert world.run() == 0
    first = world.output
    shutil.rmtree(world.folder / "temp")  # artifacts of images are kept for one day
    assert world.step("build-and-push", GITHUB_RUN_ATTEMPT="2") == 0
    assert world.output == first
    assert world.run(DEPLOYMENT_ID="1764009999-012345") == 0  # the same version deployed another time
    assert world.output == first
    assert {image["reused"] for image in world.services.values()} == {True}


def test_a_rerun_pushes_only_what_is_missing(world: World) -> None:
    assert world.step("images") == 0
    hidden = world.archive("auth_service").rename(world.folder / "elsewhere")
    assert world.step("build-and-push") == 1
    assert "Image artifact is missing: none of 0 files auth_service.tar.zst" in world.error
    first = world.services["api_gateway"]["digest"]
    assert set(world.services) == {"api_gateway"}
    assert world.output == {}
    hidden.rename(world.archive("auth_service"))
    assert world.step("build-and-push", GITHUB_RUN_ATTEMPT="2") == 0
    assert world.output["api_gateway"] == first
    assert [world.services[service]["reused"] for service in SERVICES] == [True, False]


def test_every_service_is_built_although_one_fails_and_every_failure_is_named(world: World) -> None:
    (world.root / "services" / "api_gateway" / "Dockerfile").write_text("FROM scratch\n\nCOPY busybox\n")
    assert world.step("images") == 2
    assert "Dockerfile cannot be parsed" in world.error
    assert world.fragment["error"]["where"] == "services/api_gateway/Dockerfile:3"
    assert set(world.built["services"]) == {"auth_service"}
    (world.root / "services" / "auth_service" / "Dockerfile").write_text("FROM scratch\nCOPY absent /absent\n")
    assert world.step("images") == 1
    assert "2 of 2 services do not build" in world.error
    assert "api_gateway: Dockerfile cannot be parsed" in world.error
    assert "auth_service: Image does not build" in world.error


def test_another_image_under_this_version_is_refused_and_stays(world: World) -> None:
    assert world.run() == 0
    before = world.in_registry("api_gateway")
    assert world.run(GIT_SHA="f" * 40, DEPLOYMENT_ID="1764009999-ffffff") == 1
    assert "Another image has this version" in world.error
    assert f"org.opencontainers.image.revision: {SHA}, expected {'f' * 40}" in world.error
    assert str(before[0]) in world.error
    assert world.in_registry("api_gateway") == before
    assert world.output == {}


def test_what_this_deployment_pushed_may_be_replaced_by_it(world: World) -> None:
    assert world.run() == 0
    before = world.output
    assert world.run(GIT_SHA="f" * 40) == 0
    assert world.in_registry("api_gateway")[1]["org.opencontainers.image.revision"] == "f" * 40
    assert world.output["api_gateway"] == world.in_registry("api_gateway")[0] != before["api_gateway"]


def test_an_image_that_was_exchanged_after_it_was_reported_is_not_loaded(world: World) -> None:
    assert world.step("images") == 0
    other = world.archive("api_gateway").read_bytes()
    world.archive("auth_service").write_bytes(other)
    assert world.step("build-and-push") == 1
    assert "Image artifact is missing: none of 1 files auth_service.tar.zst has the SHA-256" in world.error
    assert world.in_registry("auth_service") == (None, {})


def test_a_build_that_reports_another_service_s_image_or_name_is_refused(world: World) -> None:
    assert world.step("images") == 0
    client = docker.DockerClient(base_url=world.engine)
    gateway, auth = (f"{world.host}/{world.name}/{service}:v1.2.3" for service in SERVICES)
    client.images.get(gateway).tag(auth)  # what the production build of a hostile dependency could do
    for names, refusal in (((auth,), "azora-ci.service: api_gateway, expected auth_service"), ((gateway, auth), "expected " + auth)):
        stored = image_archive.write([saved(world.engine, *names)], world.archive("auth_service"))
        world.report("auth_service", sha256=stored.sha256, image_id=client.images.get(gateway).id)
        assert world.step("build-and-push", GITHUB_RUN_ATTEMPT="2") == 1
        assert "Image archive is refused" in world.error
        assert refusal in world.error
        assert world.in_registry("auth_service") == (None, {})
    client.close()


def test_a_build_that_fails_shows_its_last_lines_and_pushes_nothing(world: World) -> None:
    (world.root / "services" / "api_gateway" / "Dockerfile").write_text("FROM scratch\nCOPY absent /absent\n")
    assert world.run() == 1
    assert "Image does not build" in world.error
    assert '"/absent" not found' in world.error
    assert "[1/1] COPY absent /absent" in world.error
    assert world.in_registry("api_gateway") == (None, {})


def test_a_production_build_that_fails_ends_the_job_before_any_image(world: World) -> None:
    world.build = [["sh", "-c", "echo no such module; exit 3"]]
    assert world.run() == 1
    assert "no such module" in world.error
    assert world.built["commands"][0]["exit_code"] == 3
    assert world.built["services"] == {}
    assert world.in_registry("api_gateway") == (None, {})


def test_missing_dockerfile(world: World) -> None:
    (world.root / "services" / "api_gateway" / "Dockerfile").unlink()
    assert world.run() == 2
    assert "Dockerfile is not in the build context" in world.error


def test_registry_out_of_reach(world: World) -> None:
    world.sections["registry"] = {"repository": "127.0.0.1:1/azora", "insecure": True}
    assert world.run() == 3
    assert "connection refused" in world.error


def test_daemon_out_of_reach(world: World) -> None:
    assert world.run(DOCKER_HOST=f"unix://{world.folder}/absent.sock") == 3
    assert "Docker does not answer" in world.error


def test_login_is_used_and_never_written_down(make: Callable[[str], World], private_registry: str) -> None:
    world = make(private_registry)
    assert world.run(DOCKER_USERNAME=USER, DOCKER_PASSWORD=PASSWORD) == 0
    assert all(digest.startswith("sha256:") for digest in world.output.values())
    leaks = [path for path in world.folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert leaks == []
    assert world.run(DOCKER_USERNAME=USER, DOCKER_PASSWORD=PASSWORD, GITHUB_RUN_ATTEMPT="2") == 0
    assert {image["reused"] for image in world.services.values()} == {True}


def test_a_private_base_image_needs_a_build_in_place_with_its_reason(make: Callable[[str], World], private_registry: str) -> None:
    world, login = make(private_registry), {"DOCKER_USERNAME": USER, "DOCKER_PASSWORD": PASSWORD}
    assert world.run(**login) == 0
    base = f"{world.host}/{world.name}/api_gateway:v1.2.3"
    client = docker.DockerClient(base_url=world.engine)
    for service in SERVICES:
        client.images.remove(f"{world.host}/{world.name}/{service}:v1.2.3", force=True)
        (world.root / "services" / service / "Dockerfile").write_text(f"FROM {base}\nCOPY dist /more\n")
    client.api.prune_builds()
    client.close()
    assert world.run(VERSION="v1.2.4", **login) == 2
    assert "Base image may not be read" in world.error
    world.isolation = IN_PLACE
    assert world.run(VERSION="v1.2.4", **login) == 0
    assert f"load metadata for {base}" in world.log
    assert set(world.output) == set(SERVICES)
    assert world.built["services"] == {}
    assert world.built["commands"] == []
    evidence = world.fragment["evidence"]
    assert (evidence["isolation"], evidence["override_reason"]) == (
        "none",
        "images are built beside secrets: the images do not fit into artifacts",
    )
    assert [command["purpose"] for command in evidence["commands"]] == ["production"]
    login_text = base64.b64encode(f"{USER}:{PASSWORD}".encode())
    leaks = [path for path in world.folder.rglob("*") if path.is_file() and login_text in path.read_bytes()]
    assert leaks == []


@pytest.mark.parametrize("login", [{"DOCKER_USERNAME": USER, "DOCKER_PASSWORD": "wrong-password"}, {}])
def test_a_login_that_is_refused(make: Callable[[str], World], private_registry: str, login: dict[str, str]) -> None:
    world = make(private_registry)
    assert world.run(**login) == 2
    assert "Registry refuses access" in world.error
    assert "wrong-password" not in world.error + world.log
    assert world.output == {}


class DenyingRegistry(BaseHTTPRequestHandler):
    """This registry lets everybody in and denies every repository, as Docker Hub does for a repository that does not exist yet."""

    def do_GET(self) -> None:
        denied = self.path != "/v2/"
        body = json.dumps(
            {"errors": [{"code": "DENIED", "message": "requested access to the resource is denied"}]} if denied else {}
        ).encode()
        self.send_response(403 if denied else 200)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None: ...


def test_denied_means_not_there_for_who_has_a_login(docker_engine: str) -> None:
    messages: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), DenyingRegistry) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        reference = f"127.0.0.1:{server.server_address[1]}/azora/new:v1.2.3"
        credentials = (Secret(USER), Secret(PASSWORD))
        assert Docker(docker_engine, credentials=credentials, log=messages.append, clock=Clock()).find(reference) is None
        with pytest.raises(BadInputError, match="denied"):
            Docker(docker_engine, credentials=None, log=messages.append, clock=Clock()).find(reference)
        server.shutdown()
    assert len(messages) == 1
    assert "is not there, or may not be read" in messages[0]


def test_half_a_login(world: World) -> None:
    assert world.run(DOCKER_USERNAME=USER) == 2
    assert "Half a login" in world.error


def test_a_registry_without_encryption_must_be_on_loopback(world: World) -> None:
    world.sections["registry"] = {"repository": "registry.example/azora", "insecure": True}
    assert world.run() == 2
    assert "not on loopback" in world.error


def archived(world: World) -> World:
    world.engine = f"unix://{world.folder}/absent.sock"  # archives need no daemon
    local = {"state_dir": str(world.folder / "state"), "archive_dir": str(world.folder / "archives")}
    world.sections = {"target": {"kind": "local_processes", "local_processes": local}}
    return world


def test_archives_for_local_processes(world: World) -> None:
    world = archived(world)
    assert world.run() == 0
    assert world.fragment["evidence"]["kind"] == "archives"
    for service, digest in world.output.items():
        path = world.folder / "archives" / f"{digest.replace(':', '-')}.tar.gz"
        assert build_context.digest_of(path) == digest == world.services[service]["digest"]
        assert world.services[service]["reference"] == str(path)
        with tarfile.open(path) as tar:
            assert "dist/index.html" in tar.getnames()
    first = world.output
    assert world.run(GITHUB_RUN_ATTEMPT="2") == 0
    assert world.output == first
    assert {archive["reused"] for archive in world.services.values()} == {True}
    world.isolation = IN_PLACE
    assert world.run() == 0
    assert world.output == first
    assert world.fragment["evidence"]["override_reason"].endswith("the images do not fit into artifacts")


def test_another_archive_than_the_reported_one_is_not_stored(world: World) -> None:
    world = archived(world)
    assert world.step("images") == 0
    (world.folder / "temp/images/auth_service.tar.gz").write_bytes(b"planted")
    assert world.step("build-and-push") == 1
    assert "Image artifact is missing: none of 1 files auth_service.tar.gz" in world.error
    assert world.output == {}


def test_own_logs_and_earlier_artifacts_are_no_part_of_a_context(world: World) -> None:
    world = archived(world)
    world.contexts = "."
    received = world.root / "received-artifacts"
    digests = []
    for number in range(2):
        received.mkdir(exist_ok=True)
        (received / f"new-{number}").write_text("")
        assert world.step("images", RECEIVED_ARTIFACTS_DIR=str(received)) == 0
        digests += [facts["sha256"] for facts in world.built["services"].values()]
    assert len(set(digests)) == 1


def test_an_empty_context_is_refused(world: World) -> None:
    world = archived(world)
    shutil.rmtree(world.root / "services" / "auth_service")
    (world.root / "services" / "auth_service").mkdir()
    world.build = []
    assert world.run() == 2
    assert "Build context is empty" in world.error


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "same"),
        ({"azora-ci.deployment-id": "1-ffffff"}, "same"),
        ({"org.opencontainers.image.revision": "f" * 40}, "ours"),
        ({"org.opencontainers.image.revision": "f" * 40, "azora-ci.deployment-id": "1-ffffff"}, "foreign"),
        ({"azora-ci.service": "other", "azora-ci.deployment-id": "1-ffffff"}, "foreign"),
        ({"org.opencontainers.image.version": "v1", "azora-ci.deployment-id": "1-ffffff"}, "foreign"),
    ],
)
def test_standing_of_an_image(changes: dict[str, str], expected: str) -> None:
    release = ImageLabels("api_gateway", "v1.2.3", SHA, "1764000000-012345")
    assert release.standing({**release.labels, **changes}) == expected
    assert release.standing({}) == "foreign"
