"""An audit's population is all of the period, its sample can be drawn again, and every answer points to a field of the record."""

from __future__ import annotations

import csv
import io
import time
from datetime import UTC, date, datetime
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from azora_ci.core import schemas
from azora_ci.gates.approval import enforcement
from azora_ci.record.audit import journals, pages, sample
from azora_ci.record.audit.elements import BYPASS, NOT_BY_ONESELF, elements_of
from azora_ci.record.audit.journals import Journals, Noted
from tests.record.test_archive import document
from tests.record.test_deployment import success
from tests.record.test_verification import location
from tests.support import fragments_builder as build

WHOLE = {"records": 3, "signing": "none", "signed": 0, "unsigned_before_signing": 0, "newest_sha256": None, "findings": []}
DAY = date(2025, 11, 24)  # of every record of the builder
NOW, NOBODY = datetime(2025, 11, 25, tzinfo=UTC), Journals(not_asked="PROD_HOST is not set here")
APPROVED, DIFFER = "approval was enforced", "author and approver differ"
SEPARATE, EMERGENCY = "that they differ was enforced", "emergency, with its review"
ABSENT = object()  # the value of what a record lacks
HOSTILE = '=HYPERLINK("x")<script>alert(1)</script>&\''


def valid(number: int, **changes) -> sample.Valid:
    record = {**document(1764000000 + 1000 * number), **changes}
    schemas.validate(record, "deployment-record", where="test")
    return f"s3://b/records/production/{record['deployment_id']}/1.json", f"{number:064x}", record


def audit(*records: sample.Valid, size: int = 25, seed: str = "1", period: tuple[date, date] = (DAY, DAY), hosts=NOBODY):
    ids = [record["deployment_id"] for _, _, record in records]
    on_hosts = journals.document(hosts, ids, [(place, record) for place, _, record in records], period, NOW)
    made = sample.document(records, period, (size, seed), WHOLE, [], on_hosts)
    schemas.validate(made, sample.SCHEMA, where="test")
    return made


def test_the_population_is_every_change_of_the_days_and_no_other():
    inside = [valid(1, timestamp="2025-11-01T00:00:00.000Z"), valid(2, timestamp="2025-11-30T23:59:59.999Z")]
    outside = [valid(3, timestamp="2025-10-31T23:59:59.999Z"), valid(4, timestamp="2025-12-01T00:00:00.000Z")]
    made = audit(*inside, *outside, period=(date(2025, 11, 1), date(2025, 11, 30)))
    assert [change["location"] for change in made["changes"]] == [inside[1][0], inside[0][0]]
    assert made["sampled"] == 2


def test_the_sample_can_be_drawn_again_with_nothing_but_sha256():
    records = [valid(number) for number in range(40)]
    made = audit(*records, size=5, seed="spring")
    chosen = {change["location"] for change in made["changes"] if change["sampled"]}
    assert chosen == set(sorted((place for place, _, _ in records), key=lambda place: sha256(f"spring {place}".encode()).hexdigest())[:5])
    assert [change["elements"] is None for change in made["changes"]] == [change["location"] not in chosen for change in made["changes"]]
    assert chosen != {change["location"] for change in audit(*records, size=5, seed="autumn")["changes"] if change["sampled"]}


URGENT = {"reason": "the login fails", "by": "grace", "review_due": "2025-11-25T11:36:00.125Z"}
PULLS = {
    "enforced": "unknown", "reason": "HTTP 403", "distinct_person": True,
    "pull_requests": [{"number": 12, "author": "ada", "approved_by": ["grace"]}],
}  # fmt: skip


def test_pull_requests_with_author_and_approver_come_from_the_gate_through_the_record_to_the_audit():
    validation = build.fragment("pre-deployment-validation", approval=PULLS | {"since": "v1.2.2", "commits": 3, "problems": []})
    record = success(pre_deployment_validation=validation)
    schemas.validate(record, "deployment-record", where="test")
    assert record["approval"] == PULLS
    request, enforced, differ = elements_of(record, [])[:3]
    assert (request["answer"], request["links"]) == ("yes", ["https://github.com/azora/azora/pull/12"])
    assert (enforced["answer"], differ["answer"], differ["detail"]) == ("yes", "yes", "#12 of ada: grace")


def answers(**changes) -> dict[str, tuple[str, str]]:
    record = {name: value for name, value in {**success(), **changes}.items() if value is not ABSENT}
    return {element["element"]: (element["answer"], element["detail"]) for element in elements_of(record, [])}


def test_every_element_has_an_answer_and_fields_that_the_record_has():
    approval = {"enforced": True, "reason": "one of 2 reviewers, not by who started the run", "distinct_person": False}
    record = {**success(), "approval": approval}
    found = elements_of(record, [location(9)])
    assert [element["answer"] for element in found if element["element"] in {APPROVED, DIFFER}] == ["yes", "yes"]
    assert [element["element"] for element in found] == [
        "request", APPROVED, DIFFER, SEPARATE, "checks", "backup, proven by a restore", "migrations", "deployment",
        "tests in production", "way back", EMERGENCY, "no step was left out or weakened",
    ]  # fmt: skip
    for pointer in (pointer for element in found for pointer in element["fields"]):
        value = record
        for name in pointer.split("/")[1:]:
            assert isinstance(value, dict) and name in value, pointer
            value = value[name]
    assert found[0]["links"] == [f"https://github.com/azora/azora/commit/{record['git_sha']}"]
    assert location(9) in found[-3]["detail"]


@pytest.mark.parametrize(
    ("element", "changes", "answer", "words"),
    [
        (APPROVED, {"approval": {"enforced": False, "reason": "no reviewers", "distinct_person": False}}, "no",
         "no reviewers"),
        (APPROVED, {"approval": {"enforced": "unknown", "reason": "403", "distinct_person": False}}, "unknown",
         "403"),
        (DIFFER, {"approval": {"enforced": True, "reason": "also by who started the run", "distinct_person": False}}, "unknown", "also by"),
        (DIFFER, {"approval": {"enforced": False, "reason": "no reviewers", "distinct_person": True}}, "yes", "needs approval"),
        (DIFFER, {"approval": PULLS | {"pull_requests": [{"number": 7, "author": "ada", "approved_by": ["ada"]}]}}, "no", "#7 of ada: ada"),
        (DIFFER, {"approval": None}, "unknown", "no evidence"),
        (SEPARATE, {"approval": None}, "unknown", "no evidence"),
        (SEPARATE, {"approval": PULLS}, "yes", "the gate of this project refuses"),
        (SEPARATE, {"approval": {"enforced": True, "reason": "not by who started the run", "distinct_person": False}}, "yes", "not by"),
        (SEPARATE, {"approval": {"enforced": True, "reason": "also by who started the run", "distinct_person": False}}, "no", "also by"),
        (SEPARATE, {"approval": {"enforced": True, "reason": f"not by who started the run; {BYPASS}", "distinct_person": False}}, "no",
         "pass it by"),
        (SEPARATE, {"approval": {"enforced": "unknown", "reason": "HTTP 403", "distinct_person": False}}, "unknown", "403"),
        (SEPARATE, {"approval": {"enforced": False, "reason": "no reviewers", "distinct_person": False}}, "no", "no reviewers"),
        (EMERGENCY, {"emergency": ABSENT}, "unknown", "knew none"),
        (EMERGENCY, {"emergency": None}, "not needed", "no emergency"),
        (EMERGENCY, {"emergency": URGENT}, "unknown", "grace: the login fails; its review is due 2025-11-25T11:36:00.125Z"),
        ("request", {}, "unknown", "beside the commit"),
        (APPROVED, {"approval": None}, "unknown", "no evidence"),
        ("checks", {"checks": []}, "unknown", "0 of 0"),
        ("backup, proven by a restore", {"database_backup": None}, "no", "no backup"),
        ("migrations", {"migrations_applied": None, "migration_tool": "command", "migrations": []}, "unknown", "an unknown number"),
        ("migrations", {"migrations_applied": 0, "migrations": []}, "not needed", "0 applied"),
        ("deployment", {"status": "failed"}, "no", "failed"),
        ("no step was left out or weakened", {"override_reasons": ["audit: known since May"]}, "no", "known since May"),
        ("way back", {"rollback_available": False}, "no", "not available"),
    ],
)  # fmt: skip
def test_what_is_missing_is_no_yes(element: str, changes: dict, answer: str, words: str):
    found, detail = answers(**changes)[element]
    assert (found, words in detail) == (answer, True), detail
    assert answers()["deployment"][0] == "yes"


def test_the_gate_writes_the_words_that_are_looked_for():
    rule = {"type": "required_reviewers", "prevent_self_review": True, "reviewers": [{"type": "User"}]}
    assert NOT_BY_ONESELF in enforcement({"protection_rules": [rule]})[1]
    assert NOT_BY_ONESELF not in enforcement({"protection_rules": [rule | {"prevent_self_review": False}]})[1]
    assert BYPASS in enforcement({"protection_rules": [rule], "can_admins_bypass": True})[1]
    assert BYPASS not in enforcement({"protection_rules": [rule], "can_admins_bypass": False})[1]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_hostile_text_stays_text_on_the_page_and_in_a_spreadsheet():
    made = audit(valid(1, triggered_by=HOSTILE, override_reasons=[HOSTILE]))
    page = Page()
    page.feed(pages.as_html(made))
    assert "script" not in page.tags and page.tags.count("section") == 5  # hosts, emergencies, sample, the change, population
    assert "&lt;script&gt;alert(1)" in pages.as_html(made)
    rows = list(csv.DictReader(io.StringIO(pages.as_csv(made))))
    assert {row["who"] for row in rows if row["kind"]} == {f"'{HOSTILE}"}
    assert [row["detail"] for row in rows if row["element"].startswith("no step")] == [f"'{HOSTILE}"]


def test_both_name_every_change_and_the_fields_of_the_sample():
    made = audit(*(valid(number) for number in range(4)), size=2)
    rows = list(csv.DictReader(io.StringIO(pages.as_csv(made))))
    assert {row["deployment"] for row in rows if row["kind"]} == {change["deployment_id"] for change in made["changes"]}
    assert sum(row["element"] == "not in the sample" for row in rows) == 2
    for change in made["changes"]:
        link = f'<a href="records/{change["deployment_id"]}-1.html#/database_backup/proof">'
        assert (link in pages.as_html(made)) is change["sampled"]


def test_emergencies_are_listed_whether_they_are_sampled_or_not():
    record = valid(1)
    urgent = (*record[:2], {**record[2], "emergency": {**URGENT, "reason": HOSTILE}})
    made = audit(urgent, *(valid(number) for number in range(2, 9)), size=1, seed="7")
    (change,) = [change for change in made["changes"] if change["emergency"]]
    assert (change["sampled"], change["emergency"]["by"]) == (False, "grace")
    page = pages.as_html(made)
    assert "25 Nov 2025, 11:36:00 UTC" in page and HOSTILE not in page
    assert [row["review due"] for row in csv.DictReader(io.StringIO(pages.as_csv(made))) if row["review due"]] == [URGENT["review_due"]]


# --- the hosts' journals -----------------------------------------------------------------------------------------------


def noted(name: str, version: str = "v1.2.3", began_at: str = "2025-11-24T11:06:00.000Z", outcome: str = "promoted") -> Noted:
    return Noted(name, version, began_at, outcome)


def found(*on_hosts: Noted, records=(), **facts) -> list[tuple[str, str]]:
    made = audit(*records, hosts=Journals(["prod-1"], on_hosts, **facts))
    return [(finding["finding"], finding["deployment_id"]) for finding in made["hosts"]["findings"]]


def test_a_deployment_that_only_the_hosts_know_is_a_finding():
    ours = valid(1)
    own = noted(ours[2]["deployment_id"])
    assert found(own, records=[ours]) == []
    made = audit(ours, hosts=Journals(["prod-1"], [own, noted("1764009999-bbbbbb", HOSTILE)]))
    (finding,) = made["hosts"]["findings"]
    assert (finding["finding"], finding["deployment_id"], made["hosts"]["journalled"]) == ("unrecorded", "1764009999-bbbbbb", 2)
    assert "1764009999-bbbbbb" in pages.as_html(made) and "<script>" not in pages.as_html(made)
    rows = [row for row in csv.DictReader(io.StringIO(pages.as_csv(made))) if row["kind"] == "journal"]
    assert [(row["deployment"], row["answer"]) for row in rows] == [("1764009999-bbbbbb", "no")]


def test_the_same_version_under_another_id_and_another_version_under_the_same_id_are_findings():
    ours = valid(1)
    name = ours[2]["deployment_id"]
    assert found(noted(name, "v6.6.6"), records=[ours]) == [("another version", name)]
    twice = audit(ours, hosts=Journals(["prod-1"], [noted(name), noted("1764009999-bbbbbb")]))["hosts"]["findings"]
    assert f"that version was deployed as {name}, too" in twice[0]["detail"]


def test_a_run_that_may_still_write_its_record_and_another_period_are_no_findings():
    young = noted("1764009999-bbbbbb", began_at="2025-11-24T20:00:00.000Z")  # four hours before the audit
    other = noted("1763009999-bbbbbb", began_at="2025-11-23T23:59:59.999Z")
    assert found(young, other) == []
    assert found(noted("1764009999-bbbbbb", began_at="2025-11-24T17:59:00.000Z")) == [("unrecorded", "1764009999-bbbbbb")]


def test_a_record_of_what_never_reached_the_hosts_is_a_finding_only_where_all_answered():
    ours, first = valid(1), noted("1763000000-0f0f0f", began_at="2025-10-01T00:00:00.000Z")
    assert found(first, records=[ours]) == [("not on the hosts", ours[2]["deployment_id"])]
    assert found(first, records=[ours], left_out={"prod-2": "no route"}) == []
    assert found(noted("1764600000-bbbbbb", began_at="2025-12-01T00:00:00.000Z"), records=[ours]) == []  # the hosts are newer than it
    gate = (*ours[:2], {**ours[2], "rollout_stages": []})
    assert found(first, records=[gate]) == []


def test_hosts_that_were_not_asked_are_said():
    made = audit(valid(1), hosts=Journals(not_asked="PROD_HOST is not set here"))
    assert "The hosts were not asked: PROD_HOST is not set here" in pages.as_html(made)
    assert "PROD_HOST is not set here" in pages.as_csv(made)
    part = audit(valid(1), hosts=Journals(["prod-1"], [], None, {"prod-2": "no route"}))
    assert "prod-2 did not answer: no route" in pages.as_html(part) and "prod-2: no route" in pages.as_csv(part)


def test_a_thousand_records_take_seconds():
    records = [valid(1)]
    place, digest, record = records[0]
    many = [(place.replace("1764001000", str(1764001000 + number)), digest, record) for number in range(1000)]
    begin = time.monotonic()
    made = audit(*many, size=1000)
    assert len(pages.as_html(made)) + len(pages.as_csv(made)) > 1_000_000
    assert time.monotonic() - begin < 20, "about 1 s"
