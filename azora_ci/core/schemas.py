"""JSON Schema validation of all documents that one job passes to another. ``schemas/`` ships inside the wheel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from azora_ci.core import documents
from azora_ci.core.errors import BadInputError

_HERE = Path(__file__).resolve().parent.parent


def schema_folder() -> Path:
    """Return the folder of the schemas: inside the installed package, or next to the package in a checkout."""
    packaged = _HERE / "_schemas"
    return packaged if packaged.is_dir() else _HERE.parent / "schemas"


@cache
def load(name: str) -> dict[str, Any]:
    """Return the schema ``<name>.schema.json``. Raises FileNotFoundError when there is none."""
    document: dict[str, Any] = documents.read_file(schema_folder() / f"{name}.schema.json")
    return document


def problems(document: object, name: str) -> list[str]:
    """Return every violation of the schema with its path (``backup.location: …``); empty when the document is valid."""

    validator = _validator()(load(name), format_checker=_formats())
    errors = sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'.'.join(map(str, error.absolute_path)) or '(top level)'}: {error.message[:500]}" for error in errors]


@cache
def _validator() -> Any:
    """Return the validator class of JSON Schema in which ``$`` at the end of a pattern matches only the end of the text.

    JSON Schema (ECMA-262) demands that; Python's ``$`` also matches before a final newline. Names become keys, tags and command lines.
    """
    import jsonschema

    def pattern(_validator: Any, regex: str, text: object, _schema: Any) -> Iterator[Any]:
        strict = regex[:-1] + r"\Z" if regex.endswith("$") else regex
        if isinstance(text, str) and not re.search(strict, text):
            yield jsonschema.ValidationError(f"{text!r} does not match {regex!r}")

    extend = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]  # its stubs say nothing


@cache
def _formats() -> Any:
    """Return the checker of formats in which a date-time is a moment that exists; jsonschema's own needs another package to see that."""
    import jsonschema

    checker = jsonschema.FormatChecker()

    @checker.checks("date-time", raises=ValueError)
    def _is_moment(text: object) -> bool:
        return not isinstance(text, str) or datetime.fromisoformat(text).tzinfo is not None

    return checker


def validate(document: object, name: str, *, where: str) -> None:
    """Raise BadInputError with the first 20 violations and their paths unless ``document`` is valid."""
    errors = problems(document, name)
    if errors:
        raise BadInputError(
            f"{where} does not fit its schema",
            what="\n".join(errors[:20]),
            where=f"{where} (schema {name}.schema.json)",
            next_step="correct the named keys",
        )


def read(data: bytes, name: str, *, where: str, limits: documents.Limits = documents.LIMITS) -> Any:
    """Return the document in these bytes. Raises BadInputError when they are beyond a limit, no JSON, or do not fit the schema."""
    try:
        document = documents.read_json(data, limits)
    except documents.UnreadableError as error:
        raise BadInputError(
            f"{where} cannot be read",
            what=str(error),
            where=where,
            next_step="find out who wrote it; let the job that owns it write it again",
        ) from error
    validate(document, name, where=where)
    return document


def canonical(document: object) -> bytes:
    """Return canonical JSON: sorted keys, UTF-8, no white space between tokens, final newline."""
    return (json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
