"""A long history of deployments and rollbacks: valid records of known facts, in one chain, and an archive that holds them signed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from azora_ci.clients.signing import envelope
from azora_ci.clients.signing.signatures import SUFFIX
from azora_ci.core.clock import rfc3339
from azora_ci.record import deployment, rollback
from azora_ci.record.chain import Document, archived_bytes, sha256
from tests.record.test_deployment import FACTS, FAILURE
from tests.support import fragments_builder as build
from tests.support.signing import KeyFileSigner
from tests.support.stores import Stores

BUCKET = "bucket"
START = datetime(2025, 1, 6, 9, 0, tzinfo=UTC)
PEOPLE = ("ada", "grace", "katherine")
# How deployments end: half of a second's worth of weights is enough to tell the shares apart.
ENDS = {"success": 84, "taken back": 5, "rolled_back": 4, "smoke": 2, "gate": 5}


@dataclass(frozen=True)
class Kept:
    """A record of the history: its key in the bucket, its document, its bytes."""

    key: str
    document: Document
    data: bytes


def deployed(when: datetime, **changes: Any) -> Document:
    """Return the record of a successful deployment that ended then, half an hour after its first traffic and a day after its commit."""
    seconds = int((when - timedelta(minutes=36)).timestamp())
    facts = replace(FACTS, deployment_id=f"{seconds}-{seconds % 0xFFFFFF:06x}")
    record = deployment.assemble(build.complete(), facts, status="success")
    record |= {"timestamp": rfc3339(when), "commit_time": rfc3339(when - timedelta(days=1))}
    record["metrics"] |= {"lead_time_seconds": 86400.0}
    begin = when - timedelta(minutes=30)
    for stage in record["rollout_stages"]:
        end = begin + timedelta(minutes=stage["duration_minutes"])
        stage |= {"started_at": rfc3339(begin), "ended_at": rfc3339(end)}
        begin = end
    return record | changes


def aborted(when: datetime, **changes: Any) -> Document:
    """Return the record of a deployment whose canary went back after 5 minutes with users on it, in 2 seconds."""
    record = deployed(when, status="rolled_back", services_deployed=[], rollback_available=False, failure=deployment._failure(FAILURE))
    record["rollout_stages"] = [record["rollout_stages"][0] | {"status": "aborted", "reason": "4 of 30 probes failed"}]
    record["rollout"] |= {
        "rollout_status": "rolled_back",
        "abort": {"stage": "canary", "reason": "4 of 30 probes failed", "seconds_to_safe": 2.0, "proved": True, "detail": "safe"},
    }
    return record | changes


def stopped(when: datetime, **changes: Any) -> Document:
    """Return the record of a deployment that a gate stopped: no user saw it."""
    record = deployed(when, status="failed", services_deployed=[], rollback_available=False, failure=deployment._failure(FAILURE))
    return record | {"rollout_stages": [], "rollout": None, "smoke_tests": []} | changes


def failed_smoke(when: datetime, **changes: Any) -> Document:
    """Return the record of a deployment whose smoke tests failed; its version stayed."""
    record = deployed(when, status="failed", failure=deployment._failure(FAILURE))
    record["health_checks"] |= {"smoke_tests": "failed"}
    return record | changes


def taken_back(of: Document, when: datetime, place: tuple[str, str]) -> Document:
    """Return the record of a rollback that ended then; ``place``: URL and SHA-256 of the deployment's record."""
    evidence: dict[str, Any] = {
        "reason": "checkout fails", "to": {"version": "v1.2.2", "deployment_id": "1763000000-0f0f0f"}, "after_deadline": False,
        "rollback_deadline": of["rollback_deadline"], "already_back": False, "fenced": None, "instances": ["api_gateway#1"],
        "seconds_to_safe": 0.4, "proved": True, "requests_after": 0, "detail": "nothing reached it", "smoke_status": "passed", "tests": [],
        "health": {"database": "healthy"}, "notes": [], "record": {"location": place[0], "sha256": place[1]},
    }  # fmt: skip
    facts = rollback.RollbackCircumstances(
        timestamp=rfc3339(when), run=FACTS.run, previous_record_sha256=None, previous_record_location=None
    )
    return rollback.assemble(evidence, of, facts)


def key_of(record: Document, environment: str = "production") -> str:
    """Return the key of a record; each deployment has one attempt and at most one rollback here."""
    name = "rollback-1" if record.get("kind") == "rollback" else str(record["run_attempt"])
    return f"records/{environment}/{record['deployment_id']}/{name}.json"


def chained(records: Iterator[Document] | list[Document], bucket: str = BUCKET) -> list[Kept]:
    """Return records in a chain, each naming the one before, as the archive writes them."""
    kept = list[Kept]()
    for record in records:
        link = {}
        if kept:
            link = {"previous_record_sha256": sha256(kept[-1].data), "previous_record_location": f"s3://{bucket}/{kept[-1].key}"}
        if record.get("kind") == "rollback":
            of = next(item for item in reversed(kept) if item.document["deployment_id"] == record["deployment_id"])
            link["deployment_record"] = {"location": f"s3://{bucket}/{of.key}", "sha256": sha256(of.data)}
        document = record | link
        kept.append(Kept(key_of(record), document, archived_bytes(document)))
    return kept


def history(count: int, seed: int = 13) -> Iterator[Document]:
    """Yield so many records: one to three deployments a day by several people, with all the ways in which one can end."""
    chooser, when, made = random.Random(seed), START, 0
    while made < count:
        when += timedelta(hours=chooser.choice((5, 8, 17)), minutes=chooser.randrange(60))
        lead = chooser.lognormvariate(10.5, 1.0)
        facts = {
            "triggered_by": chooser.choice(PEOPLE), "version": f"v2.{made // 40}.{made % 40}", "run_id": str(10_000 + made),
            "commit_time": rfc3339(when - timedelta(seconds=lead)),
        }  # fmt: skip
        end = chooser.choices(list(ENDS), weights=list(ENDS.values()))[0]
        make = {"rolled_back": aborted, "gate": stopped, "smoke": failed_smoke}.get(end, deployed)
        record = make(when, **facts)
        record["metrics"]["lead_time_seconds"] = round(lead, 3)
        yield record
        made += 1
        if end == "taken back" and made < count:
            yield taken_back(record, when + timedelta(minutes=chooser.randrange(5, 55)), (f"s3://{BUCKET}/{key_of(record)}", "0" * 64))
            made += 1


def keep(stores: Stores, bucket: str, records: list[Kept], signer: KeyFileSigner | None = None) -> None:
    """Write records into a bucket in their order, and their signatures, without the care of ``Archive`` (1,000 take a few seconds)."""
    client = stores.boto3()

    def sign(item: Kept) -> None:
        body = envelope.sign(signer, f"s3://{bucket}/{item.key}", item.data) if signer else b""
        client.put_object(Bucket=bucket, Key=f"{item.key}{SUFFIX}", Body=body)

    for item in records:
        client.put_object(Bucket=bucket, Key=item.key, Body=item.data)
    if signer:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(sign, records))
