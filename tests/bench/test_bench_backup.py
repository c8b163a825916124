from __future__ import annotations

import json
import os
import subprocess
import sys


def test_a_small_database_is_measured_six_ways():
    argv = [sys.executable, "-m", "tests.bench", "backup", "--gib", "0.02", "--rounds", "1", "--json"]
    completed = subprocess.run(
        argv, capture_output=True, text=True, timeout=240, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}, check=False
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    figures = json.loads(completed.stdout)
    assert figures["gib"] >= 0.02
    seconds = {name: value for name, value in figures.items() if name.endswith("_seconds")}
    assert set(seconds) == {
        *("pg_dump_seconds", "gzip_pipe_seconds", "pigz_pipe_seconds"),
        *("backup_seconds", "backup_proven_seconds", "serial_proof_seconds"),
    }
    assert all(value is None or value > 0 for value in seconds.values())
    assert seconds["serial_proof_seconds"] > seconds["backup_seconds"]
    assert 20 < figures["peak_rss_mib"] < 250
