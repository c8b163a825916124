"""The cache of the control plane's programs: what is half made is never taken, and nobody builds twice."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.rehearsal.kubernetes import build
from tests.support.waiting import until


@pytest.fixture
def processes() -> Processes:
    return Processes(JobLog(Actions(stream=io.StringIO()), Clock()))


@pytest.mark.kubernetes
def test_a_build_that_fails_leaves_nothing_that_looks_finished(processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOPROXY", "off")
    build.default_cache().mkdir(parents=True, exist_ok=True)
    go = build.install_go(processes, build.default_cache(), print)
    (tmp_path / go.parents[2].name).symlink_to(go.parents[2])
    lines: list[str] = []
    for _ in range(2):  # what the first one left does not help the second
        with pytest.raises(UnreachableError, match="go mod: exit code 1") as failure:
            build.ensure(processes, Clock(), say=lines.append, cache=tmp_path)
        assert "module lookup disabled by GOPROXY=off" in failure.value.what
    assert "once" in lines[0]
    assert not (tmp_path / build.key()).exists()


def test_a_second_process_waits_for_the_first(processes: Processes, tmp_path: Path):
    lines: list[str] = []
    found: list[build.Binaries] = []
    with build.locked(tmp_path / "lock", print):
        second = threading.Thread(target=lambda: found.append(build.ensure(processes, Clock(), say=lines.append, cache=tmp_path)))
        second.start()
        until(lambda: lines, "it says that it waits")
        (tmp_path / build.key()).mkdir()  # the first has finished
    second.join(10)
    assert found == [build.Binaries(tmp_path / build.key())]
    assert lines == ["another process builds the control plane; waiting for it"]


def test_another_source_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = build.key()
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "main.go").write_text("package main\n")
    changed = build.key()
    (tmp_path / "main.go").write_text("package other\n")
    assert len({before, changed, build.key()}) == 3
