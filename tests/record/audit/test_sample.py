"""An audit's population is all of the period, its sample can be drawn again, and every answer points to a field of the record."""

from __future__ import annotations

import csv
import io
import time
from datetime import date
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from azora_ci.core import schemas
from azora_ci.gates.approval import enforcement
from azora_ci.record.audit import pages, sample
from azora_ci.record.audit.elements import NOT_BY_ONESELF, elements_of
from tests.record.test_archive import document
from tests.record.test_deployment import success
from tests.record.test_verification import location
from tests.support import fragments_builder as build

WHOLE = {"records": 3, "signing": "none", "signed": 0, "unsigned_before_signing": 0, "newest_sha256": None, "findings": []}
DAY = date(2025, 11, 24)  # of every record of the builder
APPROVED, DIFFER = "approval was enforced", "author and approver differ"
HOSTILE = '=HYPERLINK("x")<script>alert(1)</script>&\''


def valid(number: int, **changes) -> sample.Valid:
    record = {**document(1764000000 + 1000 * number), **changes}
    schemas.validate(record, "deployment-record", where="test")
    return f"s3://b/records/production/{record['deployment_id']}/1.json", f"{number:064x}", record


def audit(*records: sample.Valid, size: int = 25, seed: str = "1", period: tuple[date, date] = (DAY, DAY)):
    made = sample.document(records, period, (size, seed), WHOLE, [])
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
    return {element["element"]: (element["answer"], element["detail"]) for element in elements_of({**success(), **changes}, [])}


def test_every_element_has_an_answer_and_fields_that_the_record_has():
    approval = {"enforced": True, "reason": "one of 2 reviewers, not by who started the run", "distinct_person": False}
    record = {**success(), "approval": approval}
    found = elements_of(record, [location(9)])
    assert [element["answer"] for element in found if element["element"] in {APPROVED, DIFFER}] == ["yes", "yes"]
    assert [element["element"] for element in found] == [
        "request", APPROVED, DIFFER, "checks", "backup, proven by a restore", "migrations", "deployment",
        "tests in production", "way back", "no step was left out or weakened",
    ]  # fmt: skip
    for pointer in (pointer for element in found for pointer in element["fields"]):
        value = record
        for name in pointer.split("/")[1:]:
            assert isinstance(value, dict) and name in value, pointer
            value = value[name]
    assert found[0]["links"] == [f"https://github.com/azora/azora/commit/{record['git_sha']}"]
    assert location(9) in found[-2]["detail"]


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
    assert "script" not in page.tags and page.tags.count("section") == 1
    assert "&lt;script&gt;alert(1)" in pages.as_html(made)
    rows = list(csv.DictReader(io.StringIO(pages.as_csv(made))))
    assert {row["who"] for row in rows} == {f"'{HOSTILE}"}
    assert [row["detail"] for row in rows if row["element"].startswith("no step")] == [f"'{HOSTILE}"]


def test_both_name_every_change_and_the_fields_of_the_sample():
    made = audit(*(valid(number) for number in range(4)), size=2)
    rows = list(csv.DictReader(io.StringIO(pages.as_csv(made))))
    assert {row["deployment"] for row in rows} == {change["deployment_id"] for change in made["changes"]}
    assert sum(row["element"] == "not in the sample" for row in rows) == 2
    for change in made["changes"]:
        assert (f"{change['location']}#/database_backup/proof<" in pages.as_html(made)) is change["sampled"]


def test_a_thousand_records_take_seconds():
    records = [valid(1)]
    place, digest, record = records[0]
    many = [(place.replace("1764001000", str(1764001000 + number)), digest, record) for number in range(1000)]
    begin = time.monotonic()
    made = audit(*many, size=1000)
    assert len(pages.as_html(made)) + len(pages.as_csv(made)) > 1_000_000
    assert time.monotonic() - begin < 20, "about 1 s"
