"""The one reader of JSON and TOML that come from outside: what could exhaust or confuse this process is refused with a sentence.

Python's own reader raises RecursionError for deep lists, ValueError for integers of 4,301 digits, takes NaN, reads 1e999 as infinity
and keeps the last of two equal keys; its reader of TOML shares all of that but the last. ``tests/core/test_documents.py`` forbids both,
and ``response.json()``, elsewhere. Pure.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from azora_ci.core.errors import AzoraError

MEBIBYTE = 1024 * 1024
_TEXT = re.compile(r'"(?:[^"\\]++|\\(?:.|\Z))*+(?:"|\Z)', re.DOTALL)  # matches at every quote, so that its time is linear
_NO_BRACKETS = re.compile(r"[^][{}]+")
_ALIKE = str.maketrans("{}", "[]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class UnreadableError(ValueError):
    """A document is not read: it is no JSON, or beyond a limit. The message says which, without the document's text."""


@dataclass(frozen=True)
class Limits:
    """The most that a document may have. ``unique_keys``: an object with two equal keys is refused."""

    size: int = 8 * MEBIBYTE  # bytes, inflated
    depth: int = 64  # lists and objects inside each other
    values: int = 200_000  # about 100 bytes of memory each
    digits: int = 32  # characters of one number: 64 bits have up to 20, a float 24
    unique_keys: bool = True


LIMITS = Limits()


def read_json(document: bytes | bytearray | str, limits: Limits = LIMITS) -> Any:
    """Return the value of a JSON document in UTF-8. Raises UnreadableError."""
    if len(document) > limits.size:
        raise UnreadableError(f"{len(document)} bytes, and at most {limits.size} are read")
    try:
        text = document if isinstance(document, str) else document.decode("utf-8-sig")
        _check_skeleton(_TEXT.sub('""', text), limits)
        value = json.loads(
            text,
            object_pairs_hook=_unique if limits.unique_keys else None,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
        if _SURROGATE.search(text):  # half a character cannot be written to any log or document
            json.dumps(value, ensure_ascii=False).encode()
    except UnreadableError:
        raise
    except ValueError as error:  # of json, and UnicodeError
        raise UnreadableError(f"no JSON: {error}"[:300]) from error
    return value


def read_file(path: Path, limits: Limits = LIMITS) -> Any:
    """Return the value of a JSON file, of which no more is read than the limit. Raises UnreadableError, OSError."""
    return read_json(content(path, limits), limits)


def content(path: Path, limits: Limits = LIMITS) -> bytes:
    """Return the bytes of a file, one more than the limit at most, which a reader then refuses. Raises OSError."""
    with path.open("rb") as file:
        return file.read(limits.size + 1)


def read_toml(document: bytes | str, limits: Limits = LIMITS) -> dict[str, Any]:
    """Return the tables of a TOML document in UTF-8, whose numbers are finite. Raises UnreadableError."""
    if len(document) > limits.size:
        raise UnreadableError(f"{len(document)} bytes, and at most {limits.size} are read")
    try:
        tables = tomllib.loads(document if isinstance(document, str) else document.decode("utf-8"), parse_float=_finite)
    except RecursionError:
        raise _too_deep(limits) from None
    except UnreadableError:
        raise
    except ValueError as error:  # of tomllib, UnicodeError, and of an integer with thousands of digits
        raise UnreadableError(str(error)[:300]) from error
    level: list[Any] = [tables]
    for _ in range(limits.depth + 1):
        level = [item for value in level for item in _items(value)]
    if level:
        raise _too_deep(limits)
    return tables


def _items(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def inflated(body: bytes, encoding: str | None, limits: Limits = LIMITS) -> bytes:
    """Return the body of an HTTP answer without its content encoding. Raises UnreadableError beyond the limit and for other encodings."""
    if encoding in {None, "", "identity"}:
        if len(body) > limits.size:
            raise UnreadableError(f"more than {limits.size} bytes, and no more are read")
        return body
    if encoding not in {"gzip", "x-gzip"}:
        raise UnreadableError(f"content encoding {encoding!r}, and only gzip is read")
    try:
        engine = zlib.decompressobj(wbits=31)
        content = engine.decompress(body, limits.size + 1)
    except zlib.error as error:
        raise UnreadableError(f"no gzip: {error}") from error
    if len(content) > limits.size:
        raise UnreadableError(f"{len(body)} bytes of gzip hold more than {limits.size} bytes, and no more are read")
    if not engine.eof:
        raise UnreadableError("the gzip is cut")
    return content


@contextmanager
def expected_shape(explained: Callable[[str], AzoraError]) -> Iterator[None]:
    """Turn what Python raises where a document has another shape than expected into the error that ``explained`` makes of its text.

    Only for blocks that take a document apart: elsewhere these exceptions are bugs, and must be seen as such.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise explained(f"{type(error).__name__}: {error}"[:300]) from error


def _check_skeleton(skeleton: str, limits: Limits) -> None:
    """Check a document whose texts are empty. Raises UnreadableError."""
    values = skeleton.count(",")
    if values > limits.values:
        raise UnreadableError(f"{values} values, and at most {limits.values} are read")
    if re.search(rf"[0-9.eE+-]{{{limits.digits + 1}}}", skeleton):
        raise UnreadableError(f"a number of more than {limits.digits} characters")
    brackets = _NO_BRACKETS.sub("", skeleton).translate(_ALIKE)
    depth = 0
    while brackets:
        depth += 1
        if depth > limits.depth:
            raise _too_deep(limits)
        shorter = brackets.replace("[]", "")  # the innermost ones
        if len(shorter) == len(brackets):
            raise UnreadableError("no JSON: a bracket is not closed, or not opened")
        brackets = shorter


def _too_deep(limits: Limits) -> UnreadableError:
    return UnreadableError(f"lists and objects are nested deeper than {limits.depth}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise UnreadableError("a key stands twice in one object")
    return document


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise UnreadableError("nan is no number" if math.isnan(value) else "a number is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise UnreadableError(f"{name} is no number of JSON")
