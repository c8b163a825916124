"""These tests run the rollback step as a process with a real edge, instances, S3 server and database, and a Slack receiver."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from azora_ci.clients.signing.signatures import Signatures
from azora_ci.core import schemas
from azora_ci.core.config.calendar import DAYS
from azora_ci.core.markdown import escaped
from azora_ci.core.process import send_signal
from azora_ci.record import rollback, run
from azora_ci.record.archive import Archive, KeptRecord
from azora_ci.record.audit import verify_record
from azora_ci.record.chain import archived_bytes, sha256
from azora_ci.rehearsal.standins.github import GitHubApi
from azora_ci.targets.base import Owner
from tests.conftest import DatabaseMaker
from tests.support import signing
from tests.support.chain import broken_links
from tests.support.edge_world import NEW, OLD, Load, World
from tests.support.hostile import NESTED
from tests.support.rollback_world import MIGRATIONS, REASON, Surroundings
from tests.support.stores import Stores
from tests.support.waiting import until

THIRD = "1764000200-cccccc"


FROZEN = {"timezone": "UTC", "frozen": [{"days": list(DAYS), "why": "a freeze without end"}]}


class Production(World):
    """1.1.0 is in production after 1.0.0, and its record is archived. Its calendar is frozen, which stops no rollback."""

    def __init__(self, folder: Path, stores: Stores, database: str) -> None:
        self.around = Surroundings(folder, stores, database)
        super().__init__(folder, instances=1, backup=self.around.backup, workers={"mailer": {}}, calendar=FROZEN)
        self.keep, self.chain, self.rollback_records = self.around.keep, self.around.chain, self.around.rollback_records
        self.records, self.slack, self.variables = self.around.records, self.around.slack, self.around.variables
        self.attempt = 0
        self.deploy_old()
        self.put_up("1.1.0", NEW)

    def close(self) -> None:
        super().close()
        self.around.close()

    def put_up(self, version: str, deployment_id: str) -> None:
        target, release = self.target(), self.release(version, deployment_id)
        with target.locked(Owner(deployment_id, "https://runs.example/2", "tests")):
            target.deploy(release, 100)
            target.set_weight(release, 100)
            target.promote(release)

    def back(self, **more: str) -> tuple[int, str]:
        """Run the step as the workflow does; DEPLOYMENT_ID is empty unless it is given."""
        self.attempt += 1
        return self.finish(self.start("rollback", self.attempt, **{**self.variables, **more}))

    def evidence(self) -> dict[str, Any]:
        return self.fragment("rollback", self.attempt).evidence

    def rollback_location(self) -> str:
        """Return where the newest rollback's record is archived, as Markdown shows it."""
        return str(escaped(self.evidence()["rollback_record"]["location"]))

    def untouched(self) -> bool:
        """Return whether 1.1.0 serves everything as before and the step journalled, archived and announced nothing."""
        state, held = self.edge.state(), self.target().holder()
        journal = self.target().current()
        same = (state.stable, state.canary, held, journal.serving) == (NEW, None, None, NEW) and not journal.releases[NEW].going_back
        return same and self.versions_now(5) == {"1.1.0"} and self.rollback_records() == [] and self.slack.texts() == []


@pytest.fixture(scope="module")
def database(postgres_cluster: DatabaseMaker) -> str:
    return postgres_cluster.fresh(MIGRATIONS)


@pytest.fixture
def production(tmp_path: Path, s3_server: Stores, database: str) -> Iterator[Production]:
    production = Production(tmp_path, s3_server, database)
    try:
        yield production
    finally:
        production.close()


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory, s3_session: Stores, database: str) -> Iterator[Production]:
    """Share one production between the tests of refusals, because a refusal leaves it as it was."""
    production = Production(tmp_path_factory.mktemp("refusing"), s3_session, database)
    production.keep()
    try:
        yield production
    finally:
        production.close()


def refused(production: Production, *words: str, **more: str) -> None:
    code, output = production.back(**more)
    assert code == 1, output
    for word in words:
        assert word in output, output
    assert production.untouched()


# --- it goes back -------------------------------------------------------------------------------------------------------------


def test_back_within_the_window_without_a_failed_request_and_once_more_is_recognised(production):
    deployment_record = production.keep()
    ours = [{"id": number, "environment": "production", "payload": {"deployment_id": name}} for number, name in ((1, OLD), (2, NEW))]
    with GitHubApi(production.folder / "github.json", "the-token") as api, Load(production.port) as load:
        api.write(deployments=ours)
        code, output = production.back(GITHUB_API_URL=api.url, GITHUB_TOKEN="the-token", GITHUB_REPOSITORY="azora/azora")
        assert code == 0, output
        assert production.versions_now() == {"1.0.0"}
    assert load.failed == []
    assert (production.running(), production.running_workers()) == ({"v1.0.0": 2}, {"v1.0.0": 1})
    assert "all 2 instances of v1.0.0 are there and healthy; 1 workers are at rest, and start again" in output
    evidence = production.evidence()
    assert "its workers run again: mailer#2 v1.0.0" in evidence["detail"]
    assert (evidence["to"], evidence["proved"], evidence["requests_after"]) == ({"version": "v1.0.0", "deployment_id": OLD}, True, 0)
    assert (evidence["smoke_status"], evidence["already_back"], evidence["after_deadline"]) == ("passed", False, False)
    assert evidence["record"] == {"location": deployment_record.location, "sha256": deployment_record.sha256}
    assert production.slack.texts() == [
        f"↩️ Production rolled back\nVersion: v1.1.0 → v1.0.0\nDeployment ID: {NEW}\nReason: checkout fails &lt;everywhere&gt;\n"
        "Started by: octocat\nThe database was left as it is"
    ]
    assert production.slack.refusals == []
    assert [[status["state"] for status in api.statuses_of(number)] for number in (1, 2)] == [["success"], ["inactive"]]
    assert evidence["github_deployment"]["others"] == {OLD: "success"}
    page = (production.folder / "summary-1.md").read_text()
    for row in (
        f"| deployment taken back | v1.1.0 ({NEW}) |",
        "| reason | checkout fails &lt;everywhere> |",
        "| Slack | Slack answered ok |",
    ):
        assert row in page, page
    assert f"| record of the rollback | {production.rollback_location()} |" in page
    logs = next(production.folder.glob("**/rollback-record.json")).parent
    assert (logs / "verify_record.py").read_bytes() == Path(verify_record.__file__).read_bytes()
    assert "v1.1.0 was rolled back by hand" in (logs / f"deployment-report-{NEW}.html").read_text()
    once_more(production, deployment_record)


def once_more(production: Production, deployment_record: KeptRecord) -> None:
    code, output = production.back(DEPLOYMENT_ID=NEW)
    assert code == 0, output
    assert production.evidence()["already_back"] is True
    assert production.versions_now(5) == {"1.0.0"}
    assert production.running() == {"v1.0.0": 2}
    chain = production.chain()
    assert [link.key.rsplit("/", 1)[1] for link in chain] == ["1.json", "rollback-1.json", "rollback-2.json"]
    assert broken_links([link.data for link in chain]) == []
    for link in chain[1:]:
        schemas.validate(link.document, rollback.SCHEMA, where=link.key)
        assert link.document["deployment_record"]["sha256"] == deployment_record.sha256
    before = [production.records.bucket.url(link.key) for link in chain]
    assert [link.document["previous_record_location"] for link in chain[1:]] == before[:-1]
    assert [record["status"] for record in production.rollback_records()] == ["completed", "completed"]
    location = production.records.bucket.url(chain[-1].key)
    assert production.records.previous(THIRD, 1) == run.Previous(chain[-1].sha256, NEW, "v1.1.0", record_location=location)
    assert list(production.records.records_of(NEW)) == [1]


@pytest.mark.parametrize("named", [NEW, ""])
def test_a_poisoned_newest_record_is_named_and_the_rollback_works_without_it(production, named):
    deployment_record = production.keep()
    bucket = production.records.bucket
    forged = {"deployment_id": THIRD, "status": "success", "version": "v9.9.9", "previous_record_sha256": deployment_record.sha256}
    for number, poison in enumerate((NESTED, archived_bytes(forged)), start=1):
        bucket.put_once(production.records.record_key(THIRD, number), poison, content_type="application/json")
    code, output = production.back(DEPLOYMENT_ID=named)
    assert code == 0, output
    assert production.versions_now() == {"1.0.0"}
    record = production.rollback_records()[0]
    assert (record["deployment_id"], record["to"]["version"]) == (NEW, "v1.0.0")
    notes = "\n".join(record["notes"])
    assert f"set aside: {bucket.url(production.records.record_key(THIRD, 1))} (1000 bytes, SHA-256" in notes
    assert (f"{THIRD}/2.json" in notes) is (named == "")  # it was looked at as a candidate only without a name
    # Without a name nothing was believed of the forged record; it is a record for the chain, which a later one may name.
    assert record["previous_record_sha256"] in {deployment_record.sha256, sha256(archived_bytes(forged))}


def test_a_version_before_that_answers_a_thousand_brackets_is_not_gone_back_to(production):
    production.keep()
    production.flag("1.0.0.nested")
    refused(production, "The version before is not there any more")


def test_a_version_that_broke_on_the_migrated_copy_comes_back_only_for_a_reason(production):
    safe = {"value": False, "how": "tested", "reasons": ["GET /users of api: HTTP 500 on the migrated copy"]}
    production.keep(code_rollback_safe=safe)
    refused(production, "known to break on the migrated schema", "GET /users of api: HTTP 500", "--schema-reason", "nothing was changed")
    code, output = production.back(ROLLBACK_SCHEMA_REASON="the database was restored")
    assert code == 0, output
    note = production.rollback_records()[0]["notes"][0]
    assert "does not work there" in note
    assert note.endswith("going back nevertheless: the database was restored")
    assert production.versions_now(5) == {"1.0.0"}


def test_after_the_deadline_only_if_somebody_insists(production):
    production.keep(minutes_ago=61)
    refused(production, "::error title=After the deadline%3A manual intervention required", "1 minutes ago", "call #on-call")
    code, output = production.back(ROLLBACK_AFTER_DEADLINE="true")
    assert code == 0, output
    assert production.evidence()["after_deadline"] is True
    assert "going back nevertheless" in production.rollback_records()[0]["notes"][0]
    assert production.versions_now(5) == {"1.0.0"}


def test_a_running_rollout_is_fenced_and_changes_nothing_any_more(production):
    production.keep()
    production.built("1.2.0", THIRD)
    slow = {"DEPLOYMENT_ID": THIRD, "VERSION": "v1.2.0", "CANARY_MINUTES": "3", "HEALTH_CHECK_INTERVAL": "0.1"}
    rollout = production.start("gradual_rollout", 9, **slow)
    until(lambda: production.edge.state().percent == 5, "the rollout gives 5 % to 1.2.0", 60)
    with Load(production.port) as load:
        code, output = production.back()
        assert code == 0, output
        rollout_code, rollout_output = production.finish(rollout)
        assert production.versions_now() == {"1.0.0"}
    assert load.failed == []
    assert (rollout_code, production.fragment("gradual-rollout", 9).evidence["rollout_status"]) == (1, "failed")
    assert f"a rollback: {REASON}: who holds it decides about traffic" in rollout_output or "now belongs to nobody" in rollout_output
    assert f"fenced the deployment {THIRD}" in output
    assert production.evidence()["fenced"] == THIRD
    assert production.target().current().serving == OLD
    assert production.running() == {"v1.0.0": 2}


def test_a_cancelled_rollback_that_has_begun_is_finished_quickly(production):
    production.keep()
    production.attempt = 1
    process = production.start("rollback", 1, **{**production.variables, "DEPLOYMENT_ID": NEW})
    until(lambda: production.edge.state().stable == OLD, "the edge's files hold the old weights")
    process.send_signal(signal.SIGTERM)  # the step is still proving the way back
    code, output = production.finish(process)
    assert production.versions_now() == {"1.0.0"}, output
    assert (code, production.fragment("rollback").status) == (1, "cancelled")
    assert production.evidence()["to"]["version"] == "v1.0.0"
    assert ["ACTION REQUIRED: Cancelled" in text for text in production.slack.texts()] == [True]
    code, output = production.back()
    assert code == 0, output
    assert production.rollback_records()[0]["status"] == "completed"


def test_failed_smoke_tests_of_the_version_before_call_for_a_person(production):
    production.keep()
    production.flag("1.0.0.api_gateway.error")
    code, output = production.back()
    assert code == 1
    assert "work: HTTP 500" in output
    assert production.rollback_records()[0]["status"] == "unverified"
    assert "needs attention" in production.slack.texts()[0]
    assert production.versions_now(3) >= {"1.0.0"}


# --- it is refused, and nothing is changed ---------------------------------------------------------------------------------


def test_an_unknown_deployment_and_an_empty_archive_are_refused(refusing):
    refused(refusing, "There is no deployment to take back", DEPLOY_ENVIRONMENT="staging")
    refused(refusing, f"no record of {THIRD}", "cancel its run", DEPLOYMENT_ID=THIRD)


def test_a_deployment_without_a_version_before_or_that_does_not_serve_is_refused(refusing):
    first, elsewhere = "1764000400-eeeeee", "1764000500-ffffff"
    refusing.keep(first, rollback_available=False, previous_version=None, previous_deployment_id=None)
    refused(refusing, "There is nothing to go back to", "no previous version", DEPLOYMENT_ID=first)
    refusing.keep(elsewhere)
    refused(refusing, f"the target does not have v1.1.0 ({elsewhere}); v1.1.0 ({NEW}) serves", DEPLOYMENT_ID=elsewhere)


def test_sick_and_dead_instances_of_the_version_before_are_refused(refusing):
    words = ("The version before is not there any more", "1 of 2 instances of v1.0.0 are healthy", "nothing was changed")
    refusing.flag("1.0.0.auth_service.sick")
    refused(refusing, *words, "HTTP 500", DEPLOYMENT_ID=NEW)
    refusing.unflag("1.0.0.auth_service.sick")
    facts = next(iter(refusing.target().current().releases[OLD].instances.values()))
    send_signal(facts["pid"], signal.SIGKILL)
    until(lambda: refusing.running()["v1.0.0"] == 1, "an old instance is dead")
    refused(refusing, *words, DEPLOYMENT_ID=NEW)


def test_without_a_reason_or_critical_endpoints_nothing_is_begun(refusing):
    code, output = refusing.back(ROLLBACK_REASON=" ")
    assert (code, "ROLLBACK_REASON" in output) == (2, True)
    assert refusing.untouched()


def test_an_archive_that_does_not_answer_changes_nothing(refusing):
    code, output = refusing.back(AWS_ENDPOINT_URL_S3="http://127.0.0.1:1")
    assert code == 3, output
    assert "S3 could not be reached" in output
    assert "nothing was changed" in output
    assert "when the archive answers" in output
    assert refusing.untouched()


def test_a_changed_record_is_not_believed(refusing):
    archive, bucket = Archive(refusing.records.bucket, "changed"), refusing.records.bucket
    document = {**json.loads(refusing.records.records_of(NEW)[1]), "environment": "changed"}
    bucket.put_once(archive.record_key(NEW, 1), json.dumps(document).encode(), content_type="application/json")
    words = ("The record cannot be believed", "not canonical JSON")
    refused(refusing, *words, DEPLOYMENT_ID=NEW, DEPLOY_ENVIRONMENT="changed")
    orphan = {**document, "deployment_id": THIRD, "previous_record_sha256": "0" * 64}
    bucket.put_once(archive.record_key(THIRD, 1), archived_bytes(orphan), content_type="application/json")
    refused(refusing, words[0], "there is none with that SHA-256", DEPLOYMENT_ID=THIRD, DEPLOY_ENVIRONMENT="changed")


# --- with signing on -------------------------------------------------------------------------------------------------------


def signing_config(production: Production, folder: Path, endpoint: str) -> tuple[str, dict[str, str]]:
    """Return who signs, and the variables of a step under the same configuration with signing on."""
    signed_by = f"kms:{signing.make_key(endpoint)}"
    path = folder / "signing.toml"
    path.write_text(f'{(production.folder / "deploy.toml").read_text()}evidence = {{ signing = "{signed_by}" }}\n')
    return signed_by, {"DEPLOY_CONFIG": str(path), "AWS_ENDPOINT_URL_KMS": endpoint}


def test_the_unsigned_record_of_a_deployment_is_refused_with_a_way_on(refusing, tmp_path):
    with signing.kms() as endpoint:
        _, variables = signing_config(refusing, tmp_path, endpoint)
        words = ("The record cannot be believed", "it is not signed", "deploy the version before again", "before signing was turned on")
        refused(refusing, *words, DEPLOYMENT_ID=NEW, **variables)
        refused(refusing, "There is no deployment to take back", "set aside", "it is not signed", **variables)


def test_a_forged_newest_record_does_not_stop_the_way_back_and_the_rollback_is_signed(production, tmp_path):
    with signing.kms() as endpoint:
        signed_by, variables = signing_config(production, tmp_path, endpoint)
        signatures, records = Signatures.of(production.records.bucket, signed_by), production.records
        production.keep()
        key = records.record_key(NEW, 1)
        signatures.keep(key, records.bucket.read(key), lock_days=1, lock_mode="GOVERNANCE")
        production.keep(THIRD, "v6.6.6")  # unsigned, with the right previous hash
        code, output = production.back(**variables)
        assert code == 0, output
        assert any(
            "set aside" in line and records.record_key(THIRD, 1) in line and "it is not signed" in line for line in output.splitlines()
        )
        assert production.versions_now() == {"1.0.0"}
        location = production.evidence()["rollback_record"]["location"].removeprefix(f"s3://{production.around.bucket}/")
        assert signatures.doubt(location, records.bucket.read(location)) is None
        (rolled_back,) = production.rollback_records()
        assert (rolled_back["deployment_id"], rolled_back["signed_by"]) == (NEW, signed_by)
