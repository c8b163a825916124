"""Which findings close the gate: properties of the pure verdict."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core.config import AuditException
from azora_ci.gates.audit.verdict import NO_LEVEL, SEVERITIES, Finding, judge

TODAY = date(2026, 11, 30)
LEVELS = ("critical", "high", "moderate", "low")
ids = st.sampled_from(["GHSA-aaaa-aaaa-aaaa", "GHSA-bbbb-bbbb-bbbb", "GHSA-cccc-cccc-cccc", "7"])
findings = st.builds(
    Finding,
    package=st.sampled_from(["lodash", "minimist"]),
    version=st.sampled_from(["1.0.0", "2.0.0"]),
    severity=st.sampled_from(SEVERITIES),
    id=ids,
    title=st.just("a title"),
    url=st.just(""),
    fixed_in=st.none(),
    lock_file=st.sampled_from(["package-lock.json", "web/yarn.lock"]),
)
exceptions = st.lists(
    st.builds(AuditException, id=ids, reason=st.just("not called"), expires=st.integers(-3, 3).map(lambda days: TODAY + timedelta(days))),
    unique_by=lambda exception: exception.id,
)


def finding(severity: str = "high", identifier: str = "GHSA-aaaa-aaaa-aaaa") -> Finding:
    return Finding("lodash", "4.17.11", severity, identifier, "Prototype Pollution", "", "4.17.12", "package-lock.json")


@given(st.lists(findings, max_size=12), st.sampled_from(LEVELS), exceptions)
def test_every_finding_is_in_one_place_and_the_gate_follows(found, level, allowed):
    verdict = judge(found, level, allowed, TODAY)
    assert sorted(map(str, (*verdict.closing, *verdict.excepted, *verdict.tolerated))) == sorted(map(str, found))
    valid = {exception.id for exception in allowed if exception.expires >= TODAY}
    severe = [entry for entry in found if SEVERITIES.index(entry.severity) >= SEVERITIES.index(level)]
    assert verdict.passed == (all(entry.id in valid for entry in severe) and all(exception.expires >= TODAY for exception in allowed))
    assert {exception.id for exception in verdict.unused} == valid - {entry.id for entry in severe}


@given(st.lists(findings, max_size=12), exceptions)
def test_a_milder_level_never_opens_a_gate(found, allowed):
    passed = [judge(found, level, allowed, TODAY).passed for level in LEVELS]  # from the most lenient level on
    assert passed == sorted(passed, reverse=True)


@given(st.lists(findings, max_size=12), st.sampled_from(LEVELS), exceptions)
def test_an_exception_less_never_opens_a_gate_that_no_expiry_closes(found, level, allowed):
    allowed = [exception for exception in allowed if exception.expires >= TODAY]
    if not judge(found, level, allowed, TODAY).passed:
        assert not judge(found, level, allowed[1:], TODAY).passed


@pytest.mark.parametrize(("days", "passed"), [(0, True), (1, True), (-1, False)])
def test_an_exception_counts_through_its_last_day(days, passed):
    exception = AuditException("GHSA-aaaa-aaaa-aaaa", "not called", TODAY + timedelta(days))
    verdict = judge([finding()], "high", [exception], TODAY)
    assert (verdict.passed, bool(verdict.expired)) == (passed, not passed)


def test_an_expired_exception_closes_the_gate_even_without_its_finding():
    verdict = judge([], "high", [AuditException("GHSA-aaaa-aaaa-aaaa", "not called", TODAY - timedelta(1))], TODAY)
    assert not verdict.passed
    assert verdict.unused == ()


def test_an_exception_for_a_mild_finding_is_unused():
    verdict = judge([finding("low")], "high", [AuditException("GHSA-aaaa-aaaa-aaaa", "not called", TODAY)], TODAY)
    assert verdict.passed
    assert len(verdict.unused) == 1


def test_no_level_closes_nothing_and_an_unknown_one_is_refused():
    assert judge([finding("critical")], NO_LEVEL, [], TODAY).passed
    with pytest.raises(ValueError, match="severe"):
        judge([], "severe", [], TODAY)


def test_the_worst_comes_first():
    verdict = judge([finding("high"), finding("critical")], "high", [], TODAY)
    assert [entry.severity for entry in verdict.closing] == ["critical", "high"]
    assert str(verdict.closing[0]) == "critical: lodash 4.17.11, Prototype Pollution (GHSA-aaaa-aaaa-aaaa), fixed in 4.17.12"
