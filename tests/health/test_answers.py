"""Answers become findings, findings become a verdict."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core.config import HealthSettings
from azora_ci.health.answers import CONTRACT, NEW, OLD, PUBLIC, Answer, EdgeProof, Endpoint, classify, contract, examine, seal
from azora_ci.health.probes import request_of
from azora_ci.rollout.verdict import HealthVerdict, Record, judge

UNREAD = "HTTP 200 with a body that is not read"
NEW_ID, OLD_ID = "1764000100-bbbbbb", "1764000000-aaaaaa"


def endpoint(side: str = NEW, name: str = "api", versions: tuple[str, ...] = ("1.1.0",)) -> Endpoint:
    return Endpoint(f"{name} {side}", name, side, "http://127.0.0.1:1/health", frozenset(versions))


def answer(body: object = None, status: int = 200, kind: str = "application/json", deployment: str | None = None) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(1.0, status, kind, content, deployment)


GOOD = answer({"status": "healthy", "version": "1.1.0"})
BAD = answer({}, status=500)


@pytest.mark.parametrize(
    ("received", "outcome", "detail"),
    [
        (GOOD, "healthy", "version 1.1.0"),
        (answer({"status": "healthy", "version": "1.0.0"}), "wrong-version", "answers version 1.0.0, expected 1.1.0"),
        (answer({"status": "healthy", "version": "1\n::error::x"}), "wrong-version", "answers version 1 ::error::x, expected 1.1.0"),
        (answer({"status": "healthy"}), "wrong-version", "names no version: JSON version is missing"),
        (answer({"status": "healthy", "version": 11}), "wrong-version", "names no version: JSON version is missing"),
        (answer({"status": "degraded", "version": "1.1.0"}), "unhealthy", "says status 'degraded', expected 'healthy'"),
        (answer({"version": "1.1.0"}), "unhealthy", "has no JSON status"),
        (answer(b"<html>", kind="text/html; charset=utf-8"), "html", "HTTP 200 with text/html; charset=utf-8, not JSON"),
        (answer(b"<html>"), "not-json", f"{UNREAD} (no JSON: Expecting value: line 1 column 1 (char 0)): '<html>'"),
        (answer(["healthy"]), "not-json", "HTTP 200 with a body that is no JSON object: '[\"healthy\"]'"),
        (answer({"status": "healthy", "version": "1.1.0"}, status=503), "status", "HTTP 503"),
        (answer(b"", status=301), "status", "HTTP 301"),
        (Answer(2000.0, failure="timeout", detail="no answer within 2 s"), "timeout", "no answer within 2 s"),
        (Answer(1.0, failure="refused", detail="connection refused"), "refused", "connection refused"),
    ],
)
def test_only_a_healthy_answer_of_the_right_version_is_healthy(received, outcome, detail):
    finding = classify(endpoint(), received)
    assert (finding.outcome, finding.detail) == (outcome, detail)
    assert finding.passed is (outcome == "healthy")


IMAGE = HealthSettings(("ok", "UP"), "json:status", "image")
HEADER = HealthSettings(("UP",), "json:status", "header:X-Version")
NESTED = HealthSettings(("true", "green"), "json:data.state", "json:build.version")
NUMBER = HealthSettings(("200", "None", "[200]"), "json:code", "answer")
BY_CODE = HealthSettings(status_from="status-code", version_from="image")
CODE_AND_HEADER = HealthSettings(status_from="status-code", version_from="header:x-version")
CODE_AND_JSON = HealthSettings(status_from="status-code")
OK = answer({"status": "ok"})
SECRET = "secret of this deployment"
EDGE = EdgeProof(SECRET, {NEW_ID: "v1.1.0", OLD_ID: "v1.0.0"})


def sealed(release: str, service: str = "api", secret: str = SECRET) -> Answer:
    return replace(OK, headers={"x-azora-proof": seal(secret, service, release)})


@pytest.mark.parametrize(
    ("health", "probed", "received", "expected"),
    [
        # (outcome, version, proof)
        (CONTRACT, {}, answer({"status": "healthy", "version": "v1.1.0"}), ("healthy", "1.1.0", "answer")),
        (CONTRACT, {}, answer({"status": "healthy", "version": " 1.1.0\n"}), ("healthy", "1.1.0", "answer")),
        (CONTRACT, {}, answer({"status": "ok", "version": "1.1.0"}), ("unhealthy", "1.1.0", "none")),
        (CONTRACT, {}, answer({"status": "healthy", "version": "vv1.1.0"}), ("wrong-version", "v1.1.0", "none")),
        (CONTRACT, {}, answer({"status": "healthy", "version": "1.1.0"}, status=204), ("status", None, "none")),
        (HEADER, {}, replace(answer({"status": "UP"}), headers={"x-version": "v1.1.0"}), ("healthy", "1.1.0", "header")),
        (HEADER, {}, replace(answer({"status": "UP"}), headers={"x-version": "1.1.0, 1.0.0"}), ("wrong-version", "1.1.0, 1.0.0", "none")),
        (HEADER, {}, answer({"status": "UP", "version": "1.1.0"}), ("wrong-version", None, "none")),
        (HEADER, {}, replace(answer({"status": "up"}), headers={"x-version": "1.1.0"}), ("unhealthy", "1.1.0", "none")),
        (NESTED, {}, answer({"data": {"state": "green"}, "build": {"version": "1.1.0"}}), ("healthy", "1.1.0", "answer")),
        (NESTED, {}, answer({"data": {"state": True}, "build": {"version": "1.1.0"}}), ("healthy", "1.1.0", "answer")),
        (NUMBER, {}, answer({"code": 200, "version": "1.1.0"}), ("healthy", "1.1.0", "answer")),
        (NUMBER, {}, answer({"code": 503, "version": "1.1.0"}), ("unhealthy", "1.1.0", "none")),
        (NUMBER, {}, answer({"code": None, "version": "1.1.0"}), ("unhealthy", "1.1.0", "none")),
        (NUMBER, {}, answer({"code": [200], "version": "1.1.0"}), ("unhealthy", "1.1.0", "none")),
        (NESTED, {}, answer({"data": {"state": False}, "build": {"version": "1.1.0"}}), ("unhealthy", "1.1.0", "none")),
        (NESTED, {}, answer({"data": ["green"], "build": {"version": "1.1.0"}}), ("unhealthy", "1.1.0", "none")),
        (NESTED, {}, answer({"data.state": "green", "build": {"version": "1.1.0"}}), ("unhealthy", "1.1.0", "none")),
        (NESTED, {}, answer({"data": {"state": "green"}, "build": {"version": {"version": "1.1.0"}}}), ("wrong-version", None, "none")),
        (NESTED, {}, answer({"data": {"state": "green"}, "version": "1.1.0"}), ("wrong-version", None, "none")),
        (CODE_AND_HEADER, {}, replace(answer(b"", status=204), headers={"x-version": "1.1.0"}), ("healthy", "1.1.0", "header")),
        (CODE_AND_HEADER, {}, replace(answer(b"", status=302), headers={"x-version": "1.1.0"}), ("status", None, "none")),
        (CODE_AND_JSON, {}, answer({"version": "1.1.0"}), ("healthy", "1.1.0", "answer")),
        (CODE_AND_JSON, {}, answer(b"OK", kind="text/plain"), ("not-json", None, "none")),
        # the image proves the version of an instance
        (IMAGE, {"observed": "1.1.0"}, OK, ("healthy", "1.1.0", "image")),
        (IMAGE, {"observed": "of another image"}, OK, ("wrong-version", "of another image", "none")),
        (IMAGE, {"observed": "1.0.0"}, answer({"status": "ok", "version": "1.1.0"}), ("wrong-version", "1.0.0", "none")),
        (IMAGE, {"observed": None}, answer({"status": "ok", "version": "1.1.0"}), ("healthy", None, "none")),
        (IMAGE, {"observed": "1.1.0"}, answer({"status": "down"}), ("unhealthy", "1.1.0", "none")),
        (IMAGE, {"observed": None}, sealed(NEW_ID), ("healthy", None, "none")),  # an instance proves nothing by a header
        (BY_CODE, {"observed": "1.1.0"}, answer(b"<p>ok", kind="text/html"), ("healthy", "1.1.0", "image")),
        # the edge proves the version of a public answer
        (IMAGE, {"side": PUBLIC, "edge": EDGE}, sealed(NEW_ID), ("healthy", "1.1.0", "edge")),
        (IMAGE, {"side": PUBLIC, "edge": EDGE}, sealed(OLD_ID), ("wrong-version", "1.0.0", "none")),
        (IMAGE, {"side": PUBLIC, "edge": EDGE}, sealed(NEW_ID, "auth"), ("wrong-version", "of no known release", "none")),
        (IMAGE, {"side": PUBLIC, "edge": EDGE}, sealed(NEW_ID, secret="guessed"), ("wrong-version", "of no known release", "none")),
        (IMAGE, {"side": PUBLIC, "edge": EDGE}, OK, ("healthy", None, "none")),
        (IMAGE, {"side": PUBLIC, "edge": EDGE}, replace(OK, deployment=NEW_ID), ("healthy", None, "none")),  # anybody can say that
        (IMAGE, {"side": PUBLIC}, sealed(NEW_ID), ("healthy", None, "none")),  # nobody asked with a secret
    ],
)
def test_a_service_that_answers_otherwise_is_judged_by_its_settings(health, probed, received, expected):
    finding = classify(replace(endpoint(), health=health, **probed), received)
    assert (finding.outcome, finding.version, finding.version_proof) == expected
    assert finding.passed is (expected[0] == "healthy")


def test_everything_that_an_answer_lacks_is_named_at_once():
    problems, *_ = examine(endpoint(), answer({"status": "ok", "version": 7}))
    assert problems == [
        ("unhealthy", "says status 'ok', expected 'healthy'"),
        ("wrong-version", "names no version: JSON version is missing"),
    ]
    (redirect,), *_ = examine(endpoint(), replace(answer(b"", status=308), headers={"location": "https://x/\n health"}))
    assert redirect == ("status", "HTTP 308 to https://x/ health: no redirect is followed")


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (CONTRACT, "HTTP 200 and JSON with status 'healthy', and JSON version the release, such as 1.2.3"),
        (IMAGE, "HTTP 200 and JSON with status 'ok' or 'UP', and a version that its image proves"),
        (CODE_AND_HEADER, "any HTTP 2xx, and the header x-version the release, such as 1.2.3"),
    ],
)
def test_the_contract_is_said_in_words(health, words):
    assert contract(health) == words


def test_a_secret_is_in_no_text_of_an_endpoint():
    public = replace(endpoint(PUBLIC), edge=EDGE)
    assert SECRET not in repr((public, EDGE, classify(public, OK)))
    assert request_of(public).headers == {"x-azora-proof": SECRET}


def test_what_a_service_says_is_kept_short():
    assert len(classify(endpoint(), answer({"status": "healthy", "version": "9" * 60_000})).version or "") == 200


json_paths = st.lists(st.sampled_from(["a", "status", "0", "é", "__class__", "}{", "%s", "b" * 50]), min_size=1, max_size=8).map(".".join)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.sampled_from(["a", "status", "0", "é", "__class__"]), parts, max_size=3),
    max_leaves=12,
)


@given(json_paths, json_paths, documents)
def test_no_path_breaks_the_reading_and_nothing_but_the_word_is_healthy(status, version, document):
    health = HealthSettings(("UP",), f"json:{status}", f"json:{version}")
    finding = classify(replace(endpoint(), health=health), answer(document))
    assert finding.outcome in {"unhealthy", "wrong-version", "not-json", "healthy"}
    finding.detail.encode()
    value = document
    for name in status.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    assert not finding.passed or value == "UP"


@given(st.binary(max_size=200))
def test_no_body_breaks_the_reading(body):
    assert classify(endpoint(), answer(body)).outcome in {"healthy", "unhealthy", "wrong-version", "not-json"}


def after(ticks: list[dict[Endpoint, Answer]]) -> Record:
    record = Record(NEW_ID)
    for tick in ticks:
        record.add(classify(probed, received) for probed, received in tick.items())
    return record


def test_failures_in_a_row_abort_and_not_one_fewer():
    new = endpoint()
    assert judge(after([{new: BAD}] * 2), 3) == HealthVerdict(failing=("api new failed 2 of 3 probes in a row (HTTP 500)",))
    verdict = judge(after([{new: BAD}] * 3), 3)
    assert verdict.abort == ("api new failed 3 of 3 probes in a row (HTTP 500)",)


def test_one_good_answer_starts_the_count_again():
    new = endpoint()
    assert judge(after([{new: BAD}, {new: BAD}, {new: GOOD}, {new: BAD}, {new: BAD}]), 3).abort == ()


def test_every_endpoint_is_counted_for_itself():
    api, auth = endpoint(name="api"), endpoint(name="auth")
    ticks = [{api: BAD, auth: GOOD}, {api: GOOD, auth: BAD}] * 3
    assert judge(after(ticks), 2).abort == ()


def test_an_old_version_that_fails_alone_is_said_so_and_aborts_nothing():
    new, old, public = endpoint(), endpoint(OLD), endpoint(PUBLIC)
    verdict = judge(after([{new: GOOD, old: BAD, public: BAD}] * 4), 3)
    assert verdict.abort == ()
    assert verdict.hold == ()
    assert all(note.startswith("the old version fails alone, not the new one's fault") for note in verdict.notes)
    assert len(verdict.notes) == 2


def test_both_versions_failing_is_held_not_blamed():
    new, old = endpoint(), endpoint(OLD)
    verdict = judge(after([{new: BAD, old: BAD}] * 3), 3)
    assert verdict.abort == ()
    assert verdict.hold == ("old and new version both fail, not the new one's fault: api new failed 3 of 3 probes in a row (HTTP 500)",)


def test_one_broken_old_instance_of_two_does_not_excuse_the_new_version():
    new, broken, fine = endpoint(), Endpoint("api#1", "api", OLD, "http://a"), Endpoint("api#2", "api", OLD, "http://b")
    ticks = [{new: BAD, broken: BAD, fine: answer({"status": "healthy", "version": "1.0.0"})}] * 3
    assert judge(after(ticks), 3).abort != ()


def test_an_old_version_of_another_service_excuses_nothing():
    new, old = endpoint(name="api"), endpoint(OLD, name="auth")
    assert judge(after([{new: BAD, old: BAD}] * 3), 3).abort != ()


def test_a_public_failure_counts_for_the_version_that_the_edge_chose():
    public, new = endpoint(PUBLIC), endpoint()
    of_old, of_new = answer({}, 500, deployment=OLD_ID), answer({}, 500, deployment=NEW_ID)
    assert judge(after([{public: of_old, new: GOOD}] * 3), 3).abort == ()
    assert judge(after([{public: of_old, new: GOOD}] * 2 + [{public: of_new, new: GOOD}]), 3).abort != ()


def test_a_public_failure_that_nobody_can_be_blamed_for_aborts():
    assert judge(after([{endpoint(PUBLIC): BAD, endpoint(): GOOD}] * 3), 3).abort != ()


def test_an_endpoint_that_is_no_longer_probed_is_forgotten():
    new, other = endpoint(name="api"), endpoint(name="auth")
    assert judge(after([{new: BAD}] * 3 + [{other: GOOD}]), 3) == HealthVerdict()


def test_a_public_failure_of_the_old_version_does_not_hold_a_stage():
    public, new, old = endpoint(PUBLIC), endpoint(), endpoint(OLD)
    of_old = answer({}, 500, deployment=OLD_ID)
    assert judge(after([{public: of_old, new: GOOD}]), 3).failing == ()
    assert judge(after([{public: BAD, new: GOOD, old: BAD}]), 3).failing == ()  # the edge names nobody, but the old version is down
    assert judge(after([{public: BAD, new: GOOD}]), 3).failing != ()


def test_one_old_instance_of_several_that_fails_alone_is_said_and_aborts_nothing():
    new, broken = endpoint(), Endpoint("api#1", "api", OLD, "http://a")
    fine = Endpoint("api#2", "api", OLD, "http://b")
    verdict = judge(after([{new: GOOD, broken: BAD, fine: answer({"status": "healthy", "version": "1.0.0"})}] * 5), 3)
    assert verdict == HealthVerdict(
        notes=("the old version fails alone, not the new one's fault: api#1 failed 5 of 3 probes in a row (HTTP 500)",)
    )


def test_a_service_is_in_doubt_while_no_old_instance_of_it_answers():
    new, old, second_old = endpoint(), Endpoint("api#1", "api", OLD, "http://a"), Endpoint("api#2", "api", OLD, "http://b")
    well = answer({"status": "healthy", "version": "1.0.0"})
    assert judge(after([{new: GOOD, old: BAD, second_old: well}]), 3).doubt == frozenset()
    assert judge(after([{new: GOOD, old: BAD, second_old: BAD}]), 3).doubt == {"api"}


def test_nobody_fails_alone_where_both_just_begin_to_fail():
    assert judge(after([{endpoint(): BAD, endpoint(OLD): BAD}]), 3).notes == ()


ENDPOINTS = [
    Endpoint(f"{service} {side} {number}", service, side, "http://a") for service in "ab" for side in (NEW, OLD, PUBLIC) for number in "12"
]
ticks = st.lists(st.lists(st.sampled_from(["good", "bad", "bad by old", "bad by new"]), min_size=12, max_size=12), min_size=1, max_size=8)


@given(ticks, st.integers(1, 4))
def test_whatever_is_answered_the_verdict_is_fair(rows, retries):
    answers = {
        "good": answer({"status": "healthy", "version": "1.1.0"}),
        "bad": BAD,
        "bad by old": answer({}, 500, deployment=OLD_ID),
        "bad by new": answer({}, 500, deployment=NEW_ID),
    }
    record = after([dict(zip(ENDPOINTS, (answers[name] for name in row), strict=True)) for row in rows])
    verdict = judge(record, retries)
    sentences = " ".join((*verdict.abort, *verdict.hold, *verdict.notes, *verdict.failing))
    for probed in ENDPOINTS:
        streak = record.streaks[probed.name]
        named = [text for text in verdict.abort if text.startswith(probed.name)]
        if named:  # nobody is taken back for an old instance, for too few failures, or for what the edge gave to the old version
            assert probed.side != OLD
            assert streak.failures >= retries
            assert probed.side == NEW or streak.of_old < streak.failures
        if probed.side == NEW and streak.failures:  # no failure of the new version goes unsaid
            assert f"{probed.name} failed" in sentences
    if not any(record.streaks[probed.name].failures for probed in ENDPOINTS):
        assert verdict == HealthVerdict()
