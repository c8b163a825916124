"""Fragments: validated by the writer and by every reader; the newest attempt of the right deployment wins."""

from __future__ import annotations

import dataclasses
import json

import pytest

from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.record import fragments
from azora_ci.record.fragments import Fragment, Fragments

ID = "1764000000-abc123"
ERROR = {"exit_code": 1, "title": "t", "what": "w", "where": "x", "next": "n"}


def fragment(**changes) -> Fragment:
    base = Fragment(
        job="smoke-tests", deployment_id=ID, version="v1.2.3", git_sha="a" * 40, run_id="1", run_attempt=1, status="failed",
        started_at="2026-11-24T11:00:00.000Z", ended_at="2026-11-24T11:00:01.000Z", evidence={}, error=ERROR,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_written_and_read_back(tmp_path):
    path = fragments.write(fragment(), tmp_path)
    assert path == tmp_path / "record" / "smoke-tests.json"
    assert fragments.read(path) == fragment()


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "ok"},  # ok must have no error and complete evidence
        {"error": None},  # a failure says what went wrong
        {"deployment_id": "../x"},
        {"ended_at": "yesterday"},
        {"evidence": {"unknown_key": 1}},
        {"run_attempt": 0},
    ],
)
def test_the_writer_refuses_what_does_not_fit(tmp_path, changes):
    with pytest.raises(BadInputError):
        fragments.write(fragment(**changes), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_the_reader_refuses_what_does_not_fit(tmp_path):
    path = fragments.write(fragment(), tmp_path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "surprise": 1}))
    with pytest.raises(BadInputError, match="schema"):
        fragments.read(path)
    path.write_text("{")
    with pytest.raises(BadInputError, match="not JSON"):
        fragments.read(path)


def test_the_newest_attempt_of_this_deployment_wins(tmp_path):
    for number, (attempt, deployment) in enumerate([(1, ID), (2, ID), (3, "1764000001-abc123")]):
        fragments.write(fragment(run_attempt=attempt, deployment_id=deployment), tmp_path / f"smoke-test-logs-{number}")
    newest = Fragments(tmp_path).newest("smoke-tests", ID)
    assert newest is not None
    assert newest.run_attempt == 2
    assert Fragments(tmp_path).newest("manual-rollback", ID) is None


def test_require_says_what_is_missing_or_failed(tmp_path):
    with pytest.raises(NotTrueError, match="No evidence of smoke-tests"):
        Fragments(tmp_path).require("smoke-tests", ID)
    fragments.write(fragment(), tmp_path)
    with pytest.raises(NotTrueError, match="did not succeed"):
        Fragments(tmp_path).require("smoke-tests", ID)
