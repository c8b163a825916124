"""The cause of an abort names who fails, where and since when, whatever the edge's log holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import jsonschema
import pytest

from azora_ci.core import schemas
from azora_ci.health.answers import NEW as NEW_SIDE
from azora_ci.health.answers import OLD as OLD_SIDE
from azora_ci.health.answers import Endpoint, ProbeResult
from azora_ci.health.failures import GIVEN_UP, Failure
from azora_ci.health.traffic import Counters
from azora_ci.rollout import cause as causes
from azora_ci.rollout import report
from azora_ci.rollout.cause import Beginnings, Cause, Finding
from azora_ci.rollout.decision import Limits, trials
from azora_ci.rollout.verdict import Record

OLD, NEW = "1764000000-aaaaaa", "1764000100-bbbbbb"
LIMITS = Limits(error_points=1.0, latency_factor=3.0, minimum_requests=5)
FAILURE = Failure(
    time="2026-11-24T11:03:16.123Z", service="api", release=NEW, kind="user", method="GET", path="/api/orders/17", status=500,
    reason="the service answered so", milliseconds=3, attempts=1, instance="10.1.0.2:80",
)  # fmt: skip
CAUSE = Cause(
    Finding(causes.ERRORS, "api", "2026-11-24T11:03:00.000Z", "Tested."),
    NEW,
    "2026-11-24T11:00:00.000Z",
    {"v1.1.0": Counters(200, errors=30), "v1.0.0": Counters(3800, errors=2)},
    {("10.1.0.1:80", ""): "api#1", ("10.1.0.2:80", ""): "api#2"},
)


def test_paths_and_the_instance_are_named_and_the_evidence_is_valid():
    failures = [replace(FAILURE, path=f"/api/orders/{number}") for number in range(9)]
    document = CAUSE.document([*failures, replace(FAILURE, method="POST", path="/api/users"), replace(FAILURE, release=OLD)])
    assert document["paths"] == [{"path": "GET /api/orders/*", "requests": 9}, {"path": "POST /api/users", "requests": 1}]
    assert (document["instance"], document["logged"], len(document["examples"])) == ("api#2", 10, 3)
    assert document["versions"]["v1.1.0"] == {"requests": 200, "failed": 30, "error_rate": 0.15, "p95_ms": None}
    lines = report.cause_lines(document)
    assert lines[:2] == [
        "Cause (errors): requests to api, since 2026-11-24T11:03:00.000Z",
        "  v1.1.0: 30 of 200 requests failed (15.0%), p95 –",
    ]
    assert "  nearly all of it on one instance: api#2" in lines
    assert "  most often, of 10 in the edge's log: GET /api/orders/* (9), POST /api/users (1)" in lines
    assert lines[-3] == "  for example 2026-11-24T11:03:16.123Z GET /api/orders/0: 500, the service answered so (3 ms, api#2)"
    schema = schemas.load("fragment-gradual-rollout")["properties"]["evidence"]["properties"]["abort"]["oneOf"][1]["properties"]["cause"]
    jsonschema.validate(document, schema)


@pytest.mark.parametrize(
    "failures",
    [
        [FAILURE] * 7,  # too few
        [FAILURE] * 8 + [replace(FAILURE, instance="10.1.0.1:80")] * 2,  # both
        [replace(FAILURE, attempts=2)] * 20,  # the log names the instance that was tried last
    ],
)
def test_no_instance_is_named_without_a_reason(failures):
    assert CAUSE.document(failures)["instance"] is None


def test_the_only_instance_is_not_named():
    alone = replace(CAUSE, instances={("10.1.0.2:80", ""): "api#2"})
    assert alone.document([FAILURE] * 20)["instance"] is None


def test_a_log_that_cannot_be_read_is_said():
    def fail(_since: str) -> NoReturn:
        raise RuntimeError("the host is gone")

    document = CAUSE.explained(fail)
    assert (document["logged"], document["paths"], document["examples"]) == (None, [], [])
    assert "  the edge's log could not be read: the host is gone" in report.cause_lines(document)


def test_the_log_is_read_since_the_stage_began_and_an_empty_one_is_said():
    asked: list[str] = []

    def read(since: str) -> Sequence[Failure]:
        asked.append(since)
        return []

    assert "  the edge's log tells of no such request" in report.cause_lines(CAUSE.explained(read))
    assert asked == [CAUSE.began]


def test_our_own_requests_are_examples_of_a_verdict_on_them_alone():
    ours = replace(FAILURE, kind="ours")
    assert CAUSE.document([ours])["logged"] == 0
    assert replace(CAUSE, finding=replace(CAUSE.finding, ours=True)).document([ours, ours, FAILURE])["logged"] == 2
    assert replace(CAUSE, finding=replace(CAUSE.finding, kind=causes.HEALTH)).document([ours, FAILURE])["logged"] == 2


def test_hostile_paths_stay_text_and_bounded():
    paths = ["\n::error::x", "\x1b[2J", "x" * 100_000, "\u202e\r##[error]"]
    document = CAUSE.document([replace(FAILURE, path=path, method="GET\n::error::" * 100) for path in paths])
    text = "\n".join(report.cause_lines(document))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())
    assert len(text) < 2_000
    assert len(json.dumps(document)) < 4_000


def test_a_verdict_on_requests_says_since_when_and_what_the_test_found():
    tests = trials(LIMITS, {"auth": Counters(), "api": Counters()}, 0.9)
    beginnings = Beginnings("tick 0")
    beginnings.note("tick -1", tests)  # nothing was counted yet
    for number in range(1, 21):
        failed = 5 if number > 10 else 0
        for service, trial in tests.items():
            trial.add(Counters(10, errors=failed if service == "api" else 0), Counters(10), alone=False)
        beginnings.note(f"tick {number}", tests)
    finding = beginnings.finding(["api: new version failed"], LIMITS, tests)
    assert finding is not None
    assert (finding.kind, finding.service, finding.since, finding.ours) == (causes.ERRORS, "api", "tick 10", False)
    assert "Tested after each of 20 ticks, whether its share of failed requests is more than 1 points above" in finding.test
    assert "more than a million to 1, " in finding.test
    assert "at most 1 % of rollouts" in finding.test
    assert beginnings.finding(["auth: new version failed"], LIMITS, tests) is None


def test_a_verdict_on_probes_names_the_endpoint_that_fails_most():
    record = Record(NEW)

    def finding(name: str, side: str, outcome: str) -> ProbeResult:
        return ProbeResult(Endpoint(name, "api", side, "", frozenset()), outcome, f"{name} answers 500", 1.0)

    assert causes.of_probes(record, 3) is None
    for number in range(3):
        first = "healthy" if number == 0 else "broken"
        old, new = finding("old", OLD_SIDE, "broken"), finding("api#2", NEW_SIDE, "broken")
        record.add([old, finding("api#1", NEW_SIDE, first), new], f"tick {number}")
    found = causes.of_probes(record, 3)
    assert found is not None
    assert (found.endpoint, found.service, found.since) == ("api#2", "api", "tick 0")
    assert found.test == "Probed at every tick: 3 failures in a row, 3 take a rollout back; the last one: api#2 answers 500"


def test_a_request_that_was_given_up_says_after_what_time():
    (example,) = CAUSE.document([replace(FAILURE, status=0, reason=GIVEN_UP, milliseconds=1004)])["examples"]
    assert "no answer, given up after 1.0 s" in example
