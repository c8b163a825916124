"""ROLLBACK-INSTRUCTIONS.md of one deployment: the steps of the on-call engineer, in order, without reading code. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.core.markdown import Markup, code, escaped, listed, table
from azora_ci.database.restore import scripts
from azora_ci.rollback import schema, window

FILE_NAME = "ROLLBACK-INSTRUCTIONS.md"


@dataclass(frozen=True)
class Guide:
    """Values from the configuration: whom to call, the application's URL, (title, health URL) of each service with a route, the
    titles of the workers, and (title, contract in words) of each service that does not answer the contract.
    """

    application: str
    on_call: str
    public_url: str
    health_urls: tuple[tuple[str, str], ...]
    target: str
    workers: tuple[str, ...] = ()
    workflow: str = "deploy-production.yml"
    rollback_workflow: str = "rollback-production.yml"
    otherwise: tuple[tuple[str, str], ...] = ()


def render(record: Mapping[str, Any], guide: Guide) -> str:
    """Return the instructions for the deployment of a record (schema deployment-record) as Markdown."""
    plan = window.plan(record)
    parts = [
        _identity(record, plan),
        _window(record, plan),
        _when(record),
        _procedure(record, guide, plan),
        _backup(record, plan),
        _verification(guide, plan),
        _contact(record, guide),
        _afterwards(record, plan),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _identity(record: Mapping[str, Any], plan: window.RollbackPlan) -> str:
    rows = [
        ("Deployment ID", code(record["deployment_id"])),
        ("Version", Markup(f"{code(record['version'])} (commit {code(record['git_sha'])})")),
        ("Version before", f"{plan.version} (deployment {plan.deployment_id or 'not known'})" if plan.version else "none is kept"),
        ("Environment", record["environment"]),
        ("Deployed", f"{record['timestamp']}, started by {record['triggered_by']}"),
        ("Status", record["status"]),
        ("Migrations applied", _migrations(record)),
        ("Run", record["run_url"]),
    ]
    return f"# Rollback instructions: {escaped(record['version'])}\n\n{table(('', ''), rows)}\n"


def _migrations(record: Mapping[str, Any]) -> str:
    tool = record.get("migration_tool")
    if tool == "none":
        return "the application has none"
    return _text(record["migrations_applied"]) + (", by another tool than Prisma" if tool == "command" else "")


def _text(value: object) -> str:
    return "not known" if value is None else str(value)


def _window(record: Mapping[str, Any], plan: window.RollbackPlan) -> str:
    if record["status"] == "rolled_back":
        return """## Rollback window

**Traffic has gone back already.** What follows is for what is left: the database, and finding out why.
"""
    if plan.version is None:
        return """## Rollback window

**There is no previous version to go back to.** Either this was the first deployment, or the version before was not kept. What can
be done is to deploy a corrected release, and to restore the database from its backup (below).
"""
    return f"""## Rollback window

{record["rollback_window_minutes"]} minutes from completion. **Deadline: {record["rollback_deadline"]}**
(`date -u` shows the present time). {_kept(record, str(plan.version))}
"""


def _kept(record: Mapping[str, Any], version: str) -> str:
    if warm := record.get("rollback_warm_until"):
        return f"{version} runs on until {warm}.\nAfter that, until the deadline, going back starts its pods again first."
    return f"Until then {version} is kept running and ready."


def _when(record: Mapping[str, Any]) -> str:
    failed_tests = [test for test in record["smoke_tests"] if not test["passed"]]
    test_list = listed(Markup(f"**{escaped(test['name'])}**: {escaped(test['detail'] or test['status'])}") for test in failed_tests)
    warning = f"\n**Smoke tests of this deployment failed**, look at these first:\n\n{test_list}\n" if failed_tests else ""
    return f"""## When to roll back
{warning}
- A critical service fails in a way that the smoke tests did not catch.
- Data is corrupted, or its integrity is in doubt.
- Performance is worse than users can accept.
- A security vulnerability became known in {record["version"]}.

One service with few errors, or something a configuration change cures, is usually no reason: a rollback moves every service.
"""


def _procedure(record: Mapping[str, Any], guide: Guide, plan: window.RollbackPlan) -> str:
    return f"""## Procedure

### 1. Verify that a rollback is necessary

Look at the services (commands under *Verify the services*), agree with the team lead, and say so in {guide.on_call}.

### 2. Stop traffic to {record["version"]}

{_traffic(record, guide, plan)}{_jobs(record)}
### 3. Restore the database, only if its data needs it

{_whether_to_restore(record, plan)}
### 4. Verify the services

Run the commands under *Verify the services*: every one must answer `healthy` with the version you went back to.

### 5. Document the incident

Write an incident report: when users were first affected, when traffic went back, what was restored, and the deployment ID
`{record["deployment_id"]}`. Keep the run's artifacts and its record as they are.
"""


def _traffic(record: Mapping[str, Any], guide: Guide, plan: window.RollbackPlan) -> str:
    if record["status"] == "rolled_back":
        return f"Done: {record['previous_version'] or 'the version before'} has all traffic. Confirm it under *Verify the services*.\n"
    if plan.version is None:
        return "There is no previous version to send traffic to. Deploy a corrected release, or take the application offline at its edge.\n"
    repository = f" --repo {shlex.quote(record['repository'])}" if record["repository"] else ""
    stay = f"The migrations of this deployment stay applied: {escaped(schema.check(record).text)}."
    caution = f"\n{stay}\n" if record["migrations_applied"] != 0 else ""
    return f"""{_button(record, guide, plan, repository)}
#### If it is refused because {plan.version} is not there any more

Deploy {plan.version} again; its run passes the same gates, moves the traffic in the same stages and watches them.
Shorten the stages first, a minute each is the least that production accepts:

```bash
for stage in CANARY PROGRESSIVE FULL; do gh variable set "${{stage}}_MINUTES"{repository} --body 1; done
gh workflow run {shlex.quote(guide.workflow)}{repository} -f version={shlex.quote(plan.version)}
```

Afterwards put the stages back: `gh variable delete CANARY_MINUTES`, and the other two.
{caution}"""


def _button(record: Mapping[str, Any], guide: Guide, plan: window.RollbackPlan, repository: str) -> str:
    name, own_id = shlex.quote(guide.rollback_workflow), shlex.quote(record["deployment_id"])
    page = f"{record['run_url'].split('/actions/')[0]}/actions/workflows/{guide.rollback_workflow}"
    button = f"[Roll production back]({page})" if repository else "Roll production back"
    known = schema.check(record)
    broken = f"""**{escaped(known.text)}.**
Restore the database first (step 3), or release a correction. Then, or where going back is better all the same, give the button or the
command its `schema-reason`: without it they refuse, and nothing is changed.

"""
    press = f"Press the button: **{button}** > *Run workflow*, with the deployment id `{record['deployment_id']}` and the reason."
    return f"""{broken if known.breaks else ""}{press}
There choose *Use workflow from*: tag `{record["version"]}`, whose configuration names the services of this deployment; or:

```bash
gh workflow run {name}{repository} --ref {shlex.quote(record["version"])} -f deployment-id={own_id} -f reason="${{REASON:?say why}}"
```

On a machine whose environment has the secrets of production, the same in one command:

```bash
python -m azora_ci rollback --deployment-id {own_id} --reason "${{REASON:?say why}}"
```

All traffic goes to {plan.version} by one rename at the edge, within seconds.{_workers(record, guide, plan)}
First it is checked that this record is genuine and its window open, and that the instances of {plan.version} are healthy;
afterwards it is proved that no request reaches {record["version"]}, and the smoke tests run. A deployment that is under way is stopped.
After the deadline add `-f after-deadline=true`, or `--after-deadline`. A version that is known to break on the migrated schema needs
`-f schema-reason="…"`, or `--schema-reason "…"`, which says why it goes back all the same.

Of several production hosts, one that cannot be reached is left out and named, and the run ends red: take that host out of the
balancer, and run the same rollback again when it answers. To see where things stand, also meanwhile:

```bash
python -m azora_ci edge status    # which version serves where, with weights and counters
python -m azora_ci edge log       # requests that failed, were given up, refused or slow
python -m azora_ci lock status    # who deploys, or rolls back, just now
python -m azora_ci doctor         # what production lacks, with the next step
```
"""


def _workers(record: Mapping[str, Any], guide: Guide, plan: window.RollbackPlan) -> str:
    if not guide.workers:
        return ""
    return (
        f" Then the workers of {record['version']} are stopped ({escaped(', '.join(guide.workers))}), and those of {plan.version} are "
        "started again: never both."
    )


def _jobs(record: Mapping[str, Any]) -> str:
    """Return the jobs of the deployment, which no rollback undoes; "" without any."""
    jobs = (record["rollout"] or {}).get("jobs") or []
    if not jobs:
        return ""
    return f"\n**Not undone by going back**, look at what they changed:\n\n{listed(job['summary'] for job in jobs)}\n"


def _whether_to_restore(record: Mapping[str, Any], plan: window.RollbackPlan) -> str:
    if not plan.restore_possible:
        return "**There is no verified backup of this deployment.** Do not restore anything before the database team has looked.\n"
    snapshot_time = record["database_backup"]["timestamp"]
    if not plan.restore_useful:
        return (
            "This deployment applied **no migration**: going back needs no restore. Restore only if the data itself is damaged; "
            f"every write after {snapshot_time} is then lost from the live database.\n"
        )
    count = record["migrations_applied"]
    applied_sentence = "It is not known how many migrations were applied" if count is None else f"Migrations applied: {count}"
    return (
        f"{applied_sentence}. If {plan.version or 'the version you go back to'} works with the new schema, leave the database alone:\n"
        f"{escaped(schema.check(record).text)}.\n"
        "Restore when data is damaged, or when the old version cannot work with the schema.\n"
        f"**Every write after {snapshot_time} is then lost from the live database**; it stays in the database that is set aside.\n\n"
        "Stop what writes to the database first, then follow *Restore commands*.\n"
    )


def _backup(record: Mapping[str, Any], plan: window.RollbackPlan) -> str:
    backup = record["database_backup"]
    if not backup:
        return "## Backup\n\nThis deployment has no backup in its evidence.\n"
    content = f"{_text(backup['tables'])} tables, {_text(backup['rows'])} rows, PostgreSQL {backup['server_version']}"
    rows = [
        ("Backup", code(backup["backup_id"])),
        ("Location", code(backup["location"])),
        ("S3 version", code(backup["version_id"]) if backup["version_id"] else "the bucket keeps no versions"),
        ("Snapshot taken", backup["timestamp"]),
        ("SHA-256", code(backup["sha256"])),
        ("Content", content),
        ("Proof", _proof(backup["proof"] or {})),
        ("Locked until", backup["lock_until"] or "not locked"),
    ]
    restore = _restore_commands(record, backup) if plan.restore_possible else "It was not proven by a restore: treat it as unverified."
    return f"## Backup\n\n{table(('', ''), rows)}\n\n{restore}\n"


def _proof(proof: Mapping[str, Any]) -> str:
    if proof.get("depth") in {"full", "counts"}:
        return f"restored at {proof['verified_at']} and compared ({proof['depth']})"
    return Markup(f"**not proven**: {escaped(proof.get('reason') or 'no reason was given')}")


def _restore_commands(record: Mapping[str, Any], backup: Mapping[str, Any]) -> str:
    restore = scripts.restore_script(backup, record["deployment_id"])
    swap = scripts.swap_script(record["deployment_id"])
    return f"""### Restore commands

Never restore over the live database: rows would double without an error. Restore into a **new** database, look at it, then swap
the two by renaming. Both scripts lie beside this file (`{scripts.RESTORE_SCRIPT}`, `{scripts.SWAP_SCRIPT}`) and are
printed here. They need psql of the server's major version (a minor release of 2025 or newer), the aws command line, and in your shell:

```bash
export PGHOST=… PGPORT=5432 PGUSER=… PGDATABASE=…   # the production database
read -rsp 'Password: ' PGPASSWORD && export PGPASSWORD
```

`bash {scripts.RESTORE_SCRIPT}` downloads exactly the verified object, checks its SHA-256, restores it and counts its rows:

```bash
{restore.rstrip()}
```

`bash {scripts.SWAP_SCRIPT}` closes the connections and swaps the names; `bash {scripts.SWAP_SCRIPT} back` undoes it:

```bash
{swap.rstrip()}
```

Settings made with `ALTER DATABASE … SET` and `GRANT … ON DATABASE` do not move with a rename: set them again.
By hand, into a new and empty database `$RESTORED` only, the restore itself is one line. It trusts the bucket: psql runs whatever command
a dump holds, on this machine. The script trusts nothing but the SHA-256 above, and refuses a dump that holds such a command.

```bash
{scripts.one_line(backup["location"])}
```
"""


def _verification(guide: Guide, plan: window.RollbackPlan) -> str:
    version = plan.version.removeprefix("v") if plan.version else "the version you deployed"
    lines = "\n".join(f"curl -fsS --max-time 10 {shlex.quote(url)}   # {title}" for title, url in guide.health_urls)
    otherwise = "".join(f"\n- {escaped(title)}: {escaped(words)}" for title, words in guide.otherwise)
    others = f"\n\nThese answer something else:\n{otherwise}" if otherwise else ""
    return f"""## Verify the services

Each must answer `{{"status": "healthy", "version": "{version}"}}`:{others}

```bash
{lines}
```

Then open {guide.public_url} and do what a user does.
{_worker_verification(guide)}"""


def _worker_verification(guide: Guide) -> str:
    if not guide.workers:
        return ""
    titles = escaped(", ".join(guide.workers))
    return f"""
Workers have no address ({titles}). `python -m azora_ci doctor` names each that does not run or is unhealthy, and `edge status` how many
run and how many are at rest.
"""


def _contact(record: Mapping[str, Any], guide: Guide) -> str:
    return f"""## Contact

On-call team of {guide.application}: **{guide.on_call}**. Give them the deployment ID `{record["deployment_id"]}` and the run
{record["run_url"]}.
"""


def _afterwards(record: Mapping[str, Any], plan: window.RollbackPlan) -> str:
    version = plan.version or "an earlier version"
    return f"""## After the deadline

After {record["rollback_deadline"] or "the window"} a rollback is no longer supported by machinery and needs a person's judgement:

- {version} may have been stopped. As long as it runs, `--after-deadline` goes back nevertheless. Else deploy it again as a release, or
  better, release a correction.
- The restore commands keep working as long as the backup is kept, but each hour adds writes that a restore would lose. Prefer
  restoring beside the live database and copying back what is missing.
- Call the on-call team before anything is moved.
"""
