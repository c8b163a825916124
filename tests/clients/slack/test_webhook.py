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

from azora_ci.clients.slack import blocks, webhook
from azora_ci.clients.slack.messages import Message
from azora_ci.core.clock import Clock
from azora_ci.core.variables import Secret
from azora_ci.rehearsal.standins.slack import ANSWERS, SlackAnswer, SlackReceiver

HELLO = Message("hello")
BLOCKS = Message("hello", (blocks.header("Hello"), blocks.lines(["to all"])))


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


def test_message_arrives_as_it_was_written(receiver):
    text = "✅ Done\nVersion: v1.2.3 &amp; more"
    sent = webhook.notify(Secret(receiver.url), Message(text), Clock())
    assert (sent.sent, sent.attempts) == (True, 1)
    assert receiver.texts() == [text]


def payloads(receiver: SlackReceiver) -> list[dict[str, object]]:
    return [json.loads(line)["payload"] for line in receiver.messages.read_text(encoding="utf-8").splitlines()]


def test_blocks_arrive_beside_the_text(receiver):
    assert webhook.notify(Secret(receiver.url), BLOCKS, Clock()).sent
    assert payloads(receiver) == [{"text": "hello", "blocks": list(BLOCKS.blocks)}]


def test_refused_blocks_do_not_cost_the_message(receiver):
    sent = webhook.notify(Secret(receiver.url), Message("hello", ({"type": "marquee"},)), PatientClock())
    assert (sent.sent, sent.attempts) == (True, 1)
    assert sent.detail == "Slack answered ok; it took the text alone: with blocks, Slack answered 400 'invalid_blocks'"
    assert payloads(receiver) == [{"text": "hello"}]


def test_a_text_that_is_refused_too_is_said_and_not_sent_for_ever(receiver):
    receiver.answer_next(SlackAnswer(400, "invalid_blocks"), SlackAnswer(400, "action_prohibited"))
    sent = webhook.notify(Secret(receiver.url), BLOCKS, PatientClock())
    assert (sent.sent, sent.detail, receiver.requests) == (False, "Slack answered 400 'action_prohibited'", 2)


def test_after_refused_blocks_the_text_is_repeated_alone(receiver):
    receiver.answer_next(SlackAnswer(400, "invalid_blocks"), ANSWERS["500"])
    sent = webhook.notify(Secret(receiver.url), BLOCKS, PatientClock())
    assert (sent.sent, sent.attempts, receiver.requests) == (True, 2, 3)
    assert payloads(receiver) == [{"text": "hello"}]


def test_retry_after_is_honoured(receiver):
    receiver.answer_next(SlackAnswer(429, "rate_limited", 7), SlackAnswer(429, "rate_limited", 3))
    clock = PatientClock()
    assert webhook.notify(Secret(receiver.url), HELLO, clock).sent
    assert clock.waits == [7, 3]
    assert receiver.texts() == ["hello"]


def test_an_hour_is_too_long_to_wait(receiver):
    receiver.answer_next(SlackAnswer(429, "rate_limited", 3600))
    clock = PatientClock()
    result = webhook.notify(Secret(receiver.url), HELLO, clock)
    assert not result.sent
    assert "429 'rate_limited'" in result.detail
    assert "3600 s more is too long" in result.detail
    assert clock.waits == []


def test_waits_are_bounded_together(receiver):
    receiver.answer_next(*[SlackAnswer(429, "rate_limited", 25)] * 4)
    clock = PatientClock()
    assert not webhook.notify(Secret(receiver.url), HELLO, clock).sent
    assert clock.waits == [25, 25]


def test_server_errors_are_tried_again_a_bounded_number_of_times(receiver):
    receiver.answer_next(*[ANSWERS["500"]] * 10)
    clock = PatientClock()
    result = webhook.notify(Secret(receiver.url), HELLO, clock)
    assert (result.sent, result.attempts, receiver.requests) == (False, 4, 4)
    assert clock.waits == [1, 2, 4]
    assert result.detail == "Slack answered 500 'rollup_error'; gave up after 4 attempts"


def test_a_cancelled_job_tries_once(receiver):
    receiver.answer_next(*[ANSWERS["500"]] * 10)
    result = webhook.notify(Secret(receiver.url), HELLO, PatientClock(), hurry=True)
    assert (result.detail, receiver.requests) == ("Slack answered 500 'rollup_error'; gave up after 1 attempt", 1)


def test_one_server_error_is_got_over(receiver):
    receiver.answer_next(ANSWERS["500"])
    assert webhook.notify(Secret(receiver.url), HELLO, PatientClock()).attempts == 2
    assert receiver.texts() == ["hello"]


def test_success_is_the_body_ok_not_the_status(receiver):
    receiver.answer_next(ANSWERS["empty"])
    result = webhook.notify(Secret(receiver.url), HELLO, PatientClock())
    assert (result.sent, result.attempts) == (False, 1)
    assert "200 ''" in result.detail


def test_a_removed_webhook_is_not_tried_again(receiver):
    result = webhook.notify(Secret(receiver.url.replace("/services/", "/gone/")), HELLO, PatientClock())
    assert (result.sent, result.attempts) == (False, 1)
    assert "404 'no_service'" in result.detail


def test_nobody_listens():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{held.getsockname()[1]}/services/T0/B0/secret-part"
        result = webhook.notify(Secret(url), HELLO, PatientClock())
    assert (result.sent, result.attempts) == (False, 4)
    assert "secret-part" not in result.detail


def test_an_answer_that_repeats_the_address_does_not_show_it(receiver):
    receiver.answer_next(SlackAnswer(403, "no /services/T0/B0/rehearsal here"))
    sent = webhook.notify(Secret(receiver.url), HELLO, PatientClock())
    assert sent.detail == "Slack answered 403 'no *** here'"


@pytest.mark.parametrize("url", ["not a url secret-part", "http://[secret-part/", "ftp://secret-part/x", "https://secret-part:port/x"])
def test_an_unusable_webhook_is_said_without_showing_it(url, capfd, caplog):
    result = webhook.notify(Secret(url), HELLO, PatientClock())
    assert (result.sent, result.attempts) == (False, 1)
    printed = result.detail + caplog.text + "".join(capfd.readouterr())
    assert "secret-part" not in printed


def test_without_a_webhook_nobody_is_told_and_that_is_said():
    assert webhook.notify(None, HELLO, Clock()) == webhook.Notification(False, 0, "SLACK_WEBHOOK is not set, nobody was notified")


def test_proxy_settings_do_not_swallow_a_loopback_message(receiver, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert webhook.notify(Secret(receiver.url), HELLO, PatientClock()).sent


# --- the receiver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "answer"),
    [
        (b'{"text": "hi"}', 200, b"ok"),
        (b'{"text": ""}', 400, b"no_text"),
        (b"no json", 400, b"invalid_payload"),
        (b"[]", 400, b"invalid_payload"),
        (b'{"text": "hi", "blocks": [{"type": "header"}]}', 400, b"invalid_blocks"),
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
    threads = [threading.Thread(target=webhook.notify, args=(Secret(receiver.url), Message(f"message {n}\n✅"), Clock())) for n in range(8)]
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
        result = webhook.notify(Secret(url), HELLO, clock)
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()
    assert (result.sent, result.attempts, clock.waits) == (True, 3, [1, 2])
    assert json.loads(messages.read_text())["text"] == "hello"
