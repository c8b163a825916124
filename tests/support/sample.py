"""The sample application for tests: installed and built once per machine, by its own npm."""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.rehearsal import application, node
from azora_ci.rehearsal.applications import sample as applications

if TYPE_CHECKING:
    from tests.conftest import DatabaseMaker


class Sample:
    """Hands out copies of the sample application, with its modules and built services."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.processes = processes
        self.node = node.prepare(processes, Path(tempfile.gettempdir()) / f"azora-ci-tests-{os.getuid()}" / "node")
        self.built = self.copy(folder / "built")
        self.node.run(processes, ("npm", "run", "build"), self.built)

    def copy(self, folder: Path, release: str = application.NEW_RELEASE) -> Path:
        application.write_release(folder, release)
        self.node.install(self.processes, folder)
        return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("sample")
    return Sample(folder, Processes(JobLog(Actions(stream=io.StringIO()), Clock(), folder / "log")))


@pytest.fixture(scope="session")
def migrated(sample: Sample, postgres_cluster: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that the old release's Prisma migrated yesterday; use it as a template, do not change it."""
    url = postgres_cluster.fresh()
    old = sample.copy(tmp_path_factory.mktemp("old"), application.OLD_RELEASE)
    applications.Sample().migrate(partial(sample.node.run, sample.processes), old, url)
    yesterday = "finished_at = finished_at - interval '1 day', started_at = started_at - interval '1 day'"
    postgres_cluster.execute(url, f"UPDATE _prisma_migrations SET {yesterday}")
    return url


@pytest.fixture
def running() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start programs that are ended after the test whatever happens: ``running(argv, folder, environ)``."""
    started: list[subprocess.Popen[str]] = []

    def start(argv: list[str], folder: Path, environ: dict[str, str]) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(argv, cwd=folder, env=environ, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(30)
