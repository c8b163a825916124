"""A change of the archive is found, and the record that was changed, removed, added or moved is named."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest

from azora_ci.core import schemas
from azora_ci.record import deployment, verification
from azora_ci.record.chain import Document, archived_bytes, parse_record, sha256
from azora_ci.record.verification import CHANGED, INSERTED, MISSING, REORDERED, Chain, Finding, Link, link
from tests.record.test_deployment import success

MANY = 1000
START = datetime(2026, 1, 1, tzinfo=UTC)
SIGNATURE = "its signature is of another document"


def location(number: int) -> str:
    """Return the URL of a record: every tenth is of a rollback of the deployment before it."""
    seconds, name = (number - 1, "rollback-1") if number % 10 == 9 else (number, "1")
    return f"s3://bucket/records/production/{1764000000 + 1000 * seconds}-abc123/{name}.json"


def written(number: int) -> datetime:
    return START + timedelta(hours=3 * number)


def following(document: Document, number: int, before: bytes | None) -> bytes:
    place = location(number).split("/")
    changes: Document = {"deployment_id": place[-2], "run_attempt": 1}
    if before is not None:
        changes |= {"previous_record_sha256": sha256(before), "previous_record_location": location(number - 1)}
    if place[-1] == "rollback-1.json":
        changes |= {"kind": "rollback", "deployment_record": {"location": location(number - 1), "sha256": sha256(before or b"")}}
    return archived_bytes({**document, **changes})


@cache
def records(count: int = MANY) -> tuple[bytes, ...]:
    document, made = success(), list[bytes]()
    for number in range(count):
        made.append(following(document, number, made[-1] if made else None))
    return tuple(made)


@cache
def links(count: int = MANY) -> tuple[Link, ...]:
    return tuple(link(location(number), data, written(number)) for number, data in enumerate(records(count)))


def found(*changed: Link, of: int = 30, without: tuple[int, ...] = (), **options) -> list[Finding]:
    """Return the findings for the first records, some replaced or added by the URL, some removed."""
    places = {item.location: item for number, item in enumerate(links(of)) if number not in without} | {
        item.location: item for item in changed
    }
    return Chain(places.values(), schema_flaw).findings(**options)


def schema_flaw(_location: str) -> str | None:
    return None


def only(findings: list[Finding]) -> tuple[str, str | None]:
    assert len(findings) == 1, verification.texts(findings)
    return findings[0].kind, findings[0].location


def unnamed(number: int, data: bytes) -> bytes:
    """Return a record as earlier versions of this project wrote it, which did not say where the one before lies."""
    return archived_bytes({name: value for name, value in parse_record(data).items() if name != "previous_record_location"})


# --- changed -----------------------------------------------------------------------------------------------------------


def test_an_archive_that_nobody_touched_is_whole():
    assert Chain(links()).findings(expected=[links()[-1].sha256]) == []


def test_a_flipped_byte_in_any_of_a_thousand_records_names_that_record():
    chooser, whole = random.Random(13), list(links())
    for number, data in enumerate(records()):
        place = chooser.randrange(len(data))
        flipped = data[:place] + bytes([data[place] ^ chooser.randrange(1, 256)]) + data[place + 1 :]
        broken = link(location(number), flipped, written(number))
        chain = Chain([*whole[:number], broken, *whole[number + 1 :]])
        if number < MANY - 1:
            assert only(chain.findings()) == (CHANGED, location(number)), (number, place, flipped[place - 20 : place + 20])
        else:  # no later record names the newest
            assert chain.findings(expected=[whole[-1].sha256])


@pytest.mark.parametrize("number", [0, 14, 29])
def test_with_signatures_the_newest_is_named_too(number: int):
    signed = [Link(**{**vars(item), "is_signed": True}) for item in links(30)]
    data = records(30)[number].replace(b"octocat", b"mallory")
    signed[number] = link(location(number), data, written(number), damage=SIGNATURE, is_signing=True)
    assert only(Chain(signed).findings()) == (CHANGED, location(number))


def test_a_changed_link_accuses_nobody_else():
    data = records(30)[20].replace(links(30)[19].sha256.encode(), b"0" * 64)
    assert only(found(link(location(20), data, written(20)))) == (CHANGED, location(20))
    moved = records(30)[20].replace(location(19).encode(), location(3).encode())
    assert only(found(link(location(20), moved, written(20)))) == (CHANGED, location(20))


def test_a_record_that_is_written_anew_is_named_however_late_that_is():
    data = records(30)[12].replace(b"octocat", b"mallory")
    assert only(found(link(location(12), data, START + timedelta(days=900)))) == (CHANGED, location(12))


def test_each_of_several_is_named():
    changed = [link(location(n), records(30)[n].replace(b"octocat", b"mallory"), written(n)) for n in (4, 5, 17)]
    findings = found(*changed)
    assert [(finding.kind, finding.location) for finding in findings] == [(CHANGED, location(n)) for n in (5, 17)]
    assert f"another SHA-256 than that of {location(4)}" in findings[0].detail  # 5 is not believed, so what it says proves nothing


def test_the_newest_is_at_least_doubted_when_it_names_what_is_not_there():
    data = records(30)[29].replace(links(30)[28].sha256.encode(), b"0" * 64)
    (finding, *_) = found(link(location(29), data, written(29)))
    assert f"Or {location(29)} was changed" in finding.detail


def test_the_newest_must_be_canonical():
    pretty = json.dumps(parse_record(records(30)[29]), indent=2).encode()
    assert only(found(link(location(29), pretty, written(29)))) == (CHANGED, location(29))


def test_the_newest_must_fit_its_schema():
    document = success()
    data = archived_bytes({**document, "status": "great"})
    place = f"s3://bucket/records/production/{document['deployment_id']}/1.json"
    flaws = {place: schemas.problems(parse_record(data), deployment.SCHEMA)[0]}
    assert only(Chain([link(place, data, START)], flaws.get).findings()) == (CHANGED, place)


# --- missing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 9, 15, 28])
def test_a_missing_record_is_named(number: int):
    findings = found(without=(number,))
    assert {(finding.kind, finding.location) for finding in findings} == {(MISSING, location(number))}


def test_the_newest_is_missed_by_its_signature_or_by_who_kept_its_sha256():
    assert found(without=(29,)) == []
    assert only(found(without=(29,), signed=[location(29)])) == (MISSING, location(29))
    assert only(found(without=(29,), expected=[links(30)[29].sha256])) == (MISSING, None)


# --- inserted ----------------------------------------------------------------------------------------------------------


def forged(number: int, before: int, when: datetime) -> Link:
    data = archived_bytes(
        {
            **success(),
            "deployment_id": f"{1765000000 + number}-abc123",
            "previous_record_sha256": links(30)[before].sha256,
            "previous_record_location": location(before),
        }
    )
    return link(f"s3://bucket/records/production/{1765000000 + number}-abc123/1.json", data, when)


def test_an_inserted_record_is_named():
    added = forged(1, 10, written(20))
    assert only(found(added)) == (INSERTED, added.location)
    nonsense = link(added.location, archived_bytes({**success(), "deployment_id": "1765000001-abc123"}), written(20))
    assert only(found(nonsense)) == (INSERTED, added.location)
    poison = link(added.location, b"[" * 1000, written(20))
    assert only(found(poison)) == (INSERTED, added.location)


def test_a_forged_record_accuses_nobody():
    data = archived_bytes({**success(), "previous_record_sha256": "0" * 64, "previous_record_location": location(7)})
    place = "s3://bucket/records/production/1764000000-abc123/1.json"
    assert place == location(0)
    added = link(place.replace("production/1764000000", "production/1765000000"), data.replace(b"1764000000", b"1765000000"), written(20))
    assert only(found(added)) == (INSERTED, added.location)


ODD = [
    {"previous_record_location": 7}, {"previous_record_location": ["s3://"]}, {"previous_record_location": "/records/"},
    {"previous_record_location": f"s3://bucket/records/production/{'9' * 5000}-abc123/1.json"}, {"deployment_record": "no"},
    {"deployment_record": {"sha256": "0" * 64, "location": {}}}, {"deployment_record": {"sha256": [], "location": 1}},
    {"previous_record_location": f"s3://bucket/records/production/1-a/{'9' * 5000}.json"},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_a_forged_record_of_an_odd_form_is_named_and_stops_no_verification(odd: Document):
    place = "s3://bucket/records/production/1765000001-abc123/1.json"
    data = archived_bytes({**success(), "deployment_id": "1765000001-abc123", "previous_record_sha256": "0" * 64} | odd)
    added = link(place, data, written(20))
    findings = Chain([*links(30), added], lambda _place: "it is odd").findings()
    assert place in {finding.location for finding in findings}
    assert {finding.location for finding in findings if finding.location in {item.location for item in links(30)[:29]}} == set()


def test_two_runs_may_end_at_the_same_time():
    assert found(forged(1, 10, written(11) + timedelta(minutes=5))) == []


def test_what_is_not_signed_is_inserted_but_for_records_from_before_signing():
    signed = [Link(**{**vars(item), "is_signed": True}) for item in links(30)]
    added = forged(1, 29, written(30))
    unsigned = Link(**{**vars(added), "signature": "it is not signed"})
    assert only(Chain([*signed, unsigned]).findings()) == (INSERTED, added.location)
    early = [Link(**{**vars(item), "is_signed": False, "signature": "it is not signed"}) for item in signed[:10]]
    first = archived_bytes({**success(), "deployment_id": "1765000001-abc123"})
    since = Link(**{**vars(link(added.location, first, written(10))), "is_signed": True})
    chain = Chain([*early, since])
    assert (chain.findings(), len(chain.unsigned_before())) == ([], 10)


# --- reordered ---------------------------------------------------------------------------------------------------------


def test_records_that_changed_places_are_named():
    one, two = (link(location(a), records(30)[b], written(a)) for a, b in ((14, 15), (15, 14)))
    findings = found(one, two)
    assert {(finding.kind, finding.location) for finding in findings} == {(REORDERED, location(14)), (REORDERED, location(15))}


def test_a_record_that_was_written_again_after_the_next_is_named():
    assert only(found(link(location(14), records(30)[14], written(25)))) == (REORDERED, location(14))


def test_an_attempt_in_the_place_of_another_is_named():
    place = location(29).replace("rollback-1", "1").replace("/1.json", "/2.json")
    data = archived_bytes({**success(), "deployment_id": place.split("/")[-2], "run_attempt": 1})
    assert "whose place is another" in (link(place, data, START).flaw or "")


# --- records of earlier versions ---------------------------------------------------------------------------------------


@cache
def earlier() -> tuple[bytes, ...]:
    document, made = success(), list[bytes]()
    for number in range(9):
        made.append(unnamed(number, following(document, number, made[-1] if made else None)))
    return tuple(made)


def test_records_without_a_url_are_verified_by_hash():
    whole = [link(location(number), data, written(number)) for number, data in enumerate(earlier())]
    assert Chain(whole).findings() == []
    cut = Chain([*whole[:4], link(location(4), earlier()[4][:-9], written(4)), *whole[5:]]).findings()
    assert only(cut) == (CHANGED, location(4))
    changed = link(location(4), earlier()[4].replace(b"octocat", b"mallory"), written(8))
    assert only(Chain([*whole[:4], changed, *whole[5:]]).findings()) == (CHANGED, location(4))
    (finding,) = Chain([*whole[:4], *whole[5:]]).findings()
    assert (finding.kind, finding.location) == (MISSING, None)
    assert f"{location(3)} was changed, or the one behind it is missing" in finding.detail
