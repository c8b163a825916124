"""Messages: the guide's texts letter for letter, and blocks that hold the same facts and that Slack takes, whatever a text holds."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slack_sdk.models.blocks import Block

from azora_ci.clients.slack import messages
from azora_ci.clients.slack.messages import Ending, Message
from azora_ci.rehearsal.standins.slack import blocks_problem

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
ROLLBACK = """↩️ Production rolled back
Version: v1.2.3 → v1.2.2
Deployment ID: 1234567890-abc123
Reason: checkout fails
Started by: octocat
The database was left as it is"""
ID = "1234567890-abc123"
RUN = "https://github.com/azora/azora/actions/runs/7"
URLS = messages.links(RUN, "https://github.com", "azora/azora", rollback=True)
DEADLINE = "2026-11-24T12:36:00.125Z"
ENDING = Ending(
    "rolled_back", [("gradual-rollout: canary: not healthy", "canary at 5 %: 4 of 30 probes failed")], ["v1.2.2 serves"], ["fix it"]
)


def success(version: str = "v1.2.3", url: str = "https://azora.world", rollback: tuple[int, str] | None = (60, DEADLINE)) -> Message:
    return messages.success(version=version, deployment_id=ID, public_url=url, rollback=rollback, urls=URLS)


def failure(version: str | None = "v1.2.3", own_id: str | None = ID, *, backup: bool = True, ending: Ending = ENDING) -> Message:
    return messages.failure(version=version, deployment_id=own_id, backup_available=backup, ending=ending, urls=URLS)


def rollback(reason: str = "checkout fails", actor: str = "octocat", problem: tuple[str, str] | None = None) -> Message:
    started = {"Reason": reason, "Started by": actor}
    return messages.rollback(versions=("v1.2.3", "v1.2.2"), deployment_id=ID, started=started, problem=problem, urls=URLS)


def drill(backup: str = f"backup-{ID}", problem: tuple[str, str] = ("It differs", "3 rows lack")) -> Message:
    return messages.drill(backup=backup, problem=problem, run_url=RUN)


def shown(message: Message) -> str:
    """Return all words that the blocks show, without the marks of formats."""
    texts: list[str] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            texts.extend([part["text"]] if isinstance(part.get("text"), str) else [])
            walk(list(part.values()))
        elif isinstance(part, list):
            for each in part:
                walk(each)

    walk(list(message.blocks))
    return re.sub(r"[`*]", "", "\n".join(texts))


def accepted(message: Message) -> None:
    """Demand that Slack takes the blocks: by its documentation, and by the models of its own kit."""
    assert blocks_problem(list(message.blocks)) is None
    for block in message.blocks:
        parsed = Block.parse(block)
        assert parsed is not None
        parsed.validate_json()
        assert parsed.to_dict()["type"] == block["type"]
    assert len(json.dumps(message.blocks)) < 13_000 * 6  # escaped by JSON at worst; Slack refuses about 13,000 characters
    assert len(shown(message)) < 13_000


# --- the texts --------------------------------------------------------------------------------------------------------------


def test_success_is_the_guides_text_letter_for_letter():
    assert success().text == SUCCESS


def test_success_does_not_promise_a_rollback_that_is_not_possible():
    message = success(rollback=None)
    assert message.text == SUCCESS.removesuffix("\nRollback available for 60 minutes")
    assert "available" not in shown(message) and "not possible: there is no version before" in shown(message)


@pytest.mark.parametrize("status", ["failed", "rolled_back", "cancelled"])
def test_failure_is_the_guides_text_letter_for_letter(status):
    assert failure(ending=Ending(status)).text == FAILURE


def test_failure_names_a_backup_only_when_there_is_a_verified_one():
    message = failure(backup=False)
    assert message.text == FAILURE.replace("Database backup available for rollback\n", "")
    assert "Database backup" not in shown(message)


def test_failure_without_an_identity():
    message = failure(None, None, ending=Ending("failed"))
    assert message.text.splitlines()[1:3] == ["Version: unknown", "Deployment ID: none was assigned"]
    accepted(message)


def test_rollback_says_why_and_by_whom():
    assert rollback().text == ROLLBACK
    assert rollback(problem=("Not proved", "look")).text.endswith("it is\n\n⚠️ ACTION REQUIRED: Not proved")


def test_markup_is_escaped():
    text = success("v1<2>&3", "https://a/?x=1&y=<b>").text
    assert "Version: v1&lt;2&gt;&amp;3\n" in text
    assert "https://a/?x=1&amp;y=&lt;b&gt;\n" in text


# --- the blocks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [success(), success(rollback=None), failure(), rollback(), rollback(problem=("Not proved", "look")), drill()],
    ids=["success", "first", "failure", "rollback", "rollback with a problem", "drill"],
)
def test_blocks_hold_every_fact_of_the_text(message):
    accepted(message)
    words = shown(message)
    for line in message.text.splitlines():
        fact = line.partition(": ")[2] or line
        assert fact in words or f"open {fact}" in words or fact == RUN, line


def test_what_a_watch_found_and_what_is_next_stand_in_the_blocks_alone():
    message = failure()
    assert message.blocks[0]["text"]["text"] == "🚨 Production deployment FAILED and was taken back"
    for words in ("gradual-rollout: canary: not healthy", "4 of 30 probes failed", "• v1.2.2 serves", "• fix it"):
        assert words in shown(message) and words not in message.text
    assert failure(ending=Ending("cancelled")).blocks[0]["text"]["text"] == "🚨 Production deployment was cancelled"


def urls(message: Message) -> dict[str, str]:
    return {element["text"]["text"]: element["url"] for block in message.blocks for element in block.get("elements", [])}


def test_buttons_lead_to_the_run_its_artifacts_and_the_rollback():
    page = "https://github.com/azora/azora/actions/workflows/rollback-production.yml"
    assert urls(success()) == {"Run": RUN, "Report": f"{RUN}#artifacts", "Roll back": page}
    assert "Roll back" not in messages.links(RUN, "https://github.com", "a/b", rollback=False).values()
    without = messages.success(
        version="v1", deployment_id=ID, public_url="x", rollback=None, urls=messages.links(RUN, "https://github.com", "a/b", rollback=False)
    )
    assert set(urls(without)) == {"Run", "Report"}


def test_an_address_that_no_browser_opens_gets_no_button():
    for url in ("javascript:alert(1)", "https://", "https://[", f"https://a/{'x' * 3000}", "https://a/<b>", "s3://bucket/key", None):
        message = messages.drill(backup="b", problem=("t", "x"), run_url=url or "")
        accepted(message)
        assert urls(message) == {}


# Texts that would mention a channel, link elsewhere, end a block of code, turn letters around or pass a limit.
HOSTILE = [
    "<!channel> <!here> <@U012AB3CD> <#C1>",
    "<https://evil.example|Approve>",
    "``` <!everyone> ```",
    "`*_~",
    "&lt;!channel&gt;",
    "a\u202eb\x00\x1b[31m",
    "\ud800",
    "",
    "\n\n\n",
    "😀" * 5000,
    "&" * 5000,
    "x" * 100_000,
    "line\n" * 5000,
]
TEXTS = st.sampled_from(HOSTILE) | st.text(max_size=40) | st.text(alphabet="<>&`*!@#|\n", min_size=1, max_size=4000)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(a=TEXTS, b=TEXTS, c=TEXTS, many=st.lists(TEXTS, max_size=60))
def test_slack_takes_the_blocks_whatever_a_text_holds_and_nobody_is_mentioned(a, b, c, many):
    ending = Ending("failed", [(a, b)] * len(many), many, many)
    for message in (success(a, b, (60, c)), failure(a, b, ending=ending), rollback(a, b, (c, a)), drill(a, (b, c))):
        accepted(message)
        raw = json.dumps([message.text, message.blocks], ensure_ascii=False)
        assert not re.search(r"<(?!$)", raw.replace("\\u003c", "<")), "an unescaped < begins a mention or a link"
        for text in (block["text"] for block in message.blocks if block["type"] == "section" and "text" in block):
            if text["type"] == "mrkdwn":
                assert re.fullmatch(r"`[^`]+`\n```[^`]+```", text["text"]), "a block of code was ended by somebody else"


def test_what_is_cut_is_not_cut_within_an_escape():
    for length in range(880, 910):
        text = failure(ending=Ending("failed", [("t", "x" * (length - 880) + "&" * 400)])).blocks[3]["text"]["text"]
        assert not re.search(r"&(?!amp;|lt;|gt;)", text), text[-40:]


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ([{"type": "divider"}], "no known type"),
        ([{"type": "header", "text": {"type": "mrkdwn", "text": "x", "verbatim": True}}], "a text is none of"),
        ([{"type": "header", "text": {"type": "plain_text", "text": "x" * 151, "emoji": True}}], "1 to 150"),
        ([{"type": "section", "fields": []}], "1 to 10"),
        ([{"type": "section", "text": {"type": "plain_text", "text": "", "emoji": True}}], "1 to 3000"),
        ([{"type": "actions", "elements": []}], "1 to 25"),
        ([{"type": "header", "text": {"type": "plain_text", "text": "x", "emoji": True}}] * 51, "at most 50"),
        ("x", "no list"),
    ],
)
def test_the_stand_in_refuses_what_slack_refuses(blocks, problem):
    assert problem in str(blocks_problem(blocks))
