from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core.config import RequiredCheck
from azora_ci.gates import checks
from azora_ci.gates.checks import FAILED, PASSED, PENDING, Observed, Required


def check_run(number: int, name: str, conclusion: str | None = "success", *, app: int = 15368, suite: int = 1) -> dict[str, Any]:
    waiting = conclusion in {None, "queued", "in_progress", "waiting", "requested", "pending"}
    return {
        "id": number,
        "name": name,
        "status": (conclusion or "queued") if waiting else "completed",
        "conclusion": None if waiting else conclusion,
        "app": {"id": app},
        "check_suite": {"id": suite},
        "html_url": f"https://example.com/{number}",
    }


def status(number: int, context: str, state: str) -> dict[str, Any]:
    return {"id": number, "context": context, "state": state, "target_url": None}


def state_of(
    *runs: dict[str, Any],
    statuses: tuple[dict[str, Any], ...] = (),
    skips: tuple[str, ...] = (),
    app: int | None = None,
    attempts: dict[int, int] | None = None,
) -> str:
    observed = checks.observed(runs, statuses, own_check_suite=99, attempts=attempts)
    return checks.judge([Required("test", "configuration", app)], observed, skips).state


@pytest.mark.parametrize(
    ("conclusion", "expected"),
    [
        ("success", PASSED),
        ("failure", FAILED),
        ("cancelled", FAILED),
        ("timed_out", FAILED),
        ("action_required", FAILED),
        ("stale", FAILED),
        ("startup_failure", FAILED),
        ("a word that does not exist yet", FAILED),
        ("skipped", FAILED),
        ("neutral", FAILED),
        ("queued", PENDING),
        ("in_progress", PENDING),
        ("waiting", PENDING),
        ("requested", PENDING),
        ("pending", PENDING),
    ],
)
def test_each_word_of_a_check_run(conclusion: str, expected: str) -> None:
    assert state_of(check_run(1, "test", conclusion)) == expected


@pytest.mark.parametrize(("state", "expected"), [("success", PASSED), ("pending", PENDING), ("failure", FAILED), ("error", FAILED)])
def test_each_word_of_a_commit_status(state: str, expected: str) -> None:
    assert state_of(statuses=(status(1, "test", state),)) == expected


def test_missing_is_pending() -> None:
    assert state_of(check_run(1, "tests")) == PENDING


@pytest.mark.parametrize("conclusion", ["skipped", "neutral"])
def test_skipped_counts_only_where_it_is_allowed(conclusion: str) -> None:
    assert state_of(check_run(1, "test", conclusion), skips=("test",)) == PASSED
    assert state_of(check_run(1, "test", conclusion), skips=("other",)) == FAILED
    assert state_of(check_run(1, "test", "failure"), skips=("test",)) == FAILED


def test_newest_result_counts_whatever_the_order_of_the_answer() -> None:
    assert state_of(check_run(2, "test"), check_run(1, "test", "failure")) == PASSED
    assert state_of(check_run(1, "test"), check_run(2, "test", "failure")) == FAILED
    assert state_of(check_run(1, "test"), check_run(10, "test", "queued")) == PENDING
    assert state_of(statuses=(status(9, "test", "success"), status(10, "test", "failure"))) == FAILED


def test_every_app_that_reports_the_name_counts() -> None:
    assert state_of(check_run(2, "test"), check_run(1, "test", "failure", app=7)) == FAILED
    assert state_of(check_run(1, "test"), statuses=(status(1, "test", "failure"),)) == FAILED
    assert state_of(check_run(1, "test"), statuses=(status(1, "test", "pending"),)) == PENDING


@pytest.mark.parametrize(("other", "expected"), [("failure", FAILED), ("in_progress", PENDING), ("skipped", FAILED), ("success", PASSED)])
def test_every_workflow_that_has_a_job_of_the_name_counts(other: str, expected: str) -> None:
    assert state_of(check_run(1, "test", other, suite=11), check_run(2, "test", suite=12)) == expected
    assert state_of(check_run(2, "test", other, suite=11), check_run(1, "test", suite=12)) == expected


def test_a_later_attempt_replaces_the_earlier_of_its_own_workflow_run_only() -> None:
    failed, passed, elsewhere = check_run(1, "test", "failure", suite=11), check_run(2, "test", suite=11), check_run(3, "test", suite=12)
    assert state_of(failed, passed, elsewhere, attempts={1: 1, 2: 2, 3: 1}) == PASSED
    assert state_of(failed, passed, elsewhere, attempts={1: 2, 2: 1, 3: 1}) == FAILED
    assert state_of(failed, elsewhere, attempts={1: 1, 3: 2}) == FAILED


def test_two_jobs_of_one_name_in_one_run_both_count() -> None:
    failed, passed = check_run(1, "test", "failure"), check_run(2, "test")
    assert state_of(failed, passed, attempts={1: 1, 2: 1}) == FAILED
    assert state_of(failed, passed, check_run(3, "test"), check_run(4, "test"), attempts={1: 1, 2: 1, 3: 2, 4: 2}) == PASSED
    # One of the two ran again. GitHub does not say which of them, so the earlier results still count.
    assert state_of(failed, passed, check_run(3, "test"), attempts={1: 1, 2: 1, 3: 2}) == FAILED


def test_suites_whose_attempts_must_be_known() -> None:
    runs = [check_run(1, "a", suite=7), check_run(2, "a", suite=7), check_run(3, "a", suite=8), check_run(4, "b", suite=8)]
    assert checks.repeated_suites(runs) == {7: frozenset({1, 2})}


def workflow_run(path: str, conclusion: str | None = "success", *, suite: int = 1, repository: int = 1) -> dict[str, Any]:
    status = "completed" if conclusion else "in_progress"
    return {"path": path, "status": status, "conclusion": conclusion, "check_suite_id": suite, "repository": {"id": repository}}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], PENDING),
        ([workflow_run(".github/workflows/scan.yml")], PASSED),
        ([workflow_run("org/rules/.github/workflows/scan.yml@refs/heads/main", repository=2)], PASSED),
        ([workflow_run(".github/workflows/scan.yml", repository=2)], PENDING),  # this repository's own, not the one that is demanded
        ([workflow_run(".github/workflows/other-scan.yml")], PENDING),
        ([workflow_run(".github/workflows/scan.yml"), workflow_run(".github/workflows/scan.yml", None)], PENDING),
        ([workflow_run(".github/workflows/scan.yml"), workflow_run(".github/workflows/scan.yml", "failure")], FAILED),
        ([workflow_run(".github/workflows/scan.yml", suite=99)], PENDING),
    ],
)
def test_a_workflow_that_a_ruleset_demands_is_a_gate(runs: list[dict[str, Any]], expected: str) -> None:
    path = ".github/workflows/scan.yml"
    required = checks.required_by_rules([{"type": "workflows", "parameters": {"workflows": [{"path": path, "repository_id": 1}]}}])
    assert required == [Required(path, "ruleset", workflow=True, repository_id=1)]
    observed = checks.observed([check_run(1, path)], [], 99, workflow_runs=runs)
    assert checks.judge(required, observed, ()).state == expected


def test_a_check_bound_to_an_app_takes_no_other() -> None:
    assert state_of(check_run(1, "test", app=7), app=7) == PASSED
    assert state_of(check_run(1, "test", app=8), app=7) == PENDING
    assert state_of(statuses=(status(1, "test", "success"),), app=7) == PENDING


def test_own_check_suite_is_left_out_and_not_the_name() -> None:
    assert state_of(check_run(1, "test", suite=99)) == PENDING
    assert state_of(check_run(1, "test", suite=1), check_run(2, "test", "in_progress", suite=99)) == PASSED


def test_failed_beats_pending_beats_passed() -> None:
    required = checks.required_by_configuration(map(RequiredCheck, "abc"))
    observed = checks.observed([check_run(1, "a"), check_run(2, "b", "queued"), check_run(3, "c", "failure")], [], None)
    assert checks.judge(required, observed, ()).state == FAILED
    assert checks.judge(required[:2], observed, ()).state == PENDING
    assert checks.judge(required[:1], observed, ()).state == PASSED


def test_nothing_required_is_never_a_verdict() -> None:
    with pytest.raises(ValueError, match="nothing can be concluded"):
        checks.judge([], [Observed("test", "check_run", PASSED, "success", None, None)], ())


results = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["success", "failure", "queued", "skipped"])), max_size=8)


@given(results, st.sets(st.sampled_from("abc"), min_size=1))
def test_passed_means_that_the_newest_of_each_required_name_is_a_success(results: list[tuple[str, str]], names: set[str]) -> None:
    runs = [check_run(number, name, conclusion) for number, (name, conclusion) in enumerate(results)]
    verdict = checks.judge(checks.required_by_configuration(map(RequiredCheck, names)), checks.observed(runs, [], None), ())
    assert (verdict.state == PASSED) == all(dict(results).get(name) == "success" for name in names)
    assert {finding.required.name for finding in verdict.findings} == names


def test_requirements_of_rulesets() -> None:
    rules = [
        {"type": "deletion"},
        {
            "type": "required_status_checks",
            "parameters": {"required_status_checks": [{"context": "lint"}, {"context": "t", "integration_id": 7}]},
        },
        {"type": "required_status_checks", "parameters": {"required_status_checks": [{"context": "lint"}]}},
    ]
    assert checks.required_by_rules(rules) == [Required("lint", "ruleset"), Required("t", "ruleset", 7)]


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        ({"protection": {"enabled": False, "required_status_checks": {"contexts": [], "checks": []}}}, []),
        ({"name": "main"}, []),
        ({"protection": {"required_status_checks": None}}, []),
        (
            {
                "protection": {
                    "required_status_checks": {
                        "contexts": ["a", "b", "old"],
                        "checks": [{"context": "a", "app_id": 7}, {"context": "b", "app_id": -1}],
                    }
                }
            },
            [Required("a", "branch protection", 7), Required("b", "branch protection"), Required("old", "branch protection")],
        ),
    ],
)
def test_requirements_of_branch_protection(branch: dict[str, Any], expected: list[Required]) -> None:
    assert checks.required_by_protection(branch) == expected


def test_a_finding_is_evidence() -> None:
    observed = checks.observed([check_run(1, "test", "failure")], [], None)
    (finding,) = checks.judge([Required("test", "ruleset")], observed, ()).findings
    assert finding.document() == {
        "name": "test",
        "source": "ruleset",
        "kind": "check_run",
        "conclusion": "failure",
        "passed": False,
        "url": "https://example.com/1",
    }


def test_a_check_that_names_its_app_counts_only_from_that_app() -> None:
    required = checks.required_by_configuration([RequiredCheck("test", "github-actions")])
    runs = [check_run(1, "test") | {"app": {"id": 1, "slug": "github-actions"}}, check_run(2, "test") | {"app": {"id": 2, "slug": "evil"}}]
    assert checks.judge(required, checks.observed(runs, [], None), ()).state == PASSED
    verdict = checks.judge(required, checks.observed(runs[1:], [], None), ())
    assert [finding.conclusion for finding in verdict.findings] == ["missing from app github-actions"]
    assert checks.judge(required, checks.observed([], [{"id": 1, "context": "test", "state": "success"}], None), ()).state == PENDING
