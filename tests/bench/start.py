"""How long a step takes to its first line of output, beyond a bare Python: what every job of every run pays."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import click

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.pipeline import JOBS
from azora_ci.core.process import Processes

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(rounds: int, *, as_json: bool) -> None:
    """Print, for each job, the median seconds to its first line, less the median of a Python that only prints."""
    clock = Clock()
    processes = Processes(JobLog(Actions(), clock))
    commands = {"bare Python": [sys.executable, "-c", "print('ready')"]}
    # Without its variables a step reads its settings, says what is missing, and ends: all of its own start, nothing of the outside.
    commands.update({job: [sys.executable, str(SCRIPTS / f"{job.replace('-', '_')}.py")] for job in JOBS})
    seconds_of: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name, argv in commands.items():
                seconds = _first_line(argv, Path(folder), processes, clock)
                if number:  # the first round fills the file cache
                    seconds_of[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in seconds_of.items()}
    bare = medians.pop("bare Python")
    beyond = {name: round(value - bare, 3) for name, value in medians.items()}
    if as_json:
        click.echo(json.dumps({"bare_python_seconds": round(bare, 3), "beyond_bare_python_seconds": beyond, "rounds": rounds}))
        return
    click.echo(f"bare Python {bare:.3f} s; beyond it, median of {rounds}:")
    for name, value in beyond.items():
        click.echo(f"  {name:<28} {value:.3f} s")


def _first_line(argv: list[str], folder: Path, processes: Processes, clock: Clock) -> float:
    env = {"DEPLOYMENT_LOG_DIR": str(folder / "logs"), "RECEIVED_ARTIFACTS_DIR": str(folder / "received")}
    begun = clock.monotonic()
    child = processes.start(argv, env=env, cwd=folder, stdout_pipe=True)
    assert child.stdout is not None
    child.stdout.readline()
    seconds = clock.monotonic() - begun
    child.stdout.read()
    child.wait(60)
    return seconds
