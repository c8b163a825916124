"""Every value of a record under its JSON pointer, so that a link can lead to each one. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from azora_ci.core import schemas
from azora_ci.record.pages import html


@dataclass(frozen=True)
class Leaf:
    """A value. ``pointer``: as in RFC 6901; ``text``: the value as JSON writes it; None: it holds others, which follow."""

    pointer: str
    text: str | None


def leaves(value: Any, pointer: str = "") -> Iterator[Leaf]:
    """Yield everything inside a document, in its order: lists and objects that hold something before what they hold."""
    if isinstance(value, dict | list) and value:
        if pointer:
            yield Leaf(pointer, None)
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from leaves(part, f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}")
    else:
        yield Leaf(pointer, value if isinstance(value, str) else schemas.canonical(value).decode().strip())


def fragment(pointer: str) -> str:
    """Return the part of a URL, with its #, that leads to a value on a page with all of them."""
    return f"#{quote(pointer, safe='/')}"


def page(record: dict[str, Any], location: str, sha256: str, back: tuple[str, str]) -> str:
    """Return a page with every value of a record. ``back``: address and text of the link to where the reader comes from."""
    title = f"Record of {record['deployment_id']}, value by value"
    return html.render("leaves.html", title, leaves=list(leaves(record)), location=location, sha256=sha256, back=back)
