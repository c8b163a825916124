"""The health log: a line of JSON for every check, with its response time, as its schema has it, and without secrets."""

from __future__ import annotations

import io
import json
from pathlib import Path

from azora_ci.core import schemas
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.health.answers import CONTRACT, NEW, OLD, PUBLIC, Answer, Endpoint, classify
from azora_ci.health.log import FILE_NAME, check_line


def test_every_check_is_a_line_that_fits_the_schema(tmp_path: Path):
    log = JobLog(Actions(stream=io.StringIO()), Clock(), tmp_path / "job.log", secrets=["hunter2"])
    findings = [
        classify(
            Endpoint("api#0 v1.2.3", "api", NEW, "http://x/", frozenset({"1.2.3"}), health=CONTRACT),
            Answer(3.14159, 200, "application/json", b'{"status": "healthy", "version": "1.2.3"}'),
        ),
        classify(Endpoint("api public", "api", PUBLIC, "http://x/"), Answer(5000.0, failure="timeout", detail="no answer\nfrom hunter2")),
        classify(Endpoint("edge counters", "edge", OLD, ""), Answer(0.0, failure="broken", detail="é")),
    ]
    log.write_json(FILE_NAME, (check_line("canary", finding) for finding in findings))
    log.write_json(FILE_NAME, [])
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text(encoding="utf-8").splitlines()]
    for line in lines:
        schemas.validate(line, "health-check", where=FILE_NAME)
    assert [(line["outcome"], line["milliseconds"], line["status"], line["version"]) for line in lines] == [
        ("healthy", 3.1, 200, "1.2.3"), ("timeout", 5000.0, None, None), ("broken", 0.0, None, None),
    ]  # fmt: skip
    assert "hunter2" not in str(lines) and "from ***" in lines[1]["detail"]


def test_a_log_that_is_kept_nowhere_keeps_no_lines(tmp_path: Path):
    JobLog(Actions(stream=io.StringIO()), Clock()).write_json(FILE_NAME, [{"a": 1}])
    assert list(tmp_path.iterdir()) == []
