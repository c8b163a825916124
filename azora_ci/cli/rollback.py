"""The command ``rollback``: the job of that name, started at a keyboard."""

from __future__ import annotations

from pathlib import Path

import click

from azora_ci.cli.common import config_option, reported_errors
from azora_ci.core.errors import BadInputError

ROLLBACK_EXAMPLE = 'python -m azora_ci rollback --reason "checkout fails for every user"'


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog=f"""
    \b
    {ROLLBACK_EXAMPLE}

    Run it in the application's folder, with production's secrets in the environment: PROD_DATABASE_URL; AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) for the archive of records; PROD_HOST, PROD_USER, PROD_KEY and the variable
    PROD_KNOWN_HOSTS for production hosts; SLACK_WEBHOOK if people are to be told. The button "Roll production back" on GitHub has
    them all. Every other variable: python scripts/rollback.py --help.

    Exit codes: 0 it is back, proved and tested; 1 it was refused, or is not proved: read the last lines; 2 something is missing or
    mistyped; 3 production or the archive cannot be reached.
    """,
)
@click.option("--reason", metavar="TEXT", envvar="ROLLBACK_REASON", help="Why. Lands in the record and in the message to Slack. Required.")
@click.option(
    "--deployment-id", metavar="ID", envvar="DEPLOYMENT_ID",
    help="The deployment to take back, such as 1764000000-abc123. [default: the newest one that reached production]",
)  # fmt: skip
@click.option("--after-deadline", is_flag=True, help="Go back although the rollback window has closed.")
@click.option(
    "--schema-reason", metavar="TEXT", envvar="ROLLBACK_SCHEMA_REASON",
    help="Why to go back although the version before is known to break on the migrated schema, such as: the database was restored.",
)  # fmt: skip
@config_option
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="")
def rollback(
    *,
    reason: str | None,
    deployment_id: str | None,
    after_deadline: bool,
    schema_reason: str | None,
    config_path: Path,
    more: tuple[str, ...],
) -> None:
    """Take a deployment back to the version before it.

    Nothing is changed before it is known that the deployment's record is genuine, that its window is open, that the version before was
    not seen to break on the migrated schema, and that every instance of it is there and healthy. Then all traffic goes back by one
    rename a host, within seconds; it is proved that no request reaches the new version any more; the smoke tests run; a record is
    written. A rollout that is under way is stopped first.
    The database is left as it is. It may be run again at any time: what is done is recognised.
    """
    from azora_ci.steps import runner

    with reported_errors():
        if not (reason or "").strip():
            raise BadInputError(
                "No reason is given",
                what="a rollback's record says why, for whoever reads it later",
                where="--reason",
                next_step=ROLLBACK_EXAMPLE,
            )
    arguments = ["--reason", str(reason), "--config", str(config_path), *(["--after-deadline"] if after_deadline else [])]
    arguments += ["--deployment-id", deployment_id] if deployment_id else []
    arguments += ["--schema-reason", schema_reason] if schema_reason else []
    runner.command("rollback").main(args=[*arguments, *more], prog_name="python -m azora_ci rollback")
