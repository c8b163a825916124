"""Messages through a Slack incoming webhook. A failure to notify never changes a verdict; it is logged and recorded.

Protocol: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/ - success is the body ``ok``, a 429 names the
seconds to wait in ``Retry-After``, a 400 with blocks may mean that only these are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azora_ci.clients import http
from azora_ci.clients.slack.messages import Message
from azora_ci.core.clock import Clock
from azora_ci.core.documents import Limits, UnreadableError
from azora_ci.core.variables import Secret

if TYPE_CHECKING:
    import requests

ATTEMPTS = 4
TIMEOUT_SECONDS = 10.0  # to connect, to the first byte, and for the body
HURRY_SECONDS = 1.5  # likewise, when the job is cancelled and about to be killed
LONGEST_WAIT_SECONDS = 60.0  # all waits together; after a longer Retry-After the message is not sent
ANSWER = Limits(size=64 * 1024)  # Slack's have some bytes


@dataclass(frozen=True)
class Notification:
    """The result of a message: sent or not, after how many attempts, and why not. Contains no secret."""

    sent: bool
    attempts: int
    detail: str


def notify(webhook: Secret | None, message: Message, clock: Clock, *, hurry: bool = False) -> Notification:
    """Send a message and return the result. Never raises for a failure of Slack or the network.

    Repeats after 429 (waiting as long as ``Retry-After`` asks, at most a minute altogether), after 5xx, and when no answer arrived. When
    Slack refuses the blocks, the text is sent alone. ``hurry``: one attempt, and a few seconds at most.
    """
    if webhook is None:
        return Notification(False, 0, "SLACK_WEBHOOK is not set, nobody was notified")
    payload: dict[str, Any] = {"text": message.text, "blocks": list(message.blocks)} if message.blocks else {"text": message.text}
    refusal = ""
    most, seconds = (1, HURRY_SECONDS) if hurry else (ATTEMPTS, TIMEOUT_SECONDS)
    for attempt in clock.attempts(most, patience=LONGEST_WAIT_SECONDS):
        answer = _send_once(webhook.reveal(), payload, clock, seconds)
        if answer.status == 400 and "blocks" in payload:
            refusal, payload = f"; it took the text alone: with blocks, {answer.detail}", {"text": message.text}
            answer = _send_once(webhook.reveal(), payload, clock, seconds)
        if not answer.repeatable:
            return Notification(answer.sent, attempt.number, f"{answer.detail}{refusal if answer.sent else ''}")
        attempt.wait = answer.retry_after or attempt.wait
    reason = f"gave up after {most} attempt{'s' if most > 1 else ''}" if attempt.last else f"waiting {attempt.wait:g} s more is too long"
    return Notification(False, attempt.number, f"{answer.detail}; {reason}")


@dataclass(frozen=True)
class _Answer:
    sent: bool
    detail: str
    repeatable: bool = False
    retry_after: float | None = None  # seconds until Slack takes the next message
    status: int | None = None


def _send_once(url: str, payload: dict[str, Any], clock: Clock, seconds: float) -> _Answer:
    import requests

    try:
        # A redirect would lead the message to somebody else; an answer is read here, as far as its limit.
        response = requests.post(url, json=payload, timeout=seconds, allow_redirects=False, stream=True)
        with response:
            http.take_body(response, ANSWER, clock=clock, seconds=seconds)
    except UnreadableError as error:
        return _Answer(False, f"Slack's answer is not read: {error}")
    except ValueError:  # of requests, about the address
        return _Answer(False, "SLACK_WEBHOOK is not an address that can be used")
    except requests.RequestException as error:
        return _Answer(False, f"Slack did not answer ({type(error).__name__})", repeatable=True)
    return _answer_of(response, urlsplit(url).path)


def _answer_of(response: requests.Response, secret: str) -> _Answer:
    body = response.content.decode("utf-8", "replace").strip()
    status = response.status_code
    if status == 200 and body == "ok":
        return _Answer(True, "Slack answered ok", status=status)
    detail = f"Slack answered {status} {body.replace(secret, '***')[:200]!r}"  # it may repeat the address, which is secret
    if status == 429:
        return _Answer(False, detail, True, _retry_after(response), status)
    return _Answer(False, detail, repeatable=status >= 500, status=status)


def _retry_after(response: requests.Response) -> float:
    try:
        return max(1.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return 1.0
