"""How long ``adopt`` takes in a large repository, its own start included: a person waits for it, and runs it again and again."""

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
from azora_ci.core.process import Processes

LIMIT_SECONDS = 3.0
_CONFIG = ".github/deploy-production.toml"
_FOLDER_FILES = 100


def run(files: int, rounds: int, *, as_json: bool) -> None:
    """Print the median seconds of adopting a repository with ``files`` files, a tenth of them other people's."""
    clock = Clock()
    processes = Processes(JobLog(Actions(), clock))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, files)
        processes.run(["git", "init", "--quiet", str(folder)], echo=False)
        argv = [sys.executable, "-m", "azora_ci", "adopt", str(folder), "--ref", "0" * 40]
        seconds = []
        for number in range(rounds + 1):
            (folder / _CONFIG).unlink(missing_ok=True)
            begun = clock.monotonic()
            processes.run(argv, echo=False)
            if number:  # the first round fills the file cache
                seconds.append(clock.monotonic() - begun)
    median = statistics.median(seconds)
    if as_json:
        click.echo(json.dumps({"files": files, "rounds": rounds, "seconds": round(median, 3), "limit_seconds": LIMIT_SECONDS}))
        return
    click.echo(f"adopt, {files} files, median of {rounds}: {median:.2f} s (limit {LIMIT_SECONDS:.0f} s)")


def _write(folder: Path, files: int) -> None:
    for number in range(max(1, files // _FOLDER_FILES)):
        parent = folder / ("node_modules" if number % 10 == 0 else f"packages/p{number % 40}/src") / f"m{number}"
        parent.mkdir(parents=True)
        for index in range(_FOLDER_FILES):
            (parent / f"f{index}.ts").touch()
    (folder / "prisma").mkdir()
    (folder / "prisma/schema.prisma").touch()
    (folder / "docker-compose.yml").write_text("services: {web: {build: ., ports: [80]}}\n")
