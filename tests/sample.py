"""The sample application for tests: installed and built once per machine, by its own npm."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest

from azora_ci.actions import Actions
from azora_ci.clock import Clock
from azora_ci.process import Processes
from azora_ci.rehearsal import application, node


class Sample:
    """Hands out copies of the sample application, with its modules and built services."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.processes = processes
        self.node = node.prepare(processes, Path(tempfile.gettempdir()) / "azora-ci-tests" / "node")
        self.built = self.copy(folder / "built")
        self.node.run(processes, ("npm", "run", "build"), self.built)

    def copy(self, folder: Path, release: str = application.NEW_RELEASE) -> Path:
        application.write_release(folder, release)
        self.node.install(self.processes, folder)
        return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("sample")
    return Sample(folder, Processes(actions=Actions(stream=io.StringIO()), clock=Clock(), log=folder / "log"))
