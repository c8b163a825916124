"""Parts of a message in Slack's Block Kit, within Slack's limits whatever a text holds. Pure.

Limits: https://docs.slack.dev/reference/block-kit/blocks/ and …/block-kit/composition-objects/text-object/. A text that somebody else
wrote stays text: it stands in plain text or as code, and ``& < >`` are escaped, so that nothing in it mentions a channel or links.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

Block = dict[str, Any]

# Most characters, counted in UTF-16 units, which are never fewer than Slack counts.
HEADER = 150
SECTION = 3000
BUTTON = 75
URL = 3000
FIELDS = 10  # of one section; a field may have 2,000 characters
SHORT = 300  # of a fact or a line, before what is escaped: what people read at a glance
QUOTED = 900  # of an error's text: a message of about 13,000 characters is refused as msg_blocks_too_long
EMPTY = "–"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # the last ones turn the order of letters


def escape(text: str) -> str:
    """Return the text with the three special characters of Slack's text format escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def header(text: str) -> Block:
    """Return a headline."""
    return {"type": "header", "text": _plain_text(_within(_line(text), HEADER))}


def facts(pairs: Mapping[str, str]) -> Block:
    """Return a section with names and values in two columns; the names are ours."""
    fields = [_mrkdwn(f"*{name}*\n{_code(value)}") for name, value in list(pairs.items())[:FIELDS]]
    return {"type": "section", "fields": fields}


def lines(texts: Iterable[str]) -> Block:
    """Return a section of lines, of which those are left out that would not fit."""
    text = ""
    for line in texts:
        addition = f"\n{_within(_line(line), SHORT)}" if text else _within(_line(line), SHORT)
        if _length(text + addition) > SECTION - 2:
            text += "\n…"
            break
        text += addition
    return {"type": "section", "text": _plain_text(text or EMPTY)}


def quoted(title: str, text: str) -> Block:
    """Return a section with an error's text line by line, below its title."""
    block = _within(_clean(text).replace("`", "'").strip() or EMPTY, QUOTED)
    return {"type": "section", "text": _mrkdwn(f"{_code(title)}\n```{block}```")}


def buttons(urls: Mapping[str, str | None]) -> list[Block]:
    """Return a block with a button for each address that a browser can open; none without any."""
    elements = [
        {"type": "button", "text": _plain_text(_within(name, BUTTON)), "url": url, "action_id": f"open-{number}"}
        for number, (name, url) in enumerate(urls.items())
        if url and _opens(url)
    ]
    return [{"type": "actions", "elements": elements}] if elements else []


def _plain_text(text: str) -> Block:
    return {"type": "plain_text", "text": text, "emoji": True}


def _mrkdwn(text: str) -> Block:
    return {"type": "mrkdwn", "text": text, "verbatim": True}  # otherwise Slack makes links of addresses and names in it


def _code(text: str) -> str:
    return f"`{_within(_line(text).replace('`', chr(39)), SHORT)}`"


def _line(text: str) -> str:
    return " ".join(_clean(text).split()) or EMPTY


def _clean(text: str) -> str:
    return _CONTROL.sub(" ", text.encode("utf-8", "replace").decode())


def _within(text: str, most: int) -> str:
    """Return the escaped text; a longer one is cut, but not within what stands for one character."""
    if _length(escape(text)) <= most:
        return escape(text)
    kept, left = "", most - 1
    for character in text:
        left -= _length(escape(character))
        if left < 0:
            break
        kept += escape(character)
    return f"{kept}…"


def _length(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _opens(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and len(url) <= URL and not re.search(r"[\s<>\"|]", url)
