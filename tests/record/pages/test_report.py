"""A report says what its record says, gives four answers that nothing overstates, and keeps foreign text as text."""

from __future__ import annotations

import copy
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from azora_ci.core import schemas
from azora_ci.core.pipeline import EVIDENCE_JOBS
from azora_ci.record.pages.html import share, size
from azora_ci.record.pages.report.answers import Answer, answers, title
from azora_ci.record.pages.report.compare import compare
from azora_ci.record.pages.report.material import SOURCES, Material
from azora_ci.record.pages.report.view import report
from tests.support import fragments_builder as build
from tests.support import report_material as reports
from tests.support.provenance import COMPUTED, OF_THE_ARCHIVE, OF_THE_RUN

HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(2)</script><style>*{display:none}</style>'


class Page(HTMLParser):
    """Tags of a page with their attributes, and the texts of its ``data-record`` elements by pointer."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.fields: list[tuple[str, str]] = []
        self._pointer: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._pointer = attributes.get("data-record")
        if self._pointer:
            self.fields.append((self._pointer, ""))

    def handle_data(self, data: str) -> None:
        if self._pointer:
            self.fields[-1] = (self._pointer, self.fields[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self._pointer = None


def four(material: Material) -> dict[str, Answer]:
    return dict(zip(("live", "failed", "backup", "back"), answers(material), strict=True))


def altered(change: Any, fragment: Any = None) -> Material:
    """Return the material of a deployment whose record was changed."""
    material = reports.material(fragment)
    change(material.record)
    return material


def text_of(page: str) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)))


# --- the four answers -------------------------------------------------------------------------------------------------------


def test_a_success_is_answered_with_its_numbers():
    found = four(reports.material())
    assert (found["live"].headline, found["live"].tone) == (build.VERSION, "good")
    requests = sum(sum(stage["requests"].values()) for stage in reports.material().record["rollout_stages"])
    assert found["failed"].headline == f"0 of {requests:,} requests"
    assert found["backup"].headline == "Yes, row by row" and "5 tables, 120,000 rows" in found["backup"].lines
    assert found["back"].headline == f"Yes, to {reports.OLD}" and found["back"].until == reports.material().record["rollback_deadline"]


def test_after_a_rollback_by_itself_the_version_before_is_live():
    material = reports.material(reports.rolled_back())
    found = four(material)
    assert (found["live"].headline, found["live"].tone) == (reports.OLD, "good")
    assert found["failed"].headline == "300 of 12,000 requests (2.5 %)" and found["failed"].tone == "warn"
    assert found["back"].headline == f"Already back on {reports.OLD}"
    assert title(material)[0] == f"{build.VERSION} was rolled back by itself"


def test_what_is_not_proved_is_not_certain():
    unproved = reports.rolled_back()
    unproved.evidence["abort"] |= {"proved": False, "seconds_to_safe": None, "detail": "the edge did not answer"}
    found = four(reports.material(unproved))
    assert (found["live"].headline, found["live"].tone) == ("not certain", "bad") and "the edge did not answer" in str(found["live"].lines)
    assert found["back"].headline == "Look at production first" and found["back"].tone == "bad"


def test_failed_smoke_tests_leave_the_version_live_and_are_said():
    def fail(record: dict[str, Any]) -> None:
        record["status"], record["health_checks"] = "failed", {"smoke_tests": "failed"}

    found = four(altered(fail))
    assert (found["live"].headline, found["live"].tone) == (build.VERSION, "bad") and "failed smoke tests" in str(found["live"].lines)
    assert found["back"].headline == f"Yes, to {reports.OLD}"


def test_smoke_tests_that_took_it_back_are_believed_only_with_proof():
    def back(record: dict[str, Any], *, proved: bool) -> None:
        record["rollout"]["smoke_rollback"] = {"to": reports.OLD, "seconds_to_safe": 0.2, "proved": proved, "detail": "seen"}
        record |= {"status": "rolled_back", "services_deployed": [], "rollback_available": False}

    assert four(altered(lambda record: back(record, proved=True)))["live"].tone == "good"
    assert four(altered(lambda record: back(record, proved=False)))["live"].tone == "bad"


def without_rollout(not_run: list[str], rollout: dict[str, Any] | None = None) -> Material:
    record = reports.material().record
    record |= {"status": "failed", "services_deployed": [], "rollout": rollout, "rollout_stages": [], "rollback_available": False}
    record["failure"] = {"failed_jobs": [], "not_run": not_run, "production_state": [], "unverified": []}
    return Material(record=record, sha256=build.SHA256)


def test_before_any_traffic_moved_production_is_as_before():
    early = {"rollout_status": None, "abort": None, "smoke_rollback": None, "target": "docker_hosts", "jobs": [], "notes": []}
    for material in (without_rollout(["gradual-rollout"]), without_rollout([], early)):
        found = four(material)
        assert (found["live"].headline, found["failed"].headline, found["back"].headline) == (reports.OLD, "None was moved", "Not needed")
        assert report(material)


def test_a_rollout_that_was_killed_may_have_moved_traffic():
    """Its job left no evidence: nobody knows where the traffic is, and no answer may say that all is as before."""
    found = four(without_rollout(["smoke-tests"]))
    assert (found["live"].headline, found["failed"].headline, found["back"].headline) == (
        "not certain",
        "Not known",
        "Look at production first",
    )
    assert {found[name].tone for name in ("live", "failed", "back")} == {"bad"}


def test_a_first_deployment_that_was_taken_back_leaves_nothing_live():
    material = reports.material(reports.rolled_back())
    material.record["previous_version"] = None
    assert (four(material)["live"].headline, four(material)["back"].headline) == ("No version", "No")


def test_a_rollback_by_hand_is_answered_from_its_own_record():
    deployed = reports.material().record
    found = four(reports.material(rollback=reports.rollback(deployed)))
    assert found["live"].headline == reports.OLD and found["back"].headline == f"Done: {reports.OLD} is back"
    unproved = {**reports.rollback(deployed), "proved": False, "status": "unverified"}
    assert four(reports.material(rollback=unproved))["live"].tone == "bad"


@pytest.mark.parametrize(
    ("proof", "headline", "tone"),
    [
        ({"depth": "full", "reason": None}, "Yes, row by row", "good"),
        ({"depth": "counts", "reason": "it is large"}, "Yes, by its rows' number", "warn"),
        ({"depth": "none", "reason": "a rehearsal"}, "No", "bad"),
        (None, "No", "bad"),
    ],
)
def test_a_backup_is_as_good_as_its_proof(proof, headline, tone):
    found = four(altered(lambda record: record["database_backup"].update(proof=proof)))["backup"]
    assert (found.headline, found.tone) == (headline, tone)


@pytest.mark.parametrize(("value", "tone"), [(True, "good"), (False, "bad"), (None, "warn")])
def test_the_way_back_says_whether_the_old_code_bears_the_new_schema(value, tone):
    safety = {"value": value, "how": "tested", "reasons": ["column orders.total is gone"]}
    found = four(altered(lambda record: record.update(code_rollback_safe=safety)))["back"]
    assert found.tone == tone and ("column orders.total is gone" in found.lines) is (value is not True)


def test_a_first_deployment_has_no_way_back():
    def first(record: dict[str, Any]) -> None:
        record |= {"rollback_available": False, "previous_version": None, "previous_deployment_id": None}

    assert four(altered(first))["back"].headline == "No"


# --- the page ---------------------------------------------------------------------------------------------------------------


def values_of(record: dict[str, Any], pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        record = record[int(part)] if isinstance(record, list) else record[part.replace("~1", "/")]
    return record


@pytest.mark.parametrize("fragment", [None, reports.rolled_back()], ids=["success", "rolled back"])
def test_numbers_on_the_page_are_those_of_the_record(fragment):
    material = reports.material(fragment, before=reports.before())
    fields = Page(report(material)).fields
    assert len(fields) > 30
    for pointer, shown in fields:
        value = values_of(material.record, pointer)
        if isinstance(value, float):
            number = re.fullmatch(r"([\d.]+)( s)?|(\d+) min (\d+) s|(\d+) h (\d+) min", shown)
            assert number, f"{pointer}: {shown}"
            seconds = float(number[1] or 0) + 60 * float(number[3] or 0) + float(number[4] or 0)
            seconds += 3600 * float(number[5] or 0) + 60 * float(number[6] or 0)
            assert seconds == pytest.approx(value, abs=60 if number[5] else 0.51), pointer
        elif pointer.endswith("size_bytes"):
            assert shown == size(value), pointer
        else:
            assert shown.replace(",", "") == str(value), pointer


def test_every_section_has_its_facts_and_every_tick_a_link():
    material = reports.material(before=reports.before())
    html = report(material)
    text, page = text_of(html), Page(html)
    for words in ("AccessExclusiveLock on courses", "0.250 s", "0.300 s", "ADD COLUMN", "courses was locked for 0.250 s", "npm run build"):
        assert words in text, words
    ids = {attributes["id"] for _, attributes in page.tags if attributes.get("id")}
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    artifact = f"../rollout-logs-{build.DEPLOYMENT_ID}/record/gradual-rollout.json"
    for number, stage in enumerate(material.stages):
        for tick in range(len(stage["decisions"])):
            assert f"#tick-{stage['stage']}-{tick + 1}" in links and f"tick-{stage['stage']}-{tick + 1}" in ids
            assert f"{artifact}#/evidence/stages/{number}/decisions/{tick}" in links
    assert {link[1:] for link in links if link and link.startswith("#")} <= ids, "a link leads nowhere"
    for job in EVIDENCE_JOBS:
        assert material.place(job).href in links and material.record["evidence"][job]["fragment_sha256"] in text
    assert len(html.encode()) <= 250 * 1024


def test_the_page_is_one_file_that_may_load_nothing():
    page = Page(report(reports.material()))
    (policy,) = (attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert not {"img", "link", "iframe", "form", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in page.tags if "src" in attributes or "style" in attributes]


def test_foreign_text_stays_text():
    fragment = reports.rolled_back()

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: poison(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [poison(item, key) for item in value]
        fixed = {"started_at", "ended_at", "status", "decision", "stage", "depth", "job"}
        return HOSTILE if isinstance(value, str) and key not in fixed else value

    material = reports.material(fragment)
    record, evidence = poison(material.record), {job: copy.copy(part) for job, part in material.fragments.items()}
    record["version"], record["previous_version"] = HOSTILE, HOSTILE
    for check in record["checks"]:
        check["url"] = "javascript:alert(3)"
    for part in evidence.values():
        part.__dict__["evidence"] = poison(part.evidence)
    sql = dict.fromkeys(material.sql, HOSTILE)
    poisoned = Material(
        record=record, sha256=HOSTILE, location=HOSTILE, fragments=evidence, sql=sql, next_steps=(HOSTILE,),
        before=poison(reports.before()), rollback=poison(reports.rollback(material.record)),
    )  # fmt: skip
    page = Page(report(poisoned))
    assert [tag for tag, _ in page.tags if tag in {"img", "script", "style"}] == ["style", "script"]
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert not [attributes for _, attributes in page.tags if (attributes.get("href") or "").startswith("javascript")]
    assert text_of(report(poisoned)).count("onerror=alert(1)") > 30, "it is shown, as text"


def test_an_old_record_without_fragments_still_makes_a_page():
    record = reports.material().record
    text = text_of(report(Material(record=record, sha256=build.SHA256)))
    assert "The ticks are in the report of the deployment itself" in text and "30 minutes" not in text
    bare = reports.material()
    for stage in bare.fragments["gradual-rollout"].evidence["stages"]:  # as fragments of earlier versions are
        del stage["by_service"]
        for tick in stage["decisions"]:
            del tick["ours"], tick["p95_ms"]
    del bare.fragments["gradual-rollout"].evidence["limits"]
    for optional in ("where", "gained", "lost"):
        del bare.fragments["database-backup"].evidence["trial"]["statements"][0][optional]
    del bare.fragments["database-backup"].evidence["trial"]["blocked"], bare.record["rollout"]["jobs"]
    assert "Decision log" in text_of(report(bare))
    failed = reports.material(reports.rolled_back())
    failed.fragments["database-backup"].evidence["trial"] = {"how": "full copy", "reason": None, "passed": False}
    del failed.record["failure"]["unverified"]
    assert "The trial failed" in text_of(report(failed))


def test_a_comparison_names_what_changed():
    rows = {row.name: row for row in compare(reports.before(), reports.material().record)}
    assert (rows["Took"].before, rows["Took"].now, rows["Took"].change) == ("18 min 0 s", "36 min 0 s", "+100%")
    assert rows["Rows in it"].change == "same" and rows["Services with other bytes"].now == "api_gateway"


def test_every_field_of_a_record_has_a_source_or_is_of_the_run_or_the_archive_or_is_computed():
    fields = set(schemas.load("deployment-record")["properties"])
    assert fields <= {*SOURCES, *OF_THE_RUN, *OF_THE_ARCHIVE, *COMPUTED}, "say in SOURCES which job's fragment holds it"


def test_numbers_are_shown_as_people_read_them():
    assert [share(value) for value in (None, 0, 0.0042, 0.012, 0.5, 1)] == ["–", "0 %", "0.42 %", "1.2 %", "50 %", "100 %"]
    assert [size(value) for value in (0, 1023, 1024, 1940486, 5 * 1024**4)] == ["0 B", "1023 B", "1.0 KiB", "1.9 MiB", "5.0 TiB"]
