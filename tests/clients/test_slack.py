"""Messages over a real receiver: texts letter for letter, retries, and failures that change no verdict."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from azora_ci.clients import slack
from azora_ci.core.clock import Clock
from azora_ci.core.variables import Secret
from azora_ci.rehearsal.standins.slack import ANSWERS, SlackAnswer, SlackReceiver

SUCCESS = """✅ Production deployment successful
Version: v1.2.3
Deployment ID: 1234567890-abc123
Environment: https://azora.world
All services healthy and operational
Rollback available for 60 minutes"""
FAILURE = """🚨 Production deployment FAILED
Version: v1.2.3
Deployment ID: 1234567890-abc123

⚠️ ACTION REQUIRED: Manual investigation needed
Database backup available for rollback
Check workflow logs for failure details"""
ID = "1234567890-abc123"


class PatientClock(Clock):
    """Real time, but waits are noted instead of waited."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture
def receiver(tmp_path: Path):
    with SlackReceiver(tmp_path / "messages.jsonl") as server:
        yield server


def test_success_is_the_guides_text_letter_for_letter():
    assert slack.success_text(version="v1.2.3", deployment_id=ID, public_url="https://azora.world", rollback_window_minutes=60) == SUCCESS


def test_success_does_not_promise_a_rollback_that_is_not_possible():
    text = slack.success_text(version="v1.2.3", deployment_id=ID, public_url="https://azora.world", rollback_window_minutes=None)
    assert text == SUCCESS.removesuffix("\nRollback available for 60 minutes")


def test_failure_is_the_guides_text_letter_for_letter():
    assert slack.failure_text(version="v1.2.3", deployment_id=ID, backup_available=True) == FAILURE


def test_failure_names_a_backup_only_when_there_is_a_verified_one():
    text = slack.failure_text(version="v1.2.3", deployment_id=ID, backup_available=False)
    assert text == FAILURE.replace("Database backup available for rollback\n", "")


def test_failure_without_an_identity():
    lines = slack.failure_text(version=None, deployment_id=None, backup_available=False).splitlines()
    assert lines[1:3] == ["Version: unknown", "Deployment ID: none was assigned"]


def test_message_arrives_as_it_was_written(receiver):
    sent = slack.notify(Secret(receiver.url), SUCCESS, Clock())
    assert (sent.sent, sent.attempts) == (True, 1)
    assert receiver.texts() == [SUCCESS]


def test_markup_is_escaped():
    text = slack.success_text(version="v1<2>&3", deployment_id=ID, public_url="https://a/?x=1&y=<b>", rollback_window_minutes=60)
    assert "Version: v1&lt;2&gt;&amp;3\n" in text
    assert "https://a/?x=1&amp;y=&lt;b&gt;\n" in text


def test_retry_after_is_honoured(receiver):
    receiver.answer_next(SlackAnswer(429, "rate_limited", 7), SlackAnswer(429, "rate_limited", 3))
    clock = PatientClock()
    assert slack.notify(Secret(receiver.url), "hello", clock).sent
    assert clock.waits == [7, 3]
    assert receiver.texts() == ["hello"]


def test_an_hour_is_too_long_to_wait(receiver):
    receiver.answer_next(SlackAnswer(429, "rate_limited", 3600))
    clock = PatientClock()
    result = slack.notify(Secret(receiver.url), "hello", clock)
    assert not result.sent
    assert "429 'rate_limited'" in result.detail
    assert "3600 s more is too long" in result.detail
    assert clock.waits == []


def test_waits_are_bounded_together(receiver):
    receiver.answer_next(*[SlackAnswer(429, "rate_limited", 25)] * 4)
    clock = PatientClock()
    assert not slack.notify(Secret(receiver.url), "hello", clock).sent
    assert clock.waits == [25, 25]


def test_server_errors_are_tried_again_a_bounded_number_of_times(receiver):
    receiver.answer_next(*[ANSWERS["500"]] * 10)
    clock = PatientClock()
    result = slack.notify(Secret(receiver.url), "hello", clock)
    assert (result.sent, result.attempts, receiver.requests) == (False, 4, 4)
    assert clock.waits == [1, 2, 4]
    assert result.detail == "Slack answered 500 'rollup_error'; gave up after 4 attempts"


def test_one_server_error_is_got_over(receiver):
    receiver.answer_next(ANSWERS["500"])
    assert slack.notify(Secret(receiver.url), "hello", PatientClock()).attempts == 2
    assert receiver.texts() == ["hello"]


def test_success_is_the_body_ok_not_the_status(receiver):
    receiver.answer_next(ANSWERS["empty"])
    result = slack.notify(Secret(receiver.url), "hello", PatientClock())
    assert (result.sent, result.attempts) == (False, 1)
    assert "200 ''" in result.detail


def test_a_removed_webhook_is_not_tried_again(receiver):
    result = slack.notify(Secret(receiver.url.replace("/services/", "/gone/")), "hello", PatientClock())
    assert (result.sent, result.attempts) == (False, 1)
    assert "404 'no_service'" in result.detail


def test_nobody_listens():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{held.getsockname()[1]}/services/T0/B0/secret-part"
        result = slack.notify(Secret(url), "hello", PatientClock())
    assert (result.sent, result.attempts) == (False, 4)
    assert "secret-part" not in result.detail


@pytest.mark.parametrize("url", ["not a url secret-part", "http://[secret-part/", "ftp://secret-part/x", "https://secret-part:port/x"])
def test_an_unusable_webhook_is_said_without_showing_it(url, capfd, caplog):
    result = slack.notify(Secret(url), "hello", PatientClock())
    assert (result.sent, result.attempts) == (False, 1)
    printed = result.detail + caplog.text + "".join(capfd.readouterr())
    assert "secret-part" not in printed


def test_without_a_webhook_nobody_is_told_and_that_is_said():
    assert slack.notify(None, "hello", Clock()) == slack.Notification(False, 0, "SLACK_WEBHOOK is not set, nobody was notified")


def test_proxy_settings_do_not_swallow_a_loopback_message(receiver, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert slack.notify(Secret(receiver.url), "hello", PatientClock()).sent


# --- the receiver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "answer"),
    [
        (b'{"text": "hi"}', 200, b"ok"),
        (b'{"text": ""}', 400, b"no_text"),
        (b"no json", 400, b"invalid_payload"),
        (b"[]", 400, b"invalid_payload"),
    ],
)
def test_receiver_answers_as_slack_does(receiver, body, status, answer):
    try:
        with urllib.request.urlopen(receiver.url, data=body, timeout=30) as response:
            received = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            received = error.code, error.read()
    assert received == (status, answer)


def test_receiver_keeps_what_it_accepted_in_lines(receiver):
    threads = [threading.Thread(target=slack.notify, args=(Secret(receiver.url), f"message {n}\n✅", Clock())) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in receiver.messages.read_text(encoding="utf-8").splitlines()]
    assert sorted(line["text"] for line in lines) == [f"message {n}\n✅" for n in range(8)]
    assert {line["path"] for line in lines} == {"/services/T0/B0/rehearsal"}


def test_receiver_runs_as_a_program_and_can_be_told_to_fail(tmp_path):
    messages = tmp_path / "messages.jsonl"
    command = [sys.executable, "-m", "azora_ci.rehearsal.standins.slack", str(messages), "--answers", "429,500"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        clock = PatientClock()
        result = slack.notify(Secret(url), "hello", clock)
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()
    assert (result.sent, result.attempts, clock.waits) == (True, 3, [1, 2])
    assert json.loads(messages.read_text())["text"] == "hello"
