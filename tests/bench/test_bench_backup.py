from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.bench import backup


def test_a_small_database_is_measured_six_ways():
    argv = [sys.executable, "-m", "tests.bench", "backup", "--gib", "0.02", "--rounds", "1", "--json"]
    completed = subprocess.run(
        argv, capture_output=True, text=True, timeout=240, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}, check=False
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    figures = json.loads(completed.stdout)
    assert figures["gib"] >= 0.02
    seconds = {name: value for name, value in figures.items() if name.endswith("_seconds")}
    cpu = [seconds.pop(f"{part}_cpu_seconds") for part in ("pg_dump", "backend", "deflate")]
    limit = seconds.pop("limit_seconds")
    assert all(value > 0 for value in cpu)
    assert limit == pytest.approx(max(seconds["pg_dump_seconds"], sum(cpu) / os.cpu_count()), abs=0.002)
    assert figures["limit_ratio"] == pytest.approx(seconds["backup_seconds"] / limit, abs=0.01)
    assert figures["proof_ratio"] == pytest.approx(seconds["backup_proven_seconds"] / seconds["serial_proof_seconds"], abs=0.01)
    assert set(seconds) == {
        *("pg_dump_seconds", "gzip_pipe_seconds", "pigz_pipe_seconds"),
        *("backup_seconds", "backup_proven_seconds", "serial_proof_seconds"),
    }
    assert all(value is None or value > 0 for value in seconds.values())
    assert seconds["serial_proof_seconds"] > seconds["backup_seconds"]
    assert 20 < figures["peak_rss_mib"] < 250


def test_the_limit_is_all_cores_busy_but_never_less_than_pg_dump_alone():
    assert backup.limit_seconds(3.0, (1.0, 5.0, 6.0), 2) == 6.0
    assert backup.limit_seconds(3.0, (1.0, 5.0, 6.0), 8) == 3.0


def test_the_table_shows_every_figure_beside_its_aim():
    found = dict.fromkeys((*backup.NAMES, *(f"{name}_cpu_seconds" for name in backup.CPU), "gib", "limit_seconds", "peak_rss_mib"), 2.0)
    found |= {f"{name}_ratio": 1.5 for name, *_ in backup.RATIOS} | {"pigz_pipe_seconds": None, "pigz_pipe_ratio": None}
    lines = backup.table(found, 3, "2 x a processor").splitlines()
    assert lines[0] == "2.00 GiB on 2 x a processor, median of 3"
    assert "| d / limit | 1.50 | <= 1.25 |" in lines
    assert all(line.count("|") == 4 for line in lines[2:])
    assert "| c / d | not measured | >= 1.7 |" in lines
    assert lines[-1] == "| peak memory of our own Python | 2.0 MiB | <= 128 |"
