"""What an auditor of change management asks about one record, and what the record answers, with the fields that say it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from azora_ci.record.chain import Document

YES, NO, UNKNOWN, NOT_NEEDED = "yes", "no", "unknown", "not needed"
NOT_BY_ONESELF = "not by who started the run"  # as the gate writes it when GitHub prevents self-review
BYPASS = "administrators may pass it by"  # likewise, when GitHub lets them
Element = dict[str, Any]


def elements_of(record: Document, taken_back: list[str]) -> list[Element]:
    """Return the elements of a valid record; ``taken_back``: URLs of the records of its deployment's rollbacks."""
    return list(_of_rollback(record) if record.get("kind") == "rollback" else _of_deployment(record, taken_back))


def _element(name: str, answer: str, detail: str, *fields: str, links: list[str] | None = None) -> Element:
    """Return an element. ``fields`` are JSON pointers into the record, each with a value that the detail rests on."""
    return {"element": name, "answer": answer, "detail": detail, "fields": list(fields), "links": links or []}


def _web(*links: str) -> list[str]:
    return [link for link in links if link.startswith("https://")]


def _yes(condition: object) -> str:
    return YES if condition else NO


def _of_deployment(record: Document, taken_back: list[str]) -> Iterator[Element]:
    yield _request(record)
    yield from _approval(record)
    yield _checks(record)
    yield _backup(record)
    yield _migrations(record)
    stages = ", ".join(f"{stage['traffic_percentage']} % {stage['status']}" for stage in record["rollout_stages"])
    yield _element(
        "deployment", _yes(record["status"] == "success"), f"{record['status']}: {stages or 'no stage began'}",
        "/status", "/rollout_stages", "/image_digests", links=_web(record["run_url"]),
    )  # fmt: skip
    smoke = record["health_checks"]["smoke_tests"]
    tests = record["smoke_tests"]
    passed = sum(bool(test["passed"]) for test in tests)
    yield _element("tests in production", _yes(smoke == "passed"), f"{smoke}: {passed} of {len(tests)}", "/health_checks", "/smoke_tests")
    parts = record["rollout"] or {}
    reason = (parts.get("abort") or {}).get("reason") or (parts.get("smoke_rollback") or {}).get("detail")
    way = f"prepared until {record['rollback_deadline']}" if record["rollback_available"] else "not available"
    done = f"; done by the run itself: {reason}" if reason else ""
    done += f"; done later: {', '.join(taken_back)}" if taken_back else ""
    yield _element(
        "way back", YES if record["rollback_available"] or done else NO, way + done,
        "/rollback_available", "/rollback_deadline", *(["/rollout/abort"] if parts.get("abort") else []),
        *(["/rollout/smoke_rollback"] if parts.get("smoke_rollback") else []),
    )  # fmt: skip
    yield _emergency(record)
    reasons = record["override_reasons"]
    yield _element("no step was left out or weakened", _yes(not reasons), "; ".join(reasons) or "no override", "/override_reasons")


def _emergency(record: Document) -> Element:
    """Return whether the release was an emergency. The record is written before its review, so the answer is never more than a date."""
    if "emergency" not in record:
        return _element("emergency, with its review", UNKNOWN, "the record is of a version that knew none", "/schema_version")
    emergency = record["emergency"]
    if emergency is None:
        return _element("emergency, with its review", NOT_NEEDED, "no emergency", "/emergency")
    detail = f"{emergency['by']}: {emergency['reason']}; its review is due {emergency['review_due']}: ask for it"
    return _element("emergency, with its review", UNKNOWN, detail, "/emergency/reason", "/emergency/by", "/emergency/review_due")


def _migrations(record: Document) -> Element:
    applied, tool = record["migrations_applied"], record["migration_tool"] or "unknown"
    names = ", ".join(migration["name"] for migration in record["migrations"]) or "none is listed"
    answer = UNKNOWN if applied is None else NOT_NEEDED if applied == 0 else YES
    detail = f"{'an unknown number' if applied is None else applied} applied, tool: {tool}; {names}"
    return _element("migrations", answer, detail, "/migrations_applied", "/migration_tool", "/migrations")


def _request(record: Document) -> Element:
    sha, home = record["git_sha"], record["run_url"].partition("/actions/")[0]
    pulls = (record["approval"] or {}).get("pull_requests") or []
    links = [f"{home}/pull/{pull['number']}" for pull in pulls] or ([f"{home}/commit/{sha}"] if sha else [])
    detail = f"{record['version'] or 'no version'}, commit {sha or 'unknown'}, started by {record['triggered_by']} ({record['trigger']})"
    listed = ", ".join(f"#{pull['number']} of {pull['author']}" for pull in pulls) or "its pull requests stand beside the commit"
    fields = ["/version", "/git_sha", "/triggered_by", "/trigger", *(["/approval/pull_requests"] if pulls else [])]
    return _element("request", YES if pulls else UNKNOWN, f"{detail}; {listed}", *fields, links=_web(*links))


def _approval(record: Document) -> Iterator[Element]:
    approval = record["approval"]
    if approval is None:
        yield _element("approval was enforced", UNKNOWN, "the record has no evidence of it", "/approval")
        yield _element("author and approver differ", UNKNOWN, "the record has no evidence of it", "/approval")
        yield _element("that they differ was enforced", UNKNOWN, "the record has no evidence of it", "/approval")
        return
    gate, distinct, pulls = approval["enforced"] is True, approval["distinct_person"], approval.get("pull_requests")
    answer = YES if gate or distinct else {False: NO}.get(approval["enforced"], UNKNOWN)
    demand = f"every pull request needs{'' if distinct else ' no'} approval by a second person"
    fields = ("/approval/enforced", "/approval/reason", "/approval/distinct_person")
    yield _element("approval was enforced", answer, f"{approval['reason']}; {demand}", *fields)
    if pulls is not None:
        alone = [pull for pull in pulls if not set(pull["approved_by"]) - {pull["author"]}]
        detail = "; ".join(f"#{pull['number']} of {pull['author']}: {', '.join(pull['approved_by']) or 'nobody'}" for pull in pulls)
        yield _element("author and approver differ", _yes(not alone), detail or "no pull request", "/approval/pull_requests")
        yield _separation(approval)
        return
    differ = distinct or (gate and NOT_BY_ONESELF in approval["reason"])
    detail = f"started by {record['triggered_by']}; {demand}; {approval['reason']}. Who approved is on the page of the run"
    fields = ("/approval/distinct_person", "/approval/reason", "/triggered_by")
    yield _element("author and approver differ", YES if differ else UNKNOWN, detail, *fields, links=_web(record["run_url"]))
    yield _separation(approval)


def _separation(approval: Document) -> Element:
    """Return whether somebody could have approved a change of their own: a rule that administrators may pass by does not enforce it."""
    fields = ("/approval/distinct_person", "/approval/enforced", "/approval/reason")
    if approval["distinct_person"]:
        detail = "the gate of this project refuses a release with a pull request that nobody else approved; the default branch says so"
        return _element("that they differ was enforced", YES, detail, *fields)
    if approval["enforced"] is True:
        strict = NOT_BY_ONESELF in approval["reason"] and BYPASS not in approval["reason"]
        return _element("that they differ was enforced", _yes(strict), approval["reason"], *fields)
    answer = NO if approval["enforced"] is False else UNKNOWN
    return _element("that they differ was enforced", answer, approval["reason"], *fields)


def _checks(record: Document) -> Element:
    checks = record["checks"]
    failed = [check["name"] for check in checks if not check["passed"]]
    detail = f"{len(checks) - len(failed)} of {len(checks)} passed" + (f"; not: {', '.join(failed)}" if failed else "")
    links = _web(*(str(check["url"]) for check in checks))
    return _element("checks", UNKNOWN if not checks else _yes(not failed), detail, "/checks", "/audit", links=links)


def _backup(record: Document) -> Element:
    backup = record["database_backup"]
    if backup is None:
        return _element("backup, proven by a restore", NO, "no backup was taken", "/database_backup")
    proof = backup["proof"] or {}
    answer = {"full": YES, None: NO, "none": NO}.get(proof.get("depth"), UNKNOWN)
    text = f"{backup['location']}: proof {proof.get('depth') or 'none'}{f', {reason}' if (reason := proof.get('reason')) else ''}"
    return _element(
        "backup, proven by a restore", answer, text, "/database_backup/location", "/database_backup/sha256", "/database_backup/proof"
    )


def _of_rollback(record: Document) -> Iterator[Element]:
    yield _element("request", _yes(record["reason"]), record["reason"], "/reason", "/triggered_by", links=_web(record["run_url"]))
    late = record["after_deadline"]
    window = "after the window, on demand" if late else "within the window"
    yield _element(
        "within the rollback window", _yes(not late), f"{window}, {record['rollback_deadline']}", "/after_deadline", "/rollback_deadline"
    )
    text = f"to {record['to']['version']} in {record['seconds_to_safe']} s: {record['detail']}"
    yield _element("rollback", _yes(record["proved"]), text, "/proved", "/detail", "/to", "/seconds_to_safe")
    smoke = record["smoke_status"]
    yield _element("tests in production", _yes(smoke == "passed"), smoke, "/smoke_status", "/smoke_tests")
    yield _element("of a recorded deployment", YES, record["deployment_record"]["location"], "/deployment_record")
