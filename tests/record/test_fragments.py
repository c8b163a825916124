"""Fragments: validated by the writer and by every reader; only the one that its job's own output names is evidence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest

from azora_ci.core.documents import LIMITS
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.record import fragments
from azora_ci.record.fragments import Fragment
from tests.support import fragments_builder as build

ID = build.DEPLOYMENT_ID
ERROR = {"exit_code": 1, "title": "t", "what": "w", "where": "x", "next": "n"}
JOB = "build-and-push"
ARTIFACT = f"build-logs-{ID}"


def fragment(**changes) -> Fragment:
    base = Fragment(
        job="smoke-tests", deployment_id=ID, version="v1.2.3", git_sha="a" * 40, run_id="1", run_attempt=1, status="failed",
        started_at="2026-11-24T11:00:00.000Z", ended_at="2026-11-24T11:00:01.000Z", evidence={}, error=ERROR,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_written_and_read_back(tmp_path):
    sha256 = fragments.write(fragment(), tmp_path)
    path = tmp_path / "record" / "smoke-tests.json"
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a bracket is not closed"),
        ("[" * 100_000, "a bracket is not closed"),
        ('{"a": ' * 80 + "1" + "}" * 80, "nested deeper"),
        ("[]", "is not of type .object."),
        ('{"schema_version": NaN}', "NaN is no number of JSON"),
        ('{"schema_version": ' + "9" * 5000 + "}", "a number of more than"),
    ],
)
def test_the_reader_refuses_what_is_no_fragment(tmp_path, text, message):
    fragments.write(fragment(), tmp_path)
    path = tmp_path / "record" / "smoke-tests.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        fragments.read(path)


def test_the_reader_refuses_what_does_not_fit(tmp_path):
    fragments.write(fragment(), tmp_path)
    path = tmp_path / "record" / "smoke-tests.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(BadInputError, match="schema"):
        fragments.read(path)


def test_what_a_needed_job_left_is_found_with_its_folder(tmp_path):
    build.receive(tmp_path, build.fragment(JOB), build.fragment("smoke-tests", "failed"))
    received = build.received(tmp_path)
    assert received.require(JOB) == received.find(JOB) == build.fragment(JOB)
    assert received.folder(JOB) == tmp_path / ARTIFACT
    assert received.find("smoke-tests") == build.fragment("smoke-tests", "failed")
    with pytest.raises(NotTrueError, match=r"smoke-tests did not succeed: its fragment \(attempt 1\) says failed, its result is failure"):
        received.require("smoke-tests")
    assert received.find("database-backup") is None
    with pytest.raises(NotTrueError, match="No evidence of database-backup: it is not among the jobs in NEEDS"):
        received.require("database-backup")


def test_a_single_artifact_lies_at_the_root(tmp_path):
    sha256 = fragments.write(build.fragment(JOB), tmp_path)
    needs = json.dumps({JOB: {"result": "success", "outputs": {fragments.OUTPUT: sha256}}})
    assert build.received(tmp_path, needs=needs).folder(JOB) == tmp_path


def test_a_re_run_takes_what_earlier_attempts_proved_and_what_its_own_jobs_left(tmp_path):
    build.receive(tmp_path, build.fragment(JOB), build.fragment("smoke-tests", "failed"), build.fragment("smoke-tests", attempt=2))
    received = build.received(tmp_path, attempt=2)
    assert received.require(JOB).run_attempt == 1
    assert received.require("smoke-tests").run_attempt == 2
    assert received.folder("smoke-tests").name == f"smoke-test-logs-{ID}-attempt-2"


# --- what somebody else put there -----------------------------------------------------------------------------------------


def plant(folder: Path, **changes) -> None:
    """Write a valid fragment that names an attacker's digest."""
    evil = {name: {**image, "digest": "sha256:" + "e" * 64} for name, image in build.evidence(JOB)["services"].items()}
    fragments.write(dataclasses.replace(build.fragment(JOB, services=evil), **changes), folder)


PLANTED = {
    "committed, or in another job's artifact": lambda received: plant(received / f"validation-logs-{ID}" / "deployment-logs"),
    "beside another job's own": lambda received: plant(received / f"validation-logs-{ID}"),
    "at the root": plant,
    "as attempt 99": lambda received: plant(received / f"{ARTIFACT}-attempt-99", run_attempt=99),
    "as our own attempt": lambda received: plant(received / f"{ARTIFACT}-attempt-2", run_attempt=2),
    "in a folder of nearly that name": lambda received: plant(received / f"build-logs-{ID}x", run_attempt=1),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fragment_is_never_evidence(tmp_path, planted):
    build.receive(tmp_path, build.fragment(JOB))
    honest = build.needs_of(tmp_path)
    PLANTED[planted](tmp_path)
    assert build.received(tmp_path, attempt=2, needs=honest).require(JOB) == build.fragment(JOB)


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fragment_does_not_stand_in_for_one_that_is_missing(tmp_path, planted):
    build.receive(tmp_path / "elsewhere", build.fragment(JOB))
    PLANTED[planted](tmp_path)
    with pytest.raises(NotTrueError, match=f"No evidence of {JOB}: the job's own output names the fragment with SHA-256"):
        build.received(tmp_path, attempt=2, needs=build.needs_of(tmp_path / "elsewhere")).find(JOB)


def test_a_fragment_that_was_changed_afterwards_is_refused_with_both_hashes(tmp_path):
    build.receive(tmp_path, build.fragment(JOB))
    honest = build.needs_of(tmp_path)
    plant(tmp_path / ARTIFACT)
    other = hashlib.sha256((tmp_path / ARTIFACT / "record" / f"{JOB}.json").read_bytes()).hexdigest()
    with pytest.raises(NotTrueError, match=other) as caught:
        build.received(tmp_path, needs=honest).require(JOB)
    assert json.loads(honest)[JOB]["outputs"][fragments.OUTPUT] in caught.value.what


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_id": "99"}, "of run 99, this is run 1234567890"),
        ({"run_attempt": 3}, "of attempt 3, this is attempt 2"),
        ({"deployment_id": "1764000001-abc123"}, "of deployment 1764000001-abc123, this is deployment"),
    ],
)
def test_a_fragment_of_another_run_attempt_or_deployment_is_refused_even_if_the_output_names_it(tmp_path, changes, message):
    fragments.write(dataclasses.replace(build.fragment(JOB), **changes), tmp_path / ARTIFACT)
    with pytest.raises(NotTrueError, match=message):
        build.received(tmp_path, attempt=2).find(JOB)


def link_file(path: Path) -> None:
    path.rename(path.with_name("other.json"))
    path.symlink_to("other.json")


def link_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to("elsewhere")


def link_artifact(path: Path) -> None:
    artifact = path.parent.parent
    artifact.rename(artifact.with_name("elsewhere"))
    artifact.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def enlarge(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(LIMITS.size + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link_file, "build-and-push.json is a link"),
        (link_folder, "record is a link"),
        (link_artifact, f"{ARTIFACT} is a link"),
        (pipe, "it is not a plain file"),
        (enlarge, "it has more than"),
        (lambda path: path.rename(path.with_name("Build-and-push.json")), "was received"),
    ],
)
def test_only_a_plain_file_of_the_exact_name_is_read(tmp_path, change, message):
    build.receive(tmp_path, build.fragment(JOB))
    path = tmp_path / ARTIFACT / "record" / f"{JOB}.json"
    honest = build.needs_of(tmp_path)
    change(path)
    with pytest.raises(NotTrueError, match=message):
        build.received(tmp_path, needs=honest).find(JOB)


# --- a job that gave no output --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [None, "", "***", "a" * 63 + "***", "A" * 64])
def test_without_the_output_the_gate_is_closed_and_the_text_says_why_that_may_be(tmp_path, output):
    build.receive(tmp_path, build.fragment(JOB))
    outputs = {} if output is None else {fragments.OUTPUT: output}
    received = build.received(tmp_path, needs=json.dumps({JOB: {"result": "success", "outputs": outputs}}))
    for read in (received.find, received.require, received.folder):
        with pytest.raises(
            NotTrueError, match=r"No evidence of build-and-push: the job \(success\) gave no output fragment-sha256"
        ) as caught:
            read(JOB)
        assert "GitHub drops an output that contains a masked value: a short secret such as ec2" in caught.value.next_step


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped"])
def test_a_job_that_was_ended_before_it_gave_the_output_left_nothing(tmp_path, result):
    build.receive(tmp_path, build.fragment(JOB))
    received = build.received(tmp_path, needs=json.dumps({JOB: {"result": result, "outputs": {}}}))
    assert received.find(JOB) is None
    with pytest.raises(NotTrueError, match=f"the job \\({result}\\) gave no output"):
        received.require(JOB)
    (place,) = received.places(JOB)
    assert received.unverified(place) == build.fragment(JOB)


def test_a_job_that_failed_afterwards_did_not_succeed(tmp_path):
    build.receive(tmp_path, build.fragment(JOB))
    received = build.received(tmp_path, needs=build.needs_of(tmp_path, build_and_push="failure"))
    assert received.find(JOB) is not None
    with pytest.raises(NotTrueError, match="its result is failure"):
        received.require(JOB)
