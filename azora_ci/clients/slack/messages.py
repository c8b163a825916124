"""What people are told: the guide's texts letter for letter, which notifications show, and the same facts as blocks for the eye. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from azora_ci.clients.slack import blocks
from azora_ci.clients.slack.blocks import Block, escape

FINDINGS = 3  # failed jobs that are quoted; the report has them all
ENDINGS = {"cancelled": "was cancelled", "rolled_back": "FAILED and was taken back"}
RUN, REPORT, ROLL_BACK = "Run", "Report", "Roll back"  # names of buttons


@dataclass(frozen=True)
class Message:
    """A message. ``text``: in Slack's text format, shown by notifications, and alone where blocks are refused."""

    text: str
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Ending:
    """How a deployment that did not succeed ended: the status of its record, errors of its jobs (title, text), and what follows."""

    status: str
    findings: Sequence[tuple[str, str]] = ()
    production: Sequence[str] = ()
    next_steps: Sequence[str] = ()


def links(run_url: str, server_url: str, repository: str | None, *, rollback: bool) -> dict[str, str | None]:
    """Return the addresses of a message's buttons. ``rollback``: there is a version to go back to.

    Report and record lie in the run's artifacts, whose own addresses are known only when the job that writes this has ended.
    """
    button = f"{server_url}/{repository}/actions/workflows/rollback-production.yml" if rollback and repository else None
    return {RUN: run_url, REPORT: f"{run_url}#artifacts", ROLL_BACK: button}


def success(
    *, version: str, deployment_id: str, public_url: str, rollback: tuple[int, str] | None, urls: Mapping[str, str | None]
) -> Message:
    """Return the message of a successful deployment. ``rollback``: minutes and deadline of going back; None omits the text's last line."""
    healthy = "All services healthy and operational"
    available = f"Rollback available for {rollback[0]} minutes" if rollback else None
    text = "\n".join(
        [
            "✅ Production deployment successful",
            f"Version: {escape(version)}",
            f"Deployment ID: {escape(deployment_id)}",
            f"Environment: {escape(public_url)}",
            healthy,
            *([available] if available else []),
        ]
    )
    facts = {"Version": version, "Deployment ID": deployment_id, "Environment": public_url}
    facts |= {"Rollback until": rollback[1]} if rollback else {"Rollback": "not possible: there is no version before"}
    parts = [blocks.header("✅ Production deployment successful"), blocks.facts(facts), blocks.lines([healthy, *filter(None, [available])])]
    return Message(text, (*parts, *blocks.buttons(urls)))


def failure(
    *, version: str | None, deployment_id: str | None, backup_available: bool, ending: Ending, urls: Mapping[str, str | None]
) -> Message:
    """Return the message of a deployment that did not succeed; with a line on the backup if a verified backup exists."""
    facts = {"Version": version or "unknown", "Deployment ID": deployment_id or "none was assigned"}
    required = ["⚠️ ACTION REQUIRED: Manual investigation needed"]
    required += ["Database backup available for rollback"] if backup_available else []
    required += ["Check workflow logs for failure details"]
    text = "\n".join(["🚨 Production deployment FAILED", *_listed(facts), "", *required])
    parts = [blocks.header(f"🚨 Production deployment {ENDINGS.get(ending.status, 'FAILED')}"), blocks.facts(facts), blocks.lines(required)]
    parts += [blocks.lines(["State of production", *_points(ending.production)])] if ending.production else []
    parts += [blocks.quoted(title, what) for title, what in ending.findings[:FINDINGS]]
    parts += [blocks.lines(["Next", *_points(ending.next_steps)])] if ending.next_steps else []
    return Message(text, (*parts, *blocks.buttons(urls)))


def rollback(
    *,
    versions: tuple[str, str | None],
    deployment_id: str,
    started: Mapping[str, str],
    problem: tuple[str, str] | None,
    urls: Mapping[str, str | None],
) -> Message:
    """Return the message of a rollback. ``versions``: from and to; ``started``: why and by whom; ``problem``: title and text of what a
    person must resolve, None if nothing.
    """
    headline = "🚨 Production rollback needs attention" if problem else "↩️ Production rolled back"
    facts = {"Version": f"{versions[0]} → {versions[1] or 'unknown'}", "Deployment ID": deployment_id, **started}
    left = "The database was left as it is"
    text = [headline, *_listed(facts), left]
    parts = [blocks.header(headline), blocks.facts(facts), blocks.lines([left])]
    if problem:
        text += ["", f"⚠️ ACTION REQUIRED: {escape(problem[0])}"]
        parts += [blocks.lines(["⚠️ ACTION REQUIRED"]), blocks.quoted(*problem)]
    return Message("\n".join(text), (*parts, *blocks.buttons(urls)))


def drill(*, backup: str, problem: tuple[str, str], run_url: str) -> Message:
    """Return the message of a restore drill that failed. ``problem``: its title and the first line of its text."""
    headline = "🚨 Restore drill FAILED"
    text = "\n".join([headline, f"Backup: {escape(backup)}", f"{escape(problem[0])}: {escape(problem[1])}", f"Run: {run_url}"])
    parts = (blocks.header(headline), blocks.facts({"Backup": backup}), blocks.quoted(*problem), *blocks.buttons({RUN: run_url}))
    return Message(text, parts)


def _listed(facts: Mapping[str, str]) -> list[str]:
    return [f"{name}: {escape(value)}" for name, value in facts.items()]


def _points(texts: Iterable[str]) -> list[str]:
    return [f"• {line}" for text in texts for line in text.splitlines() or [""]]
