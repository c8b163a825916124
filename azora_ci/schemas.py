"""JSON Schema validation of everything that crosses a job boundary. ``schemas/`` ships inside the wheel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from azora_ci.errors import BadInputError

_HERE = Path(__file__).resolve().parent


def schema_folder() -> Path:
    """Return the folder of the schemas: inside the installed package, or beside it in a checkout."""
    packaged = _HERE / "_schemas"
    return packaged if packaged.is_dir() else _HERE.parent / "schemas"


@cache
def load(name: str) -> dict[str, Any]:
    """Return the schema ``<name>.schema.json``. Raises FileNotFoundError when there is none."""
    document: dict[str, Any] = json.loads((schema_folder() / f"{name}.schema.json").read_text(encoding="utf-8"))
    return document


def problems(document: object, name: str) -> list[str]:
    """Return what is wrong with a document, each with its path (``backup.location: …``); empty when it is valid."""
    import jsonschema

    validator = _validator()(load(name), format_checker=jsonschema.FormatChecker())
    found = sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'.'.join(map(str, error.absolute_path)) or '(top level)'}: {error.message[:500]}" for error in found]


@cache
def _validator() -> Any:
    """Return the validator's class: JSON Schema's, with ``$`` at the end of a pattern as JSON Schema means it.

    There (ECMA-262) it is the end of the text; Python's lets one newline follow, and names become keys, tags and command lines.
    """
    import jsonschema

    def pattern(_validator: Any, wanted: str, text: object, _schema: Any) -> Iterator[Any]:
        strict = wanted[:-1] + r"\Z" if wanted.endswith("$") else wanted
        if isinstance(text, str) and not re.search(strict, text):
            yield jsonschema.ValidationError(f"{text!r} does not match {wanted!r}")

    extend = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]  # its stubs say nothing


def validate(document: object, name: str, *, where: str) -> None:
    """Raise BadInputError naming every problem and its path unless ``document`` is valid."""
    found = problems(document, name)
    if found:
        raise BadInputError(
            f"{where} does not fit its schema",
            what="\n".join(found[:20]),
            where=f"{where} (schema {name}.schema.json)",
            next_step="correct the named keys",
        )


def canonical(document: object) -> bytes:
    """Return canonical JSON: sorted keys, UTF-8, no needless space, final newline."""
    return (json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
