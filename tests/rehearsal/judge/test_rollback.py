"""The judge of the button: right evidence has no findings, and each kind of wrong evidence has one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from azora_ci.record import chain
from azora_ci.rehearsal.judge.evidence import Evidence, JobResult
from azora_ci.rehearsal.judge.load import LoadAnswer
from azora_ci.rehearsal.judge.report import periods
from azora_ci.rehearsal.judge.rollback import FILES, INSTANCES, SCHEMA, Pressed, expected_message, findings

OWN_ID, OLD_ID = "1764000100-abc123", "1764000000-01d01d"
PRESSED = Pressed(old="1.0.0", new="1.1.0", old_id=OLD_ID, reason="checkout <fails> & burns", actor="octocat")
FOLDER = f"records/production/{OWN_ID}/"
ARTIFACT = f"rollback-logs-{OWN_ID}"
START = 1_764_000_000.0
PAGE = (
    "### v1.1.0 was taken back\n\n✓ all traffic is on v1.0.0 after 0.1 s\n\n| smoke test | passed |\n\n"
    "| record of the rollback | s3://azora-backups/x |"
)
DEPLOYMENT = chain.archived_bytes({"deployment_id": OWN_ID, "status": "success"})


def rollback_record(**changes: Any) -> dict[str, Any]:
    """Return the schema's own examples, filled in as this rollback's."""
    examples = {name: field["examples"][0] for name, field in json.loads(SCHEMA.read_text(encoding="utf-8"))["properties"].items()}
    sha256 = hashlib.sha256(DEPLOYMENT).hexdigest()
    facts = {
        "deployment_id": OWN_ID,
        "version": "v1.1.0",
        "to": {"version": "v1.0.0", "deployment_id": OLD_ID},
        "status": "completed",
        "reason": PRESSED.reason,
        "triggered_by": PRESSED.actor,
        "proved": True,
        "requests_after": 0,
        "smoke_status": "passed",
        "already_back": False,
        "after_deadline": False,
        "fenced": None,
        "instances": [f"service#{number}" for number in range(INSTANCES)],
        "deployment_record": {"location": f"s3://azora-backups/{FOLDER}1.json", "sha256": sha256},
        "previous_record_sha256": sha256,
    }
    return {**examples, **facts, **changes}


def right_evidence(document: dict[str, Any] | None = None) -> Evidence:
    """Return evidence without a fault: the deployment ran from 0 to 100 s, the rollback from 110 to 120 s."""
    record = document or rollback_record()
    answers = [LoadAnswer(START + n, "/api/health", 200, "1.1.0" if n < 112 else "1.0.0", 30.0) for n in range(90, 150)]
    return Evidence(
        jobs={
            "validate-release": JobResult("success", 1.0, START, START + 1),
            "rollback": JobResult("success", 10.0, START + 110, START + 120),
        },
        answers=answers,
        fresh={"/api/health": {"200 1.0.0": 12}},
        instance_starts={"/api/health": {START - 20, START - 10}},
        messages=["the deployment's", expected_message(PRESSED, OWN_ID)],
        deployments={PRESSED.old_id: ["success", "inactive", "success"], OWN_ID: ["success", "inactive"]},
        artifacts={ARTIFACT: list(FILES)},
        documents={
            f"release-logs-{OWN_ID}/record/validate-release.json": {"deployment_id": OWN_ID},
            f"{ARTIFACT}/rollback-record.json": record,
        },
        objects={f"{FOLDER}1.json": DEPLOYMENT, f"{FOLDER}rollback-1.json": chain.archived_bytes(record)},
        summaries={"rollback": PAGE},
    )


def test_right_evidence_has_no_findings() -> None:
    assert findings(right_evidence(), PRESSED) == []


def test_in_a_cluster_pods_may_be_new_and_requests_are_counted() -> None:
    pressed = replace(PRESSED, cluster=True)
    new = {"/api/health": {START + 115}}
    assert findings(replace(right_evidence(), instance_starts=new), PRESSED) != []
    assert findings(replace(right_evidence(), instance_starts=new), pressed) == []
    uncounted = replace(right_evidence(rollback_record(requests_after=None)), instance_starts=new)
    assert any("requests_after" in problem for problem in findings(uncounted, pressed))


def test_without_a_deployment_there_is_nothing_to_judge() -> None:
    assert findings(replace(right_evidence(), documents={}), PRESSED) == [
        "validate-release left no fragment with a deployment id in its artifact"
    ]


def changed(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda _evidence: right_evidence(rollback_record(**changes))


WRONG: dict[str, tuple[Callable[[Evidence], Evidence], str]] = {
    "it failed": (
        lambda s: replace(s, jobs={**s.jobs, "rollback": replace(s.jobs["rollback"], result="failure")}),
        "job rollback: failure",
    ),
    "GitHub shows it as active": (lambda s: replace(s, deployments={**s.deployments, OWN_ID: ["success"]}), "GitHub's deployments are"),
    "blocks were refused": (lambda s: replace(s, plain_messages=1), "Slack refused the blocks of 1"),
    "it did not run": (lambda s: replace(s, jobs={"validate-release": s.jobs["validate-release"]}), "job rollback: missing"),
    "no artifact": (lambda s: replace(s, artifacts={}), f"artifact {ARTIFACT}: missing"),
    "no log in it": (lambda s: replace(s, artifacts={ARTIFACT: [FILES[0]]}), "demanded rollback-record.json, rollback.log in it"),
    "the new version serves": (lambda s: replace(s, fresh={"/x": {"200 1.1.0": 12}}), "/x answers"),
    "nothing was asked": (lambda s: replace(s, fresh={}), "no health endpoint was asked"),
    "a request failed": (
        lambda s: replace(s, answers=[*s.answers, LoadAnswer(START + 115, "/", 503, "1.0.0", 1.0)]),
        "1 of 61 requests failed, demanded none",
    ),
    "a late request": (
        lambda s: replace(s, answers=[*s.answers, LoadAnswer(START + 121, "/", 200, "1.1.0", 1.0)]),
        "1 of 30 requests after the rollback",
    ),
    "no load afterwards": (lambda s: replace(s, answers=s.answers[:31]), "0 of 0 requests after the rollback"),
    "it was back before": (
        lambda s: replace(s, answers=[replace(answer, version="1.0.0") for answer in s.answers]),
        "so that nothing was taken back",
    ),
    "new instances": (lambda s: replace(s, instance_starts={"/x": {START - 9, START + 115}}), "1 of 2 instances that began after"),
    "instances do not say when": (lambda s: replace(s, instance_starts={"/x": set()}), "0 of 0 instances"),
    "no instance was asked": (lambda s: replace(s, instance_starts={}), "began is not known"),
    "no record": (lambda s: replace(s, objects={f"{FOLDER}1.json": DEPLOYMENT}), "the archive holds ['1.json']"),
    "two records": (
        lambda s: replace(s, objects={**s.objects, f"{FOLDER}rollback-2.json": b"{}"}),
        "the archive holds ['1.json', 'rollback-1.json', 'rollback-2.json']",
    ),
    "a record of another shape": (changed(surprise=1), "Additional properties are not allowed"),
    "a record without proof": (changed(proved=False), "proved is False, demanded True"),
    "a record of half the instances": (changed(instances=["one"]), "1 instances, demanded 8"),
    "a record for another reason": (changed(reason="because I can"), "reason is 'because I can'"),
    "a broken chain": (changed(previous_record_sha256="0" * 64), "previous_record_sha256 is '0000"),
    "another deployment's record": (
        changed(deployment_record={"location": "s3://azora-backups/x/1.json", "sha256": "1" * 64}),
        "rollback record: sha256 is '1111",
    ),
    "the deployment's record was changed": (lambda s: replace(s, objects={**s.objects, f"{FOLDER}1.json": b"{}\n"}), "has ca3d163"),
    "another record in the artifact": (
        lambda s: replace(s, documents={**s.documents, f"{ARTIFACT}/rollback-record.json": {}}),
        "is not the archived one",
    ),
    "Slack was not told": (lambda s: replace(s, messages=s.messages[:1]), "Slack received [] of the rollback"),
    "an empty summary": (lambda s: replace(s, summaries={}), "the summary of rollback does not say"),
    "a secret leaked": (lambda s: replace(s, leaks=["the S3 key in x.log"]), "a secret can be read"),
}


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_wrong_evidence_has_a_finding(wrong: str) -> None:
    damage, expected = WRONG[wrong]
    problems = findings(damage(right_evidence()), PRESSED)
    assert any(expected in problem for problem in problems), problems


def test_the_table_shows_what_users_saw_after_it() -> None:
    answers_by_period = periods(
        replace(
            right_evidence(),
            jobs={**right_evidence().jobs, "gradual-rollout": JobResult("success", 9.0, START + 50, START + 95)},
            documents={
                f"rollout-logs-{OWN_ID}/record/gradual-rollout.json": {
                    "evidence": {
                        "stages": [
                            {
                                "stage": "full",
                                "traffic_percentage": 100,
                                "started_at": "2025-11-24T16:01:00Z",
                                "ended_at": "2025-11-24T16:01:10Z",
                            }
                        ]
                    }
                }
            },
        )
    )
    assert list(answers_by_period)[-2:] == ["after the rollout", "after the rollback"]
    assert {answer.version for answer in answers_by_period["after the rollback"]} == {"1.0.0"}
