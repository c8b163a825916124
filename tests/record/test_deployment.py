"""The record holds what the fragments show, in one canonical form, and each record names the one before."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azora_ci.core import pipeline, schemas
from azora_ci.record import deployment, run
from azora_ci.record.chain import archived_bytes, doubts, sha256, with_keys_of
from azora_ci.record.pages.deployment import deployment_page
from tests.support import fragments_builder as build
from tests.support.chain import broken_links

RUN = run.WorkflowRun(
    id="1234567890",
    url="https://github.com/azora/azora/actions/runs/1234567890",
    attempt=1,
    actor="octocat",
    repository="azora/azora",
    environment="production",
)
FACTS = run.Circumstances(
    run=RUN,
    deployment_id=build.DEPLOYMENT_ID,
    version=build.VERSION,
    git_sha=build.GIT_SHA,
    rollback_window_minutes=60,
    artifacts_location="s3://azora-backups/artifacts/production/1764000000-abc123/1/",
)


BEFORE = "s3://azora-backups/records/production/1760000000-eeeeee/1.json"


def success(**changed):
    return deployment.assemble(build.complete(**changed), FACTS, status="success")


def problems(document):
    return schemas.problems(document, deployment.SCHEMA)


# --- fields ------------------------------------------------------------------------------------------------------------


def test_record_holds_every_field_of_the_guide_with_its_type():
    document = success()
    assert problems(document) == []
    assert document["timestamp"] == "2025-11-24T11:36:00.125Z"  # the end of the smoke tests, the last job
    assert document["rollback_deadline"] == "2025-11-24T12:36:00.125Z"
    assert document["rollback_window_minutes"] == 60
    assert document["rollback_available"] is True
    assert document["status"] == "success"
    assert document["git_ref"] == "refs/tags/v1.2.3"
    assert document["triggered_by"] == "octocat"
    assert document["services_deployed"] == sorted(build.SERVICES)
    assert document["migrations_applied"] == 2
    assert document["database_backup"]["backup_id"] == "backup-1764000000-abc123"
    assert document["database_backup"]["location"] == "s3://azora-backups/prod/backup-1764000000-abc123.sql.gz"
    assert document["database_backup"]["timestamp"] == "2025-11-24T11:01:02.000Z"
    stages = [
        (stage["stage"], stage["traffic_percentage"], stage["duration_minutes"], stage["status"]) for stage in document["rollout_stages"]
    ]
    assert stages == [("canary", 5, 5.01, "healthy"), ("progressive", 50, 10.0, "healthy"), ("full", 100, 15.0, "healthy")]
    assert document["health_checks"] == {**dict.fromkeys(build.SERVICES, "healthy"), "database": "healthy", "smoke_tests": "passed"}


def test_record_holds_the_evidence_beyond_the_guide():
    document = deployment.assemble(
        build.complete(), replace(FACTS, previous=run.Previous("a" * 64, "1760000000-eeeeee", "v1.0.0", (), BEFORE)), status="success"
    )
    assert problems(document) == []
    assert document["image_digests"]["auth_service"] == build.digest("auth_service")
    assert (document["previous_record_sha256"], document["previous_record_location"]) == ("a" * 64, BEFORE)
    # What the hosts say was there before counts more than what the archive remembers.
    assert (document["previous_deployment_id"], document["previous_version"]) == (build.PREVIOUS_ID, "v1.2.2")
    assert [migration["name"] for migration in document["migrations"]] == ["20261120000000_add_courses", "20261121000000_index_orders"]
    assert document["metrics"]["duration_seconds"] == 2160.125
    assert document["metrics"]["lead_time_seconds"] == 9360.125
    assert document["metrics"]["job_seconds"]["database-backup"] == 119.25
    assert document["metrics"]["migration_seconds"] == 4.2
    assert document["metrics"]["health_probes"] == {"total": 720, "failed": 1}
    assert document["metrics"]["health_check_success_rate"] == pytest.approx(719 / 720, abs=1e-6)
    assert set(document["evidence"]) == set(pipeline.EVIDENCE_JOBS)


@pytest.mark.parametrize(
    ("tool", "applied", "shown"),
    [
        ("command", None, "an unknown number applied by"),
        ("command", 3, "3 applied by"),
        ("none", 0, "the application has none"),
    ],
)
def test_the_record_says_whose_migrations_they_are(tool, applied, shown):
    document = success(m=build.fragment("database-migrations", tool=tool, migrations_applied=applied, applied=[]))
    assert problems(document) == []
    assert (document["migration_tool"], document["migrations_applied"], document["migrations"]) == (tool, applied, [])
    assert f"| Migrations | {shown}" in deployment_page(document, "s3://b/r.json", "0" * 64, [])


def test_prismas_migrations_are_counted_in_the_record_of_a_success():
    document = success(m=build.fragment("database-migrations", migrations_applied=0, applied=[]))
    assert problems({**document, "migrations_applied": None}) != []


def test_evidence_hash_is_that_of_the_fragment():
    fragments = build.complete()
    document = deployment.assemble(fragments, FACTS, status="success")
    expected = sha256(schemas.canonical(fragments["smoke-tests"].document()))
    assert document["evidence"]["smoke-tests"]["fragment_sha256"] == expected


def test_first_deployment_has_nothing_to_go_back_to():
    rollout = build.fragment(
        "gradual-rollout", previous=None, rollback_available=False, stages=[build.evidence("gradual-rollout")["stages"][2]]
    )
    document = success(rollout=rollout)
    assert problems(document) == []
    assert document["rollback_available"] is False
    assert document["previous_version"] is None


def test_what_proved_a_version_in_the_last_stage_is_in_the_record():
    stages = [{"stage": "canary", "version_proof": {"api": {"instances": "image", "public": "edge"}}}]
    stages.append({"stage": "full", "version_proof": {"api": {"instances": "image", "public": "none"}, "auth": {"public": "answer"}}})
    document = success(rollout=build.fragment("gradual-rollout", stages=stages))
    assert document["version_proof"] == {
        "api": {"instances": "image", "public": "none"},
        "auth": {"instances": None, "public": "answer"},
    }
    assert [problem for problem in problems(document) if "version_proof" in problem] == []
    assert "version_proof" not in success(), "a fragment of an earlier version says nothing of it"


def test_host_keys_are_in_the_record_and_on_its_page():
    line = "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ssh-ed25519 AAAA"
    key = {"fingerprint": "SHA256:" + "a" * 43, "key_type": "ssh-ed25519", "known_hosts": line, "source": "accepted"}
    document = success(rollout=build.fragment("gradual-rollout", host_keys=[key]))
    assert document["host_keys"] == [key]
    backup = build.fragment("database-backup", host_keys=[{**key, "known_hosts": line.replace("F1E", "G1E"), "source": "recorded"}])
    assert success(backup=backup)["host_keys"][0]["source"] == "recorded"
    assert success(backup=backup, rollout=build.fragment("gradual-rollout", host_keys=[key]))["host_keys"] == [key]
    twin = {**key, "known_hosts": line.replace("F1E", "H1E")}  # of another host that was made from the same image
    assert success(backup=backup, rollout=build.fragment("gradual-rollout", host_keys=[key, twin]))["host_keys"] == [key, twin]
    assert f"ssh-ed25519 {key['fingerprint']}, accepted" in deployment_page(document, "s3://b/r.json", "0" * 64, [])


def test_jobs_of_the_release_are_in_the_record_and_on_its_page():
    document = success(rollout=build.fragment("gradual-rollout", jobs=[build.JOB]))
    assert problems(document) == []
    assert document["rollout"]["jobs"] == [{name: value for name, value in build.JOB.items() if name != "log_tail"}]
    assert build.JOB["summary"] in deployment_page(document, "s3://records/1.json", "0" * 64, [])


def test_override_reasons_land_in_the_record():
    backup = build.fragment(
        "database-backup", proof={"depth": "none", "restore_seconds": None, "verified_at": None, "reason": "4 TB, drilled weekly"}
    )
    assert success(backup=backup)["override_reasons"] == ["database-backup: proof none: 4 TB, drilled weekly"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("migrations_applied",), "2"),
        (("rollback_window_minutes",), "60"),
        (("rollback_available",), "true"),
        (("timestamp",), "$(date -u)"),
        (("deployment_id",), "1764000000"),
        (("rollout_stages", 0, "duration_minutes"), "5"),
        (("rollout_stages", 0, "status"), "aborted"),
        (("health_checks", "api_gateway"), "unhealthy"),
        (("health_checks", "smoke_tests"), "not_run"),
        (("services_deployed",), []),
        (("checks",), []),
        (("database_backup",), None),
        (("failure",), {"failed_jobs": [], "not_run": [], "production_state": []}),
    ],
)
def test_success_refuses_what_is_not_evidence_of_success(path, value):
    document = copy.deepcopy(success())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert problems(document)


EMERGENCY = {"reason": "the login | fails for <b>everybody</b>", "by": "ada", "passed": ["calendar", "staging"]}
OPEN = {"timezone": "Europe/Berlin", "open": True, "reason": None, "next_open": None, "open_until": None}
STAGED = {
    "deployment_id": "1763990000-abc123",
    "version": "v1.2.3",
    "timestamp": "2025-11-24T09:30:00.000Z",
    "location": "s3://azora-backups/records/staging/1763990000-abc123/1.json",
    "sha256": build.SHA256,
}


@pytest.mark.parametrize("status", ["success", "failed"])
def test_an_emergency_is_reviewed_within_a_day_of_the_deployments_end(status):
    closed = OPEN | {"open": False, "reason": "it is frozen, fri 14:00–24:00"}
    gates = build.fragment("pre-deployment-validation", calendar=closed, emergency=EMERGENCY)
    failure = None if status == "success" else FAILURE
    document = deployment.assemble(build.complete(v=gates), FACTS, status=status, failure=failure)
    assert problems(document) == []
    assert document["timestamp"] == "2025-11-24T11:36:00.125Z"
    assert document["emergency"] == {"reason": EMERGENCY["reason"], "by": "ada", "review_due": "2025-11-25T11:36:00.125Z"}
    assert document["calendar"] == closed
    assert document["override_reasons"] == [
        f"pre-deployment-validation: {gate} was closed, passed as an emergency: {EMERGENCY['reason']}" for gate in ("calendar", "staging")
    ]
    page = deployment_page(document, "s3://azora-backups/records/x", build.SHA256, [])
    assert "| Emergency | the login &#124; fails for &lt;b>everybody&lt;/b> (ada); a person reviews it until 2025-11-25T11:36" in page


def test_a_record_says_by_which_calendar_and_after_which_staging_it_was_deployed():
    staging = {"environment": "staging", "location": "s3://azora-backups/records/staging/", "record": STAGED}
    document = success(v=build.fragment("pre-deployment-validation", calendar=OPEN, staging=staging))
    assert problems(document) == []
    assert (document["calendar"], document["staging"]) == (OPEN, STAGED)
    assert document["emergency"] is None
    assert not {"calendar", "staging"} & success().keys()  # where nothing demands them


@pytest.mark.parametrize(("until", "recorded"), [("2025-11-24T12:00:00Z", True), ("2025-11-24T13:00:00Z", False), (None, False)])
def test_a_version_that_stops_running_before_the_deadline_is_recorded_so(until, recorded):
    warm = {"warm_until": until} if until else {}
    document = success(gradual_rollout=build.fragment("gradual-rollout", **warm))
    assert problems(document) == []
    assert document.get("rollback_warm_until") == (until if recorded else None)


def test_whether_code_can_go_back_is_in_the_record_where_it_is_known():
    assert "code_rollback_safe" not in success()
    safe = {"value": False, "how": "tested", "reasons": ["GET / of api: HTTP 500"]}
    record = success(b=build.fragment("database-backup", code_rollback_safe=safe))
    assert record["code_rollback_safe"] == safe
    assert problems(record) == []
    assert "| Code can go back alone | no, tested: GET / of api: HTTP 500 |" in deployment_page(record, "s3://x", "0" * 64, [])
    assert problems(record | {"code_rollback_safe": safe | {"how": "guessed"}})


def test_every_key_is_required_and_unknown_keys_fail():
    document = success()
    for name in document.keys() - {"emergency"}:  # which records from before there were emergencies lack
        assert problems({key: value for key, value in document.items() if key != name}), f"{name} may be left out"
    assert problems({**document, "surprise": 1})


# --- failed deployments ------------------------------------------------------------------------------------------------

FAILURE = deployment.Failure(
    [{"job": "database-migrations", "result": "failure", "title": "npx failed", "what": "exit code 1"}], ["gradual-rollout"], ["…"]
)


@pytest.mark.parametrize("status", ["failed", "rolled_back", "cancelled"])
@pytest.mark.parametrize("count", range(len(pipeline.EVIDENCE_JOBS) + 1))
def test_record_of_a_failure_is_valid_whatever_fragments_there_are(status, count):
    fragments = {job: build.fragment(job) for job in pipeline.EVIDENCE_JOBS[:count]}
    document = deployment.assemble(fragments, FACTS, status=status, timestamp="2025-11-24T11:00:00.000Z", failure=FAILURE)
    assert problems(document) == []
    assert document["health_checks"]["smoke_tests"] == ("passed" if "smoke-tests" in fragments else "not_run")
    assert document["rollback_available"] is ("gradual-rollout" in fragments)
    assert (document["rollback_deadline"] is None) is ("gradual-rollout" not in fragments)


def test_record_of_a_failure_is_valid_when_jobs_left_no_evidence_at_all():
    fragments = {job: build.fragment(job, "failed", evidence={}) for job in pipeline.EVIDENCE_JOBS}
    document = deployment.assemble(fragments, FACTS, status="failed", failure=FAILURE)
    assert problems(document) == []
    assert document["migrations_applied"] is None
    assert document["services_deployed"] == []


def test_rolled_back_rollout_names_its_reason():
    abort = {"stage": "canary", "reason": "api_gateway: 5 probes failed", "seconds_to_safe": 1.5, "proved": True, "detail": "0 requests"}
    rollout = build.fragment("gradual-rollout", "failed", rollout_status="rolled_back", abort=abort)
    document = deployment.assemble(build.complete(rollout=rollout), FACTS, status="rolled_back", failure=FAILURE)
    assert problems(document) == []
    assert document["rollout"]["rollout_status"] == "rolled_back"
    assert document["rollout"]["abort"] == abort
    assert document["services_deployed"] == []
    assert document["rollback_deadline"] is None


def test_going_back_after_smoke_tests_leaves_nothing_deployed_and_nothing_to_go_back_to():
    back = {"to": "v1.2.2", "seconds_to_safe": 0.1, "proved": True, "detail": "0 requests reached v1.2.3 in 3 s"}
    smoke = build.fragment("smoke-tests", "failed", smoke_status="failed", rollback=back)
    document = deployment.assemble(build.complete(smoke=smoke), FACTS, status="rolled_back", failure=FAILURE)
    assert problems(document) == []
    assert document["rollout"]["smoke_rollback"] == back
    assert document["services_deployed"] == []
    assert document["rollback_available"] is False


def test_record_without_fragments_needs_a_moment():
    with pytest.raises(ValueError, match="timestamp"):
        deployment.assemble({}, FACTS, status="failed", failure=FAILURE)


# --- contradictions ----------------------------------------------------------------------------------------------------


def test_agreeing_evidence_has_no_contradiction():
    assert deployment.contradictions(build.complete(), FACTS) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (replace(build.fragment("smoke-tests"), version="v1.2.4"), "smoke-tests was about version v1.2.4"),
        (replace(build.fragment("build-and-push"), git_sha="f" * 40), "build-and-push was about git_sha ffff"),
        (build.fragment("database-migrations", backup_id="backup-1-000000"), "the migrations ran behind backup-1-000000"),
        (build.fragment("gradual-rollout", rollout_status="failed"), "the rollout is failed"),
        (build.fragment("gradual-rollout", services={}), "names no service"),
        (
            build.fragment("gradual-rollout", services=dict.fromkeys(build.SERVICES, "sha256:" + "0" * 64)),
            "api_gateway: sha256:6170",
        ),
        (build.fragment("smoke-tests", smoke_status="failed"), "the smoke tests are failed"),
    ],
)
def test_contradicting_evidence_is_named(changed, sentence):
    contradictions = deployment.contradictions(build.complete(changed=changed), FACTS)
    assert any(sentence in contradiction for contradiction in contradictions), contradictions


# --- canonical form and chain --------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXT, JSON, max_size=6))
def test_archived_bytes_do_not_depend_on_the_order_of_keys(document):
    data = archived_bytes(document)
    assert archived_bytes(dict(reversed(document.items()))) == data
    assert archived_bytes(json.loads(data)) == data
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1


def chain(length):
    """Return so many archived records, each naming the one before."""
    links, before = [], None
    for number in range(length):
        facts = replace(FACTS, deployment_id=f"{1764000000 + number}-abc123", previous=run.Previous(before))
        data = archived_bytes(deployment.assemble(build.complete(), facts, status="success"))
        links.append(data)
        before = sha256(data)
    return links


def test_whole_chain_holds():
    assert broken_links(chain(4)) == []


def test_a_changed_byte_breaks_the_chain_at_the_next_link():
    links = chain(4)
    links[1] = links[1].replace(b"octocat", b"mallory")
    (broken,) = broken_links(links)
    assert broken.startswith("record 2 (1764000002-abc123)")


def test_a_removed_record_breaks_the_chain():
    links = chain(4)
    assert len(broken_links([links[0], *links[2:]])) == 1


def test_a_record_in_another_form_is_named():
    links = chain(2)
    links[0] = json.dumps(json.loads(links[0]), indent=2).encode()
    assert broken_links(links)[0] == "record 0 (1764000000-abc123) is not canonical JSON"


def test_same_record_is_recognised_by_its_bytes_only():
    archived = archived_bytes(deployment.assemble(build.complete(), replace(FACTS, previous=run.Previous("b" * 64)), status="success"))
    now = success()
    assert archived_bytes(with_keys_of(now, archived, "previous_record_sha256")) == archived
    assert with_keys_of({**now, "triggered_by": "mallory"}, archived, "previous_record_sha256") is None
    assert with_keys_of(now, b"no json", "previous_record_sha256") is None
    assert with_keys_of(now, b"[]", "previous_record_sha256") is None


# --- is one record of a chain to be believed ----------------------------------------------------------------------------------


def linked(*links: int | str | None) -> list[bytes]:
    """Return records of which each names the one with that number, a hash, or none."""
    records: list[bytes] = []
    for number, link in enumerate(links):
        previous = sha256(records[link]) if isinstance(link, int) else link
        records.append(archived_bytes({"deployment_id": f"{number}-abc123", "previous_record_sha256": previous}))
    return records


def test_a_record_whose_links_fit_is_not_doubted_also_when_two_runs_ended_at_once():
    assert doubts(linked(None, 0, 0, 2), 1) == []
    assert doubts([*linked(None, 0), b"no record"], 1) == []


def test_a_changed_record_is_doubted_because_of_the_one_behind_it():
    chain = linked(None, 0, 1)
    chain[1] = archived_bytes({**json.loads(chain[1]), "rollback_deadline": "2099-01-01T00:00:00.000Z"})
    (doubt,) = doubts(chain, 1)
    assert doubt.startswith("the record 1 behind it (2-abc123) names ")


def test_a_link_to_what_was_replaced_by_something_that_is_no_record_does_not_count():
    chain = linked(None, 0, 1, 2)
    poison = b"[" * 1000
    replaced = [chain[0], chain[2], chain[3], poison]  # the second one, with the time of its replacement
    assert doubts(replaced, 1, [3]) == doubts(replaced, 2, [3]) == []
    assert len(doubts(replaced, 1)) == 1
    changed = archived_bytes({**json.loads(chain[1]), "version": "v9.9.9"})
    assert len(doubts([poison, chain[0], changed, chain[2]], 2, [0])) == 1  # it replaced nothing behind the changed one


def test_a_record_with_other_bytes_or_a_link_to_nothing_is_doubted():
    assert doubts([b'{"a":1}'], 0) == ["its bytes are not canonical JSON"]
    assert "it names " + "0" * 64 in doubts(linked(None, "0" * 64), 1)[0]
