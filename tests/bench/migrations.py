"""``scripts/bench migrations``: what trying migrations adds to the backup, and what the copy's seconds say of production's.

Whole jobs are run: database-backup with MIGRATIONS_TRIAL=false and with the trial, alternating; then database-migrations. Prisma migrates
tables with rows, one statement a migration. Predicted: seconds of the statement on the copy; real: seconds that Prisma's table notes,
which has its own bookkeeping in them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database.cluster import Cluster
from azora_ci.rehearsal import application
from azora_ci.rehearsal.standins.s3 import S3Server
from tests.bench import database
from tests.conftest import SUPERUSER, DatabaseMaker
from tests.support import prisma_table
from tests.support.migration_world import Deployment
from tests.support.sample import Sample
from tests.support.stores import KEY_ID, SECRET, Stores

BASE = "20260101000000_base"
MEASURABLE_SECONDS = 0.1  # shorter ones are bookkeeping
STATEMENTS = (
    "ALTER TABLE accounts ADD COLUMN note text",
    "ALTER TABLE accounts ADD COLUMN level int NOT NULL DEFAULT 1",
    "ALTER TABLE accounts ADD COLUMN token uuid NOT NULL DEFAULT gen_random_uuid()",
    "ALTER TABLE orders ALTER COLUMN total TYPE numeric(14, 3)",
    "ALTER TABLE orders ADD COLUMN doubled numeric GENERATED ALWAYS AS (total * 2) STORED",
    "ALTER TABLE orders ALTER COLUMN status TYPE varchar(40)",
    "CREATE INDEX events_at ON events (at)",
    "CREATE INDEX events_kind ON events ((payload ->> 'kind'))",
    "CREATE INDEX events_payload ON events USING gin (payload)",
    "CREATE UNIQUE INDEX accounts_lower ON accounts (lower(email))",
    "CREATE INDEX CONCURRENTLY orders_total ON orders (total)",
    "ALTER TABLE orders ADD CONSTRAINT orders_positive CHECK (total >= 0)",
    "ALTER TABLE accounts ADD CONSTRAINT accounts_named CHECK (name <> '') NOT VALID",
    "ALTER TABLE accounts VALIDATE CONSTRAINT accounts_named",
    "ALTER TABLE accounts ADD CONSTRAINT accounts_email CHECK (email LIKE '%@%')",
    "ALTER TABLE events ADD CONSTRAINT events_account_again FOREIGN KEY (account_id) REFERENCES accounts (id)",
    "UPDATE accounts SET note = name",
    "UPDATE orders SET status = 'closed' WHERE status = 'returned'",
    "DELETE FROM files WHERE id % 3 = 0",
    "CREATE TABLE totals AS SELECT account_id, sum(total) AS total, count(*) AS orders FROM orders GROUP BY account_id",
    "CREATE MATERIALIZED VIEW days AS SELECT date_trunc('day', at) AS day, count(*) FROM events GROUP BY 1",
    "ALTER TABLE accounts ALTER COLUMN note SET NOT NULL",
    "ALTER TABLE accounts DROP COLUMN biography",
    "ALTER TABLE totals ADD PRIMARY KEY (account_id)",
)


def run(gib: float, rounds: int, *, as_json: bool) -> None:
    """Measure and print."""
    with _world(gib, lambda line: click.echo(line, err=True)) as world:
        report = measure(world, rounds)
    click.echo(json.dumps(report, indent=2) if as_json else _text(report))


@contextlib.contextmanager
def _world(gib: float, say: Any) -> Iterator[Deployment]:
    """Yield a deployment whose database has rows, and whose pending migrations are ``STATEMENTS``."""
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="azora-bench-", ignore_cleanup_errors=True) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        cluster = stack.enter_context(Cluster.start(folder / "postgres", processes=processes, superuser=SUPERUSER))
        server = stack.enter_context(S3Server(folder / "s3", keys=(KEY_ID, SECRET)))
        stack.callback(os.chdir, before)
        maker = DatabaseMaker(cluster)
        sample = Sample(folder / "sample", processes)
        application_folder = sample.copy(folder / "application")
        migrations = application.migrations(application_folder)
        for path in migrations.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        application.add_migration(application_folder, BASE, "SELECT 1;\n")
        url = maker.fresh(prisma_table.with_migrations(BASE, folder=migrations))
        say(f"database: {database.fill(url, gib, say) / database.GIB:.2f} GiB")
        for number, statement in enumerate(STATEMENTS):
            application.add_migration(application_folder, f"202602{number + 1:02}000000_m{number:02}", f"{statement};\n")
        os.environ.update(sample.node.environment())
        os.chdir(application_folder)
        yield Deployment(application_folder, url, Stores(server), maker, sample.node)


def measure(world: Deployment, rounds: int) -> dict[str, Any]:
    """Return the figures: medians of ``rounds``, and each migration's seconds on the copy and in production."""
    clock, seconds = Clock(), {"without": list[float](), "with": list[float]()}
    trial: dict[str, Any] = {}
    old_version: dict[str, Any] = {}
    for _ in range(rounds):
        for how, changes in (
            ("without", {"MIGRATIONS_TRIAL": "false", "MIGRATIONS_TRIAL_REASON": "measured without"}),
            ("with", {"MIGRATIONS_TRIAL": "true"}),
        ):
            world.bucket = world.stores.make_bucket()
            world.configure()
            started = clock.monotonic()
            with contextlib.redirect_stdout(io.StringIO()):
                fragment = world.try_out(**changes)
            seconds[how].append(clock.monotonic() - started)
            _require_ok(fragment)
            if how == "with":
                trial = fragment["evidence"]["trial"]
                old_version = fragment["evidence"].get("old_version") or {}
    with contextlib.redirect_stdout(io.StringIO()):
        world.run()
    _require_ok(world.fragment())
    real = {migration["name"]: migration["seconds"] for migration in world.evidence["applied"]}
    return {
        "backup_seconds": round(statistics.median(seconds["without"]), 3),
        "backup_with_trial_seconds": round(statistics.median(seconds["with"]), 3),
        "trial_seconds": trial["seconds"],
        "old_version_seconds": old_version.get("seconds"),
        **compared([{**row, "real": real[row["name"]]} for row in _predicted(trial)]),
        "surprises": trial["surprises"],
    }


def compared(migrations: list[dict[str, Any]]) -> dict[str, Any]:
    """Return migrations with the ratio real / predicted of those that are long enough, and what the ratios are together. Pure."""
    for row in migrations:
        measurable = min(row["predicted"], row["real"]) >= MEASURABLE_SECONDS
        row["ratio"] = round(row["real"] / row["predicted"], 2) if measurable else None
    ratios = [row["ratio"] for row in migrations if row["ratio"] is not None]
    return {
        "migrations": migrations,
        "predicted_seconds": round(sum(row["predicted"] for row in migrations), 3),
        "real_seconds": round(sum(row["real"] for row in migrations), 3),
        "ratio_median": round(statistics.median(ratios), 2) if ratios else None,
        "ratio_lowest": min(ratios, default=None),
        "ratio_highest": max(ratios, default=None),
    }


def _predicted(trial: dict[str, Any]) -> list[dict[str, Any]]:
    predicted = {entry["name"]: 0.0 for entry in trial["files"]}
    for statement in trial["statements"]:
        name = (statement["where"] or "").partition("/")[0]
        if name in predicted:
            predicted[name] += statement["seconds"]
    statements = dict(zip(predicted, STATEMENTS, strict=True))
    return [{"name": name, "statement": statements[name], "predicted": round(value, 3)} for name, value in predicted.items()]


def _require_ok(fragment: dict[str, Any]) -> None:
    if fragment["status"] != "ok":
        error = fragment["error"]
        raise UnreachableError(error["title"], what=error["what"], where=error["where"], next_step=error["next"])


def _text(report: dict[str, Any]) -> str:
    lines = [f"{'predicted':>10} {'real':>8} {'ratio':>6}"]
    lines += [
        f"{row['predicted']:>9.2f}s {row['real']:>7.2f}s {row['ratio'] if row['ratio'] is not None else '-':>6}  {row['statement']}"
        for row in report["migrations"]
    ]
    added = report["backup_with_trial_seconds"] - report["backup_seconds"]
    lines += [
        f"{report['predicted_seconds']:>9.2f}s {report['real_seconds']:>7.2f}s {report['ratio_median'] or '-':>6}  all (median of ratios)",
        f"database-backup: {report['backup_seconds']:.1f} s, with the trial {report['backup_with_trial_seconds']:.1f} s ({added:+.1f} s)",
    ]
    return "\n".join(lines)
