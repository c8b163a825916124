"""database-backup with [migrations.old_version]: a real service, whose archive is in production, runs beside migrations on the copy."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from azora_ci.clients.docker import build_context
from azora_ci.core.clock import rfc3339
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.record import fragments
from azora_ci.rehearsal import application
from tests.support import ROOT, deploy_config, fragments_builder
from tests.support.migration_world import ID, Deployment
from tests.support.sample import Sample
from tests.support.waiting import until

CANARY = "canary-7d1e"
BEFORE = "1763000000-0f0f0f"
# Says healthy when its database answers; reads and writes users as v1.0.0 knows them; prints and answers rows, which nobody may keep.
SERVER = """
import { createServer } from "node:http";
import { connect } from "node:net";
import pg from "pg";
const pool = new pg.Pool({ connectionString: process.env.APP_URL });
pool.on("error", () => {});
if (process.env.NEEDS_KEY === "missing") { console.error("canary-7d1e: no key"); process.exit(3); }
const reached = (host, port) => new Promise((done) => {
  const socket = connect({ host, port, timeout: 3000 });
  socket.on("connect", () => done("reached")).on("error", () => done("no")).on("timeout", () => done("no"));
});
if (process.env.MAKES) await pool.query(process.env.MAKES);
const answers = {
  "GET /health": async () => { await pool.query("SELECT 1"); return { status: "healthy", version: process.env.VERSION }; },
  "GET /users": async () => (await pool.query("SELECT id, email, name FROM users ORDER BY id")).rows,
  "GET /broken": async () => { throw new Error("always"); },
  "POST /users": async (body) => (await pool.query("INSERT INTO users (email, name) VALUES ($1, $2) RETURNING id", body)).rows,
  "GET /elsewhere": async () => {
    const places = process.env.PLACES.split(" ").map((place) => reached(...place.split(":")));
    const secrets = Object.keys(process.env).filter((name) => /SECRET|^AWS|^PROD|^GITHUB/.test(name));
    const found = [...await Promise.all(places), ...secrets];
    if (found.some((text) => text !== "no")) throw new Error(found);
    return found;
  },
};
createServer(async (request, response) => {
  let text = "";
  for await (const part of request) text += part;
  let status = 200, body;
  try { body = await answers[`${request.method} ${request.url}`](text && JSON.parse(text)); }
  catch (error) { status = 500; body = error.message; console.error(error); }
  console.log(JSON.stringify(body));
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(body));
}).listen(process.env.PORT, process.env.HOST);
"""
WRITE = [{"path": "/users", "body": f'["{CANARY}-new", "{CANARY}"]'}]


class Old:
    """Production runs v1.0.0 of one service, whose archive is there; ``try_out`` deploys migrations to it."""

    def __init__(self, production: Deployment, sample: Sample) -> None:
        self.production = production
        folder = production.folder.parent / "old"
        shutil.copytree(sample.built / "services" / "education-service" / "dist" / "node_modules", folder / "node_modules")
        self.program = f"old-{os.urandom(6).hex()}.mjs"  # other tests run services of the same kind
        (folder / self.program).write_text(SERVER, encoding="utf-8")
        self.archives = production.folder / "archives"
        self.digest = build_context.store(folder, build_context.members(folder, dockerfile=""), self.archives)[0].digest
        production.maker.execute(production.url, f"INSERT INTO users (email, name) VALUES ('{CANARY}', '{CANARY}')")

    def configure(self, command: list[str] | None = None, **old_version: Any) -> None:
        table = {"env": {"NEEDS_KEY": "made up"}, "variables": {"APP_URL": "url"}, "read": ["/users"], "seconds": 120, **old_version}
        service = deploy_config.service("API", command=["node", self.program], secrets=["NEEDS_KEY"])
        migrations = {"old_version": table, **({"command": command} if command is not None else {})}
        folder = self.production.folder
        target = {"kind": "local_processes", "local_processes": {"state_dir": str(folder / "state"), "archive_dir": str(self.archives)}}
        tables = {"services": {"api": service}, "migrations": migrations, "target": target, "edge": {"config_dir": str(folder / "edge")}}
        backup = {"location": f"s3://{self.production.bucket}/prod"}
        self.production.config = deploy_config.write(folder / "deploy.toml", backup=backup, **tables)
        self.hand_over({"deployment_id": BEFORE, "version": "v1.0.0", "digests": {"api": self.digest}, "health": {}})

    def hand_over(self, serving: dict[str, Any] | None, **evidence: Any) -> None:
        """Leave what pre-deployment-validation found."""
        found = fragments_builder.evidence("pre-deployment-validation") | evidence | ({"serving": serving} if serving else {})
        now = rfc3339(datetime.now(UTC))
        job = fragments.Fragment("pre-deployment-validation", ID, "v1.1.0", "abc123" + "0" * 34, "1", 1, "ok", now, now, found)
        fragments.write(job, self.production.received / f"validation-logs-{ID}")

    def sql(self, text: str, **old_version: Any) -> None:
        """Let a migration of one file be what is pending."""
        self.configure([str(find_binary("psql", 18)), "-X", "-v", "ON_ERROR_STOP=1", "-c", text], **old_version)

    def found(self, **changes: str) -> dict[str, Any]:
        """Try the release out; return its evidence after looking whether a row of production is in what it leaves."""
        fragment = self.production.try_out(**changes)
        assert fragment["status"] == "ok", fragment["error"]
        self.require_secrecy()
        evidence: dict[str, Any] = fragment["evidence"]
        return evidence

    def require_secrecy(self) -> None:
        folder = self.production.received / f"backup-logs-{ID}"
        kept = "".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*") if path.is_file())
        assert CANARY not in kept
        assert list(self.production.scratch.iterdir()) == []
        assert self.running() == []

    def running(self) -> list[str]:
        """Return the processes of the version in production."""
        listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if line.endswith(self.program)]


@pytest.fixture
def old(production: Deployment, sample: Sample) -> Old:
    return Old(production, sample)


def test_a_version_that_works_before_and_after(old: Old) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        places = [f"127.0.0.1:{outside.getsockname()[1]}", f"127.0.0.1:{DatabaseUrl.parse(old.production.url).port}", "1.1.1.1:443"]
        env = {"NEEDS_KEY": "made up", "PLACES": " ".join(places)}
        old.configure(env=env, read=["/users", "/broken", {"path": "/elsewhere", "expect": 200}], write=WRITE)
        evidence = old.found()
    assert evidence["code_rollback_safe"] == {
        "value": True,
        "how": "tested",
        "reasons": [
            "v1.0.0 (api) is healthy on the migrated copy, and answers 2 reads and 1 writes as it should",
            "GET /broken of api says nothing: it answers HTTP 500 on the copy before it is migrated, too",
        ],
    }
    tried = evidence["old_version"]
    assert (tried["version"], tried["deployment_id"], tried["services"]) == ("v1.0.0", BEFORE, ["api"])
    assert tried["seconds"] > 0
    assert [(entry["request"], entry["before"], entry["after"]) for entry in tried["requests"]] == [
        ("GET /users of api", 200, 200),
        ("GET /broken of api", 500, 500),
        ("GET /elsewhere of api", 200, 200),
        ("POST /users of api", None, 200),
    ]
    assert evidence["trial"]["passed"]
    assert not any(statement["tag"] == "INSERT" for statement in evidence["trial"]["statements"]), "what it does is not the migrations'"
    assert old.production.applied() == list(application.OLD_MIGRATIONS), "production is untouched"


RENAMED = "ALTER TABLE users RENAME name TO full_name"
DEMANDED = "ALTER TABLE users ADD c int NOT NULL DEFAULT 1; ALTER TABLE users ALTER c DROP DEFAULT"


def test_a_version_whose_writes_break_is_named_with_the_request(old: Old, capsys: pytest.CaptureFixture[str]) -> None:
    old.sql(DEMANDED, write=WRITE)
    assert old.found()["code_rollback_safe"] == {
        "value": False,
        "how": "tested",
        "reasons": [
            "POST /users of api: HTTP 500 on the migrated copy, expected below 400",
            'the database refused: null value in column "c" of relation "users" violates not-null constraint (SQLSTATE 23502)',
        ],
    }
    assert "The version in production does not work on the migrated schema" in capsys.readouterr().out


def test_the_gate_is_closed_where_compatibility_is_demanded_and_a_reason_opens_it(old: Old) -> None:
    old.sql(RENAMED)
    fragment = old.production.try_out(MIGRATIONS_REQUIRE_COMPATIBLE="true")
    assert fragment["error"]["title"] == "The version in production does not work on the migrated schema"
    assert "production is untouched" in fragment["error"]["what"]
    assert "GET /users of api: HTTP 500 on the migrated copy, expected as before, HTTP 200" in fragment["error"]["what"]
    assert 'column "name" does not exist (SQLSTATE 42703)' in fragment["error"]["what"]
    assert fragment["evidence"]["code_rollback_safe"]["value"] is False
    old.require_secrecy()
    reasoned = old.found(MIGRATIONS_INCOMPATIBLE_REASON="nobody reads names", GITHUB_RUN_ATTEMPT="2")
    assert reasoned["override_reason"] == "The version in production does not work on the migrated schema: nobody reads names"


def test_what_is_not_healthy_before_the_migration_is_not_its_fault(old: Old) -> None:
    old.sql(RENAMED, env={"NEEDS_KEY": "missing"})
    evidence = old.found(MIGRATIONS_REQUIRE_COMPATIBLE="true")
    assert (evidence["code_rollback_safe"]["value"], evidence["code_rollback_safe"]["how"]) == (None, "unknown")
    first, second = evidence["code_rollback_safe"]["reasons"]
    assert first == (
        "could not be tried: api of v1.0.0 is not healthy (its process ended, exit code 3; what it printed is withheld) "
        "on the copy before it is migrated"
    )
    assert "[migrations.old_version] env" in second


def test_a_version_that_changes_the_schema_by_itself_says_nothing_of_the_migrations(old: Old) -> None:
    old.configure(env={"MAKES": "CREATE TABLE made (id int)"})
    evidence = old.found()
    assert evidence["code_rollback_safe"] == {
        "value": None,
        "how": "unknown",
        "reasons": ["it changes the schema itself (gained: column made.id integer; gained: table made)"],
    }
    assert evidence["trial"]["passed"]


def test_nothing_pending_starts_nothing_and_what_cannot_be_started_is_not_known(old: Old) -> None:
    for name in application.NEW_MIGRATIONS:
        shutil.rmtree(application.migrations(old.production.folder) / name)
    old.configure()
    shutil.rmtree(old.archives)  # whoever started something would fail
    evidence = old.found()
    assert evidence["code_rollback_safe"] == {
        "value": True, "how": "classified", "reasons": ["no migration is pending: nothing was started"],
    }  # fmt: skip

    old.production.add("20991231000000_more", "ALTER TABLE users ADD more int;")
    unreadable = old.found(GITHUB_RUN_ATTEMPT="2")["code_rollback_safe"]
    assert (unreadable["value"], unreadable["how"]) == (None, "unknown")
    assert "Archive cannot be read" in unreadable["reasons"][0]


def test_a_cancelled_trial_leaves_nothing(old: Old) -> None:
    old.configure(command=["sleep", "60"], read=[])
    logs = old.production.received / f"backup-logs-{ID}"
    environ = old.production.environ(DEPLOYMENT_LOG_DIR=str(logs), BACKUP_SCRATCH_DIR=str(old.production.scratch), GITHUB_OUTPUT="")
    script = [sys.executable, str(ROOT / "scripts" / "database_backup.py")]
    process = subprocess.Popen(script, env=environ, cwd=old.production.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(old.running, "the version in production runs", 240)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
    finally:
        process.kill()
    old.require_secrecy()
