"""Commands of the application: each one leaves evidence, also the one that fails; none runs after it."""

from __future__ import annotations

import io
import sys

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import CommandFailedError, Processes
from azora_ci.gates import commands

PASSES, FAILS = (sys.executable, "-c", "print('fine')"), (sys.executable, "-c", "raise SystemExit('vulnerable')")


def test_a_failed_command_is_in_the_evidence_and_the_next_one_does_not_run():
    stream, clock, evidence = io.StringIO(), Clock(), []
    actions = Actions(stream=stream)
    with pytest.raises(CommandFailedError, match="vulnerable") as caught:
        for entry in commands.run(actions, Processes(JobLog(actions, clock)), clock, "audit", [PASSES, FAILS, PASSES]):
            evidence.append(entry)
    assert [(entry["purpose"], entry["argv"], entry["exit_code"]) for entry in evidence] == [
        ("audit", list(PASSES), 0),
        ("audit", list(FAILS), 1),
    ]
    assert "repair what the audit command reports" in caught.value.next_step
    assert stream.getvalue().count("✓ audit command") == 1
