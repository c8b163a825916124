"""HTML pages: one self-contained file each, which loads nothing and in which foreign text stays text. Pure.

Templates lie beside this file. Their values are escaped (autoescape); the only markup that is not comes from our own files and from
``svg``. The policy of a page allows its own style and script by their hashes, and nothing else: no style attributes, no network.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from azora_ci.record.pages.deployment import duration

FOLDER = Path(__file__).parent


def render(template: str, title: str, *, script: str | None = None, **values: Any) -> str:
    """Return a page. ``template``: its path below this folder, which extends ``base.html``; ``script``: that of a script of ours."""
    style, code = _text("style.css"), _text(script) if script else ""
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src '{_hash(style)}'"
    policy += f"; script-src '{_hash(code)}'" if code else ""
    own = {"style": Markup(style), "script": Markup(code), "policy": Markup(policy)}  # noqa: S704 - our own files and their hashes
    return _environment().get_template(template).render(title=title, **own, **values)


def fragment(template: str, **values: Any) -> Markup:
    """Return a part of a page. ``template``: its path below this folder."""
    return Markup(_environment().get_template(template).render(**values))  # noqa: S704 - made with autoescape


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        moment=moment,
        clock=clock,
        share=share,
        count=count,
        size=size,
        duration=duration,
        milliseconds=milliseconds,
        link=link,
        plural=plural,
    )
    return environment


@cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# --- values as text ---------------------------------------------------------------------------------------------------------


def moment(timestamp: str | None) -> Markup:
    """Return an RFC 3339 time as a ``time`` element: 1 Dec 2026, 04:20:55 UTC; – for None, and what is no time as it is."""
    return _time(timestamp, "%e %b %Y, %H:%M:%S UTC")


def clock(timestamp: str | None) -> Markup:
    """Return the time of day of an RFC 3339 time as a ``time`` element: 04:20:55."""
    return _time(timestamp, "%H:%M:%S")


def _time(timestamp: str | None, form: str) -> Markup:
    if timestamp is None:
        return Markup("–")
    try:
        text = datetime.fromisoformat(timestamp).astimezone(UTC).strftime(form).strip()
    except (ValueError, OverflowError):
        return escape(timestamp)
    return Markup(f'<time datetime="{escape(timestamp)}">{text}</time>')  # noqa: S704 - the text has digits and names of months


def share(value: float | None) -> str:
    """Return a share as percent: 0 %, 0.42 %, 12 %; – for None."""
    if value is None:
        return "–"
    percent = value * 100
    digits = 0 if percent == 0 or abs(percent) >= 10 else 2 if abs(percent) < 1 else 1
    return f"{percent:.{digits}f} %"


def count(value: float | None) -> str:
    """Return a number with commas between thousands; – for None."""
    return "–" if value is None else f"{value:,}"


def size(value: float | None) -> str:
    """Return bytes in the unit that people read: 812 B, 1.9 MiB; – for None."""
    if value is None:
        return "–"
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while value >= 1024 and power < len(units) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.0f} B" if power == 0 else f"{value:.1f} {units[power]}"


def milliseconds(value: float | None) -> str:
    """Return milliseconds without digits nobody needs: 4.5 ms, 120 ms; – for None."""
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def plural(number: int, word: str, many: str | None = None) -> str:
    """Return a number with its word: 1 table, 7 tables."""
    return f"{count(number)} {word if number == 1 else many or word + 's'}"


def link(address: Any, text: str | None = None) -> Markup:
    """Return a link to an address on the web. Any other address is text: it may be a script."""
    if not isinstance(address, str) or not address.startswith(("https://", "http://")):
        return escape(text if text is not None else "–" if address is None else address)
    return Markup('<a href="{}" rel="noreferrer">{}</a>').format(address, address if text is None else text)
