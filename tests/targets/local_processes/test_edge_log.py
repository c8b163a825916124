"""The log of an edge on one machine stays small, and no line is lost while it is put aside."""

from __future__ import annotations

from dataclasses import replace

import pytest

from azora_ci.core.errors import UnreachableError
from azora_ci.targets.envoy import access_log
from azora_ci.targets.local_processes import edge_log
from azora_ci.targets.local_processes.edge_log import EdgeLog
from tests.support.edge_lab import Lab, send
from tests.support.waiting import until


def test_a_log_that_grew_is_put_aside_and_envoy_begins_a_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(edge_log, "LARGEST", 5_000)
    lab, log = Lab(tmp_path), EdgeLog(tmp_path)
    log.prepare()
    try:
        state = lab.edge.state()
        lab.edge.apply(replace(state, options=replace(state.options, log=str(log.path))))
        send(lab.port, 48)  # nothing is deployed: 503
        until(lambda: log.path.exists() and log.path.read_text().count("\n") == 48, "it grew")
        log.bound()
        send(lab.port, 12)
        until(lambda: log.path.exists() and len(access_log.read(log.lines(), since="")) == 60, "no line is lost")
        assert 0 < log.path.stat().st_size < 5_000
        send(lab.port, 48)
        until(lambda: log.path.read_text().count("\n") == 60, "it grew again")
        log.bound()
        assert sorted(path.name for path in log.path.parent.iterdir()) == ["edge.jsonl", "edge.jsonl.1"]
    finally:
        lab.close()
    log.path.write_text("x" * 6_000)
    log.bound()  # no Envoy runs
    assert not log.path.exists()


def test_of_a_large_log_the_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(edge_log, "READ", 1_000)
    log = EdgeLog(tmp_path)
    assert log.lines() == []  # there is no folder yet
    log.prepare()
    log.path.write_text("".join(f"{number}\n" for number in range(10_000)))
    lines = log.lines()
    assert lines[-2:] == ["9999", ""]
    assert len(lines) < 250


def test_a_log_that_cannot_be_kept_hinders_no_change_of_routes_and_is_said(tmp_path):
    log = EdgeLog(tmp_path)
    (tmp_path / "log").touch()  # where its folder should be
    log.prepare()
    log.bound()
    with pytest.raises(UnreachableError, match="NotADirectoryError"):
        log.lines()
