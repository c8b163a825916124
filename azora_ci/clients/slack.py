"""Messages through a Slack incoming webhook. A failure to notify never changes a verdict; it is logged and recorded.

Protocol: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/ - ``& < >`` are escaped, success is the body
``ok``, a 429 names the seconds to wait in ``Retry-After``.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import TYPE_CHECKING

from azora_ci.core.clock import Clock
from azora_ci.core.variables import Secret

if TYPE_CHECKING:
    from slack_sdk.webhook import WebhookResponse

ATTEMPTS = 4
TIMEOUT_SECONDS = 10
LONGEST_WAIT_SECONDS = 60.0  # all waits together; after a longer Retry-After the message is not sent


@dataclass(frozen=True)
class Notification:
    """The result of a message: sent or not, after how many attempts, and why not. Contains no secret."""

    sent: bool
    attempts: int
    detail: str


def success_text(*, version: str, deployment_id: str, public_url: str, rollback_window_minutes: int | None) -> str:
    """Return the guide's message of a successful deployment; ``rollback_window_minutes`` None omits its last line."""
    lines = [
        "✅ Production deployment successful",
        f"Version: {escape(version)}",
        f"Deployment ID: {escape(deployment_id)}",
        f"Environment: {escape(public_url)}",
        "All services healthy and operational",
    ]
    if rollback_window_minutes is not None:
        lines.append(f"Rollback available for {rollback_window_minutes} minutes")
    return "\n".join(lines)


def failure_text(*, version: str | None, deployment_id: str | None, backup_available: bool) -> str:
    """Return the guide's message of a failed deployment; with a line on the backup if a verified backup exists."""
    lines = [
        "🚨 Production deployment FAILED",
        f"Version: {escape(version or 'unknown')}",
        f"Deployment ID: {escape(deployment_id or 'none was assigned')}",
        "",
        "⚠️ ACTION REQUIRED: Manual investigation needed",
    ]
    if backup_available:
        lines.append("Database backup available for rollback")
    lines.append("Check workflow logs for failure details")
    return "\n".join(lines)


def rollback_text(*, versions: tuple[str, str | None], deployment_id: str, reason: str, actor: str, problem: str | None) -> str:
    """Return the message of a rollback. ``versions``: from and to; ``problem``: what a person must resolve, None if nothing."""
    lines = [
        "🚨 Production rollback needs attention" if problem else "↩️ Production rolled back",
        f"Version: {escape(versions[0])} → {escape(versions[1] or 'unknown')}",
        f"Deployment ID: {escape(deployment_id)}",
        f"Reason: {escape(reason)}",
        f"Started by: {escape(actor)}",
        "The database was left as it is",
    ]
    if problem:
        lines += ["", f"⚠️ ACTION REQUIRED: {escape(problem)}"]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return the text with the three special characters of Slack's text format escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def notify(webhook: Secret | None, text: str, clock: Clock) -> Notification:
    """Send a message and return the result. Never raises for a failure of Slack or the network.

    Repeats after 429 (waiting as long as ``Retry-After`` asks, at most a minute altogether), after 5xx, and when no answer arrived.
    """
    if webhook is None:
        return Notification(False, 0, "SLACK_WEBHOOK is not set, nobody was notified")
    for attempt in clock.attempts(ATTEMPTS, patience=LONGEST_WAIT_SECONDS):
        answer = _send_once(webhook.reveal(), text)
        if not answer.repeatable:
            return Notification(answer.sent, attempt.number, answer.detail)
        attempt.wait = answer.retry_after or attempt.wait
    reason = f"gave up after {ATTEMPTS} attempts" if attempt.last else f"waiting {attempt.wait:g} s more is too long"
    return Notification(False, attempt.number, f"{answer.detail}; {reason}")


@dataclass(frozen=True)
class _Answer:
    sent: bool
    detail: str
    repeatable: bool = False
    retry_after: float | None = None  # seconds until Slack takes the next message


def _send_once(url: str, text: str) -> _Answer:
    import logging

    from slack_sdk.errors import SlackRequestError
    from slack_sdk.webhook import WebhookClient

    quiet = logging.getLogger(f"{__name__}.quiet")
    quiet.disabled = True  # the client logs the webhook's address, which is secret
    client = WebhookClient(url, timeout=TIMEOUT_SECONDS, retry_handlers=[], logger=quiet)
    try:
        return _answer_of(client.send(text=text))
    except (SlackRequestError, ValueError, http.client.InvalidURL):
        return _Answer(False, "SLACK_WEBHOOK is not an address that can be used")
    except (OSError, http.client.HTTPException) as error:
        return _Answer(False, f"Slack did not answer ({type(error).__name__})", repeatable=True)


def _answer_of(response: WebhookResponse) -> _Answer:
    body = response.body.strip()
    if response.status_code == 200 and body == "ok":
        return _Answer(True, "Slack answered ok")
    detail = f"Slack answered {response.status_code} {body[:200]!r}"
    if response.status_code == 429:
        return _Answer(False, detail, repeatable=True, retry_after=_retry_after(response))
    if response.status_code >= 500:
        return _Answer(False, detail, repeatable=True)
    return _Answer(False, detail)


def _retry_after(response: WebhookResponse) -> float:
    seconds = {name.lower(): value for name, value in response.headers.items()}.get("retry-after", "")
    try:
        return max(1.0, float(seconds))
    except ValueError:
        return 1.0
