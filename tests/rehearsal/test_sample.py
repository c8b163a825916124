"""The sample application does what a deployment needs of an application, and breaks when its fault file says so."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path

import pytest

from azora_ci.core.errors import BadInputError
from azora_ci.core.process import CommandFailedError, Processes
from azora_ci.rehearsal import application, node
from tests.conftest import DatabaseMaker
from tests.support.sample import Sample
from tests.support.waiting import until

TABLES = """CREATE TABLE sessions (user_id int); CREATE TABLE users (id int, name text);
INSERT INTO sessions SELECT n FROM generate_series(1, 1000) n; INSERT INTO users SELECT n, 'User ' || n FROM generate_series(1, 1000) n"""


class Service:
    """One service in a process of its own, from its built folder alone."""

    def __init__(self, folder: Path, url: str, node_program: Path, place: Path, name: str) -> None:
        shutil.copytree(folder / "services" / name / "dist", place)
        self.fault = place / "fault"
        self.log = (place / "log").open("w+", encoding="utf-8")
        environ = {"PATH": "/usr/bin:/bin", "PORT": "0", "VERSION": "1.1.0", "DATABASE_URL": url, "FAULT_FILE": str(self.fault)}
        self.process = subprocess.Popen([node_program, "server.mjs"], cwd=place, env=environ, stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Service:
        until(lambda: self.port() or self.process.poll() is not None, "a listening service")
        assert self.process.poll() is None, self.output()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(30)
        self.log.close()

    def output(self) -> str:
        return Path(self.log.name).read_text(encoding="utf-8")

    def port(self) -> int | None:
        match = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.output())
        return int(match[1]) if match else None

    def get(self, path: str, timeout: float = 30) -> tuple[int, HTTPMessage, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}{path}", timeout=timeout) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()


@pytest.fixture
def service(sample: Sample, postgres_cluster: DatabaseMaker, tmp_path: Path) -> Iterator[Service]:
    url = postgres_cluster.fresh(TABLES)
    with Service(sample.built, url, sample.node.bin / "node", tmp_path / "service", "api-gateway") as running:
        yield running


def test_health_says_status_and_version(service: Service) -> None:
    status, headers, body = service.get("/api/health")
    assert (status, json.loads(body)) == (200, {"status": "healthy", "version": "1.1.0", "service": "api_gateway"})
    assert headers["x-azora-version"] == "1.1.0"


def test_every_answer_comes_from_the_database(service: Service, postgres_cluster: DatabaseMaker) -> None:
    status, headers, body = service.get("/api/anything?x=1")
    document = json.loads(body)
    assert (status, headers["x-azora-version"], document["path"]) == (200, "1.1.0", "/api/anything")
    assert document["items"] == [{"sessions": 1}]


@pytest.mark.parametrize(
    ("fault", "health", "other"),
    [
        ("error", (500, "fault file"), (500, "fault file")),
        ("html", (200, "<!doctype html>"), (200, "<!doctype html>")),
        ("wrong-version", (200, '"version":"0.0.1"'), (200, '"version":"0.0.1"')),
        ("unhealthy", (503, '"unhealthy"'), (200, '"items"')),
        ('{"answer": "error", "version": "1.0.0"}', (200, '"healthy"'), (200, '"items"')),
        ('{"answer": "error", "version": "1.1.0", "health_only": true}', (500, "fault file"), (200, '"items"')),
        ("no such answer", (500, "internal"), (500, "internal")),
    ],
)
def test_fault_file_changes_the_answers(service: Service, fault: str, health: tuple[int, str], other: tuple[int, str]) -> None:
    service.fault.write_text(fault, encoding="utf-8")
    for path, (expected, text) in (("/api/health", health), ("/api/items", other)):
        status, _, body = service.get(path)
        assert (status, text in body) == (expected, True), body
    service.fault.unlink()
    assert service.get("/api/health")[0] == 200


def test_a_hanging_service_does_not_answer(service: Service) -> None:
    service.fault.write_text("hang", encoding="utf-8")
    with pytest.raises(TimeoutError):
        service.get("/api/health", timeout=0.5)


def test_sigterm_finishes_requests_that_were_begun(service: Service) -> None:
    service.fault.write_text("slow", encoding="utf-8")
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(service.get("/api/items")[0]))
    slow.start()
    until(lambda: "fault slow" in service.output(), "the request is under way")
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(30) == 0
    slow.join(30)
    assert answers == [200]
    assert "draining" in service.output()


def test_health_is_unhealthy_without_the_database(sample: Sample, tmp_path: Path) -> None:
    url = "postgresql://azora:secret@127.0.0.1:1/azora"
    with Service(sample.built, url, sample.node.bin / "node", tmp_path / "service", "auth-service") as alone:
        status, _, body = alone.get("/auth/health")
    assert (status, json.loads(body)["status"]) == (503, "unhealthy")
    assert "secret" not in alone.fault.with_name("log").read_text(encoding="utf-8")


def test_npm_scripts_pass_and_the_build_repeats(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "again")
    assert "pass 4" in sample.node.run(sample.processes, ("npm", "test"), folder)
    sample.node.run(sample.processes, ("npm", "run", "build"), folder)
    first, second = (_bytes(place / "services") for place in (sample.built, folder))
    assert len(first) > 100
    assert first == second


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_broken_build_fails(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path / "broken")
    application.break_build(folder)
    with pytest.raises(CommandFailedError, match="npm failed") as caught:
        sample.node.run(sample.processes, ("npm", "run", "build"), folder)
    assert "package registry" in caught.value.next_step


def test_lock_file_names_no_host_of_a_registry() -> None:
    lock = json.loads((application.SAMPLE / "package-lock.json").read_text(encoding="utf-8"))
    packages = {path: package for path, package in lock["packages"].items() if path}
    assert packages
    assert all("resolved" not in package and package["integrity"].startswith("sha512-") for package in packages.values())


def test_the_old_release_lacks_the_new_migrations(tmp_path: Path) -> None:
    application.write_release(tmp_path, application.OLD_RELEASE)
    old = {path.name for path in application.migrations(tmp_path).iterdir() if path.is_dir()}
    application.write_release(tmp_path)
    new = {path.name for path in application.migrations(tmp_path).iterdir() if path.is_dir()}
    assert len(old) == 3
    assert new - old == set(application.NEW_MIGRATIONS)


def test_an_old_nodejs_of_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: Processes) -> None:
    for name in ("node", "npm"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho v18.20.0\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setattr(node, "_from_wheel", lambda: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(BadInputError, match=r"v18\.20\.0, older than 20"):
        node.prepare(processes, tmp_path / "cache")
