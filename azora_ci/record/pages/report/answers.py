"""The four answers that the first screen of a report gives. Pure; each says what it rests on, and "not certain" where nothing proves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from azora_ci.record.chain import Document
from azora_ci.record.evidence import is_proven
from azora_ci.record.pages.html import count, moment, plural, share
from azora_ci.record.pages.report.material import Material

GOOD, WARN, BAD = "good", "warn", "bad"


@dataclass(frozen=True)
class Answer:
    """An answer: the question, its short answer, how good it is, and lines that say more. ``until``: when it stops being true."""

    question: str
    headline: str | Markup
    tone: str
    lines: Sequence[str | Markup]
    until: str | None = None


def answers(material: Material) -> list[Answer]:
    """Return the four answers, in the order in which people ask."""
    return [_live(material), _failed_traffic(material), _backup(material.record["database_backup"]), _way_back(material)]


def title(material: Material) -> tuple[str, str, str]:
    """Return what became of the deployment in a few words: heading, word of state, tone."""
    record, version = material.record, material.record["version"] or "An unknown version"
    if material.rollback is not None:
        proved = material.rollback["status"] == "completed"
        return f"{version} was rolled back by hand", "rolled back" if proved else "not verified", WARN if proved else BAD
    if record["status"] == "success":
        return f"{version} is in production", "success", GOOD
    if record["status"] == "rolled_back":
        return f"{version} was rolled back by itself", "rolled back", WARN if _is_back(record) else BAD
    if record["status"] == "cancelled":
        return f"The deployment of {version} was cancelled", "cancelled", WARN
    if record["services_deployed"]:
        return f"{version} is in production, and the deployment failed", "failed", BAD
    return f"The deployment of {version} failed", "failed", BAD


# --- what is live now -------------------------------------------------------------------------------------------------------


def _live(material: Material) -> Answer:
    question, record, previous = "What is live now?", material.record, material.record["previous_version"]
    rollout = record["rollout"] or {}
    smoke, abort = rollout.get("smoke_rollback") or {}, rollout.get("abort")
    if (rollback := material.rollback) is not None:
        proved = "proved: " if rollback["proved"] else "not proved: "
        headline = rollback["to"]["version"] if rollback["proved"] else "not certain"
        return _answer(question, headline, GOOD if rollback["proved"] else BAD, proved + rollback["detail"], rollback)
    if smoke.get("to"):
        headline = smoke["to"] if smoke["proved"] else "not certain"
        return _answer(question, headline, GOOD if smoke["proved"] else BAD, _after(smoke, "smoke tests failed"), record)
    if record["services_deployed"]:
        text = f"100 % of the traffic of {plural(len(record['services_deployed']), 'service')}"
        failed = record["health_checks"]["smoke_tests"] == "failed"
        return _answer(question, record["version"], BAD if failed else GOOD, text + (", with failed smoke tests" if failed else ""), record)
    if abort is not None and abort["proved"]:
        return _answer(question, previous or "No version", GOOD if previous else BAD, _after(abort, f"stopped at {abort['stage']}"), record)
    if abort is not None:
        return _answer(question, "not certain", BAD, _after(abort, f"stopped at {abort['stage']}"), record)
    if untouched(record):
        return Answer(question, previous or "What ran before", GOOD, ["as before: no traffic was moved", _as_of(record)])
    return Answer(question, "not certain", BAD, ["look at the edge: python -m azora_ci edge status", _as_of(record)])


def _answer(question: str, headline: str, tone: str, line: str, record: Document) -> Answer:
    return Answer(question, headline, tone, [line, _as_of(record)])


def _after(back: Mapping[str, Any], reason: str) -> str:
    seconds = "" if back["seconds_to_safe"] is None else f" after {back['seconds_to_safe']:.2f} s"
    return f"{reason}; traffic is back{seconds}, proved: {back['detail']}" if back["proved"] else f"{reason}; not proved: {back['detail']}"


def _as_of(record: Document) -> Markup:
    return Markup("as of {}").format(moment(record["timestamp"]))


# --- how much traffic failed ------------------------------------------------------------------------------------------------


def failures(material: Material) -> dict[str, tuple[int, int]]:
    """Return version -> (failed, all) requests of users while the rollout was watched."""
    sums: dict[str, tuple[int, int]] = {}
    for stage in material.stages:
        for version, requests in (stage["requests"] or {}).items():
            counted = (stage.get("traffic") or {}).get(version)
            rate = (stage["error_rate"] or {}).get(version) or 0
            failed = counted["failed"] if counted else round(rate * requests)
            before = sums.get(version, (0, 0))
            sums[version] = (before[0] + failed, before[1] + requests)
    return sums


def _failed_traffic(material: Material) -> Answer:
    question, by_version = "How much traffic failed?", failures(material)
    failed, total = (sum(counts[index] for counts in by_version.values()) for index in (0, 1))
    if not material.stages:
        moved = "None was moved" if untouched(material.record) else "Not known"
        return Answer(question, moved, GOOD if untouched(material.record) else BAD, [])
    if not total:
        return Answer(question, "No request came", WARN, ["while the rollout was watched"])
    headline = f"{count(failed)} of {plural(total, 'request')}" + (f" ({share(failed / total)})" if failed else "")
    lines = [
        f"{version}: {count(bad)} of {count(requests)} ({share(bad / requests if requests else 0)})"
        for version, (bad, requests) in by_version.items()
    ]
    return Answer(question, headline, GOOD if not failed else WARN, [*lines, "while the rollout was watched"])


# --- the backup -------------------------------------------------------------------------------------------------------------


def _backup(backup: Document | None) -> Answer:
    question = "Was the backup proven?"
    if backup is None:
        return Answer(question, "No backup was taken", WARN, [])
    proof = backup["proof"] or {}
    depth = str(proof.get("depth"))
    how = {"full": "Yes, row by row", "counts": "Yes, by its rows' number"}.get(depth, "No")
    lines: list[str | Markup] = ["restored, and compared with production"] if depth in {"full", "counts"} else []
    if isinstance(backup.get("rows"), int) and isinstance(backup.get("tables"), int):
        lines.append(f"{plural(backup['tables'], 'table')}, {plural(backup['rows'], 'row')}")
    if proof.get("reason"):
        lines.append(proof["reason"])
    if proof.get("verified_at"):
        lines.append(Markup("at {}").format(moment(proof["verified_at"])))
    return Answer(question, how, GOOD if is_proven(backup) and not proof.get("reason") else WARN if is_proven(backup) else BAD, lines)


# --- the way back -----------------------------------------------------------------------------------------------------------


def _way_back(material: Material) -> Answer:
    question, record = "Can I go back, and until when?", material.record
    if material.rollback is not None:
        lines = [f"{material.rollback['reason']}", "the database stays as it is: migrations are not undone"]
        if not material.rollback["proved"]:
            return Answer(question, "Look at production first", BAD, ["whether traffic is back is not proved", *lines])
        return Answer(question, f"Done: {material.rollback['to']['version']} is back", GOOD, lines)
    if record["rollback_available"]:
        until = record["rollback_deadline"]
        tone, lines = _schema_safety(record)
        headline = f"{'Only for a reason' if _is_refused(record) else 'Yes'}, to {record['previous_version']}"
        if warm := record.get("rollback_warm_until"):
            lines = [Markup("at once until {}, then after a start of its pods").format(moment(warm)), *lines]
        return Answer(question, headline, tone, [Markup("until {}").format(moment(until)), *lines], until)
    if untouched(record):
        return Answer(question, "Not needed", GOOD, ["no traffic was moved"])
    if not record["services_deployed"]:
        if not _is_back(record):
            return Answer(question, "Look at production first", BAD, ["whether traffic is back is not proved"])
        if record["previous_version"] is None:
            return Answer(question, "No", BAD, ["there is no previous version to go back to"])
        return Answer(
            question, f"Already back on {record['previous_version']}", GOOD, ["the database stays as it is: migrations are not undone"]
        )
    return Answer(question, "No", BAD, ["there is no previous version to go back to"])


def _schema_safety(record: Document) -> tuple[str, list[str | Markup]]:
    """Return how good the way back is, and what is known of the old code on the new schema."""
    known = record.get("code_rollback_safe")
    reasons: list[str | Markup] = [escape(reason) for reason in (known or {}).get("reasons") or ()]
    if known is None and record["migrations_applied"] == 0:
        return GOOD, []
    if known is None:
        return WARN, ["whether the old code runs on the new schema was not examined"]
    if known["value"] is True:
        return GOOD, [f"the old code runs on the new schema ({known['how']})"]
    if known["value"] is False:
        return BAD, [f"the old code does not run on the new schema ({known['how']}):", *reasons]
    return WARN, ["whether the old code runs on the new schema is not known", *reasons]


def _is_refused(record: Document) -> bool:
    """Say whether the button asks for a reason, because the old code was seen to break on the new schema."""
    known = record.get("code_rollback_safe") or {}
    return known.get("how") == "tested" and known.get("value") is False


def _is_back(record: Document) -> bool:
    """Say whether it was proved that the new version has no traffic any more."""
    rollout = record["rollout"] or {}
    back = rollout.get("smoke_rollback") or rollout.get("abort")
    return bool(back and back["proved"])


def untouched(record: Document) -> bool:
    """Say whether no traffic was moved: the rollout did not run, or ended before its first stage. A rollout that left no evidence
    may have moved it.
    """
    rollout = record["rollout"]
    if rollout is None:
        return "gradual-rollout" in (record["failure"] or {}).get("not_run", ())
    return rollout["rollout_status"] in {None, "planned"} and not record["rollout_stages"] and not rollout["abort"]
